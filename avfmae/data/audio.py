"""From waveforms to the model's audio: Kaldi log-mel filterbanks, normalised; a batch at a time, on any device."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from avfmae.data.config import SAMPLE_RATE
from avfmae_kernels.device import kind

MELS = 128
AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974
SHORTEST = 400  # samples: one 25 ms window
HOP = 160  # samples from one window to the next
FFT = 512


def padded(sounds: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Sounds (samples,) as one batch (B, S) float32, zeros behind the shorter ones, and their lengths (B,)."""
    lengths = torch.tensor([len(sound) for sound in sounds])
    return torch.nn.utils.rnn.pad_sequence([torch.from_numpy(sound) for sound in sounds], batch_first=True), lengths


def roll_mag(sound: Tensor, lengths: Tensor, shift: Tensor, gain: Tensor) -> Tensor:
    """Pre-training augmentation: each sound (B, S), of its length, is rolled by ``shift`` samples and multiplied by ``gain``."""
    place = torch.arange(sound.shape[1], device=sound.device)
    rolled = sound.gather(1, torch.where(place < lengths[:, None], (place - shift[:, None]) % lengths[:, None], place))
    return rolled * gain[:, None]


def model_inputs(sound: Tensor, lengths: Tensor, frames: int = 256) -> Tensor:
    """Kaldi filterbanks of a batch, padded with zeros or cut to ``frames``, then normalised; on any device.

    (x − mean)/(2·std) with the AudioSet constants. Padding comes before normalisation, as the released weights expect, so it
    enters the model as +0.467.

    Args:
        sound: (B, S) float32, 16 kHz mono. lengths: (B,) int64, samples of each, at least 400; what follows is ignored.

    Returns:
        (B, 1, frames, 128) float32.
    """
    features = filterbank(sound, lengths)[:, :frames]
    missing = frames - features.shape[1]
    features = F.pad(features, (0, 0, 0, missing)) if missing > 0 else features
    return ((features - AUDIOSET_MEAN) / (2 * AUDIOSET_STD))[:, None]


def filterbank(sound: Tensor, lengths: Tensor) -> Tensor:
    """Kaldi's log-mel filterbank of a batch (B, S): (B, frames, 128), zero from each sound's last frame on.

    frames = 1 + (samples − 400) // 160. The sound's mean is removed. Windows of 25 ms every 10 ms: less their mean,
    pre-emphasised (x_t − 0.97·x_{t−1}), under a Hann window; the power spectrum through 128 triangles that are even on the mel
    scale; the logarithm, of 2^-23 at least.
    """
    if sound.ndim != 2 or sound.shape[1] < SHORTEST:
        raise ValueError(f"sound: got shape {tuple(sound.shape)}, expected (B, samples) of at least {SHORTEST}")
    if kind(sound.device) == "cpu":  # a sound at a time: what is computed of it stays in the cache
        return torch.cat([_filterbank(*one) for one in zip(sound.split(1), lengths.split(1), strict=True)])
    return _filterbank(sound, lengths)


def _filterbank(sound: Tensor, lengths: Tensor) -> Tensor:
    inside = torch.arange(sound.shape[1], device=sound.device) < lengths[:, None]
    mean = torch.where(inside, sound, 0).sum(1, dtype=torch.float64) / lengths
    # In float64 up to the power: the quietest bands lie 90 dB below the loudest, where float32 is wrong in the third digit.
    sound = torch.where(inside, sound - mean[:, None], 0)
    windows = sound.unfold(1, SHORTEST, HOP)  # (B, frames, 400)
    windows = windows - windows.mean(-1, keepdim=True)
    before = torch.cat([windows[..., :1], windows[..., :-1]], -1)
    windows = (windows - 0.97 * before) * torch.hann_window(SHORTEST, periodic=False, dtype=windows.dtype, device=sound.device)
    spectrum = torch.fft.rfft(windows, n=FFT)[..., :-1]  # the triangles end where the last bin lies
    power = (spectrum.real.square() + spectrum.imag.square()).float()
    logs = (power @ mel_triangles(sound.device)).clamp(min=torch.finfo(torch.float32).eps).log()
    valid = torch.arange(logs.shape[1], device=sound.device) < 1 + (lengths[:, None] - SHORTEST) // HOP
    return torch.where(valid[..., None], logs, 0)


@lru_cache(maxsize=8)
def mel_triangles(device: torch.device) -> Tensor:
    """(256, 128): the weight of each bin of the spectrum in each band, whose corners are even on the mel scale 1127·ln(1 + f/700)
    from 20 Hz to 8 kHz."""

    def mel(hertz: Tensor | float) -> Tensor:
        return 1127 * (1 + torch.as_tensor(hertz, dtype=torch.float64) / 700).log()

    corners = torch.linspace(float(mel(20.0)), float(mel(SAMPLE_RATE / 2)), MELS + 2, dtype=torch.float64)
    bins = mel(torch.arange(FFT // 2) * (SAMPLE_RATE / FFT))[:, None]
    up = (bins - corners[:-2]) / (corners[1:-1] - corners[:-2])
    down = (corners[2:] - bins) / (corners[2:] - corners[1:-1])
    return torch.minimum(up, down).clamp(min=0).float().to(device)
