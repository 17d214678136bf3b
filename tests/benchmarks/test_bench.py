"""What the benchmark prints is checked, saved and drawn; and what stands in the README is what was saved."""

import csv
import weakref

import pytest
import torch
from PIL import Image

import avfmae_kernels as K
from avfmae.cli import main
from avfmae_benchmarks import options, plots, results, sides
from avfmae_benchmarks.kernels import KernelsConfig, kernels
from avfmae_benchmarks.loader import LoaderConfig, bench_loader
from avfmae_benchmarks.measure import held, interleave, peak_of_cpu
from avfmae_benchmarks.plots import PlotConfig, plot
from avfmae_benchmarks.profiles import breakdown, kind
from avfmae_benchmarks.scaling import ScalingConfig, scaling
from avfmae_benchmarks.step import StepConfig, default_sides, speed_up, step

CPU = torch.device("cpu")
QUICK = {"model": "tiny", "rounds": 2, "warm_up": 1, "batch": 2, "device": "cpu"}


@pytest.mark.slow
def test_a_step_of_every_side_is_checked_timed_and_saved(tmp_path, capsys):
    rows = step(StepConfig(sides=("ours", "reference", "released"), precisions=("float32",), out=tmp_path, **QUICK))
    assert [r["side"] for r in rows] == ["ours", "reference", "ours", "released"]
    saved = results.read("step", tmp_path)
    assert len(saved) == 4 and all(float(r["clips_per_s"]) > 0 and float(r["peak_gb"]) > 0 and r["revision"] for r in saved)
    assert speed_up(rows, rows[0]) == {"reference float32": rows[0]["clips_per_s"] / rows[1]["clips_per_s"]}
    assert speed_up(rows, rows[2]) == {"released float32": rows[2]["clips_per_s"] / rows[3]["clips_per_s"]}  # of their own turns
    step(StepConfig(sides=("ours",), precisions=("float32",), stage="finetune", out=tmp_path, **QUICK))
    assert len(results.read("step", tmp_path)) == 5  # rows are added, never replaced
    shown = capsys.readouterr().err
    assert "holds: released against our model of its weights" in shown and "× released" in shown


@pytest.mark.parametrize("name", ["mae_dfer", "svfap"])
def test_members_stand_beside_their_published_execution(name):
    (what, holds, _), (_, peer_holds, _) = sides.check(["ours", name], "pretrain", "tiny", CPU)
    assert holds and peer_holds, what
    peer = sides.build(name, "pretrain", "tiny", "float32", 2, CPU)
    assert peer.run() > peer.run() > 0  # the same batch, learnt
    assert default_sides("pretrain", name, CPU) == ("ours", "ours-fastest", name)
    assert sides.config("svfap", "pretrain", "svfap").unmasked_context  # as published, which ours is not
    assert not sides.config("ours", "pretrain", "svfap").unmasked_context
    with pytest.raises(
        ValueError, match=f"{name}: is compared in pre-training of {name}, tiny, asked for were finetune and base"
    ):
        sides.config(name, "finetune", "base")


@pytest.fixture
def unchecked(monkeypatch):
    """Comparisons begin at once, as if their checks had held."""
    monkeypatch.setattr(sides, "check", lambda *_: iter(()))


@pytest.fixture
def built(monkeypatch):
    """Weak references to the models of all sides that are built; a side can be made to find no memory."""
    real, models, full = sides.build, [], set()

    def build(name, *rest):
        if name in full:
            raise torch.OutOfMemoryError(f"no memory for {name}")
        side = real(name, *rest)
        alive = sum(model() is not None for _, model, _ in models)
        models.append((name, weakref.ref(side.model), alive))
        return side

    monkeypatch.setattr(sides, "build", build)
    return models, full


@pytest.mark.slow
def test_no_more_than_a_pair_is_in_memory(tmp_path, unchecked, built):
    models, _ = built
    step(StepConfig(sides=("ours", "ours-eager", "reference"), precisions=("float32",), out=tmp_path, **QUICK))
    assert [(name, alive) for name, _, alive in models] == [("ours", 0), ("ours-eager", 1), ("ours", 0), ("reference", 1)]


@pytest.mark.slow
def test_a_side_that_does_not_fit_is_a_row_that_says_so(tmp_path, unchecked, built):
    _, full = built
    full.add("released")
    rows = step(StepConfig(sides=("ours", "released", "reference"), precisions=("float32",), out=tmp_path, **QUICK))
    assert [r.get("note") for r in rows] == [None, "does not fit at batch 2 beside ours float32", None, None]
    saved = results.read("step", tmp_path)
    assert saved[1]["ms"] == "" and saved[1]["note"] == rows[1]["note"] and float(saved[0]["ms"]) > 0
    assert speed_up(saved, saved[0]) == {} and set(speed_up(saved, saved[2])) == {"reference float32"}
    assert "does not fit at batch 2 beside ours float32" in plots.table(tmp_path) and plots.bars(tmp_path) is not None


