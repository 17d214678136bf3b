"""A run's page: tables and pictures in one HTML file, and the result table for the terminal."""

import base64
from collections.abc import Sequence
from pathlib import Path

import jinja2
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from rich.console import Console

from avfmae.console import IS_MAIN
from avfmae.data.dataset import PretrainDataset
from avfmae.data.quarantine import read_quarantine
from avfmae.models.pretraining import AVFMAEForPretraining
from avfmae.tasks.results import result_tables
from avfmae.viz.plots import loss_curves, plot_confusion
from avfmae.viz.reconstruction import plot_reconstruction, reconstructed
from avfmae.viz.tables import print_table


def print_results(results: dict) -> None:
    """The result tables on the terminal; nothing of a run that was stopped."""
    for title, rows in (result_tables(results) if results else {}).items():
        print_table(rows, title, Console(quiet=not IS_MAIN, markup=False))


PAGE = jinja2.Template("""<!doctype html><html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
 body { font: 15px/1.55 system-ui, sans-serif; color: #1a202c; max-width: 60rem; margin: 2.5rem auto; padding: 0 1rem }
 h1 { font-size: 1.7rem; margin-bottom: 0 } h2 { font-size: 1.15rem; margin-top: 2.4rem } p.lead { color: #4a5568 }
 img { max-width: 100% } table { border-collapse: collapse; margin: 1rem 0 }
 th, td { padding: .35rem .9rem .35rem 0; border-bottom: 1px solid #e2e8f0; text-align: left } th { font-weight: 600 }
</style>
<h1>{{ title }}</h1><p class="lead">{{ lead }}</p>
{% for s in sections %}<h2>{{ s.title }}</h2>
{% if s.text %}<p>{{ s.text }}</p>{% endif %}
{% if s.rows %}<table><tr>{% for k in s.rows[0] %}<th>{{ k }}</th>{% endfor %}</tr>
{% for row in s.rows %}<tr>{% for v in row.values() %}<td>{{ v }}</td>{% endfor %}</tr>{% endfor %}</table>{% endif %}
{% for picture in s.pictures %}<img alt="{{ s.title }}" src="data:image/png;base64,{{ picture }}">{% endfor %}
{% endfor %}</html>
""", autoescape=True)  # fmt: skip


class Page:
    """Collects sections; pictures are embedded, and kept beside the page as PNG files too."""

    def __init__(self, out: Path, title: str, lead: str = ""):
        self.out, self.title, self.lead, self.sections = Path(out), title, lead, []

    def add(self, title: str, text: str = "", rows: Sequence[dict] = (), **figures: Figure | None) -> None:
        pictures = []
        for name, figure in figures.items():
            if figure is not None:
                path = self.out / "pictures" / f"{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                figure.savefig(path)
                plt.close(figure)
                pictures.append(base64.b64encode(path.read_bytes()).decode())
        self.sections.append({"title": title, "text": text, "rows": list(rows), "pictures": pictures})

    def write(self) -> Path:
        path = self.out / "report.html"
        text = PAGE.render(title=self.title, lead=self.lead, sections=self.sections)
        path.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files need not be UTF-8
        return path


def add_quarantine(page: Page, runs: Sequence[Path]) -> None:
    """The clips that were set aside, if there are any."""
    rows = [
        {"stage": run.name, "clip": bad.path, "reason": bad.reason}
        for run in runs
        for folder in (run, run / "evaluation")
        for bad in read_quarantine(folder / "quarantine.csv")
    ]
    page.add("Clips set aside", f"{len(rows)} clips could not be used." if rows else "None: every clip could be read.", rows)


def stage_report(
    out: Path, stage: str, preset: str, manifests: Sequence[Path], results: dict | None = None,
    model: AVFMAEForPretraining | None = None, dataset: PretrainDataset | None = None, device: torch.device | None = None,
) -> Path:  # fmt: skip
    """One stage's page, ``out/report.html``. ``results``: of fine-tuning; ``model, dataset, device``: of pre-training."""
    sets = ", ".join(m.parent.name if m.stem == "manifest" else m.stem for m in map(Path, manifests))
    page = Page(out, f"{stage}, model {preset}, on {sets}", f"Run {out}, trained on {', '.join(map(str, manifests))}")
    out = Path(out)
    if results:
        for name, rows in result_tables(results).items():
            page.add(name, rows=rows)
        if confusion := results["summary"]["last"].get("pooled", {}).get("confusion"):
            picture = plot_confusion(confusion, results["classes"], "last epoch")
            page.add("Confusion", "All evaluated clips, last epoch.", confusion=picture)
    logs = {log.parent.name: log for log in sorted([*out.glob("log.jsonl"), *out.glob("*/log.jsonl")])}
    names = ("loss", "loss_video", "loss_audio") if model is not None else ("loss",)
    page.add("Loss", losses=loss_curves(dict(list(logs.items())[:3]), names))
    if model is not None:
        assert dataset is not None and device is not None, "dataset, device: are needed beside a model"
        text = "Original, masked and reconstructed; on the right the spectrograms."
        page.add("Reconstruction", text, reconstruction=plot_reconstruction(reconstructed(model, dataset, device, 2)))
    add_quarantine(page, [log.parent for log in logs.values()])
    return page.write()
