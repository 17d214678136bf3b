"""``avfmae doctor``: what this installation is made of, and which implementation of every op runs here, and why."""

import importlib.metadata
import os
import platform

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import avfmae
import avfmae_kernels
from avfmae.recipes import recipe_folder
from avfmae_kernels import processor
from avfmae_kernels.compiled import MISSING
from avfmae_kernels.dispatch import IMPLEMENTATIONS


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def facts() -> dict[str, str]:
    """One line each: packages, devices, compiled modules, decoders."""
    gpu = "none"
    if torch.cuda.is_available():
        p = torch.cuda.get_device_properties(0)
        gpu = f"{torch.cuda.device_count()} × {p.name}, {p.total_memory / 2**30:.0f} GiB, sm_{p.major}{p.minor}"
    decoders = [f"{name} {v}" for name in ("av", "decord2", "decord") if (v := _version(name))]
    return {
        "avfmae": f"{avfmae.__version__} on Python {platform.python_version()}, {platform.machine()}",
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}",
        "torch's CPU": f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "triton": _version("triton") or "not installed",
        "GPU": gpu,
        "processor": f"{processor.LEVEL or platform.machine()}{' (AVFMAE_ISA)' if os.environ.get('AVFMAE_ISA') else ''}",
        "compiled for CPU": MISSING["cpu"] or f"avfmae_kernels.{processor.module()}",
        "compiled for CUDA": MISSING["cuda"] or "avfmae_kernels._cuda",
        "compiled for workers": MISSING["host"] or "avfmae_kernels._host",
        "decoders": ", ".join(decoders) or "none: pip install av",
        "recipes": str(recipe_folder()),
        "flash-attn": _version("flash-attn") or "not installed (optional)",
    }


def reasons(states: dict[str, dict[str, str]]) -> list[str]:
    """Why implementations cannot run, each reason once, with the ops that it holds for."""
    found: dict[tuple[str, str], list[str]] = {}
    for op, of_op in states.items():
        for implementation, state in of_op.items():
            if state not in ("runs", "can run"):
                found.setdefault((implementation, state), []).append(op)
    most = max(map(len, found.values()), default=0)
    ordered = sorted(found.items(), key=lambda item: IMPLEMENTATIONS.index(item[0][0]))
    return [f"{i} of {'most ops' if len(ops) == most else ', '.join(ops)}: {reason}" for (i, reason), ops in ordered]


def doctor() -> None:
    """Prints the facts, a table with a line an op, and why other implementations cannot run."""
    console, states = Console(), avfmae_kernels.explain()
    for name, value in facts().items():
        console.print(f"[bold]{name:>21}[/bold]  {escape(value)}", highlight=False, soft_wrap=True)
    table = Table("op", "runs", "can run too", title="Which implementation of an op runs here", title_justify="left")
    for op, of_op in states.items():
        chosen, others = ([i for i, state in of_op.items() if state == wanted] for wanted in ("runs", "can run"))
        table.add_row(op, f"[bold green]{chosen[0]}[/]", ", ".join(others))
    console.print(table)
    for reason in reasons(states):
        console.print(f"not {escape(reason)}", highlight=False)
