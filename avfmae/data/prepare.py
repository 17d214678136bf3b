"""``avfmae prepare``: from raw videos to a prepared set (:mod:`avfmae.data.shards`): faces found and cropped, sound resampled,
packed.

The clips, in a fixed order, are cut into shards of equal number; a shard is written when all of its clips are done, in one step.
A shard's bytes depend on its clips and the settings alone. So a run that was killed goes on with the first shard that is not
there, and ends with the bytes of an unbroken one.
"""

import dataclasses
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from avfmae.console import console
from avfmae.data import faces
from avfmae.data.clip import Clip
from avfmae.data.config import SAMPLE_RATE, Preparation
from avfmae.data.cropping import find_face
from avfmae.data.dataset import frame_range
from avfmae.data.manifest import COLUMNS, FACE, MANIFESTS, read_columns, read_manifest
from avfmae.data.shards import TICKS, Sample, encode_sound, encode_video, write_shard
from avfmae.data.sources import MediaError, Source, find_files, open_clip
from avfmae.data.sources.prepared import Shard
from avfmae.data.workers import TaskContext, WorkerFailure, Workers
from avfmae.extras import need
from avfmae.files import atomic_write, digest, locked, printable, write_table
from avfmae.options import PrepareConfig
from avfmae.processes import cores

DRIFT = 0.04  # seconds by which sound and picture may begin or end apart before it is flagged

# What a row of the prepared set's manifest has beside the columns of every manifest.
FACTS = (
    "key", "source", "source_start", "seconds", "fps", "frames", "source_width", "source_height", "has_audio", "drift",
    "face_share", "faces", "flags", "source_sha256", "video_sha256", "sound_sha256",
)  # fmt: skip
SET_ASIDE = ("source", "start", "end", "reason")


@dataclass(frozen=True)
class Failure:
    """Why a clip is set aside."""

    reason: str


def prepare(run: PrepareConfig) -> Path:
    """Prepares what is not prepared yet. Returns the set's manifest.

    Raises:
        FileNotFoundError, ValueError: the source or a setting is wrong, or the folder holds a set of other settings or clips.
    """
    clips, run = find_clips(run.source), dataclasses.replace(run, detector=faces.chosen_detector(run.detector))
    if run.detector == "manifest" and (missing := [c.path for c in clips if c.face is None]):
        raise ValueError(f"{run.source}: {len(missing)} clips have no face box ({missing[0]}), which detector 'manifest' takes")
    faces.make_detector("precropped" if run.detector == "manifest" else run.detector, run.yunet and str(run.yunet))
    out = Path(run.out)
    with locked(out / ".lock", wait=False):
        return _prepare(out, run, clips)