@pytest.mark.slow
def test_a_run_is_gone_on_with(tmp_path, unchecked, built):
    models, _ = built
    where = {"date": "then", "device": "here", "revision": "r", "torch": "t"}
    step(StepConfig(sides=("ours", "reference"), precisions=("float32",), out=tmp_path, **QUICK), where)
    rows = step(StepConfig(sides=("ours", "reference", "ours-eager"), precisions=("float32",), out=tmp_path, **QUICK), where)
    assert [name for name, *_ in models] == ["ours", "reference", "ours", "ours-eager"] and len(rows) == 4
    only = {"only": ("gated_sum",), "precisions": ("float32",), "batch": 2, "rounds": 1, "device": "cpu", "out": tmp_path}
    first, again = kernels(KernelsConfig(**only), where), kernels(KernelsConfig(**only), where)
    assert len(first) == len(again) == len(results.read("kernels", tmp_path)) > 0
    small = {"sizes": ("tiny",), "precision": "float32", "rounds": 1, "device": "cpu", "out": tmp_path}
    scaling(ScalingConfig(batches=(2,), **small), where)
    scaling(ScalingConfig(batches=(2, 4), **small), where)
    assert [r["batch"] for r in results.read("scaling", tmp_path)] == ["2", "4"]


@pytest.mark.exhaustive
def test_a_compiled_side_is_measured_with_shapes_that_its_compiler_knows(tmp_path, monkeypatch):
    """Its check runs at another batch before, which would make the batch a symbol."""
    batches = set()

    def note(graph, inputs):
        batches.update(type(size) for t in inputs if isinstance(t, torch.Tensor) for size in t.shape)
        batches.update(type(i) for i in inputs if not isinstance(i, torch.Tensor))
        return graph.forward

    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model, **options: compile(model, backend=note, **options))
    step(StepConfig(sides=("compiled",), precisions=("float32",), out=tmp_path, **QUICK | {"batch": 3}))
    assert batches == {int}


@pytest.mark.slow
def test_a_failed_check_prints_no_speed_up_and_saves_nothing(tmp_path, monkeypatch, capsys):
    from avfmae_benchmarks.peers.parts import Decoder

    honest = Decoder.forward
    monkeypatch.setattr(Decoder, "forward", lambda *args: honest(*args) + 0.1)
    with pytest.raises(SystemExit):
        step(StepConfig(sides=("ours", "released"), precisions=("float32",), out=tmp_path, **QUICK))
    shown = capsys.readouterr().err
    assert "FAILS: released against our model" in shown and "no speed-up is given" in shown and "× released" not in shown
    assert not list(tmp_path.iterdir())


def test_a_wrong_kernel_is_found_before_its_speed_is_saved(tmp_path, monkeypatch, capsys):
    from avfmae_benchmarks import ops

    real = K.gated_sum

    def wrong(*args):
        return real(*args) * (1 if K.uses_reference() else 1.01)

    monkeypatch.setattr(ops.K, "gated_sum", wrong)
    with pytest.raises(SystemExit):
        kernels(KernelsConfig(only=("gated_sum",), precisions=("float32",), batch=2, rounds=2, device="cpu", out=tmp_path))
    assert "not the reference's" in capsys.readouterr().err
    saved = {(r["implementation"], r["direction"]) for r in results.read("kernels", tmp_path)}
    assert ("reference", "forward") in saved and ("cpp", "forward") not in saved


def test_a_kernel_that_fails_is_a_row_that_says_so(tmp_path, monkeypatch):
    from avfmae_benchmarks import ops

    real = K.gated_sum

    def broken(*args):
        if not K.uses_reference():
            raise RuntimeError("out of resource: shared memory")
        return real(*args)

    monkeypatch.setattr(ops.K, "gated_sum", broken)
    with pytest.raises(SystemExit):
        kernels(KernelsConfig(only=("gated_sum",), precisions=("float32",), batch=2, rounds=2, device="cpu", out=tmp_path))
    notes = {r["note"] for r in results.read("kernels", tmp_path) if r["implementation"] == "cpp" and r["direction"] == "forward"}
    assert notes == {"RuntimeError: out of resource: shared memory"} and plots.roofline(tmp_path) is not None


