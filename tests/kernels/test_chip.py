"""What a chip cannot run is not chosen, and the reason is said: asked of chips that are not there."""

from unittest import mock

import pytest
import torch

from avfmae_kernels import chip, dispatch

SMALL, LARGE = (86, 89, 120), (80, 90, 100)
DIER = torch.empty(4, 80, 3 * 512, dtype=torch.bfloat16, device="meta"), 8  # DiER's 80 tokens
GPU = torch.device("cuda", 0)


def pretended(capability):
    """Inside, every GPU is taken for one of this compute capability."""
    return mock.patch.object(chip, "compute_capability", torch.compiler.assume_constant_result(lambda index: capability))


@pytest.fixture
def with_all(monkeypatch):
    """As where the package has CUDA kernels and Triton, with CUDA's first."""
    for op in ("region_attention", "region_attention_backward"):
        monkeypatch.setitem(dispatch.AUTOMATIC, (op, "cuda"), ("cuda", "triton", "reference"))


@pytest.mark.parametrize("capability", [*SMALL, *LARGE])
def test_eighty_tokens_run_on_every_chip(with_all, capability):
    with pretended(capability):
        assert dispatch.choose("region_attention", GPU, DIER) == ("triton" if capability in SMALL else "cuda")
    reason = chip.why_not("region_attention", "cuda", capability, DIER)
    assert reason is None if capability in LARGE else "needs 128 KiB of shared memory" in reason and reason.endswith("has 99")
    assert chip.why_not("region_attention", "triton", capability, DIER) is None


def test_short_sequences_run_everywhere(with_all):
    qkv, grad = (torch.empty(8, 64, n * 640, dtype=torch.float16, device="meta") for n in (3, 1))
    for capability in SMALL + LARGE:
        with pretended(capability):
            assert dispatch.choose("region_attention", GPU, (qkv, 8)) == "cuda"
            assert dispatch.choose("region_attention_backward", GPU, (grad, qkv, 8, True)) == "cuda"


def test_chips_without_bfloat16_get_the_reference(with_all):
    with pretended(75):
        assert dispatch.choose("region_attention", GPU, DIER) == "reference"
    assert "compute capability 8.0 or later, and this GPU has 7.5" in chip.why_not("region_attention", "triton", 75)


def test_float32_gradients_of_long_sequences_are_not_tritons(with_all):
    """They need more registers than any chip has."""
    qkv, grad = (torch.empty(4, 101, n * 512, device="meta") for n in (3, 1))
    with pretended(90):
        assert dispatch.choose("region_attention", GPU, (qkv, 8)) == "cuda"
        assert dispatch.choose("region_attention_backward", GPU, (grad, qkv, 8, True)) == "cuda"
    with pretended(86):
        assert dispatch.choose("region_attention_backward", GPU, (grad, qkv, 8, True)) == "cuda"  # 80 KiB of logits
    assert "do not fit the registers" in chip.why_not("region_attention_backward", "triton", 90, (grad, qkv, 8, True))
    assert chip.why_not("region_attention_backward", "triton", 90, (grad.bfloat16(), qkv.bfloat16(), 8, True)) is None
    short = torch.empty(4, 32, 3 * 512, device="meta")
    assert chip.why_not("region_attention_backward", "triton", 86, (grad[:, :32], short, 8, True)) is None


@pytest.mark.parametrize(
    ("queries", "keys", "D", "dtype", "op", "runs"),
    [
        (480, 80, 64, torch.bfloat16, "cross_attention_backward", True),
        (480, 80, 64, torch.float32, "cross_attention_backward", False),
        (480, 80, 64, torch.float32, "cross_attention", False),
        (64, 88, 64, torch.float32, "cross_attention", False),
        (88, 24, 80, torch.float32, "cross_attention_backward", False),
        (88, 24, 64, torch.float32, "cross_attention_backward", True),
        (8, 800, 8, torch.float32, "cross_attention_backward", True),
        (128, 128, 128, torch.bfloat16, "cross_attention", False),
    ],
)
def test_tiles_that_do_not_fit_the_registers_are_not_tritons(queries, keys, D, dtype, op, runs):
    q, kv = torch.empty(2, queries, 4 * D, dtype=dtype, device="meta"), torch.empty(2, keys, 8 * D, dtype=dtype, device="meta")
    args = (q, q, kv, 4, True) if op.endswith("_backward") else (q, kv, 4)
    assert (chip.why_not(op, "triton", 90, args) is None) == runs


