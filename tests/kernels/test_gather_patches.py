"""gather_patches: every implementation that can run here against a float64 convolution, its errors, and its contract."""

import pytest
import torch
from backends import INTERPRETED, each_backend, each_opcheck, interpreted, registered, require

import avfmae_kernels as K

pytestmark = pytest.mark.isa

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHAPES = {  # clip (B, T, H, W), tubelet, gathered tokens
    "pretraining": ((3, 16, 160, 160), (2, 16, 16), 80),
    "one token": ((1, 2, 16, 16), (2, 16, 16), 1),
    "odd patch": ((2, 6, 15, 35), (3, 5, 7), 11),
    "many tokens": ((2, 4, 32, 48), (2, 16, 16), 12),
    "none": ((2, 2, 16, 16), (2, 16, 16), 0),
}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


def case(shape, patch, count, device="cpu"):
    g = torch.Generator().manual_seed(count)
    video = torch.randint(0, 256, (*shape, 3), dtype=torch.uint8, generator=g)
    tokens = (shape[1] // patch[0]) * (shape[2] // patch[1]) * (shape[3] // patch[2])
    index = torch.stack([torch.randint(0, tokens, (count,), generator=g) for _ in range(shape[0])]).reshape(shape[0], count)
    return video.to(device), index.to(device)


def expected(video, index, patch):
    """Patches cut out one by one, in float64: nothing in common with any implementation."""
    video, index = video.cpu(), index.cpu()
    x = (video.double() / 255 - torch.tensor(MEAN, dtype=torch.float64)) / torch.tensor(STD, dtype=torch.float64)
    columns, lines = x.shape[3] // patch[2], x.shape[2] // patch[1]
    rows = torch.empty(*index.shape, 3 * patch[0] * patch[1] * patch[2], dtype=torch.float64)
    for b, n in torch.cartesian_prod(*map(torch.arange, index.shape)).tolist() if index.numel() else []:
        token = int(index[b, n])
        t, y, x0 = (token // (lines * columns) * patch[0], token // columns % lines * patch[1], token % columns * patch[2])
        rows[b, n] = x[b, t : t + patch[0], y : y + patch[1], x0 : x0 + patch[2]].permute(3, 0, 1, 2).reshape(-1)
    return rows


@each_backend
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_equals_cutting_by_hand(shape, dtype, implementation, device):
    require("gather_patches", implementation, device)
    if interpreted(implementation, device) and shape == SHAPES["pretraining"]:
        shape = ((1, 4, 160, 160), (2, 16, 16), 9)
    video, index = case(*shape, device)
    with K.use(implementation):
        out = K.gather_patches(video, index, shape[1], dtype=dtype)
    want = expected(video, index, shape[1])
    assert out.dtype == dtype and out.shape == want.shape
    if want.numel():
        assert want.norm() > 1  # not vacuous
        assert (out.double().cpu() - want).norm() / want.norm() <= TOLERANCE[dtype]


def test_rows_are_a_convolution_at_the_gathered_places():
    video, index = case(*SHAPES["pretraining"])
    weight = torch.randn(8, 3, 2, 16, 16, dtype=torch.float64)
    x = (video.double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    everywhere = torch.nn.functional.conv3d(x.permute(0, 4, 1, 2, 3), weight, stride=(2, 16, 16)).flatten(2).mT
    want = everywhere.gather(1, index[..., None].expand(-1, -1, 8))
    got = K.gather_patches(video, index).double() @ weight.flatten(1).T
    assert (got - want).norm() / want.norm() < 1e-5


def test_non_contiguous_clips_are_taken():
    video, index = case(*SHAPES["odd patch"])
    channels_first = video.permute(0, 4, 1, 2, 3).contiguous()
    assert torch.equal(
        K.gather_patches(channels_first.permute(0, 2, 3, 4, 1), index, (3, 5, 7)), K.gather_patches(video, index, (3, 5, 7))
    )


@pytest.mark.parametrize("implementation", ["reference", "cpp"])
@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"video": torch.zeros(1, 2, 16, 16, 3)}, ValueError, "video: got torch.float32"),
        ({"video": torch.zeros(1, 3, 2, 16, 16, dtype=torch.uint8)}, ValueError, "expected torch.uint8 (B, T, H, W, 3)"),
        ({"video": torch.zeros(0, 2, 16, 16, 3, dtype=torch.uint8)}, ValueError, "B at least 1"),
        ({"index": torch.zeros(1, 1, dtype=torch.int32)}, ValueError, "index: got torch.int32"),
        ({"index": torch.zeros(2, 1, dtype=torch.int64)}, ValueError, "expected torch.int64 (1, N)"),
        ({"index": torch.tensor([[1]])}, IndexError, "index: holds 1 to 1, expected 0 to 0"),
        ({"index": torch.tensor([[-1]])}, IndexError, "index: holds -1"),
        ({"patch": (2, 16, 15)}, ValueError, "patch: got [2, 16, 15]"),
        ({"std": (1, 0, 1)}, ValueError, "std above 0"),
        ({"dtype": torch.float64}, ValueError, "dtype: got torch.float64"),
    ],
    ids=lambda v: v if isinstance(v, str) else None,
)
def test_wrong_arguments_are_named(change, error, words, implementation):
    require("gather_patches", implementation, "cpu")
    arguments = {"video": torch.zeros(1, 2, 16, 16, 3, dtype=torch.uint8), "index": torch.zeros(1, 1, dtype=torch.int64)} | change
    with K.use(implementation), pytest.raises(error) as caught:
        K.gather_patches(**arguments)
    assert words in str(caught.value)


@each_opcheck
def test_opcheck(implementation, device):
    require("gather_patches", implementation, device)
    video, index = case(*SHAPES["odd patch"], device)
    op = registered("gather_patches", implementation)
    torch.library.opcheck(op, (video, index, [3, 5, 7], list(MEAN), list(STD), torch.bfloat16))


@pytest.mark.parametrize(("implementation", "device"), [INTERPRETED])
def test_indices_that_are_out_of_range_give_nan(implementation, device):
    require("gather_patches", implementation, device)
    video, _ = case(*SHAPES["one token"], device)
    op = registered("gather_patches", implementation)
    assert op(video, torch.tensor([[7]]), [2, 16, 16], [0.0] * 3, [1.0] * 3, torch.float32).isnan().all()


@pytest.mark.parametrize("implementation", ["reference", "cpp"])
def test_compiles_without_graph_break(implementation):
    require("gather_patches", implementation, "cpu")
    video, index = case(*SHAPES["odd patch"])
    with K.use(implementation):
        compiled = torch.compile(lambda v, i: K.gather_patches(v, i, (3, 5, 7)) * 2, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(video, index), K.gather_patches(video, index, (3, 5, 7)) * 2)


def test_use_restores_and_refuses():
    with pytest.raises(ValueError, match="expected one of auto, triton, cuda, cpp, reference"), K.use("fast"):
        pass
    if not torch.cuda.is_available():
        video, index = case(*SHAPES["one token"])
        with K.use("cuda"), pytest.raises(RuntimeError, match="'cuda' was asked for, but runs on cuda tensors only"):
            K.gather_patches(video, index)
        K.gather_patches(video, index)


def test_explain_names_one_implementation_an_op():
    for op, states in K.explain().items():
        assert list(states.values()).count("runs") == 1, op
        assert all(states.values())