@pytest.mark.exhaustive
def test_kernels_scaling_and_loader_save_rows(tmp_path):
    rows = kernels(
        KernelsConfig(only=("gated_sum", "adamw"), precisions=("bfloat16",), batch=2, rounds=2, device="cpu", out=tmp_path)
    )
    assert {r["implementation"] for r in rows} >= {"reference"} and all(r["gb_per_s"] > 0 and r["gflops"] > 0 for r in rows)
    rows = scaling(ScalingConfig(sizes=("tiny",), batches=(2, 4), precision="float32", rounds=1, device="cpu", out=tmp_path))
    assert [r["batch"] for r in rows] == [2, 4] and rows[1]["peak_gb"] > rows[0]["peak_gb"]
    rows = bench_loader(LoaderConfig(clips=3, rounds=1, workers=(1,), seconds=0.2, opens=8, out=tmp_path))
    assert rows[0]["clips_per_s"] > 0
    assert {p.name for p in tmp_path.iterdir()} == {"kernels.csv", "scaling.csv", "loader.csv"}


@pytest.mark.slow
def test_pictures_carry_the_digest_of_their_rows_and_the_table_is_written(tmp_path):
    step(StepConfig(sides=("ours", "released"), precisions=("float32",), out=tmp_path, **QUICK))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{plots.BEGIN}\nold\n{plots.END}\nafter\n")
    (picture,) = plot(PlotConfig(results=tmp_path, pictures=tmp_path, readme=readme))
    assert Image.open(picture).text["Description"] == plots.digest("bench_step", tmp_path)
    text = readme.read_text()
    assert (
        text.startswith("before\n") and text.endswith("after\n") and "old" not in text and "AVF-MAE++ as released float32" in text
    )


def test_the_readme_and_the_pictures_are_of_the_results_in_git():
    assert results.read("step", results.FOLDER), "there are no results"
    assert plots.table(results.FOLDER) in (options.ROOT / "README.md").read_text(), "run avfmae bench plot"
    for name in ("bench_step", "bench_kernels"):
        picture = Image.open(options.ROOT / "docs" / "images" / f"{name}.png")
        assert picture.text["Description"] == plots.digest(name, results.FOLDER), "run avfmae bench plot"


def test_sides_are_timed_in_turns():
    calls = []
    interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, CPU, rounds=2, warm_up=1)
    assert calls == ["a", "b"] * 3


def test_peak_memory_counts_what_lives_at_once():
    def run():
        a = torch.zeros(250_000)
        del a
        b, c = torch.zeros(500_000), torch.zeros(250_000)
        return b, c

    assert peak_of_cpu(run) == pytest.approx(3e6, rel=0.01)
    x = torch.zeros(1000)
    assert held([x, x[10:], torch.zeros(10)]) == 4040


@pytest.mark.slow
def test_a_profile_names_what_takes_time():
    assert kind("aten::addmm") == kind("sm90_xmma_gemm_bf16") == "matrix products of linear layers"
    assert kind("avfmae::region_attention_backward") == kind("_region_attention_kernel") == "region_attention"
    assert kind("avfmae::matmul_bf16") == "matrix products of linear layers" != kind("avfmae::matmul_adamw")
    assert kind("aten::_fused_adamw_") == "optimizer and norm" and kind("Memcpy HtoD") == "copies"
    side = sides.build("ours", "pretrain", "tiny", "float32", 2, CPU)
    seconds, wall = breakdown(side.run, CPU, steps=2)
    attention = "attention products of torch" if K.explain()["region_attention"]["reference"] == "runs" else "region_attention"
    assert {"matrix products of linear layers", attention, "optimizer and norm"} <= set(seconds)
    assert sum(seconds.values()) >= 0.99 * wall


def test_the_command_line_names_what_is_wrong(tmp_path, capsys):
    with pytest.raises(SystemExit, match="no subject 'speed'"):
        main(["bench", "speed"])
    with pytest.raises(SystemExit, match="hicmae: is compared in pre-training of base, hicmae_base, tiny"):
        main(["bench", "step", "--sides", "hicmae", "--stage", "finetune", "--model", "tiny", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="no op begins with softmax"):
        main(["bench", "kernels", "--only", "softmax", "--out", str(tmp_path)])
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="torch sees no CUDA device"):
            main(["bench", "step", "--device", "cuda", "--out", str(tmp_path)])
    main(["bench", "plot", "--results", str(tmp_path), "--pictures", str(tmp_path), "--readme", str(tmp_path / "none.md")])
    assert "no rows yet" in " ".join(capsys.readouterr().err.split())


def test_columns_that_are_new_are_added_to_the_old_rows(tmp_path):
    results.append("x", [{"a": 1, "device": "d", "date": "1"}], tmp_path)
    results.append("x", [{"a": 2.5, "b": "z", "device": "d", "date": "2"}], tmp_path)
    with open(tmp_path / "x.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"a": "1", "device": "d", "date": "1", "b": ""},
            {"a": "2.5", "device": "d", "date": "2", "b": "z"},
        ]
    assert [r["a"] for r in results.latest(results.read("x", tmp_path))["d"]] == ["2.5"]
