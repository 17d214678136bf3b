"""``avfmae doctor``: what this installation is made of, and which implementation of every op runs here, and why."""

import importlib.metadata
import os
import platform

import torch
from rich.console import Console
from rich.table import Table

import avfmae
import avfmae_kernels
from avfmae.training.config import recipe_folder
from avfmae_kernels import processor
from avfmae_kernels.compiled import MISSING


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
        "torch": f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}, {torch.get_num_threads()} CPU threads, {torch.backends.cpu.get_cpu_capability()}",
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


def doctor() -> None:
    """Prints the facts, and a table of ops by implementation."""
    console = Console()
    for name, value in facts().items():
        console.print(f"[bold]{name:>21}[/bold]  {value}", highlight=False, soft_wrap=True)
    table = Table(title="what runs here, and why not the others", title_justify="left")
    for column in ("op", "implementation", "state"):
        table.add_column(column)
    for op, states in avfmae_kernels.explain().items():
        for i, (implementation, state) in enumerate(states.items()):
            style = "bold green" if state == "runs" else None
            table.add_row(op if i == 0 else "", implementation, state, style=style)
    console.print(table)
