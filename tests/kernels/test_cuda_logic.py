"""The CUDA C++ kernels' logic, proven without a GPU: compiled for the host, a block's threads being threads, and compared with
the
references. What a GPU must still tell is their speed, and that its memory model was understood."""

import ctypes
import math
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import torch

from avfmae_kernels import chip
from avfmae_kernels.adamw import reference as adamw
from avfmae_kernels.cross_attention import reference as cross
from avfmae_kernels.dispatch import OPS
from avfmae_kernels.gather_patches.reference import gather_patches
from avfmae_kernels.masked_patch_loss import reference as loss
from avfmae_kernels.region_attention import reference as attention

ROOT = Path(__file__).parents[2]
TORCH = Path(sysconfig.get_path("platlib")) / "torch"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("cuda logic"),  # which compiles each source, once
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++"),
]


def host_source(source: Path) -> str:
    """CUDA C++ as C++: launches become calls, dynamic shared memory a pointer, and the ops register for the CPU."""
    text = source.read_text()
    text = re.sub(r"([\w:<>(),\s]+?)<<<(.*?)>>>\(", lambda m: launch(*m.groups()), text, flags=re.S)
    text = text.replace("extern __shared__ __align__(128) unsigned char shared[];", "unsigned char* shared = emulated_shared;")
    text = text.replace("extern __shared__ float plain[];", "float* plain = reinterpret_cast<float*>(emulated_shared);")
    text = re.sub(r"  const torch::stable::accelerator::DeviceGuard .*\n", "", text)
    return text.replace("STABLE_TORCH_LIBRARY_IMPL(avfmae, CUDA, m)", "STABLE_TORCH_LIBRARY_IMPL(avfmae_emulated, CPU, m)")


def launch(before: str, configuration: str) -> str:
    """``name<<<grid, threads, bytes, stream>>>(`` as ``emulate(grid, threads, bytes, stream, a call of name, ``."""
    kernel = before.strip().split("\n")[-1].strip()
    return before[: before.rindex(kernel)] + f"emulate({configuration}, [=](auto... a) {{ {kernel}(a...); }}, "


