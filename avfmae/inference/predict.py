"""``avfmae predict``: what a fine-tuned model says of one's own videos, as tables, pictures and annotated videos."""

import ctypes
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from avfmae.checkpoints import read_about, weights_file
from avfmae.console import console
from avfmae.data.clip import Clip
from avfmae.data.sources import MediaError, open_clip
from avfmae.files import atomic_write, check_writable, printable, unique_names, write_json, write_rows, write_table
from avfmae.inference.predictor import Prediction, Predictor
from avfmae.options import EvaluateConfig, PredictConfig

MOST = 30  # rows of a video that are shown in a terminal
FIRST = ("video", "start", "end", "face", "x", "y", "w", "h")


def predict(run: PredictConfig) -> list[Prediction]:
    """Predicts each video, prints a table, and writes what is asked for. Videos that cannot be read are told in a line each.

    Raises:
        ValueError: some could not be read. The others are predicted and written by then.
    """
    if run.out is not None:
        check_writable(run.out, is_folder=True)
    if run.whole:
        from avfmae.inference.evaluate import evaluate

        out = run.out and run.out / "predictions.csv"
        weights = weights_file(run.model)
        missing = "silence" if "video" in read_about(weights)["config"].modalities else None
        evaluate(EvaluateConfig(weights, run.videos, out, missing_audio=missing, yunet=run.yunet))
        return []
    names = ("detector", "margin", "every", "faces", "step", "batch")
    given: dict[str, Any] = {name: value for name in names if (value := getattr(run, name)) is not None}
    given |= {} if run.yunet is None else {"yunet": str(run.yunet)}
    return_freed_memory()
    predictor = Predictor.from_pretrained(run.model, **given)
    if run.camera is not None:
        return [watch(predictor, run.camera, run.out)]
    results: list[Prediction] = []
    try:
        for video, folder in zip(run.videos, unique_names(run.videos), strict=True):
            try:
                results.append(predict_one(predictor, video, run.out and run.out / folder, run.annotate))
            except (MediaError, OSError) as error:
                console.print(Text(printable(f"cannot predict {error}"), style="yellow"))
    finally:  # what is done is kept, whatever ends the run
        if results and run.out is None and not sys.stdout.isatty():
            write_rows(sys.stdout, columns_of(results), table_rows(results))
        if results and run.out is not None:
            write_tables(results, run.out)
            console.print(f"{run.out}: predictions.csv, .json, .parquet, and a folder for each video", highlight=False)
    if len(results) < len(run.videos):
        raise ValueError(f"{len(run.videos) - len(results)} of {len(run.videos)} videos could not be predicted")
    return results