def _prepare(out: Path, run: PrepareConfig, clips: Sequence[Clip]) -> Path:
    _check_settings(out, run, clips)
    groups = {n: clips[n * run.shard_clips :][: run.shard_clips] for n in range(-(-len(clips) // run.shard_clips))}
    there = [n for n in groups if (out / f"{n:06d}.index").exists()]
    broken = [n for n in there if not _is_current(out / f"{n:06d}.tar", groups[n])]
    for number in broken:
        (out / f"{number:06d}.index").unlink()  # so that no index of other bytes is there while the shard is made
    rest = {n: group for n, group in groups.items() if n in broken or n not in there}
    if there:
        anew = f"; {len(broken)} of these are damaged, or their sources have changed, and are made anew" if broken else ""
        console.print(f"{out}: {len(there)} of {len(groups)} shards are there already{anew}", highlight=False)
    with _progress(len(clips), sum(map(len, rest.values()))) as advance:
        results = _results(run, [clip for group in rest.values() for clip in group])
        for number, group in rest.items():
            done = []
            for clip in group:
                done.append(next(results))
                advance(clip, done[-1])
            aside = [_aside(clip, result) for clip, result in zip(group, done, strict=True) if isinstance(result, Failure)]
            (out / f"{number:06d}.aside.json").write_text(json.dumps(aside, indent=1))
            write_shard(out / f"{number:06d}.tar", [r for r in done if isinstance(r, Sample)], preparation(run))
    return _write_set(out, groups, {} if run.source.is_dir() else read_columns(run.source))


def preparation(run: PrepareConfig) -> Preparation:
    """What a model that is trained on the set is told of it."""
    same = {f.name: getattr(run, f.name) for f in dataclasses.fields(Preparation) if hasattr(run, f.name)}
    return Preparation(**same | {"yunet": run.yunet and str(run.yunet)})


def _is_current(shard: Path, group: Sequence[Clip]) -> bool:
    """Whether a shard is whole, and made of its sources as they are. Sources are read only where they are newer than it.

    A source that is there no longer is no reason to lose what was made of it.
    """
    try:
        stored, aside = Shard(str(shard)), json.loads(shard.with_suffix(".aside.json").read_text())
        ends = stored.index["members"].reshape(-1, 2).sum(1)
        digests = {row["source"]: row["source_sha256"] for row in stored.rows}
        made, size = shard.with_suffix(".index").stat().st_mtime, shard.stat().st_size
        if (whole := stored.index.get("tar_sha256")) is not None and digest([shard]) != whole.tobytes().hex():
            return False
    except (MediaError, OSError, ValueError, KeyError, TypeError):
        return False
    if len(stored.rows) + len(aside) != len(group) or size < ends.max(initial=0):
        return False
    for path in {path for clip in group for path in (clip.path, clip.audio_path) if path}:
        with suppress(OSError):
            stat = os.stat(path)
            changed = max(stat.st_mtime, stat.st_ctime) > made  # the latter also where an older file has come in its place
            if changed and (path not in digests or open_clip(path).digest() != digests[path]):
                return False
    return True


def find_clips(source: Path) -> Sequence[Clip]:
    """A manifest's clips, or all videos below a folder in the order of their paths."""
    source = Path(source)
    if source.is_dir():
        found, others = find_files(source)
        passed = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(8)) or "no other files"
        if not found:
            raise ValueError(f"{source}: holds no videos ({passed})")
        if others:
            said = printable(f"{source}: {len(found)} videos; passed over: {passed}")
            console.print(said, highlight=False)
        return [Clip(i, path) for i, path in enumerate(found)]
    if source.suffix.lower() not in MANIFESTS:
        raise ValueError(f"{source}: is neither a folder nor a manifest ({', '.join(sorted(MANIFESTS))})")
    return read_manifest(source)


def _check_settings(out: Path, run: PrepareConfig, clips: Sequence[Clip]) -> None:
    """Makes the folder this run's; one of another run is refused, since their shards would mix."""
    how = ("source", "out", "workers", "time_limit", "engine", "ray_address")
    settings = {f.name: getattr(run, f.name) for f in dataclasses.fields(run) if f.name not in how}
    listed = json.dumps([dataclasses.astuple(c) for c in clips], default=str)
    claim = json.dumps(settings | {"clips": hashlib.sha256(listed.encode()).hexdigest()}, indent=1, default=str)
    out.mkdir(parents=True, exist_ok=True)
    file = out / "prepare.json"
    if not file.exists():
        with atomic_write(file) as temporary:
            temporary.write_text(claim)
        return
    try:
        there, wanted = json.loads(file.read_text()), json.loads(claim)
    except ValueError as error:
        raise ValueError(f"{file}: is damaged ({error}); choose another out") from error
    if there != wanted:
        changed = [f"{k} {there.get(k)}, now {wanted[k]}" for k in wanted if there.get(k) != wanted[k]]
        raise ValueError(f"{out}: holds a set prepared otherwise ({'; '.join(changed)}); choose another out")


def _results(run: PrepareConfig, clips: list[Clip]) -> Iterator[Sample | Failure]:
    """Every clip's result, in order."""
    if not clips:
        return
    if run.engine == "ray":
        yield from _ray(run, clips)
        return
    count = min(run.workers or cores(), len(clips))
    with Workers(_Prepare(run), count, run.time_limit, recycle=200) as workers:
        for _, result in workers.results(clips):
            yield Failure(result.reason) if isinstance(result, WorkerFailure) else result


@dataclass(frozen=True)
class _Prepare:
    """Makes a process's handler (an object and not a closure, so that processes can be sent it)."""

    run: PrepareConfig

    def __call__(self):
        import cv2

        cv2.setNumThreads(1)
        if self.run.detector == "mtcnn":
            import torch

            torch.set_num_threads(1)
        return self.handle

    def handle(self, clip: Clip, context: TaskContext) -> Sample | Failure:
        context.note(clip.id)
        return prepare_clip(clip, self.run)


def _ray(run: PrepareConfig, clips: list[Clip]) -> Iterator[Sample | Failure]:
    ray = need("ray", "ray", "--engine ray")
    started = not ray.is_initialized()
    if started:
        ray.init(
            run.ray_address,
            num_cpus=None if run.ray_address else run.workers or None,
            log_to_driver=False,
            include_dashboard=False,
        )
    try:
        # A worker may be lost with its machine, or for want of memory: the clip is done by a new one, twice more.
        task = ray.remote(max_retries=2, num_cpus=1, num_returns="streaming")(_begun_and_prepared)
        ahead = 4 * int(ray.cluster_resources().get("CPU", 1))
        waiting: list = []
        for clip in [*clips, None]:
            if clip is not None:
                waiting.append((clip, task.remote(clip, run)))
            while waiting and (clip is None or len(waiting) > ahead):
                yield _fetch(ray, *waiting.pop(0), run.time_limit)
    finally:
        if started:
            ray.shutdown()


def _begun_and_prepared(clip: Clip, run: PrepareConfig) -> Iterator[Sample | Failure | None]:
    """None when the work begins, which may be long after it was asked for; then :func:`prepare_clip`'s answer."""
    yield None
    yield prepare_clip(clip, run)


def _fetch(ray: Any, clip: Clip, answers: Any, limit: float) -> Sample | Failure:
    try:
        ray.get(next(answers))
        done, _ = ray.wait([answers], timeout=limit)
        if not done:
            ray.cancel(answers, force=True)
            return Failure(f"takes longer than {limit:g} s")
        return ray.get(next(answers))
    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError, ray.exceptions.NodeDiedError) as error:
        # Ray does not tell a decoder's crash from a kill for want of memory or a lost machine: it is held against no clip.
        raise RuntimeError(f"{clip.path}: Ray lost three workers on this clip: {str(error).splitlines()[0]}") from error


def prepare_clip(clip: Clip, run: PrepareConfig) -> Sample | Failure:
    """One clip, from its file to what is stored of it; the same result wherever it is run.

    Its frames are those between the clip's start and end; its sound is cut so that it begins with the first frame.
    """
    try:
        return _prepare_clip(clip, run)
    except MediaError as error:
        return Failure(error.reason)


def _prepare_clip(clip: Clip, run: PrepareConfig) -> Sample | Failure:
    source = open_clip(clip, run.sound_track)
    info = source.info
    low, high = frame_range(info, clip)
    flags, count = [], high - low
    if count < run.min_frames:
        flags.append("short")
    height, width = next(source.frames_between(low, high)).shape[:2]
    apart = np.arange(count) * 2 / TICKS  # of stamps that repeat
    times = np.maximum.accumulate(info.times[low:high] - apart) + apart
    seconds = float(times[-1] - times[0] + 1 / info.fps)
    how = preparation(run)
    found = find_face(source, clip.face, how, low, high, (height, width))
    face, share, seen, warps = found.box, found.share, found.seen, found.warps(how, count, run.size)
    if face is None and run.detector != "precropped":
        flags.append("no-face")
    elif share < 0.5:
        flags.append("face-often-lost")
    if seen > 1:
        flags.append("several-faces")
    sound, drift, heard = cut_sound(source, float(times[0]), seconds)
    flags += heard
    for flag, reason in (
        ("no-face", "no face is found in it"),
        ("no-audio", "has no sound"),
        ("short", f"has {count} frames, fewer than {run.min_frames}"),
    ):
        if flag in flags and flag not in run.keep:
            return Failure(f"{reason} (keep = {flag} would keep it)")
    cropped = (
        faces.warp(frame, to_frame, run.size) for frame, to_frame in zip(source.frames_between(low, high), warps, strict=True)
    )
    video = encode_video(cropped, times - times[0], (run.size, run.size), run.quality)
    wav = None if sound is None else encode_sound(sound)
    stem = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(clip.path).stem)[:60]
    row: dict[str, Any] = {c: getattr(clip, c) for c in COLUMNS if c not in (*FACE, "path", "audio_path", "start", "end")}
    row |= dict(zip(FACE, (None,) * 4 if face is None else (round(v, 1) for v in face), strict=True))
    row |= {
        "key": f"{clip.id:08d}-{stem}",
        "source": clip.path,
        "source_start": round(float(times[0]), 6),
        "seconds": round(seconds, 3),
        "fps": round(info.fps, 3),
        "frames": count,
        "source_width": width,
        "source_height": height,
        "has_audio": int(sound is not None),
        "drift": drift,
        "face_share": round(share, 3),
        "faces": seen,
        "flags": " ".join(flags),
        "source_sha256": source.digest(),
        "video_sha256": hashlib.sha256(video).hexdigest(),
        "sound_sha256": wav and hashlib.sha256(wav).hexdigest(),
    }
    return Sample(row, video, wav)