@pytest.mark.parametrize(
    ("queries", "keys", "D", "dtype", "runs"),
    [
        (80, 8, 64, torch.bfloat16, True),
        (8, 800, 32, torch.float16, True),
        (17, 17, 64, torch.bfloat16, False),
        (80, 8, 80, torch.bfloat16, False),
        (80, 8, 64, torch.float32, False),
    ],
)
def test_warps_attend_where_one_side_is_short(queries, keys, D, dtype, runs):
    q, kv = torch.empty(2, queries, 4 * D, dtype=dtype, device="meta"), torch.empty(2, keys, 8 * D, dtype=dtype, device="meta")
    reasons = [
        chip.why_not("cross_attention", "cuda", 80, (q, kv, 4)),
        chip.why_not("cross_attention_backward", "cuda", 80, (q, q, kv, 4, True)),
    ]
    assert [reason is None for reason in reasons] == [runs, runs] and (runs or "at most 16 rows of one side" in reasons[0])
    apart = torch.empty(2, queries, 4 * D + 4, dtype=dtype, device="meta")[..., : 4 * D]
    assert chip.why_not("cross_attention", "cuda", 80, (apart, kv, 4))


def test_an_implementation_asked_for_by_name_says_why_it_cannot_run(monkeypatch):
    monkeypatch.setattr(dispatch, "why_not", lambda op, implementation, device: None)  # as with everything built
    with pretended(89), dispatch.use("cuda"), pytest.raises(RuntimeError, match="'cuda' was asked for, but needs 128 KiB"):
        dispatch.choose("region_attention", GPU, DIER)


def test_large_patches_are_not_the_cuda_losss():
    pred = torch.empty(2, 3, 3 * 4 * 64 * 64, device="meta")
    assert "193 KiB" in chip.why_not("masked_patch_loss", "cuda", 80, (pred,))
    assert chip.why_not("masked_patch_loss", "cuda", 90, (pred,)) is None


def test_an_unknown_chip_is_taken_for_a_small_one():
    assert chip.shared_memory(130) == chip.shared_memory(120) == 99 * 1024


def test_torch_compile_traces_the_choice(with_all):
    """The chip is a constant of what is traced; nothing of it breaks the graph."""

    def chosen(x, qkv):
        return x + (1 if dispatch.choose("region_attention", GPU, (qkv, 8)) == "cuda" else 2)

    x, qkv = torch.zeros(1), torch.zeros(2, 80, 3 * 512, dtype=torch.bfloat16)
    for capability, want in ((90, 1), (86, 2)):
        torch._dynamo.reset()
        with pretended(capability):
            assert torch.compile(chosen, fullgraph=True, backend="eager")(x, qkv) == want


@pytest.mark.parametrize(("boxes", "runs"), [(True, "cuda"), (False, "triton")])
@pytest.mark.parametrize("op", ("gather_patches", "masked_patch_loss", "masked_patch_loss_backward"))
def test_only_cuda_crops_as_it_reads(monkeypatch, op, boxes, runs):
    monkeypatch.setitem(dispatch.AUTOMATIC, (op, "cuda"), ("triton", "cuda", "reference"))  # as with everything built
    pred, grad, seen = torch.empty(2, 3, 1536), torch.empty(2, 3), [torch.empty(2, 4) if boxes else None, [160, 160]]
    args = (pred, None, [2, 16, 16], None, None, None, *seen)
    if op != "gather_patches":
        args = (*[grad] * op.endswith("backward"), pred, None, None, None, [2, 16, 16], *seen)
    with pretended(90):
        assert dispatch.choose(op, GPU, args) == runs


def test_a_compiler_takes_the_capability_as_constant():
    """It is marked as torch's own decorator marks a function, without importing the compiler."""
    marks = vars(torch.compiler.assume_constant_result(lambda: None))
    assert marks and marks.items() <= vars(chip.compute_capability).items()