def return_freed_memory() -> None:
    """Memory of large frames goes back to the system when it is freed; glibc would keep it in pieces that other sizes do not fit,
    and more of it the longer a video is."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL(None).mallopt(-3, 4 << 20)  # M_MMAP_THRESHOLD


def predict_one(predictor: Predictor, video: Path, folder: Path | None, annotate: bool) -> Prediction:
    """Predicts, shows and writes one video; its pictures go to the folder."""
    result = Prediction(str(video))
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task(printable(video.name), total=1.0)
        for share in predictor.stream(video, result):
            bar.update(task, completed=share)
        if folder is not None:
            bar.update(task, description=f"{printable(video.name)}: writing", completed=0.0)
            write_plots(result, folder, annotate, predictor.data.sound_track, lambda share: bar.update(task, completed=share))
    for note in result.notes:
        console.print(Text(printable(f"{video}: {note}"), style="yellow"))
    if sys.stdout.isatty():
        show(result)
    return result


def watch(predictor: Predictor, name: str, out: Path | None) -> Prediction:
    """Prints the rows of a camera as they come, or writes them to ``out``/predictions.csv beside a picture of each face."""
    from avfmae.inference.camera import Camera, predict_camera

    camera, result, told = Camera(name), Prediction(f"camera {name}"), 0
    task = predictor.task.prediction(Clip(0, ""), np.zeros(predictor.task.outputs))
    columns = [*FIRST[1:], *(c for c in task if c != "path"), "note"]
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        console.print(f"{out}: predictions.csv and faces; Ctrl-C ends it", highlight=False)
    with open(out / "predictions.csv", "w", newline="") if out is not None else nullcontext(sys.stdout) as file:
        write_rows(file, columns, [])
        with suppress(KeyboardInterrupt):
            for rows in predict_camera(predictor, camera, result):
                write_rows(file, columns, rows, header=False)
                file.flush()
                for face in result.faces[told:]:
                    if out is not None:
                        Image.fromarray(face.thumbnail).save(out / f"face-{face.number}.png")
                told = len(result.faces)
    return result


def show(result: Prediction) -> None:
    """Prints a table of the video, short where it is long."""
    table = Table(title=Text(printable(result.video)), title_justify="left")
    predicted = [name for name in columns_of([result]) if name not in FIRST and name != "note"]
    for name in ("seconds", "face", *predicted, "note"):
        table.add_column(name)
    for row in result.rows[:MOST]:
        cells = [row.get(name) for name in predicted]
        said = ["" if v is None else f"{v:.2f}" if isinstance(v, float) else str(v) for v in cells]
        table.add_row(f"{row['start']:.2f} to {row['end']:.2f}", str(row["face"] or ""), *said, row["note"])
    out = Console()
    out.print(table)
    if len(result.rows) > MOST:
        out.print(f"and {len(result.rows) - MOST} rows more (--out FOLDER writes all)")


def table_rows(results: Sequence[Prediction]) -> list[dict[str, Any]]:
    return [{"video": result.video} | row for result in results for row in result.rows]


def columns_of(results: Sequence[Prediction]) -> list[str]:
    """All columns: where and when, what is predicted, the note."""
    names = dict.fromkeys(name for result in results for row in result.rows for name in row)
    return [*FIRST, *(name for name in names if name not in FIRST and name != "note"), "note"]


def write_tables(results: Sequence[Prediction], folder: Path) -> None:
    """``predictions.csv``, ``.parquet`` and ``.json``, which hold the same rows; the last one has faces and notes too."""
    rows, columns = table_rows(results), columns_of(results)
    write_table(folder / "predictions.csv", columns, rows)
    with atomic_write(folder / "predictions.parquet") as path:
        named = [{name: printable(v) if isinstance(v := row.get(name), str) else v for name in columns} for row in rows]
        pyarrow.parquet.write_table(pa.Table.from_pylist(named), path)
    said = [
        {
            "video": printable(result.video),
            "notes": result.notes,
            "faces": [{"number": f.number, "first": round(f.first, 3), "last": round(f.last, 3)} for f in result.faces],
            "mean": result.mean(),
            "windows": result.rows,
        }
        for result in results
    ]
    write_json(folder / "predictions.json", said)


def write_plots(result: Prediction, folder: Path, annotate: bool, sound_track: str | None, advance: Any) -> None:
    """The timeline, a thumbnail a face and, if asked for, the annotated video with the sound that was heard."""
    from avfmae.viz.annotate import Annotations, write_annotated

    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # letters that the font lacks are drawn as boxes
        result.plot().savefig(folder / "timeline.png")
    for face in result.faces:
        Image.fromarray(face.thumbnail).save(folder / f"face-{face.number}.png")
    if annotate:
        source = open_clip(result.video, sound_track)
        if not source.info.has_video:
            result.notes.append("has no picture to annotate")
            return
        drawn = Annotations(result.rows, result.columns, {f.number: f.boxes for f in result.faces})
        try:
            write_annotated(source, drawn.draw, folder / "annotated.mp4", advance)
        except MediaError as error:
            result.notes.append(f"cannot be annotated: {error.reason}")
