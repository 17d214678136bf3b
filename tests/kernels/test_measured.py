"""On a GPU the order of implementations follows the nearest measured row."""

import csv

import pytest
import torch

from avfmae_benchmarks import order, results
from avfmae_kernels import chip, dispatch, measured

GPU = torch.device("cuda")
EVERY = ("triton", "cuda", "reference")


def qkv(count: int, length: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(count, length, 3 * 512, dtype=dtype, device="meta")


ROWS = {  # (capability, sequences, length): microseconds
    (90, 2048, 4): {"triton": "20", "cuda": "12", "reference": "90"},
    (90, 2048, 64): {"triton": "30", "cuda": "45", "reference": "25"},
    (80, 2048, 4): {"triton": "22", "reference": "21", "cuda": ""},
}


@pytest.fixture
def rows(monkeypatch):
    table = []
    for (capability, *shape), times in ROWS.items():
        kinds, sizes = measured.described((qkv(*shape), 8))
        table.append({"op": "region_attention", "capability": str(capability), "kinds": kinds, "sizes": sizes} | times)
    monkeypatch.setattr(measured, "ROWS", {"region_attention": table})
    measured._nearest.cache_clear()
    yield
    measured._nearest.cache_clear()


@pytest.mark.parametrize(
    ("capability", "args", "first"),
    [
        (90, (qkv(2048, 4), 8), ("cuda", "triton", "reference")),
        (90, (qkv(1024, 8), 8), ("cuda", "triton", "reference")),
        (90, (qkv(2048, 48), 8), ("reference", "triton", "cuda")),
        (100, (qkv(2048, 4), 8), ("cuda", "triton", "reference")),  # 90 is nearer than 80
        (80, (qkv(2048, 64), 8), ("reference", "triton", "cuda")),  # a chip's own rows, however far: cuda has no time there
        (90, (qkv(2048, 4, torch.float16), 8), EVERY),  # of this dtype there is no row
        (90, (), EVERY),
    ],
)
def test_the_nearest_row_decides(rows, capability, args, first):
    assert measured.ordered("region_attention", EVERY, capability, args) == first
    assert measured.ordered("cross_attention", EVERY, capability, args) == EVERY


def test_the_first_that_the_chip_can_run_is_chosen(rows, monkeypatch):
    monkeypatch.setitem(dispatch.AUTOMATIC, ("region_attention", "cuda"), EVERY)
    monkeypatch.setattr(chip, "compute_capability", lambda index: 90)
    assert dispatch.choose("region_attention", GPU, (qkv(2048, 4), 8)) == "cuda"
    monkeypatch.setattr(chip, "why_not", lambda op, implementation, *rest: "no" if implementation == "cuda" else None)
    assert dispatch.choose("region_attention", GPU, (qkv(2048, 4), 8)) == "triton"


def test_arguments_are_described():
    args = (torch.empty(2, 3), torch.empty(4, dtype=torch.uint8), 5, [6, 7], [0.5], None, True, [], torch.float32)
    assert measured.described(args) == ("float32:2 uint8:1 int int:2 float:1 None True none torch.float32", "2 3 4 5 6 7")


def test_the_table_is_made_of_the_newest_rows(tmp_path):
    row = {"device": "a", "date": "1", "capability": "90", "called": "op", "kinds": "int", "sizes": "5"}
    results.append(
        "kernels",
        [
            row | {"implementation": "triton", "us": "9"},
            row | {"date": "2", "implementation": "triton", "us": "3.5"},
            row | {"date": "2", "implementation": "cuda", "us": "2"},
            row | {"date": "2", "implementation": "reference", "us": "", "note": "it failed"},
            row | {"device": "b", "capability": "80", "implementation": "reference", "us": "4"},
            row | {"device": "cpu", "capability": "", "implementation": "cpp", "us": "1"},
        ],
        tmp_path,
    )
    with open(order.write(tmp_path, tmp_path / "measured.csv"), newline="") as file:
        assert [tuple(r.values()) for r in csv.DictReader(file)] == [
            ("op", "80", "int", "5", "", "", "4"),
            ("op", "90", "int", "5", "3.5", "2", ""),
        ]
    assert set(measured.read(tmp_path / "measured.csv")) == {"op"} and measured.read(tmp_path / "none.csv") == {}


def test_the_table_in_the_package_is_that_of_the_kept_rows(tmp_path):
    assert order.write(path=tmp_path / "measured.csv").read_bytes() == measured.PATH.read_bytes()


def test_what_a_measured_call_was_given_is_seen():
    import avfmae_kernels as K

    with order.arguments_of() as seen:
        K.region_attention(torch.randn(2, 3, 96), 2)
    assert order.described(seen, "region_attention") == {
        "called": "region_attention", "kinds": "float32:3 int", "sizes": "2 3 96 2",
    }  # fmt: skip
    with order.arguments_of() as seen, dispatch.use("reference"):
        video, boxes = torch.zeros(1, 2, 32, 32, 3, dtype=torch.uint8), torch.tensor([[0.0, 0, 20, 20]])
        K.gather_patches(video, torch.zeros(1, 1, dtype=torch.int64), boxes=boxes, size=(16, 16))
    assert seen["gather_patches"][6] is None and order.described(seen, "gather_patches") == {}  # its time has a crop's in it
