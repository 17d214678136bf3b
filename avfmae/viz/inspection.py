"""``avfmae inspect``: what the model will see of a prepared set, a manifest or single videos, drawn."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.progress import track
from rich.table import Column, Table
from rich.text import Text

from avfmae.config import MODALITIES, ModelConfig
from avfmae.console import console
from avfmae.data import augment, faces
from avfmae.data.audio import SHORTEST, filterbank
from avfmae.data.clip import Clip
from avfmae.data.config import DataConfig
from avfmae.data.dataset import Window, read_window_audio, sample_window
from avfmae.data.manifest import MANIFESTS, read_manifest
from avfmae.data.prepare import cut_sound, find_clips
from avfmae.data.sources import MediaError, Source, open_clip
from avfmae.data.workers import TaskContext, WorkerFailure, Workers
from avfmae.files import printable
from avfmae.masking import DualMask
from avfmae.options import InspectConfig
from avfmae.processes import cores
from avfmae.viz.pages import Page


@dataclass
class Inspection:
    """One clip as the model will see it."""

    frames: np.ndarray  # (T, H, W, 3) uint8 in the model's size
    times: np.ndarray  # (T,) seconds of each on the file's clock
    spectrogram: np.ndarray  # (frames, mels), not normalised; missing sound is NaN
    span: tuple[float, float]  # seconds where the window begins and ends
    original: np.ndarray  # (H, W, 3) the middle frame, before cropping
    face: tuple[float, float, float, float] | None  # its box in the original (x, y, width, height)
    facts: dict[str, str]  # for the table


def inspect(run: InspectConfig) -> Path:
    """Draws and writes the page ``out/report.html``. ValueError: no clip of the sources can be read."""
    from avfmae.viz.plots import plot_clip

    cfg, clips, is_set = ModelConfig.preset(run.preset).replace(modalities=MODALITIES), *listed(run.sources)
    chosen = clips
    if is_set and len(clips) > run.clips:
        chosen = [clips[i] for i in sorted(np.random.default_rng(run.seed).choice(len(clips), run.clips, replace=False))]
    page = Page(run.out, "What the model sees", ", ".join(map(str, run.sources)))
    rows = []
    make = _Inspector(cfg, run.face_margin, faces.chosen_detector(run.detector), run.yunet and str(run.yunet))
    with Workers(make, min(run.workers or cores(), len(chosen)), run.time_limit) as workers:
        for clip, result in track(workers.results(chosen), "reading", len(chosen), console=console):
            if isinstance(result, Inspection):
                rows.append({"clip": clip.path} | result.facts)
                masks = DualMask.for_clips(cfg, [clip.id], run.seed, epoch=0)
                page.add(clip.path, "", (), **{f"clip-{clip.id:06d}": plot_clip(result, cfg, masks)})
            else:
                rows.append({"clip": clip.path, "flags": result.reason if isinstance(result, WorkerFailure) else result})
    if not page.sections:
        reasons = [f"{row['clip']}: {row['flags']}" for row in rows]
        count = f"none of the {len(rows)} clips can be read: " if len(rows) > 1 else ""
        raise ValueError(count + "; ".join(reasons[:3]) + ("; …" if len(rows) > 3 else ""))
    columns = list(dict.fromkeys(c for row in rows for c in row))
    rows = [{c: row.get(c, "") for c in columns} for row in rows]
    drawn, page.sections = page.sections, []
    if is_set:
        page.add("The set", *set_facts(clips, run.sources[0]))
    page.add("The clips", "Drift is by how many seconds the sound ends before (-) or after the video.", rows)
    page.sections += drawn
    path = page.write()
    console.print(clips_table(rows))
    console.print(f"open {path}", highlight=False)
    return path


def clips_table(rows: Sequence[dict[str, str]]) -> Table:
    """The table for the terminal. Of a path the file's name is shown whole, as other columns are not told apart without it."""
    table = Table(*(Column(name, overflow="fold", no_wrap=name not in ("clip", "flags")) for name in rows[0]))
    for row in rows:
        table.add_row(*(Text(printable(v)) for v in ({**row, "clip": Path(row["clip"]).name}.values())))
    return table


def listed(sources: Sequence[Path]) -> tuple[Sequence[Clip], bool]:
    """The clips of the sources, and whether they are a set to sample from."""
    if not sources:
        raise ValueError("sources: give videos, a prepared set, a manifest or a folder")
    first = Path(sources[0])
    if len(sources) > 1 or not (first.is_dir() or first.suffix.lower() in MANIFESTS):
        return [Clip(i, str(path)) for i, path in enumerate(sources)], False
    prepared = first / "manifest.csv"
    return (read_manifest(prepared) if prepared.is_file() else find_clips(first)), True


