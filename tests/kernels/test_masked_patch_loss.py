"""masked_patch_loss: every implementation that can run here, forward and gradient, against float64 and by hand."""

import pytest
import torch
from backends import INTERPRETED, each_backend, each_opcheck, interpreted, registered, require

import avfmae_kernels as K
from avfmae_kernels.masked_patch_loss.reference import patch_targets

pytestmark = pytest.mark.isa

SHAPES = {  # source, patch, tokens a clip
    "video": ((2, 16, 160, 160, 3), (2, 16, 16), 40),
    "audio": ((3, 1, 256, 128), (16, 16), 64),
    "one token": ((1, 2, 16, 16, 3), (2, 16, 16), 1),
    "odd video": ((2, 6, 15, 35, 3), (3, 5, 7), 11),
    "one frame": ((2, 2, 8, 8, 3), (1, 4, 4), 5),
    "odd audio": ((2, 1, 21, 10), (7, 5), 4),
    "none": ((2, 1, 32, 32), (16, 16), 0),
}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def case(source, patch, count, dtype=torch.float32, device="cpu"):
    g = torch.Generator().manual_seed(count)
    if len(source) == 5:
        x, size, channels = torch.randint(0, 256, source, dtype=torch.uint8, generator=g), source[1:4], 3
    else:
        x, size, channels = torch.randn(source, generator=g) * 3 - 4, source[2:], 1
    tokens = torch.Size(s // p for s, p in zip(size, patch, strict=True)).numel()
    index = torch.randint(0, tokens, (source[0], count), generator=g)
    pred = torch.randn(source[0], count, channels * torch.Size(patch).numel(), generator=g).to(dtype)
    weight = torch.rand(source[0], count, generator=g) * (torch.rand(source[0], count, generator=g) > 0.3)
    if count == 1:
        weight.fill_(0.5)
    return tuple(t.to(device) for t in (pred, x, index, weight))


def expected(pred, source, index, weight, patch):
    """Loss and gradient in float64, tubelet by tubelet, sharing nothing with any implementation."""
    pred, source, index, weight = (
        t.detach().cpu().double() if t.is_floating_point() else t.cpu() for t in (pred, source, index, weight)
    )
    clip = source.double() / 255 if source.ndim == 5 else source[:, 0, None, ..., None]
    pt, ph, pw = patch if source.ndim == 5 else (1, *patch)
    columns, lines = clip.shape[3] // pw, clip.shape[2] // ph
    loss, gradient = 0.0, torch.zeros_like(pred)
    for b in range(index.shape[0]):
        for n in range(index.shape[1]):
            t, y, x = (int(index[b, n]) // (lines * columns), int(index[b, n]) // columns % lines, int(index[b, n]) % columns)
            cube = clip[b, t * pt : (t + 1) * pt, y * ph : (y + 1) * ph, x * pw : (x + 1) * pw]
            flat = cube.reshape(-1, cube.shape[-1])
            cube = (cube - flat.mean(0)) / (flat.var(0, unbiased=True).sqrt() + 1e-6)
            cube = torch.cat([cube[:1], cube[1:] - cube[:-1]])
            difference = pred[b, n] - cube.reshape(-1)
            loss += weight[b, n] * difference.square().mean()
            gradient[b, n] = 2 * weight[b, n] * difference / len(difference)
    return loss, gradient


FEW = {  # what stands for the largest shapes in Triton's interpreter
    SHAPES["video"]: ((1, 4, 160, 160, 3), (2, 16, 16), 6),
    SHAPES["audio"]: ((1, 1, 256, 128), (16, 16), 6),
}


def check(implementation, shape, dtype, device="cpu"):
    if interpreted(implementation, device):
        shape = FEW.get(shape, shape)
    pred, source, index, weight = case(*shape, dtype, device)
    pred.requires_grad_()
    with K.use(implementation):
        loss = K.masked_patch_loss(pred, source, index, weight, shape[1])
        loss.backward()
    loss = loss.detach()
    want, gradient = expected(pred, source, index, weight, shape[1])
    assert loss.dtype == torch.float32 and pred.grad.dtype == dtype and pred.grad.shape == pred.shape
    if not index.numel():
        assert loss == 0
        return
    assert gradient.norm() > 0 and abs(float(loss) - float(want)) / float(want) <= TOLERANCE[dtype]
    assert (pred.grad.double().cpu() - gradient).norm() / gradient.norm() <= TOLERANCE[dtype]
    assert (pred.grad[weight == 0] == 0).all()


@each_backend
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_loss_and_gradient(shape, dtype, implementation, device):
    require("masked_patch_loss", implementation, device)
    check(implementation, shape, dtype, device)


def test_constant_patches_do_not_explode():
    """No variance: the target is 0 in every implementation, not noise over 1e-6."""
    for implementation in ("reference", "cpp"):
        require("masked_patch_loss", implementation, "cpu")
        source = torch.full((1, 2, 16, 16, 3), 77, dtype=torch.uint8)
        with K.use(implementation):
            loss = K.masked_patch_loss(
                torch.zeros(1, 1, 1536), source, torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, 1), (2, 16, 16)
            )
        assert loss < 0.1, implementation


def test_weight_gets_its_gradient():
    pred, source, index, weight = case(*SHAPES["odd video"])
    weight = (weight + 0.1).requires_grad_()
    K.masked_patch_loss(pred, source, index, weight, (3, 5, 7)).backward()
    errors = (pred - patch_targets(source, index, [3, 5, 7])).square().mean(-1)
    assert torch.allclose(weight.grad, errors, rtol=1e-4)


@pytest.mark.parametrize("implementation", ["reference", "cpp"])
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"source": torch.zeros(1, 2, 16, 16, 3)}, ValueError, "source: got torch.float32"),
        ({"source": torch.zeros(1, 3, 16, 16)}, ValueError, "source: got torch.float32 (1, 3, 16, 16)"),
        ({"source": torch.zeros(0, 1, 16, 16)}, ValueError, "source: got (0, 1, 16, 16), expected a batch of at least 1"),
        ({"patch": (2, 16)}, ValueError, "patch: got [2, 16], expected 3 sizes"),
        ({"patch": (2, 16, 5)}, ValueError, "patch: got [2, 16, 5]"),
        ({"index": torch.zeros(1, 1)}, ValueError, "index: got torch.float32"),
        ({"index": torch.tensor([[1]])}, IndexError, "index: holds 1 to 1, expected 0 to 0"),
        ({"index": torch.tensor([[-1]])}, IndexError, "index: holds -1"),
        ({"pred": torch.zeros(1, 1, 1535)}, ValueError, "pred: got torch.float32 (1, 1, 1535)"),
        ({"pred": torch.zeros(1, 1, 1536, dtype=torch.float64)}, ValueError, "pred: got torch.float64"),
        ({"weight": torch.ones(1, 2)}, ValueError, "weight: got torch.float32 (1, 2)"),
        ({"weight": torch.ones(1, 1, dtype=torch.bool)}, ValueError, "weight: got torch.bool"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_wrong_arguments_are_named(change, error, words, implementation):
    require("masked_patch_loss", implementation, "cpu")
    arguments = {
        "pred": torch.zeros(1, 1, 1536), "source": torch.zeros(1, 2, 16, 16, 3, dtype=torch.uint8),
        "index": torch.zeros(1, 1, dtype=torch.int64), "weight": torch.ones(1, 1), "patch": (2, 16, 16),
    } | change  # fmt: skip
    with K.use(implementation), pytest.raises(error) as caught:
        K.masked_patch_loss(**arguments)
    assert words in str(caught.value)


def test_indices_of_unscored_tokens_are_never_used():
    pred, source, index, weight = case(*SHAPES["one token"])
    far, nothing = torch.full_like(index, 10**12), torch.zeros_like(weight)
    for implementation in ("reference", "cpp"):
        require("masked_patch_loss", implementation, "cpu")
        with K.use(implementation):
            assert K.masked_patch_loss(pred, source, far, nothing, (2, 16, 16)) == 0


@each_opcheck
def test_opcheck(implementation, device):
    require("masked_patch_loss", implementation, device)
    pred, source, index, weight = case(*SHAPES["odd video"], device=device)
    arguments = (source, index, weight != 0, [3, 5, 7])
    op, backward = (registered(name, implementation) for name in ("masked_patch_loss", "masked_patch_loss_backward"))
    torch.library.opcheck(op, (pred.requires_grad_(), *arguments))
    torch.library.opcheck(backward, (weight, pred.detach(), *arguments))


@pytest.mark.parametrize(("implementation", "device"), [INTERPRETED])
def test_indices_that_are_out_of_range_give_nan(implementation, device):
    require("masked_patch_loss", implementation, device)
    pred, source, index, _ = case(*SHAPES["one token"])
    scored = torch.ones_like(index, dtype=torch.bool)
    assert registered("masked_patch_loss", implementation)(pred, source, index + 7, scored, [2, 16, 16]).isnan().all()


@pytest.mark.parametrize("implementation", ["reference", "cpp"])
def test_compiles_without_graph_break(implementation):
    require("masked_patch_loss", implementation, "cpu")
    pred, source, index, weight = case(*SHAPES["odd audio"])
    with K.use(implementation):

        def loss(p):
            return K.masked_patch_loss(p, source, index, weight, (7, 5))

        gradients = []
        for f in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
            p = pred.clone().requires_grad_()
            f(p).backward()
            gradients.append(p.grad)
    assert torch.allclose(*gradients)