def cut_sound(source: Source, start: float, seconds: float) -> tuple[np.ndarray | None, float | None, list[str]]:
    """The sound from the first frame on; by how many seconds it ends before (-) or after the video; and flags."""
    sound = source.sound(start, start + seconds) if source.info.has_audio else np.zeros(0, np.float32)
    if not len(sound):
        return None, None, ["no-audio", *sorted(source.flags)]
    drift = round(len(sound) / SAMPLE_RATE - seconds, 3)
    flags = [*sorted(source.flags), *(["sound-ends-early"] if drift < -DRIFT - 1 / source.info.fps else [])]
    loud = np.flatnonzero(np.abs(sound) > 1e-4)
    if not len(loud):
        flags.append("silent")
    elif loud[0] / SAMPLE_RATE > max(0.5, seconds / 4):
        flags.append("sound-begins-late")
    return sound, drift, flags


def _aside(clip: Clip, failure: Failure) -> dict:
    return {"source": clip.path, "start": clip.start, "end": clip.end, "reason": failure.reason}


def _write_set(out: Path, groups: Iterable[int], own: Mapping[str, Sequence[str | None]]) -> Path:
    """Writes the manifest and the list of what was set aside, from what the shards say, and prints the summary.

    Args:
        own: the source manifest's further columns, a value a clip.
    """
    rows, aside, flags, size = [], [], Counter(), 0
    for number in groups:
        shard = out / f"{number:06d}.tar"
        size += shard.stat().st_size
        for row in Shard(str(shard)).rows:
            rows.append({name: values[int(row["key"].partition("-")[0])] for name, values in own.items()})
            rows[-1] |= {"path": f"{shard.name}/{row['key']}"} | row
            flags.update(row["flags"].split())
        aside += json.loads(shard.with_suffix(".aside.json").read_text())
    columns = [*(c for c in COLUMNS if c not in ("audio_path", "start", "end")), *FACTS]
    write_table(out / "manifest.csv", [*columns, *(name for name in own if name not in columns)], rows, "ignore")
    write_table(out / "set_aside.csv", SET_ASIDE, aside, "ignore")
    table = Table(show_header=False, box=None)
    hours = sum(row["seconds"] for row in rows) / 3600
    table.add_row("prepared", f"{len(rows)} clips, {hours:.2f} hours, {size / 1e6:.1f} MB in {len(list(groups))} shards")
    for flag, count in flags.most_common():
        table.add_row(flag, f"{count} clips")
    table.add_row("set aside", f"{len(aside)} clips" + (f", with reasons in {out / 'set_aside.csv'}" if aside else ""))
    for entry in aside[:5]:
        table.add_row("", Text(printable(f"{entry['source']}: {entry['reason']}")))
    table.add_row("manifest", str(out / "manifest.csv"))
    console.print(table, highlight=False)
    return out / "manifest.csv"


@contextmanager
def _progress(clips: int, rest: int) -> Iterator[Callable[[Clip, Sample | Failure], None]]:
    """A bar over all clips, with the number set aside so far; calls add a clip."""
    columns = (
        TextColumn("preparing"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[aside]} set aside"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    aside = 0
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=clips, completed=clips - rest, aside=aside)

        def advance(clip: Clip, result: Sample | Failure) -> None:
            nonlocal aside
            aside += isinstance(result, Failure)
            bar.update(task, advance=1, aside=aside)

        yield advance
