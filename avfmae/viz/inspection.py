"""``avfmae inspect``: what the model will see of a prepared set, a manifest or single videos, drawn."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from avfmae.config import ModelConfig
from avfmae.data import augment, faces, shards
from avfmae.data.audio import SHORTEST, filterbank
from avfmae.data.config import DataConfig
from avfmae.data.dataset import read_window_audio, sample_window
from avfmae.data.decode import probe, read_frames
from avfmae.data.manifest import MANIFESTS, Clip, read_manifest
from avfmae.data.media import MediaError
from avfmae.data.prepare import cut_sound, find_clips
from avfmae.data.workers import Desk, Lost, Workers
from avfmae.masking import DualMask
from avfmae.options import InspectConfig
from avfmae.viz.pages import Page


@dataclass
class Look:
    """What was seen of one clip.

    Attributes:
        frames: (T, H, W, 3) uint8 in the model's size. times: (T,) seconds of each on the file's clock.
        spectrogram: (frames, mels), not normalised; missing sound is NaN. span: seconds where the window begins and ends.
        source: the middle frame of the file (H, W, 3), and the face's box in it (x, y, width, height), where there is one.
        facts: for the table.
    """

    frames: np.ndarray
    times: np.ndarray
    spectrogram: np.ndarray
    span: tuple[float, float]
    source: np.ndarray
    face: tuple[float, float, float, float] | None
    facts: dict[str, str]


def inspect(run: InspectConfig) -> Path:
    """Draws and writes the page. Returns ``out/report.html``.

    Raises:
        FileNotFoundError, ValueError: a source is not there, holds no clips, or none that can be read.
    """
    from avfmae.viz.plots import clip_picture

    console = Console(stderr=True)
    cfg, clips, whole = ModelConfig.preset(run.preset), *listed(run.sources)
    chosen = clips
    if whole and len(clips) > run.clips:
        chosen = [clips[i] for i in sorted(np.random.default_rng(run.seed).choice(len(clips), run.clips, replace=False))]
    page = Page(run.out, "What the model sees", ", ".join(map(str, run.sources)))
    rows = []
    with Workers(_Looker(cfg, run.face_margin), min(run.workers, len(chosen)), run.time_limit) as workers:
        for clip, look in track(workers.results(chosen), "looking", len(chosen), console=console):
            if isinstance(look, Lost | str):
                rows.append({"clip": clip.path, "flags": look if isinstance(look, str) else look.reason})
                continue
            rows.append({"clip": clip.path} | look.facts)
            masks = DualMask.for_clips(cfg, [clip.id], run.seed, epoch=0)
            page.add(clip.path, "", (), **{f"clip-{clip.id:06d}": clip_picture(look, cfg, masks)})
    if not page.sections:
        reasons = [f"{row['clip']}: {row['flags']}" for row in rows]
        count = f"none of the {len(rows)} clips can be read: " if len(rows) > 1 else ""
        raise ValueError(count + "; ".join(reasons[:3]) + ("; …" if len(rows) > 3 else ""))
    columns = list(dict.fromkeys(c for row in rows for c in row))
    rows = [{c: row.get(c, "") for c in columns} for row in rows]
    pictures, page.sections = page.sections, []
    if whole:
        page.add("The set", *set_facts(clips, run.sources[0]))
    page.add(
        "The clips that were looked at", "Drift is by how many seconds the sound ends before (-) or after the picture.", rows
    )
    page.sections += pictures
    path = page.write()
    table = Table(*columns)
    for row in rows:
        table.add_row(*map(str, row.values()))
    console.print(table)
    console.print(f"open [bold]{path}[/bold]", highlight=False)
    return path


def listed(sources: Sequence[Path]) -> tuple[list[Clip], bool]:
    """The clips of the sources, and whether they are a set to sample from."""
    if not sources:
        raise ValueError("sources: give videos, a prepared set, a manifest or a folder")
    first = Path(sources[0])
    if len(sources) == 1 and (first / "manifest.csv").is_file():
        return read_manifest(first / "manifest.csv"), True
    if len(sources) == 1 and (first.is_dir() or first.suffix.lower() in MANIFESTS):
        return find_clips(first), True
    return [Clip(i, str(path)) for i, path in enumerate(sources)], False


def set_facts(clips: Sequence[Clip], source: Path) -> tuple[str, list[dict]]:
    """A sentence on a set, and a row for each flag of its clips and each reason for which some were set aside."""
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    text, counts = f"{len(clips)} clips.", Counter()
    with_flags = [shards.open_clip(clip.path).row for clip in clips if shards.is_inside(clip.path)]
    if with_flags:
        text = f"{len(clips)} clips, {sum(row['seconds'] for row in with_flags) / 3600:.2f} hours."
        counts.update(flag for row in with_flags for flag in row["flags"].split())
    if with_flags and (folder / "set_aside.csv").is_file():
        with open(folder / "set_aside.csv", newline="", encoding="utf-8") as file:
            counts.update(f"set aside: {row['reason']}" for row in csv.DictReader(file))
    return text, [{"flag": flag, "clips": count} for flag, count in counts.most_common(20)]


@dataclass(frozen=True)
class _Looker:
    """Makes a process's handler (an object and not a closure, so that processes can be sent it)."""

    cfg: ModelConfig
    margin: float

    def __call__(self):
        return self.handle

    def handle(self, clip: Clip, desk: Desk) -> Look | str:
        """What is seen, or why nothing is."""
        desk.note(clip.id)
        try:
            return look_at(clip, self.cfg, self.margin)
        except MediaError as error:
            return error.reason


