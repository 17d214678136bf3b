"""Mask sampling: the published Philox vectors, C++ against NumPy bit for bit, and what a draw must be like."""

import numpy as np
import pytest

from avfmae_kernels import choose_tokens, random_bits
from avfmae_kernels.compiled import MISSING
from avfmae_kernels.sample_masks import reference


@pytest.mark.parametrize(
    ("counter", "key", "want"),
    [  # the known answers of Random123 for philox4x32 with ten rounds
        ((0, 0, 0, 0), 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, 2**64 - 1, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), 0x299F31D0A4093822, (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
    ids=["zeros", "ones", "pi"],
)  # fmt: skip
def test_philox_known_answers(counter, key, want):
    assert tuple(reference.philox4x32(np.array(counter, np.uint64), key).tolist()) == want


@pytest.mark.skipif(MISSING["host"] is not None, reason=str(MISSING["host"]))
@pytest.mark.parametrize("count", [1, 4, 5, 101])
def test_compiled_and_numpy_agree_bit_for_bit(count):
    from avfmae_kernels import _host

    clips = np.array([0, 1, 7, 2**33 + 5, 2**64 - 1], np.uint64)
    for seed, epoch, stream in ((0, 0, 0), (2**64 - 1, 2**32 - 1, 255), (12345, 7, 3)):
        given = {"seed": seed, "epoch": epoch, "clips": clips, "stream": stream}
        assert np.array_equal(_host.random_bits(**given, count=count), reference.random_bits(**given, count=count))
        groups = np.arange(2 * count).reshape(2, count)
        for keep in (0, 1, count):
            assert np.array_equal(
                _host.choose_tokens(**given, groups=groups, keep=keep), reference.choose_tokens(**given, groups=groups, keep=keep)
            )


def test_a_clip_draws_the_same_whatever_batch_it_is_in():
    together = choose_tokens(3, 1, np.arange(50), 0, np.arange(100)[None], 10)
    alone = [choose_tokens(3, 1, np.array([i]), 0, np.arange(100)[None], 10)[0] for i in range(50)]
    assert np.array_equal(together, alone)


@pytest.mark.parametrize("changed", ["seed", "epoch", "stream"])
def test_every_key_matters(changed):
    given = {"seed": 0, "epoch": 0, "stream": 0}
    a, b = (random_bits(clips=np.arange(4), count=64, **(given | {changed: v})) for v in (0, 1))
    assert (a != b).mean() > 0.99


def test_choice_is_uniform():
    chosen = choose_tokens(0, 0, np.arange(20_000), 0, np.arange(20).reshape(2, 10), 3)
    counts = np.bincount(chosen.reshape(-1), minlength=20)
    assert chosen.shape == (20_000, 6) and (np.diff(chosen, axis=1) > 0).all()
    assert np.abs(counts / 6000 - 1).max() < 0.05


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": -1}, "seed: got -1"),
        ({"stream": 256}, "stream: got 256"),
        ({"keep": 11}, "keep: got 11"),
        ({"clips": np.array([-1])}, "clips: got"),
        ({"clips": np.zeros((2, 2), int)}, "clips: got"),
        ({"groups": np.arange(10)}, "groups: got shape"),
    ],
    ids=str,
)
def test_wrong_arguments_are_named(change, words):
    given = {"seed": 0, "epoch": 0, "clips": np.arange(2), "stream": 0, "groups": np.arange(10)[None], "keep": 2} | change
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        choose_tokens(**given)
