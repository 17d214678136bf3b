"""What a run looks like: loss curves, reconstructions, confusion matrices and tables, in one HTML file."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path

import jinja2
import matplotlib
import numpy as np
import torch
from einops import rearrange
from rich.console import Console
from rich.table import Table

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from avfmae.data.dataset import PretrainDataset
from avfmae.masking import DualMask
from avfmae.models.embed import audio_patches
from avfmae.models.pretraining import MaskedAutoencoder
from avfmae.training.logging import read_log, read_quarantine

KINDS = {"last": "last epoch", "best_on_held_out": "best on held-out", "best_on_test_legacy": "best on test (legacy)"}
BLUE, ORANGE, GREY = "#2b6cb0", "#dd6b20", "#a0aec0"
plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "figure.dpi": 110})


# ---- pictures


def loss_curves(logs: dict[str, Path], names: Sequence[str] = ("loss",)) -> Figure | None:
    """Logged values over steps, one panel a run and a line a value."""
    runs = {title: [line for line in read_log(path) if "loss" in line] for title, path in logs.items()}
    runs = {title: lines for title, lines in runs.items() if lines}
    if not runs:
        return None
    figure, axes = plt.subplots(1, len(runs), figsize=(4.2 * len(runs), 2.8), squeeze=False, layout="constrained")
    for axis, (title, lines) in zip(axes[0], runs.items(), strict=True):
        for name in names:
            if name in lines[0]:
                steps, values = [line["step"] for line in lines], np.array([line[name] for line in lines])
                window = max(1, len(values) // 40)
                smooth = np.convolve(values, np.ones(window) / window, mode="valid")
                (drawn,) = axis.plot(steps[window - 1 :], smooth, label=name.removeprefix("loss_"))
                axis.plot(steps, values, color=drawn.get_color(), alpha=0.2, linewidth=0.8)
        axis.set(title=title, xlabel="step", ylabel="loss")
        axis.legend(frameon=False)
    return figure


def confusion_picture(matrix: Sequence[Sequence[int]], classes: Sequence[str], title: str) -> Figure:
    """Shares of each true class, with counts written in."""
    counts = np.asarray(matrix)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    side = 1.6 + 0.55 * len(classes)
    figure, axis = plt.subplots(figsize=(side, side * 0.9), layout="constrained")
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set(xticks=range(len(classes)), yticks=range(len(classes)), xlabel="predicted", ylabel="true", title=title)
    axis.set_xticklabels(classes, rotation=45, ha="right")
    axis.set_yticklabels(classes)
    axis.spines[:].set_visible(False)
    for i, j in np.ndindex(counts.shape):
        axis.text(j, i, counts[i, j], ha="center", va="center", color="white" if shares[i, j] > 0.5 else "black")
    return figure


@torch.no_grad()
def reconstruction(model: MaskedAutoencoder, dataset: PretrainDataset, device: torch.device, clips: int = 2) -> Figure:
    """Original, masked and reconstructed frames and spectrograms; the model predicts everything that the encoder did not see.

    The model predicts standardised patches; the true patch's mean and scale put them back into view.
    """
    model.eval()
    batch = dataset.collate([dataset[(0, i)] for i in np.linspace(0, len(dataset) - 1, clips).astype(int)]).to(device)
    cfg, masks = model.cfg, batch.masks
    hidden_video, hidden_audio = (
        _hidden(m.visible, n) for m, n in ((masks.video, cfg.video.tokens), (masks.audio, cfg.audio.tokens))
    )
    masks = DualMask.from_bool(hidden_video, None, hidden_audio, None)
    pred_video, pred_audio, _ = model.predict(batch.video, batch.audio, masks)
    (T, _, _), (pt, ph, pw), (gt, gh, _) = cfg.video.size, cfg.video.patch, cfg.video.grid
    tubelets = rearrange(batch.video.float(), "b (t p) (h q) (w r) c -> b (t h w) p (q r) c", p=pt, q=ph, r=pw)
    mean, std = tubelets.mean((2, 3), keepdim=True), tubelets.flatten(2, 3).std(2)[:, :, None, None] + 1e-6
    filled, masked = tubelets.clone(), tubelets.clone()
    for b in range(len(tubelets)):
        index = masks.video.decoded[b]
        frames = rearrange(pred_video[b].float(), "n (p s c) -> n p s c", p=pt, c=3).cumsum(
            1
        )  # undo the frame difference
        filled[b, index] = frames * std[b, index] + mean[b, index]
        masked[b, index] = 128

    def clip(x):
        return (
            rearrange(x, "b (t h w) p (q r) c -> b (t p) (h q) (w r) c", t=gt, h=gh, q=ph, r=pw)
            .clamp(0, 255)
            .byte()
            .cpu()
            .numpy()
        )

    def spectrogram(x):
        (gf, _), (p, q) = cfg.audio.grid, cfg.audio.patch
        return rearrange(x, "b (t f) (p q) -> b (f q) (t p)", t=gf, p=p, q=q).cpu().numpy()

    patches = audio_patches(batch.audio, cfg.audio.patch)
    scale = patches.std(-1, keepdim=True) + 1e-6
    sound, silent = patches.clone(), patches.clone()
    for b in range(len(patches)):
        index = masks.audio.decoded[b]
        sound[b, index] = pred_audio[b].float() * scale[b, index] + patches[b, index].mean(-1, keepdim=True)
        silent[b, index] = torch.nan
    videos = [clip(x)[:, :: max(1, T // 8)] for x in (tubelets, masked, filled)]
    sounds = [spectrogram(x) for x in (patches, silent, sound)]
    figure, axes = plt.subplots(
        3 * clips, 2, figsize=(11, 1.25 * 3 * clips), width_ratios=(3.4, 1), squeeze=False, layout="constrained"
    )
    for b, k in np.ndindex(clips, 3):
        left, right = axes[3 * b + k]
        left.imshow(np.concatenate(list(videos[k][b]), axis=1))
        low, high = np.percentile(sounds[0][b], (2, 99.5))
        right.imshow(
            sounds[k][b],
            origin="lower",
            aspect="auto",
            cmap=matplotlib.colormaps["magma"].with_extremes(bad="#808080"),
            vmin=low,
            vmax=high,
        )
        left.set_ylabel(("original", "masked", "reconstructed")[k])
        for axis in (left, right):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    return figure


def _hidden(visible: torch.Tensor, tokens: int) -> torch.Tensor:
    return torch.ones(len(visible), tokens, dtype=torch.bool, device=visible.device).scatter_(1, visible, False)


def comparison(runs: dict[str, list[float]], chance: float, label: str) -> Figure:
    """One bar a way of training, a dot a seed."""
    figure, axis = plt.subplots(figsize=(4.2, 2.8), layout="constrained")
    for i, (name, values) in enumerate(runs.items()):
        axis.bar(i, 100 * np.mean(values), color=(BLUE, GREY)[i % 2], width=0.6, label=name)
        axis.scatter(i + np.linspace(-0.12, 0.12, len(values)), 100 * np.array(values), color="black", s=14, zorder=3)
    axis.axhline(100 * chance, color=ORANGE, linestyle="--", linewidth=1)
    axis.text(len(runs) - 0.45, 100 * chance, "chance", color=ORANGE, va="center")
    axis.set(xticks=range(len(runs)), xticklabels=list(runs), ylabel=label, ylim=(0, 100))
    return figure


# ---- tables


def results_rows(results: dict) -> list[dict]:
    """The result table: a row a way of choosing the epoch, mean ± spread over folds."""
    rows = []
    for kind, title in KINDS.items():
        if kind in results.get("summary", {}):
            values = results["summary"][kind]
            factor = 100 if results["classes"] else 1
            cells = {
                n: f"{factor * v['mean']:.2f} ± {factor * v['std']:.2f}" for n, v in values.items() if n != "pooled"
            }
            epochs = ", ".join(str(fold[kind]["epoch"] + 1) for fold in results["folds"].values() if kind in fold)
            rows.append({"epoch": f"{title} ({epochs})", **cells})
    return rows


def print_results(results: dict) -> None:
    """The result table on the terminal."""
    if not (rows := results_rows(results)):
        return
    table = Table(
        title="test clips, mean ± standard deviation over folds" + (", in %" if results["classes"] else ""),
        title_justify="left",
    )
    for column in rows[0]:
        table.add_column(column)
    for row in rows:
        table.add_row(*row.values())
    Console().print(table)


# ---- pages

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
        path.write_text(PAGE.render(title=self.title, lead=self.lead, sections=self.sections))
        return path


def add_quarantine(page: Page, runs: Sequence[Path]) -> None:
    """The clips that were set aside, if there are any."""
    rows = [
        {"stage": run.name, "clip": bad.path, "reason": bad.reason}
        for run in runs
        for folder in (run, run / "evaluation")
        for bad in read_quarantine(folder / "quarantine.csv")
    ]
    page.add(
        "Clips set aside", f"{len(rows)} clips could not be used." if rows else "None: every clip could be read.", rows
    )


def stage_report(
    out: Path, title: str, results: dict | None = None, model: MaskedAutoencoder | None = None,
    dataset: PretrainDataset | None = None, device: torch.device | None = None,
) -> Path:  # fmt: skip
    """One stage's page, ``out/report.html``."""
    page, out = Page(out, title, str(out)), Path(out)
    if results:
        page.add("Results", "On the test clips, mean ± standard deviation over folds.", results_rows(results))
        add_confusion(page, results)
    logs = {log.parent.name: log for log in sorted([*out.glob("log.jsonl"), *out.glob("*/log.jsonl")])}
    names = ("loss", "loss_video", "loss_audio") if model is not None else ("loss",)
    page.add("Loss", losses=loss_curves(dict(list(logs.items())[:3]), names))
    if model is not None:
        page.add(
            "Reconstruction",
            "Original, masked and reconstructed; on the right the spectrograms.",
            reconstruction=reconstruction(model, dataset, device),
        )
    add_quarantine(page, [log.parent for log in logs.values()])
    return page.write()


