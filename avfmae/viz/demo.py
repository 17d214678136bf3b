"""The demo's page: what each stage is worth, by class and by seed, and what pre-training reconstructs."""

import base64
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from avfmae.files import write_json
from avfmae.viz.pages import Page, add_quarantine
from avfmae.viz.plots import comparison, loss_curves, plot_confusion


def spread(shares: Sequence[float]) -> str:
    """Mean and standard deviation over seeds, in %."""
    return f"{100 * np.mean(shares):.1f}" + (f" ± {100 * np.std(shares):.1f} %" if len(shares) > 1 else " %")


def demo_report(out: Path, results: dict[str, list[dict]], probes: dict[str, list[float]], seconds: float) -> Path:
    """Writes ``out/report.html`` and ``out/results.json``.

    Args:
        results: the fine-tunings' results by row of the table, one a seed; the last row is the whole method.
        probes: recalls of the linear probes by features, one a seed.
        seconds: that all of it took.
    """
    whole, runs = list(results.items())[-1]
    classes = runs[0]["classes"]
    last = {row: [r["summary"]["last"] for r in runs] for row, runs in results.items()}
    uar = {row: [each["UAR"]["mean"] for each in values] for row, values in last.items()}
    page = Page(
        out,
        "What pre-training and PSI are worth on drawn faces and voices",
        f"AVF-MAE++ in small, from drawing its clips to this page in {seconds:.0f} s. Six emotions; all recalls are on people "
        "whom no stage has seen.",
    )
    rows = [
        {
            "fine-tuning": row,
            "UAR": spread(uar[row]),
            "WAR": spread([each["WAR"]["mean"] for each in last[row]]),
            "UAR of each seed": ", ".join(f"{100 * v:.1f}" for v in uar[row]),
        }
        for row in results
    ]
    page.add(
        "Four ways to the same fine-tuning",
        f"Mean and standard deviation over seeds, last epoch. Chance is {100 / len(classes):.1f} %.",
        rows,
        comparison=comparison(uar, 1 / len(classes), "UAR on held-out people, %"),
    )
    page.add(
        "Linear probe",
        "A ridge classifier on the pooled features, nothing else trained.",
        [{"features": name, "UAR": spread(values)} for name, values in probes.items()],
    )
    page.add(
        "Recall of each class, in %",
        "All seeds together.",
        [
            {"class": name}
            | {row: f"{100 * np.mean([each['pooled']['recall'][name] for each in values]):.1f}" for row, values in last.items()}
            for name in classes
        ],
    )
    confusion = np.sum([each["pooled"]["confusion"] for each in last[whole]], axis=0)
    page.add("Confusion", f"All seeds together, {whole}.", confusion=plot_confusion(confusion, classes, whole))
    page.add(
        "What pre-training reconstructs",
        "Original, masked (the encoder sees what is left) and reconstructed; on the right the spectrograms.",
    )
    picture = out / "1-pretraining" / "pictures" / "reconstruction.png"
    page.sections[-1]["pictures"] = [base64.b64encode(picture.read_bytes()).decode()] if picture.exists() else []
    logs = {
        "pre-training": out / "1-pretraining",
        "PSI": out / "2-both",
        "fine-tuning": next(iter(sorted(out.glob("3-*-both-*")))),
    }
    names = ("loss", "loss_video", "loss_audio")
    page.add("Loss", losses=loss_curves({title: folder / "log.jsonl" for title, folder in logs.items()}, names))
    add_quarantine(page, sorted(p for p in out.iterdir() if (p / "log.jsonl").exists()))
    write_json(out / "results.json", {"fine-tuning": results, "linear probe": probes})
    return page.write()
