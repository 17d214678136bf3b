"""The parts of a first run, in the order of what is most worth knowing."""

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from avfmae_benchmarks.first.journal import Journal

if TYPE_CHECKING:
    from avfmae_benchmarks.sides import Model, Stage

ROOT = Path(__file__).resolve().parents[2]
PLAIN = {"model": "tiny", "batch": 2, "rounds": 1, "warm_up": 0, "precisions": ("float32",)}  # of a dry run


class LeftOut(Exception):
    """A part cannot be run here; says why."""


class Failed(Exception):
    """A part has found something wrong; says what. What it has measured is kept."""


@dataclass
class Run:
    """Where results go, and what they are measured on.

    Attributes:
        out: the folder of results. device: ``"cuda"``, or ``"cpu"`` for a dry run: all parts on shapes so small that nothing is
            learnt of speed.
    """

    out: Path
    device: Literal["cuda", "cpu"]

    @cached_property
    def journal(self) -> Journal:
        return Journal(self.out)

    @property
    def dry(self) -> bool:
        return self.device == "cpu"

    @cached_property
    def where(self) -> dict[str, str]:
        """What all rows of the folder say of the machine and of the time.

        Raises:
            ValueError: the folder's results are another machine's.
        """
        import torch

        from avfmae_benchmarks.measure import machine

        here, begun = machine(torch.device(self.device)), self.journal.latest("where")
        if begun is None:
            self.journal.add(where=here)
            return here
        if begun["device"] != here["device"]:
            raise ValueError(
                f"out: {self.out} holds results of {begun['device']}, this is {here['device']}; choose another folder"
            )
        return begun

    def step(self, *sides: str, **settings) -> str:
        """``avfmae bench step``, gone on with where it was broken off. Says how fast the first side is."""
        from avfmae_benchmarks.step import StepConfig, speed_up, step

        sides = sides[:2] if self.dry else sides
        settings = {"device": self.device, "out": self.out, "sides": sides} | settings | (PLAIN if self.dry else {})
        rows = step(StepConfig(**settings), self.where)
        said = [f"{up:.2f} × {other}" for row in rows if row["side"] == "ours" for other, up in speed_up(rows, row).items()]
        said += [f"{row['side']} {row['note']}" for row in rows if row.get("note")]
        return "; ".join(said) or "; ".join(f"{row['side']} {float(row['ms']):.1f} ms a step" for row in rows)


@dataclass(frozen=True)
class Part:
    """One question to the GPU.

    Attributes:
        tells: what is known afterwards. limit: seconds, after which it is killed.
        work: says in a line what came out. every: each command does it anew, as the machine may be a fresh one.
    """

    name: str
    tells: str
    limit: int
    work: Callable[[Run], str]
    every: bool = False


def doctor(run: Run) -> str:
    import torch

    import avfmae_kernels
    from avfmae.doctor import doctor, facts
    from avfmae_benchmarks.measure import bandwidth, matrix_rate

    doctor()
    if not run.dry and not torch.cuda.is_available():
        raise Failed("torch sees no CUDA device; --device cpu makes a dry run")
    found, device = facts(), torch.device(run.device)
    dtype = torch.float32 if run.dry else torch.bfloat16
    limits = {
        "copy GB/s": bandwidth(device) / 1e9,
        f"{str(dtype).removeprefix('torch.')} TFLOP/s": matrix_rate(device, dtype, 2 if run.dry else 20) / 1e12,
    }
    run.journal.add(
        facts=found,
        runs={op: next(i for i, s in states.items() if s == "runs") for op, states in avfmae_kernels.explain().items()},
    )
    run.journal.add(limits=limits)
    return f"{run.where['device']}: " + ", ".join(f"{value:.4g} {name}" for name, value in limits.items())


def ahead(run: Run) -> str:
    import torch

    from avfmae_benchmarks.first.ahead import compile_all, of_step

    device, requests = torch.device(run.device), {}
    steps: list[tuple[Stage, Model, str, int]] = [("pretrain", "tiny", "bf16", 16)]
    arch = 90
    if not run.dry:
        major, minor = torch.cuda.get_device_capability()
        arch = 10 * major + minor
        # in bfloat16 what is timed, in float32 what is checked, on two clips
        steps = [("pretrain", "base", "bf16", 16), ("pretrain", "base", "float32", 2), ("pretrain", "huge", "bf16", 16),
                 ("finetune", "base", "bf16", 16), ("finetune", "base", "float32", 2)]  # fmt: skip
    for stage in steps:
        requests |= {repr(request): request for request in of_step(*stage, device)}
    wanted = list(requests.values())
    if run.dry:
        wanted = [r for r in wanted if r.name in ("gated_sum_kernel", "gelu_backward_kernel")][:6]
    faults = [fault for fault in compile_all(wanted, arch) if fault]
    run.journal.add(compiled=len(wanted), faults=faults)
    if faults:
        raise Failed(f"{len(faults)} of {len(wanted)} do not compile: {faults[0]}")
    return f"{len(wanted)} launches of {len(steps)} steps for sm_{arch}"


