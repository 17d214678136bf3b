"""``avfmae app``: a page on this machine, which shows what a model says of videos that are dropped on it or recorded."""

import copy
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from avfmae.console import console
from avfmae.data.sources import MediaError
from avfmae.extras import need
from avfmae.files import printable
from avfmae.inference.attention import attention_maps
from avfmae.inference.predictor import Given, Prediction, Predictor
from avfmae.options import AppConfig
from avfmae.viz.attention import Look, attention_figure

ABOUT = """\
# {title}
Faces are found and followed, and windows slide over the video. The numbers tell which people of the training data a face and a
voice resemble. **They do not tell what a person feels.** Ask people before you analyse them. A file is deleted when it has been
predicted, and nothing leaves the machine that serves this page.
"""
MOST = 3  # faces whose attention is drawn
AT_ONCE = 2  # videos


@dataclass
class Watched(Prediction):
    """A prediction that keeps of each face the window with the highest number, and what the model was given."""

    highest: dict[int | None, Given] = field(default_factory=dict)


class WatchedPredictor(Predictor):
    """Fills :class:`Watched`. Threads take turns at the model; the others read and look for faces meanwhile."""

    turn = threading.Lock()

    def run(self, waiting: list[Given], result: Prediction) -> None:
        assert isinstance(result, Watched)
        given = list(waiting)
        with self.turn:
            super().run(waiting, result)
        for new in given:
            face = new[0]["face"]
            result.highest[face] = max(result.highest.get(face, new), new, key=lambda g: max(g[0][c] for c in result.columns))

    def attention(self, result: Watched) -> Any:
        """A figure of the windows with the highest numbers, of the first faces; None where nothing is predicted."""
        looks = []
        for number, (row, picture, sound) in sorted(result.highest.items(), key=lambda item: item[0] or 0)[:MOST]:
            with self.turn:
                video, audio = self.inputs([picture], [sound])
                maps = attention_maps(self.model, video, audio)
            shares = {name: found[0].cpu().numpy() for name, found in maps.items()}
            spectrogram = None if audio is None else audio[0, 0].cpu().numpy()
            name = max(result.columns, key=row.__getitem__)
            title = f"{f'face {number}, ' if number else ''}where {name} is highest ({row[name]:.2f})"
            looks.append(Look(title, picture, spectrogram, shares, (row["start"], row["end"])))
        return attention_figure(looks) if looks else None


def app(run: AppConfig) -> None:
    """Serves the page until it is stopped.

    Raises:
        FileNotFoundError, ValueError: there is no fine-tuned model. RuntimeError: gradio is not installed.
        OSError: the port is taken.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that uploads are removed then too
    with served(run) as url:
        console.print(f"open {url} (Ctrl-C stops it)", highlight=False)
        if run.host not in ("127.0.0.1", "localhost", "::1"):
            console.print(f"host {run.host}: everyone who reaches this machine can use the page", style="yellow")
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


@contextmanager
def served(run: AppConfig) -> Iterator[str]:
    """Serves the page, and gives its address. Uploads lie in a folder that is removed with it."""
    with tempfile.TemporaryDirectory(prefix="avfmae-app-") as folder:
        # gradio reads these when it is imported and when the page is made
        os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_TEMP_DIR": folder}
        gradio = need("gradio", "app", "avfmae app")
        predictor = WatchedPredictor.from_pretrained(run.model, **({} if run.detector is None else {"detector": run.detector}))
        page = make_page(gradio, predictor, f"avfmae: {Path(run.model).name}", run.largest)
        _, url, _ = page.launch(
            server_name=run.host, server_port=run.port, max_file_size=f"{run.largest}mb", share=False, run_history=False,
            enable_monitoring=False, ssr_mode=False, footer_links=[], prevent_thread_lock=True, quiet=True,
        )  # fmt: skip
        try:
            yield url
        finally:
            page.close(verbose=False)


def summary(result: Prediction) -> list[str]:
    """What was found, the highest means of each face, and what is odd."""
    windows = len({row["start"] for row in result.rows})
    words = [f"{result.video}: {windows} windows; faces: {len(result.faces)}."]
    for number in [face.number for face in result.faces] or [None]:
        highest = sorted(result.mean(number).items(), key=lambda item: -item[1])[:3]
        if highest:
            who = "On average" if number is None else f"Face {number}, on average"
            words.append(f"{who}: {', '.join(f'{name} {value:.2f}' for name, value in highest)}.")
    return words + result.notes


def make_page(gradio: Any, predictor: WatchedPredictor, title: str, largest: int) -> Any:
    """The page, as gradio's Blocks."""

    def show(file: str | None, recorded: str | None, faces: str, progress: Any = gradio.Progress()) -> tuple:  # noqa: B008
        """What is shown of one of both, which are deleted."""
        path, drawn = file or recorded, (None, None, None)
        if path is None:
            return "Choose a file, or record one.", *drawn, None, None
        result, mine = Watched(printable(Path(path).name)), copy.copy(predictor)
        mine.which = "all" if faces == "all" else "main"
        try:
            for share in mine.stream(path, result):
                progress(share, desc=result.video)
            words = summary(result)
            if result.columns:
                drawn = (result.plot(), mine.attention(result), result.frame)
        except (MediaError, OSError) as error:
            words = [f"{result.video} cannot be predicted: {error.reason if isinstance(error, MediaError) else error}"]
        finally:
            for upload in filter(None, (file, recorded)):
                Path(upload).unlink(missing_ok=True)
        return "\n\n".join(escape(word, quote=False) for word in words), *drawn, None, None

    with gradio.Blocks(title=title, analytics_enabled=False, delete_cache=(300, 1800)) as page:
        gradio.Markdown(ABOUT.format(title=title))
        with gradio.Row():
            with gradio.Column(scale=1):
                with gradio.Tab("File"):
                    file = gradio.File(label=f"A video, of {largest} MB at most", elem_id="file")
                with gradio.Tab("Camera"):
                    recorded = gradio.Video(sources=["webcam"], include_audio=True, label="A recording", elem_id="camera",
                                            webcam_options=gradio.WebcamOptions(mirror=False))  # fmt: skip
                faces = gradio.Radio(["main", "all"], value="main", label="Faces", elem_id="faces")
                button = gradio.Button("Predict", variant="primary", elem_id="predict")
                word = gradio.Markdown(elem_id="word")
            with gradio.Column(scale=3):
                timeline = gradio.Plot(show_label=False, elem_id="timeline")
                attention = gradio.Plot(show_label=False, elem_id="attention")
                table = gradio.Dataframe(label="Windows", elem_id="table", interactive=False)
        button.click(show, [file, recorded, faces], [word, timeline, attention, table, file, recorded],
                     concurrency_limit=AT_ONCE, api_visibility="private")  # fmt: skip
    return page
