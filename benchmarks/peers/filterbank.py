"""Kaldi's log-mel filterbank by a library, one clip at a time: what the published loaders use, and the measure for ours."""

import numpy as np

from avfmae.data.audio import MELS, SHORTEST
from avfmae.data.config import SAMPLE_RATE
from avfmae.extras import need


def fbank(waveform: np.ndarray) -> np.ndarray:
    """128 bins, a 25 ms Hann window every 10 ms, preemphasis 0.97, no dither.

    The waveform's mean is removed first, and each window's again.

    Args:
        waveform: (samples,) float32, 16 kHz mono, at least 400 samples.

    Returns:
        (frames, 128) float32; frames = 1 + (samples − 400) // 160.
    """
    if waveform.ndim != 1 or len(waveform) < SHORTEST:
        raise ValueError(f"waveform: got shape {waveform.shape}, expected (samples,) of at least {SHORTEST}")
    knf = need("kaldi_native_fbank", "bench", "the published filterbank")
    options = knf.FbankOptions()
    options.frame_opts.samp_freq = SAMPLE_RATE
    options.frame_opts.dither = 0.0
    options.frame_opts.window_type = "hanning"
    options.mel_opts.num_bins = MELS
    options.htk_compat = True
    options.use_energy = False
    computer = knf.OnlineFbank(options)
    computer.accept_waveform(SAMPLE_RATE, (waveform - waveform.mean()).astype(np.float32).tolist())
    computer.input_finished()
    return np.stack([computer.get_frame(i) for i in range(computer.num_frames_ready)])
