"""assemble_tokens: every implementation that can run here against float64, forward and gradients; its errors; its contract."""

import pytest
import torch
from backends import INTERPRETED, each_backend, each_opcheck, interpreted, registered, require
from correctness import TOLERANCE, check

import avfmae_kernels as K

pytestmark = pytest.mark.isa

SHAPES = {  # clips, visible, masked, positions, width
    "video decoder": (2, 80, 400, 800, 384),
    "audio decoder": (3, 24, 64, 128, 512),
    "huge": (1, 5, 7, 12, 640),
    "odd": (2, 3, 1, 4, 77),
    "no masks": (2, 3, 0, 4, 8),
    "nothing visible": (2, 0, 3, 4, 8),
}


def indices(B, Nv, Nm, T, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randint(0, T, (B, Nv), generator=g), torch.randint(0, T, (B, Nm), generator=g)


def check_shape(implementation, shape, dtype, device="cpu"):
    B, Nv, Nm, T, C = shape
    if interpreted(implementation, device):
        B, Nv, Nm = min(B, 2), min(Nv, 5), min(Nm, 5)
    seen, hidden = indices(B, Nv, Nm, T)
    g = torch.Generator().manual_seed(C)
    positions = torch.randn(T, C, generator=g, dtype=torch.float64).to(dtype)
    visible, mask_token = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((B, Nv, C), (C,)))

    def op(visible, mask_token):
        return K.assemble_tokens(visible, mask_token, positions.to(device), seen.to(device), hidden.to(device))

    def oracle(visible, mask_token):
        table = positions.double()
        return torch.stack([torch.cat([visible[b] + table[seen[b]], mask_token + table[hidden[b]]]) for b in range(B)])

    if Nv and Nm:
        check(implementation, op, oracle, [visible, mask_token], dtype, device)
    elif Nv:  # no gradient reaches the mask token
        check(
            implementation,
            lambda v: op(v, mask_token.to(device, dtype)),
            lambda v: oracle(v, mask_token),
            [visible],
            dtype,
            device,
        )
        check(
            implementation,
            lambda v: K.assemble_tokens(v, None, positions.to(device), seen.to(device), None),
            lambda v: oracle(v, mask_token),
            [visible],
            dtype,
            device,
        )
    else:
        check(
            implementation, lambda m: op(visible.to(device, dtype), m), lambda m: oracle(visible, m), [mask_token], dtype, device
        )


@each_backend
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_against_float64(shape, dtype, implementation, device):
    require("assemble_tokens", implementation, device)
    check_shape(implementation, shape, dtype, device)


@each_backend
def test_a_wider_dtype_is_kept_where_it_is_asked_for(implementation, device):
    require("assemble_tokens", implementation, device)
    seen, _ = indices(2, 3, 0, 4)
    with K.use(implementation):
        out = K.assemble_tokens(
            torch.ones(2, 3, 8, device=device).bfloat16(), None, torch.full((4, 8), 1e-4, device=device), seen.to(device), None,
            torch.float32,
        )  # fmt: skip
    assert out.dtype == torch.float32 and torch.allclose(out, torch.tensor(1.0001, device=device), atol=1e-6)


@pytest.mark.parametrize("implementation", ["reference", "cpp"])
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"visible": torch.zeros(3, 8)}, ValueError, "visible: got (3, 8)"),
        ({"visible": torch.zeros(0, 3, 8)}, ValueError, "visible: got (0, 3, 8), expected (B, Nv, C) with B at least 1"),
        ({"visible": torch.zeros(2, 3, 8, dtype=torch.int32)}, ValueError, "visible: got torch.int32"),
        ({"positions": torch.zeros(4, 9)}, ValueError, "positions: got (4, 9), expected (T, 8)"),
        ({"mask_token": torch.zeros(1, 8)}, ValueError, "mask_token: got (1, 8), expected (8,)"),
        ({"mask_token": None}, ValueError, "mask_token, mask_index: got one of them"),
        ({"visible_index": torch.zeros(2, 4).long()}, ValueError, "visible_index: got torch.int64 (2, 4)"),
        ({"mask_index": torch.zeros(2, 4)}, ValueError, "mask_index: got torch.float32"),
        ({"visible_index": torch.full((2, 3), 4)}, IndexError, "visible_index: holds 4 to 4, expected 0 to 3"),
        ({"mask_index": torch.full((2, 1), -1)}, IndexError, "mask_index: holds -1"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_wrong_arguments_are_named(change, error, words, implementation):
    require("assemble_tokens", implementation)
    arguments = {
        "visible": torch.zeros(2, 3, 8), "mask_token": torch.zeros(8), "positions": torch.zeros(4, 8),
        "visible_index": torch.zeros(2, 3).long(), "mask_index": torch.zeros(2, 1).long(),
    } | change  # fmt: skip
    with K.use(implementation), pytest.raises(error) as caught:
        K.assemble_tokens(**arguments)
    assert words in str(caught.value)


@each_opcheck
def test_opcheck(implementation, device):
    require("assemble_tokens", implementation, device)
    seen, hidden = (i.to(device) for i in indices(2, 3, 5, 9))
    visible, mask, positions = (torch.randn(s, device=device) for s in ((2, 3, 8), (8,), (9, 8)))
    op = registered("assemble_tokens", implementation)
    torch.library.opcheck(op, (visible.requires_grad_(), mask.requires_grad_(), positions, seen, hidden, torch.float32))
    torch.library.opcheck(op, (visible, None, positions, seen, None, torch.bfloat16))


@pytest.mark.parametrize(("implementation", "device"), [INTERPRETED])
def test_indices_that_are_out_of_range_give_nan(implementation, device):
    require("assemble_tokens", implementation, device)
    op = registered("assemble_tokens", implementation)
    out = op(torch.ones(1, 2, 8), None, torch.ones(4, 8), torch.tensor([[10**12, 1]]), None, torch.float32)
    assert out[0, 0].isnan().all() and (out[0, 1] == 2).all()
