"""From a waveform to the audio model input: Kaldi log-mel filterbank, normalised."""

from functools import lru_cache

import numpy as np

from avfmae.data.media import SAMPLE_RATE

MELS = 128
AUDIOSET_MEAN, AUDIOSET_STD = -4.2677393, 4.5689974
SHORTEST = 400  # samples: one 25 ms window


@lru_cache(maxsize=1)
def fbank_backend() -> str:
    """``"torchaudio"`` where it imports, else ``"kaldi-native-fbank"``; both give the same numbers."""
    try:
        import torchaudio.compliance.kaldi  # noqa: F401
    except (ImportError, OSError):
        return "kaldi-native-fbank"
    return "torchaudio"


def fbank(waveform: np.ndarray, backend: str | None = None) -> np.ndarray:
    """Kaldi-compatible log-mel filterbank: 128 bins, 25 ms Hanning window every 10 ms, preemphasis 0.97, no dither.

    The waveform's mean is removed first, and each window's again.

    Args:
        waveform: (samples,) float32, 16 kHz mono, at least 400 samples.

    Returns:
        (frames, 128) float32; frames = 1 + (samples − 400) // 160.
    """
    if waveform.ndim != 1 or len(waveform) < SHORTEST:
        raise ValueError(f"waveform: got shape {waveform.shape}, expected (samples,) of at least {SHORTEST}")
    waveform = (waveform - waveform.mean()).astype(np.float32)
    return {"torchaudio": _torchaudio, "kaldi-native-fbank": _kaldi_native}[backend or fbank_backend()](waveform)


def _torchaudio(waveform: np.ndarray) -> np.ndarray:
    import torch
    import torchaudio.compliance.kaldi as kaldi

    return kaldi.fbank(torch.from_numpy(waveform)[None], htk_compat=True, sample_frequency=SAMPLE_RATE, use_energy=False,
                       window_type="hanning", num_mel_bins=MELS, dither=0.0, frame_shift=10).numpy()  # fmt: skip


def _kaldi_native(waveform: np.ndarray) -> np.ndarray:
    import kaldi_native_fbank as knf

    options = knf.FbankOptions()
    options.frame_opts.samp_freq = SAMPLE_RATE
    options.frame_opts.dither = 0.0
    options.frame_opts.window_type = "hanning"
    options.mel_opts.num_bins = MELS
    options.htk_compat = True
    options.use_energy = False
    computer = knf.OnlineFbank(options)
    computer.accept_waveform(SAMPLE_RATE, waveform.tolist())
    computer.input_finished()
    return np.stack([computer.get_frame(i) for i in range(computer.num_frames_ready)])


def roll_mag(waveform: np.ndarray, rng: np.random.Generator, roll: bool = True) -> np.ndarray:
    """Pre-training augmentation: a random circular shift and a gain of Beta(10, 10) + 0.5.

    ``roll=False`` leaves the shift out, as the released code does in effect (it rolls an axis of length one).
    """
    if roll:
        waveform = np.roll(waveform, rng.integers(len(waveform)))
    return (waveform * (rng.beta(10, 10) + 0.5)).astype(np.float32)


def model_input(waveform: np.ndarray, frames: int = 256) -> np.ndarray:
    """(samples,) 16 kHz mono -> (1, frames, 128) float32: the filterbank padded with zeros or cut, then normalised.

    (x − mean)/(2·std) with the AudioSet constants. Padding comes before normalisation, as the released weights expect,
    so it enters the model as +0.467.
    """
    x = np.zeros((frames, MELS), np.float32)
    features = fbank(waveform)[:frames]
    x[: len(features)] = features
    return ((x - AUDIOSET_MEAN) / (2 * AUDIOSET_STD)).astype(np.float32)[None]
