"""``avfmae bench plot``: pictures and the README's table, from the rows in ``results`` and from nothing else."""

import hashlib
import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from avfmae.console import console
from avfmae.viz.plots import BLUE, GREY, ORANGE
from avfmae_benchmarks import results
from avfmae_benchmarks.options import PlotConfig
from avfmae_benchmarks.sides import PEERS
from avfmae_benchmarks.step import speed_up

BEGIN, END = "<!-- avfmae bench plot: begin -->", "<!-- end -->"
NAMES = {
    "ours": "**avfmae**",
    "ours-fastest": "**avfmae**, `--engine cpu`",
    "ours-eager": "avfmae, not captured",
    "compiled": "avfmae, compiled",
    "reference": "avfmae, plain PyTorch",
    "hicmae": "HiCMAE-B as published",
    "hicmae-compiled": "HiCMAE-B, bf16, SDPA, compiled",
    "released": "AVF-MAE++ as released",
    "mae_dfer": "MAE-DFER as published",
    "svfap": "SVFAP as published",
}
COLOURS = {
    "ours": BLUE,
    "ours-fastest": "#1a365d",
    "ours-eager": "#90cdf4",
    "compiled": "#63b3ed",
    "reference": "#bee3f8",
    "hicmae": ORANGE,
    "hicmae-compiled": "#f6ad55",
    "released": GREY,
    "mae_dfer": ORANGE,
    "svfap": ORANGE,
}
PLAIN = str.maketrans("", "", "*`")  # names without what marks them in a text
MARKS = {"cpp": "o", "triton": "^", "cuda": "s", "reference": "x"}


def plot(run: PlotConfig) -> list[Path]:
    """Writes all pictures for which there are rows. Returns their paths."""
    figures = {"bench_step": bars(run.results), "bench_kernels": roofline(run.results), "bench_loader": reading(run.results)}
    written = []
    for name, figure in figures.items():
        if figure is not None:
            path = run.pictures / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, dpi=130, metadata={"Description": digest(name, run.results), "Software": None})
            plt.close(figure)
            written.append(path)
            console.print(str(path), highlight=False)
    if not written:
        console.print(f"{run.results}: no rows yet; run avfmae bench step or avfmae bench kernels first", style="yellow")
    if run.readme.exists() and BEGIN in (text := run.readme.read_text()):
        run.readme.write_text(re.sub(f"{BEGIN}.*?{END}", lambda _: table(run.results), text, flags=re.DOTALL))
        console.print(f"{run.readme}: table written", highlight=False)
    return written


def shown(name: str, folder: Path) -> dict[str, list[dict[str, str]]]:
    """The rows that a picture shows, by device: those of the newest run."""
    if name == "bench_kernels":
        return results.latest(results.read("kernels", folder))
    if name == "bench_loader":
        return results.latest(results.read("loader", folder), purpose="one core")
    newest = results.latest(results.read("step", folder), stage="pretrain")
    found = {device: [r for r in rows if r["size"] == rows[0]["size"]] for device, rows in newest.items()}
    return dict(sorted(found.items(), key=lambda item: " cores, " in item[0]))  # GPUs first


def digest(name: str, folder: Path) -> str:
    """Of the rows that a picture shows; it is written into the picture, so that a test can tell whether they still belong
    together."""
    return hashlib.sha256(json.dumps(shown(name, folder), sort_keys=True).encode()).hexdigest()


def table(folder: Path) -> str:
    """The README's part: of each GPU, and of the fastest processor, a table of the newest pre-training comparison."""
    parts, devices = [BEGIN], shown("bench_step", folder)
    processors = {d: max(float(r["clips_per_s"] or 0) for r in rows) for d, rows in devices.items() if " cores, " in d}
    for device, rows in devices.items():
        if device in processors and processors[device] < max(processors.values()):
            continue
        first = rows[0]
        head = [
            "",
            "ms a step (p20 to p80)",
            "clips/s",
            "of the matrix rate",
            "peak GB",
            "GB beyond weights and moments",
            "speed",
        ]
        parts += [
            f"\n{device}, batch {first['batch']}, torch {first['torch']}, {first['date'][:10]}, revision {first['revision']}:\n",
            "| " + " | ".join(head) + " |",
            "| --- " + "| ---: " * (len(head) - 2) + "| --- |",
        ]
        for row in rows:
            name = f"{NAMES[row['side']]} {row['precision']}"
            if not row["ms"]:
                parts.append(f"| {name} | {row['note']} " + "| " * (len(head) - 2) + "|")
                continue
            ups = [f"{up:.2f} × {other}" for other, up in speed_up(rows, row).items() if row["side"] not in PEERS]
            cells = [
                name,
                f"{number(row['ms'])} ({number(row['ms_p20'])} to {number(row['ms_p80'])})",
                number(row["clips_per_s"]),
                f"{float(row['matrix_share']):.0%}",
                f"{float(row['peak_gb']):.2f}",
                f"{float(row['kept_gb']):.2f}",
                "<br>".join(ups),
            ]
            parts.append("| " + " | ".join(cells) + " |")
    return "\n".join([*parts, "", END])


def number(given: str | float) -> str:
    value = float(given)
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"