def set_facts(clips: Sequence[Clip], source: Path) -> tuple[str, list[dict]]:
    """A sentence on a set, and a row for each flag of its clips and each reason for which some were set aside."""
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    stored = [row for clip in clips if (row := open_clip(clip).stored) is not None]
    counts = Counter(flag for row in stored for flag in row["flags"].split())
    if stored and (folder / "set_aside.csv").is_file():
        with open(folder / "set_aside.csv", newline="", encoding="utf-8", errors="surrogateescape") as file:
            counts.update(f"set aside: {row['reason']}" for row in csv.DictReader(file))
    hours = f", {sum(row['seconds'] for row in stored) / 3600:.2f} hours" if stored else ""
    return f"{len(clips)} clips{hours}.", [{"flag": flag, "clips": count} for flag, count in counts.most_common(20)]


@dataclass(frozen=True)
class _Inspector:
    """Makes a process's handler (an object and not a closure, so that processes can be sent it)."""

    cfg: ModelConfig
    margin: float
    detector: str
    yunet: str | None

    def __call__(self):
        torch.set_num_threads(1)
        return self.handle

    def handle(self, clip: Clip, context: TaskContext) -> Inspection | str:
        """The clip, or why it cannot be read."""
        context.note(clip.id)
        try:
            return inspect_clip(clip, self.cfg, self.margin, faces.make_detector(self.detector, self.yunet))
        except MediaError as error:
            return error.reason


def inspect_clip(clip: Clip, cfg: ModelConfig, margin: float, detector: faces.Detector | None = None) -> Inspection:
    """The middle window of a clip, as the model will see it. ``detector``: of raw clips' faces. MediaError: it cannot be read."""
    source, (count, height, width) = open_clip(clip), cfg.video.size
    info = source.info
    window = sample_window(info, clip, 0.5, count, DataConfig(), spread=False)
    frames, middle = source.frames(window.frames), window.frames[count // 2]
    original, face = frames[count // 2], clip.face
    if source.stored is None:
        if face is None and detector and (found := faces.choose(faces.find_tracks(frames, detector, 2), "persistent")):
            face = found.box()
        _, drift, flags = cut_sound(source, float(info.times[0]), float(info.times[-1] - info.times[0] + 1 / info.fps))
        flags += [] if face else ["no-face"]
        within = augment.face_box(face, frames.shape[1:3], margin)
    else:
        drift, flags = source.stored["drift"], source.stored["flags"].split()
        flags += [f"damaged-{part}" for part in source.damaged()]
        within = augment.face_box(None, frames.shape[1:3])
        original, face = _before_preparation(source.stored, float(info.times[middle])) or (original, None)
    facts = {
        "frames": str(len(info.times)), "fps": f"{info.fps:.2f}", "seconds": f"{len(info.times) / info.fps:.2f}",
        "window": f"{window.start:.2f} to {window.end:.2f} s", "drift": "" if drift is None else f"{drift:+.3f}",
        "flags": " ".join(flags),
    }  # fmt: skip
    return Inspection(
        augment.crop(frames, augment.view_box(within, 0, 1), (height, width), "bilinear"), info.times[window.frames],
        _spectrogram(source, window, cfg.audio.size[0]), (window.start, window.end), original, face, facts,
    )  # fmt: skip


def _before_preparation(row: dict, time: float) -> tuple[np.ndarray, tuple | None] | None:
    """The frame of the file that a prepared clip was made of, and the face's box in it; None where that file is gone."""
    if not Path(row["source"]).exists():
        return None
    source = open_clip(row["source"])
    number = int(np.abs(source.info.times - row["source_start"] - time).argmin())
    return source.frames([number])[0], None if row["face_x"] is None else tuple(row[f"face_{c}"] for c in "xywh")


def _spectrogram(source: Source, window: Window, frames: int) -> np.ndarray:
    out = np.full((frames, 128), np.nan, np.float32)
    try:
        sound = read_window_audio(source, window, "error")
    except MediaError:
        return out
    features = filterbank(torch.from_numpy(sound)[None], torch.tensor([max(SHORTEST, len(sound))]))[0, :frames].numpy()
    out[: len(features)] = features
    return out
