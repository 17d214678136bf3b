"""What the benchmark prints is checked, saved and drawn; and what stands in the README is what was saved."""

import csv

import pytest
import torch
from PIL import Image

import avfmae_kernels as K
from avfmae.cli import main
from avfmae_benchmarks import plots, results, sides
from avfmae_benchmarks.kernels import KernelsConfig, kernels
from avfmae_benchmarks.loader import LoaderConfig, bench_loader
from avfmae_benchmarks.measure import held, interleave, peak_of_cpu
from avfmae_benchmarks.plots import PlotConfig, plot
from avfmae_benchmarks.profiles import breakdown, kind
from avfmae_benchmarks.scaling import ScalingConfig, scaling
from avfmae_benchmarks.step import StepConfig, speed_up, step

CPU = torch.device("cpu")
QUICK = {"size": "tiny", "rounds": 2, "warm_up": 1, "batch": 2, "device": "cpu"}


def test_a_step_of_every_side_is_checked_timed_and_saved(tmp_path, capsys):
    rows = step(StepConfig(sides=("ours", "reference", "released"), precisions=("float32",), out=tmp_path, **QUICK))
    assert [r["side"] for r in rows] == ["ours", "reference", "released"]
    saved = results.read("step", tmp_path)
    assert len(saved) == 3 and all(float(r["clips_per_s"]) > 0 and float(r["peak_gb"]) > 0 and r["revision"] for r in saved)
    assert speed_up(rows, rows[0]) == {"released float32": rows[0]["clips_per_s"] / rows[2]["clips_per_s"]}
    step(StepConfig(sides=("ours",), precisions=("float32",), stage="finetune", out=tmp_path, **QUICK))
    assert len(results.read("step", tmp_path)) == 4  # rows are added, never replaced
    shown = capsys.readouterr().err
    assert "holds: released against our model of its weights" in shown and "× released" in shown


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
        return real(*args) * (1 if K.plain() else 1.01)

    monkeypatch.setattr(ops.K, "gated_sum", wrong)
    with pytest.raises(SystemExit):
        kernels(KernelsConfig(only=("gated_sum",), precisions=("float32",), batch=2, rounds=2, device="cpu", out=tmp_path))
    assert "not the reference's" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_kernels_scaling_and_loader_save_rows(tmp_path):
    rows = kernels(KernelsConfig(only=("gated_sum", "adamw"), precisions=("bfloat16",), batch=2, rounds=2, device="cpu", out=tmp_path))
    assert {r["implementation"] for r in rows} >= {"reference"} and all(r["gb_per_s"] > 0 and r["gflops"] > 0 for r in rows)
    rows = scaling(ScalingConfig(sizes=("tiny",), batches=(2, 4), precision="float32", rounds=1, device="cpu", out=tmp_path))
    assert [r["batch"] for r in rows] == [2, 4] and rows[1]["peak_gb"] > rows[0]["peak_gb"]
    rows = bench_loader(LoaderConfig(clips=3, rounds=1, workers=(1,), seconds=0.2, opens=8, out=tmp_path))
    assert rows[0]["clips_per_s"] > 0
    assert {p.name for p in tmp_path.iterdir()} == {"kernels.csv", "scaling.csv", "loader.csv"}


def test_pictures_carry_the_digest_of_their_rows_and_the_table_is_written(tmp_path):
    step(StepConfig(sides=("ours", "released"), precisions=("float32",), out=tmp_path, **QUICK))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{plots.BEGIN}\nold\n{plots.END}\nafter\n")
    (picture,) = plot(PlotConfig(results=tmp_path, pictures=tmp_path, readme=readme))
    assert Image.open(picture).text["Description"] == plots.digest("bench_step", tmp_path)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text and "AVF-MAE++ as released float32" in text


def test_the_readme_and_the_pictures_are_of_the_results_in_git():
    assert results.read("step", results.FOLDER), "there are no results"
    assert plots.table(results.FOLDER) in (plots.ROOT / "README.md").read_text(), "run avfmae bench plot"
    for name in ("bench_step", "bench_kernels"):
        picture = Image.open(plots.ROOT / "docs" / "images" / f"{name}.png")
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


def test_a_profile_names_what_takes_time():
    assert kind("aten::addmm") == kind("sm90_xmma_gemm_bf16") == "matrix products of linear layers"
    assert kind("avfmae::region_attention_backward") == kind("_region_attention_kernel") == "region_attention"
    assert kind("avfmae::matmul_bf16") == "matrix products of linear layers" != kind("avfmae::matmul_adamw")
    assert kind("aten::_fused_adamw_") == "optimiser and norm" and kind("Memcpy HtoD") == "copies"
    side = sides.build("ours", "pretrain", "tiny", "float32", 2, CPU)
    seconds, wall = breakdown(side.run, CPU, steps=2)
    attention = "attention products of torch" if K.explain()["region_attention"]["reference"] == "runs" else "region_attention"
    assert {"matrix products of linear layers", attention, "optimiser and norm"} <= set(seconds)
    assert sum(seconds.values()) >= 0.99 * wall


def test_the_command_line_names_what_is_wrong(tmp_path, capsys):
    with pytest.raises(SystemExit, match="no subject 'speed'"):
        main(["bench", "speed"])
    with pytest.raises(SystemExit, match="hicmae: is compared in pre-training"):
        main(["bench", "step", "--sides", "hicmae", "--stage", "finetune", "--size", "tiny", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="no op begins with softmax"):
        main(["bench", "kernels", "--only", "softmax", "--out", str(tmp_path)])
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit, match="torch sees no CUDA device"):
            main(["bench", "step", "--device", "cuda", "--out", str(tmp_path)])
    main(["bench", "plot", "--results", str(tmp_path), "--pictures", str(tmp_path), "--readme", str(tmp_path / "none.md")])
    assert "no rows yet" in capsys.readouterr().err


def test_columns_that_are_new_are_added_to_the_old_rows(tmp_path):
    results.append("x", [{"a": 1, "device": "d", "date": "1"}], tmp_path)
    results.append("x", [{"a": 2.5, "b": "z", "device": "d", "date": "2"}], tmp_path)
    with open(tmp_path / "x.csv", newline="") as file:
        assert list(csv.DictReader(file)) == [{"a": "1", "device": "d", "date": "1", "b": ""}, {"a": "2.5", "device": "d", "date": "2", "b": "z"}]
    assert [r["a"] for r in results.latest(results.read("x", tmp_path))["d"]] == ["2.5"]
