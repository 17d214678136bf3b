"""The filterbank's golden numbers, by every library that is installed."""

import golden
import numpy as np
import pytest
from safetensors.numpy import load_file

from avfmae.data.audio import fbank, fbank_backend, model_input, roll_mag


@pytest.mark.parametrize("clip", ["cremad", "grid"])
@pytest.mark.parametrize("backend", ["kaldi-native-fbank", "torchaudio"])
def test_golden_filterbank(clip, backend):
    if backend == "torchaudio" and fbank_backend() != "torchaudio":
        pytest.skip("torchaudio does not import here")
    numbers = load_file(golden.DATA / "fbank.safetensors")
    features = fbank(numbers[f"{clip}.waveform"][0], backend)
    assert features.shape == numbers[f"{clip}.fbank"].shape
    assert (
        golden.relative(features, numbers[f"{clip}.fbank"]) <= 1e-5
        and np.abs(features - numbers[f"{clip}.fbank"]).max() < 1e-3
    )


@pytest.mark.parametrize("clip", ["cremad", "grid"])
def test_golden_model_input(clip):
    numbers = load_file(golden.DATA / "fbank.safetensors")
    x = model_input(numbers[f"{clip}.waveform"][0])
    assert x.shape == (1, 256, 128) and golden.relative(x[0], numbers[f"{clip}.input"]) <= 1e-5
    if clip == "cremad":
        assert np.allclose(x[0, -1], 0.46703, atol=1e-4)  # padding came before normalisation


def test_roll_mag_really_rolls():
    wave = np.arange(1000, dtype=np.float32)
    rolled, scaled = roll_mag(wave, np.random.default_rng(0)), roll_mag(wave, np.random.default_rng(0), roll=False)
    assert 0.5 < scaled[999] / wave[999] < 1.5 and scaled.argmax() == 999
    assert rolled.argmax() != 999 and sorted(rolled / rolled.max()) == pytest.approx(sorted(wave / wave.max()))


def test_a_waveform_too_short_is_named():
    with pytest.raises(ValueError, match=r"waveform: got shape \(399,\)"):
        fbank(np.zeros(399, np.float32))