def bars(folder: Path) -> Figure | None:
    """Clips a second, a panel a device and a bar a side; the whiskers are the 20th and 80th percentile."""
    devices = {device: [r for r in rows if r["ms"]] for device, rows in shown("bench_step", folder).items()}
    if not any(devices.values()):
        return None
    figure, axes = plt.subplots(
        len(devices), 1, figsize=(8, 0.9 + 0.42 * sum(map(len, devices.values()))), squeeze=False, layout="constrained"
    )
    for axis, (device, rows) in zip(axes[:, 0], devices.items(), strict=True):
        rows = sorted(rows, key=lambda r: (r.get("pair", ""), float(r["clips_per_s"])))
        speeds = np.array([float(r["clips_per_s"]) for r in rows])
        spread = [[s - int(r["batch"]) / float(r["ms_p80"]) * 1e3 for s, r in zip(speeds, rows, strict=True)],
                  [int(r["batch"]) / float(r["ms_p20"]) * 1e3 - s for s, r in zip(speeds, rows, strict=True)]]  # fmt: skip
        axis.barh(
            range(len(rows)),
            speeds,
            xerr=np.maximum(0, spread),
            color=[COLOURS[r["side"]] for r in rows],
            error_kw={"lw": 1},
            height=0.7,
        )
        axis.set_yticks(range(len(rows)), [f"{NAMES[r['side']]} {r['precision']}".translate(PLAIN) for r in rows])
        for y, (row, top) in enumerate(zip(rows, speeds + np.maximum(0, spread[1]), strict=True)):
            ups = speed_up(rows, row).items() if row["side"] not in PEERS else ()
            axis.text(top, y, "   ".join([f" {number(speeds[y])}", *(f"{up:.2f} × {other}" for other, up in ups)]), va="center")
        axis.set(xlabel="clips/s; × what it took turns with", xlim=(0, 2.1 * (speeds + np.maximum(0, spread[1])).max()))
        axis.set_title(f"pre-training step, batch {rows[0]['batch']}, {device}", loc="left", fontsize="medium")
    return figure


def reading(folder: Path) -> Figure | None:
    """Clips a second on one core, published and ours; a panel a device."""
    devices = shown("bench_loader", folder)
    if not devices:
        return None
    figure, axes = plt.subplots(
        len(devices), 1, figsize=(8, 0.9 + 0.42 * sum(map(len, devices.values()))), squeeze=False, layout="constrained"
    )
    for axis, (device, rows) in zip(axes[:, 0], devices.items(), strict=True):
        speeds = np.array([float(r["clips_per_s"]) for r in rows])[::-1]
        names = [r["side"] for r in rows][::-1]
        axis.barh(names, speeds, color=[ORANGE if n == "published" else GREY if "GPU" in n else BLUE for n in names], height=0.7)
        for y, speed in enumerate(speeds):
            axis.text(speed, y, f" {speed:.0f}   {speed / speeds[names.index('published')]:.2f} ×", va="center")
        axis.set(xlabel="clips/s on one core; × the published loader", xlim=(0, speeds.max() * 1.2))
        axis.set_title(f"loading for pre-training, {device}", loc="left", fontsize="medium")
    return figure


def roofline(folder: Path) -> Figure | None:
    """Operations a second over operations a byte, under the measured rates of a copy and of a large product; a panel a device."""
    devices = shown("bench_kernels", folder)
    if not devices:
        return None
    figure, axes = plt.subplots(1, len(devices), figsize=(8 * len(devices), 5), squeeze=False, layout="constrained")
    for axis, (device, rows) in zip(axes[0], devices.items(), strict=True):
        rows = [r for r in rows if r["gflops"] and float(r["gflops"]) > 0]
        copy, products = float(rows[0]["copy_gb_per_s"]), {r["precision"]: float(r["matrix_gflops"]) for r in rows}
        x = np.geomspace(0.1, 300, 200)
        for precision, rate in products.items():
            axis.plot(
                x,
                np.minimum(copy * x, rate),
                color="black",
                lw=1,
                ls="-" if precision == "float32" else "--",
                label=f"roof, {precision}",
            )
        ops = list(dict.fromkeys(r["op"] for r in rows))
        colours = dict(zip(ops, plt.get_cmap("turbo")(np.linspace(0.05, 0.95, len(ops))).tolist(), strict=True))
        for row in rows:
            axis.scatter(
                float(row["flops_per_byte"]),
                float(row["gflops"]),
                s=26,
                marker=MARKS[row["implementation"]],
                color=colours[row["op"]],
                alpha=0.35 if row["implementation"] == "reference" else 0.9,
            )
        for op, colour in colours.items():
            axis.scatter([], [], color=colour, label=op)
        for implementation in dict.fromkeys(r["implementation"] for r in rows):
            axis.scatter([], [], color="black", marker=MARKS[implementation], label=implementation)
        axis.set(xscale="log", yscale="log", xlabel="operations a byte that must move", ylabel="10⁹ operations/s")
        axis.set_title(device, loc="left", fontsize="medium")
        axis.legend(fontsize=7, frameon=False, ncols=2, loc="lower right")
    return figure