def tests(run: Run, only: str = "", files: tuple[str, ...] = ()) -> str:
    """pytest; a test that has been run is not run again."""
    import importlib.util

    import pytest

    os.chdir(ROOT)
    os.environ |= {"AVFMAE_FIRST_OUT": str(run.out), "AVFMAE_AUTOTUNE": "0"}  # every configuration has a test of its own
    arguments = ["-p", "avfmae_benchmarks.first.recorded", "-p", "no:cacheprovider", "-q", "--tb=short"]
    if run.dry:
        arguments += ["-k", "bfloat16 and cpp", "tests/kernels/test_gated_sum.py", "tests/kernels/test_gelu_backward.py"]
    else:
        arguments += ["-m", "gpu", *(["-k", only] if only else []), *files]
        if importlib.util.find_spec("xdist"):
            arguments += ["-n", str(min(8, os.cpu_count() or 1))]
    code = pytest.main(arguments)
    went = Counter(event["outcome"] for event in run.journal.events() if "test" in event)
    said = ", ".join(f"{count} {outcome}" for outcome, count in went.items()) or "no test was found"
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) or not went or went["failed"]:
        raise Failed(f"{said} (pytest ended with {int(code)})")
    return said


def captured(run: Run) -> str:
    """The step that is trained with, replayed; and the kernels that it takes its time for."""
    import torch

    from avfmae.engines.captured import EAGER_STEPS
    from avfmae_benchmarks import sides
    from avfmae_benchmarks.measure import wait
    from avfmae_benchmarks.profiles import by_name

    said, device = run.step("ours"), torch.device(run.device)
    size, batch, precision = ("tiny", 2, "float32") if run.dry else ("base", 256, "bf16")
    side = sides.build("ours", "pretrain", size, precision, batch, device)
    for _ in range(EAGER_STEPS + 2):
        side.run()
    wait(device)
    steps = 3
    found = sorted(by_name(side.run, device, steps)[0].items(), key=lambda item: -item[1][1])
    total = sum(seconds for _, (_, seconds) in found)
    run.journal.add(
        kernels=[(name, calls / steps, 1e3 * seconds / steps, seconds / total) for name, (calls, seconds) in found[:40]],
        of=len(found),
        ms=1e3 * total / steps,
    )
    return said


def kernels(run: Run) -> str:
    from avfmae_benchmarks.kernels import KernelsConfig, kernels

    few: dict[str, Any] = (
        {"only": ("gated_sum", "gelu_backward"), "precisions": ("float32",), "batch": 1, "rounds": 1}
        if run.dry
        else {"precisions": ("bfloat16",)}
    )
    rows = kernels(KernelsConfig(device=run.device, out=run.out, **few), run.where)
    return f"{len(rows)} rows of {len({row['op'] for row in rows})} ops"


def sanitizer(run: Run) -> str:
    tool = shutil.which("compute-sanitizer")
    if run.dry or tool is None:
        raise LeftOut("a dry run has no GPU" if run.dry else "compute-sanitizer is not installed")
    files = [
        f"tests/kernels/test_{op}.py"
        for op in ("region_attention", "cross_attention", "gather_patches", "masked_patch_loss", "crop")
    ]
    # instrumented kernels take a hundred times longer
    few = "gpu and bfloat16 and not reference and (one or odd or tiny or units or crops) and not fine"
    plain = os.environ | {
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
        "AVFMAE_AUTOTUNE": "0",
    }  # each tensor an allocation, whose end is seen
    for kind in ("memcheck", "racecheck"):
        command = [
            tool,
            "--tool",
            kind,
            "--error-exitcode",
            "1",
            sys.executable,
            "-m",
            "pytest",
            "-p",
            "no:cacheprovider",
            "-q",
            "-m",
            "gpu",
            "-k",
            few,
        ]
        code = subprocess.run([*command, *files], cwd=ROOT, env=plain).returncode
        run.journal.add(sanitizer=kind, code=code)
        if code:
            raise Failed(f"{kind} ended with {code}")
    return "no error of memory, no race"


def scaling(run: Run) -> str:
    from avfmae_benchmarks.scaling import ScalingConfig, scaling

    few: dict[str, Any] = (
        {"sizes": ("tiny",), "batches": (2, 4), "precision": "float32", "rounds": 1}
        if run.dry
        else {"batches": (64, 256, 512, 1024), "rounds": 3}
    )
    rows = [row for row in scaling(ScalingConfig(device=run.device, out=run.out, **few), run.where) if row.get("ms")]
    best = max(rows, key=lambda row: float(row["tflops"]))
    return f"best: {best['size']} at batch {best['batch']}, {float(best['clips_per_s']):.1f} clips/s"


def pair(*sides: str, **settings) -> Callable[[Run], str]:
    return lambda run: run.step(*sides, **settings)


PARTS = (
    Part("doctor", "what is installed, what runs, how fast memory and matrix units are", 90, doctor, every=True),
    Part("ahead", "that every kernel of the steps compiles, by all cores at once", 240, ahead, every=True),
    Part(
        "bf16",
        "that every op is right in bfloat16",
        240,
        partial(tests, only="bfloat16 and not configurations", files=("tests/kernels",)),
    ),
    Part("step", "that the captured step is right, its speed, its 40 longest kernels", 180, captured),
    Part("hicmae", "ours against HiCMAE as published", 180, pair("ours", "hicmae")),
    Part("compiled", "ours against HiCMAE compiled", 400, pair("ours", "hicmae-compiled")),
    Part("kernels", "every op and implementation against the roofs", 400, kernels),
    Part("sanitizer", "that kernels keep to their memory and have no races", 400, sanitizer),
    Part("scaling", "ours over sizes and batches", 400, scaling),
    Part("huge", "Huge against AVF-MAE++ as released", 300, pair("ours", "released", model="huge", rounds=3)),
    Part("finetuning", "fine-tuning against AVF-MAE++ as released", 300, pair("ours", "released", stage="finetune")),
    Part(
        "sides",
        "what capturing and torch.compile give, and our kernels against plain PyTorch",
        500,
        pair("ours", "ours-eager", "reference", "released", "compiled"),
    ),
    Part("tests", "the rest of the tests", 530, tests),
)