def look_at(clip: Clip, cfg: ModelConfig, margin: float) -> Look:
    """The middle window of a clip, as the model will see it.

    Raises:
        MediaError: it cannot be read.
    """
    info, (count, height, width) = probe(clip.path), cfg.video.size
    window = sample_window(info, clip, 0.5, count, DataConfig(), spread=False)
    frames = read_frames(clip.path, window.frames)
    if shards.is_inside(clip.path):
        stored = shards.open_clip(clip.path)
        row, source, face = stored.row, frames[count // 2], None
        within = augment.face_box(None, frames.shape[1:3])
        flags, drift = " ".join([*row["flags"].split(), *(f"damaged-{part}" for part in stored.damaged())]), row["drift"]
        if Path(row["source"]).exists():
            origin = probe(row["source"])
            place = int(np.abs(origin.times - row["source_start"] - info.times[window.frames[count // 2]]).argmin())
            source = read_frames(row["source"], [place])[0]
            face = None if row["face_x"] is None else tuple(row[f"face_{c}"] for c in ("x", "y", "w", "h"))
    else:
        source, face = frames[count // 2], clip.face
        detector = faces.make_detector("haar")
        assert detector is not None
        if face is None and (found := faces.choose(faces.find_tracks(frames, detector, 2), "persistent")):
            face = found.box()
        within = augment.face_box(face, frames.shape[1:3], margin)
        _, drift, found_flags = cut_sound(clip, info, float(info.times[0]), float(info.times[-1] - info.times[0] + 1 / info.fps))
        flags = " ".join(found_flags + ([] if face else ["no-face"]))
    facts = {
        "frames": str(len(info.times)),
        "fps": f"{info.fps:.2f}",
        "seconds": f"{len(info.times) / info.fps:.2f}",
        "looked at": f"{window.start:.2f} to {window.end:.2f} s",
        "drift": "" if drift is None else f"{drift:+.3f}",
        "flags": flags,
    }
    return Look(
        augment.crop(frames, augment.view_box(within, 0, 1), (height, width), "bilinear"), info.times[window.frames],
        _spectrogram(clip, info, window, cfg.audio.size[0]), (window.start, window.end), source, face, facts,
    )  # fmt: skip


def _spectrogram(clip: Clip, info, window, frames: int) -> np.ndarray:
    out = np.full((frames, 128), np.nan, np.float32)
    try:
        sound = read_window_audio(clip, info, window, "error")
    except MediaError:
        return out
    features = filterbank(torch.from_numpy(sound)[None], torch.tensor([max(SHORTEST, len(sound))]))[0, :frames].numpy()
    out[: len(features)] = features
    return out