def add_confusion(page: Page, results: dict) -> None:
    if results["classes"]:
        pooled = results["summary"]["last"]["pooled"]["confusion"]
        page.add(
            "Confusion",
            "All folds' test clips, last epoch.",
            confusion=confusion_picture(pooled, results["classes"], "last epoch"),
        )


def demo_report(out: Path, results: dict[str, list[dict]], seconds: float) -> Path:
    """The demo's page: what the three stages did, and what they are worth against training from scratch."""
    trained = results["pre-trained"][0]
    page = Page(
        out, "AVF-MAE++ on drawn faces and voices", f"Three stages of the tiny model, trained in {seconds:.0f} s."
    )
    uar = {name: [r["summary"]["last"]["UAR"]["mean"] for r in runs] for name, runs in results.items()}
    war = {name: [r["summary"]["last"]["WAR"]["mean"] for r in runs] for name, runs in results.items()}
    rows = [{
        "fine-tuning": {"pre-trained": "after pre-training and PSI", "from scratch": "from scratch"}[name],
        "UAR": f"{100 * np.mean(uar[name]):.1f} ± {100 * np.std(uar[name]):.1f} %", "WAR": f"{100 * np.mean(war[name]):.1f} %",
        "seeds (UAR)": ", ".join(f"{100 * v:.1f}" for v in uar[name]),
    } for name in results]  # fmt: skip
    page.add("Pre-trained against from scratch",
             "Six emotions, last epoch, on people that no stage has seen. Half of an emotion is only visible, half only audible.",
             rows, comparison=comparison(uar, 1 / len(trained["classes"]), "UAR on held-out people, %"))  # fmt: skip
    page.add(
        "What pre-training reconstructs",
        "Original, masked (the encoder sees what is left) and reconstructed; on the right the spectrograms.",
    )
    picture = out / "1-pretraining" / "pictures" / "reconstruction.png"
    page.sections[-1]["pictures"] = [base64.b64encode(picture.read_bytes()).decode()] if picture.exists() else []
    seed = next(iter(out.glob("3-finetuning-pre-trained-*"))).name.rpartition("-")[2]
    page.add("Loss", losses=loss_curves({
        "pre-training": out / "1-pretraining" / "log.jsonl", "PSI": out / "2-psi" / "log.jsonl",
        "fine-tuning": out / f"3-finetuning-pre-trained-{seed}" / "log.jsonl",
    }, ("loss", "loss_video", "loss_audio")))  # fmt: skip
    confusion = np.sum([r["summary"]["last"]["pooled"]["confusion"] for r in results["pre-trained"]], axis=0)
    page.add("Confusion", f"All {len(results['pre-trained'])} seeds together, after pre-training and PSI.",
             confusion=confusion_picture(confusion, trained["classes"], "pre-trained, last epoch"))  # fmt: skip
    add_quarantine(page, sorted(p for p in out.iterdir() if (p / "log.jsonl").exists()))
    (out / "results.json").write_text(json.dumps(results, indent=1))
    return page.write()