def compiled(source: Path, library: Path) -> Path:
    """Compiles a host source to a library."""
    command = [
        "g++",
        "-shared",
        "-fPIC",
        "-O0",
        "-std=c++20",
        "-pthread",
        "-fvisibility=hidden",
        source,
        "-o",
        library,
        f"-I{ROOT / 'tests/kernels/emulated'}",
        f"-I{library.parent}",
        f"-I{ROOT / 'csrc'}",
        f"-I{TORCH / 'include'}",
        "-DTORCH_TARGET_VERSION=0x020b000000000000",
        "-DTORCH_STABLE_ONLY",
        f"-L{TORCH / 'lib'}",
        "-ltorch",
        "-ltorch_cpu",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return library


@pytest.fixture(scope="module")
def ops(tmp_path_factory):
    """torch.ops.avfmae_emulated: the ops of every .cu file."""
    library = torch.library.Library("avfmae_emulated", "DEF")
    folder = tmp_path_factory.mktemp("emulated")
    (folder / "cuda").mkdir()
    stand_ins = {path.name for path in ROOT.glob("tests/kernels/emulated/cuda/*")}
    for header in (path for path in ROOT.glob("csrc/cuda/*.cuh") if path.name not in stand_ins):
        (folder / "cuda" / header.name).write_text(host_source(header))
    for source in sorted(ROOT.glob("csrc/cuda/*.cu")):
        (folder / f"{source.stem}.cpp").write_text(host_source(source))
        for op in (source.stem, f"{source.stem}_backward"):
            if op in OPS:
                library.define(op + OPS[op].schema)
        torch.ops.load_library(compiled(folder / f"{source.stem}.cpp", folder / f"{source.stem}.so"))
    yield torch.ops.avfmae_emulated
    del library


def close(got, want, dtype):
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    assert want.norm() > 0 and (got.double() - want.double()).norm() <= tolerance * want.double().norm()


@pytest.mark.parametrize(
    ("N", "S", "heads", "D", "dtype"),
    [(3, 11, 2, 64, torch.bfloat16), (5, 4, 5, 64, torch.bfloat16), (9, 2, 1, 16, torch.float16), (2, 17, 1, 80, torch.bfloat16),
     (1, 37, 1, 64, torch.bfloat16), (1, 70, 1, 64, torch.float16), (2, 5, 2, 8, torch.bfloat16), (2, 6, 1, 24, torch.float32)],
)  # fmt: skip
def test_region_attention(ops, N, S, heads, D, dtype):
    g = torch.Generator().manual_seed(S)
    qkv, grad = (torch.randn(N, S, n * heads * D, generator=g).to(dtype) for n in (3, 1))
    close(ops.region_attention(qkv, heads), attention.region_attention(qkv.double(), heads), dtype)
    want = attention.region_attention_backward(grad.double(), qkv.double(), heads, True)
    for got, w in zip(ops.region_attention_backward(grad, qkv, heads, True), want, strict=True):
        close(got, w, dtype)
    assert ops.region_attention_backward(grad, qkv, heads, False)[1].numel() == 0


@pytest.mark.parametrize(
    ("queries", "keys", "heads", "D", "dtype"),
    [(40, 8, 1, 64, torch.bfloat16), (8, 40, 1, 64, torch.bfloat16), (19, 11, 3, 32, torch.float16),
     (11, 19, 3, 32, torch.float16), (5, 3, 2, 64, torch.float16), (3, 5, 2, 64, torch.bfloat16),
     (16, 16, 1, 64, torch.bfloat16)],
)  # fmt: skip
def test_cross_attention(ops, queries, keys, heads, D, dtype):
    """Either side is the short one; rows of the inputs lie apart, as slots of a longer buffer do."""
    g = torch.Generator().manual_seed(queries)
    q = torch.randn(3, queries + 1, heads * D, generator=g).to(dtype)[:, 1:]
    kv = torch.randn(3, keys, 2 * heads * D + 8, generator=g).to(dtype)[..., : 2 * heads * D]
    grad = torch.randn(3, queries, heads * D, generator=g).to(dtype)
    close(ops.cross_attention(q, kv, heads), cross.cross_attention(q.double(), kv.double(), heads), dtype)
    want = cross.cross_attention_backward(grad.double(), q.double(), kv.double(), heads, True)
    for got, w in zip(ops.cross_attention_backward(grad, q, kv, heads, True), want, strict=True):
        close(got, w, dtype)
    dq, dkv, out = ops.cross_attention_backward(grad, q, kv, heads, False)
    assert out.numel() == 0 and dq.isfinite().all() and dkv.isfinite().all()


def test_region_attention_asks_for_shared_memory_as_dispatch_expects(ops, monkeypatch):
    """One byte less than ``chip`` says is refused, in words; with as many it runs."""
    qkv = torch.randn(1, 70, 3 * 64).to(torch.bfloat16)
    for op, args in (("region_attention", (qkv, 1)), ("region_attention_backward", (qkv[..., :64].contiguous(), qkv, 1, False))):
        backward = op.endswith("_backward")
        needed = chip.NEEDS["cuda", "region_attention"](backward, *args[backward:])
        assert needed > chip.shared_memory(86)
        monkeypatch.setenv("EMULATED_SHARED_MEMORY", str(needed - 1))
        with pytest.raises(RuntimeError, match=f"needs {-(-needed // 1024)} KiB of shared memory"):
            getattr(ops, op)(*args)
        monkeypatch.setenv("EMULATED_SHARED_MEMORY", str(needed))
        getattr(ops, op)(*args)


@pytest.mark.parametrize("by", [1, 2, 3, 7, 10, 16, 255, 257, 46341, 2**30 + 1, 2**31 - 1])
def test_division_by_a_product_is_exact(divide, by):
    edges = {k * by + e for k in (0, 1, 2, 3, (2**31 - 1) // by) for e in (-1, 0, 1)}
    numbers = [*(n for n in edges if 0 <= n < 2**31), *torch.randint(0, 2**31 - 1, (2000,)).tolist()]
    assert [divide(n, by) for n in numbers] == [n // by for n in numbers]


@pytest.fixture(scope="module")
def divide(tmp_path_factory):
    """``Divisor`` of csrc/cuda/tubelets.cuh."""
    library = tmp_path_factory.mktemp("divisor") / "divisor.so"
    return ctypes.CDLL(str(compiled(ROOT / "tests/kernels/emulated/divisor.cpp", library))).divide


@pytest.mark.parametrize("patch", [[2, 8, 8], [1, 4, 12], [4, 16, 2]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gather_patches(ops, dtype, patch):
    video = torch.randint(0, 256, (2, 4, 16, 24, 3), dtype=torch.uint8)
    index = torch.randint(0, 12, (2, 3))
    arguments = (patch, [0.5, 0.4, 0.3], [0.2, 0.25, 0.3], dtype)
    close(ops.gather_patches(video, index, *arguments), gather_patches(video, index, *arguments), dtype)
    assert ops.gather_patches(video, index + 10**9, *arguments).isnan().all()
    boxes = [torch.tensor([[1.0, 2, 20, 15.5], [0, 0, 24, 16]]), [16, 48]]
    close(ops.gather_patches(video, index, *arguments, *boxes), gather_patches(video, index, *arguments, *boxes), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("patch", [[2, 8, 8], [1, 4, 12], [4, 8, 6], [16, 8], [8, 32]], ids=str)
def test_masked_patch_loss(ops, patch, dtype):
    video = len(patch) == 3
    source = torch.randint(0, 256, (2, 4, 16, 24, 3), dtype=torch.uint8) if video else torch.randn(2, 1, 32, 64)
    numbers = math.prod(patch) * (3 if video else 1)
    index, scored = torch.randint(0, 8, (2, 3)), torch.tensor([[True, False, True], [True, True, False]])
    pred, grad = torch.randn(2, 3, numbers).to(dtype), torch.rand(2, 3)
    close(
        ops.masked_patch_loss(pred, source, index, scored, patch),
        loss.masked_patch_loss(pred, source, index, scored, patch),
        torch.float32,
    )
    got = ops.masked_patch_loss_backward(grad, pred, source, index, scored, patch)
    close(got, loss.masked_patch_loss_backward(grad, pred, source, index, scored, patch), dtype)
    assert (got[~scored] == 0).all()
    if video:
        boxes = [torch.tensor([[1.0, 2, 20, 15.5], [0, 0, 24, 16]]), [16, 48]]
        given = (pred, source, index, scored, patch, *boxes)
        close(ops.masked_patch_loss(*given), loss.masked_patch_loss(*given), torch.float32)
        close(ops.masked_patch_loss_backward(grad, *given), loss.masked_patch_loss_backward(grad, *given), dtype)


@pytest.mark.parametrize(
    ("grads", "copies"), [(torch.float32, None), (torch.bfloat16, torch.bfloat16), (torch.float16, torch.float32)]
)
def test_adamw(ops, grads, copies):
    """More tensors than a launch takes, most of them empty, and one of several blocks; a step that is skipped changes nothing."""
    sizes = [(7,), *[(0,)] * 477, (5, 1000), (1,), (0,), (3, 3)]
    g = torch.Generator().manual_seed(0)

    def state():
        steps = [torch.tensor(float(k % 5)) for k in range(len(sizes))]
        return [[torch.rand(size, generator=g.manual_seed(k)) for size in sizes] for k in range(3)], steps

    gradient = [torch.randn(size, generator=g).to(grads) for size in sizes]
    recipe = torch.tensor(1e-2), 0.9, 0.95, 1e-8, 0.05, torch.tensor(2.0)
    (found, found_steps), (want, want_steps) = state(), state()
    filled = [k for k, size in enumerate(sizes) if 0 not in size]
    copy = [] if copies is None else [torch.full(size, torch.nan, dtype=copies) for size in sizes]
    for skip in (torch.tensor(1.0), torch.tensor(0.0)):
        ops.adamw(found[0], gradient, *found[1:], found_steps, copy, *recipe, skip, None)
        if skip:
            assert all(torch.equal(a, b) for one, other in zip(found, want, strict=True) for a, b in zip(one, other, strict=True))
            assert found_steps == want_steps
    some = [[one[k] for k in filled] for one in (want[0], gradient, *want[1:], want_steps)]
    adamw.adamw(*some, [], *recipe, torch.tensor(0.0))
    assert [found_steps[k] for k in filled] == [want_steps[k] for k in filled]
    for one, other in zip(found, want, strict=True):
        assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-7) for a, b in zip(one, other, strict=True))
    assert all(torch.equal(c, w.to(copies)) for c, w in zip(copy, found[0], strict=False))
