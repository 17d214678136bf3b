"""The page in a browser: a video, a file that is none, one that is too large, a recording, two at once. Chromium is headless."""

import importlib.util
import os
import shutil
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

import avfmae
from avfmae.cli import main
from avfmae.data.config import DataConfig
from avfmae.inference.predictor import Predictor
from avfmae.models.finetuning import AVFMAEForFinetuning
from avfmae.options import AppConfig
from avfmae.tasks.classification import Classification

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = [name for name in ("gradio", "playwright") if importlib.util.find_spec(name) is None] + ["chromium"] * (
    CHROMIUM is None
)
needs_a_browser = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}")
SECONDS = 60_000  # milliseconds that the page may take


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    model = AVFMAEForFinetuning(avfmae.ModelConfig.preset("demo"), 3, "classification")
    predictor = Predictor(model, Classification(("calm", "glad", "sad")), DataConfig(stride=8), detector="precropped")
    return predictor.save_pretrained(tmp_path_factory.mktemp("app") / "mine")


@pytest.fixture(scope="module")
def address(folder):
    from avfmae.inference.app import served

    with served(AppConfig(folder, largest=1, detector="precropped")) as url:
        yield url


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *camera])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, address):
    page = browser.new_page()
    page.goto(address)
    yield page
    page.close()


def drop(page, path):
    page.set_input_files("#file input[type=file]", path)
    page.wait_for_selector("#file .file-preview", timeout=SECONDS)


def uploaded(pattern):
    return list(Path(os.environ["GRADIO_TEMP_DIR"]).rglob(pattern))


def said(page, word):
    """What stands under the button, as soon as it has this word."""
    page.wait_for_function("word => document.querySelector('#word')?.innerText.includes(word)", arg=word, timeout=SECONDS)
    return page.inner_text("#word")


def test_without_gradio_it_says_what_to_install(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)  # its import fails
    with pytest.raises(SystemExit, match=r"avfmae app needs gradio: pip install 'avfmae\[app\]'"):
        main(["app", "--model", str(folder)])


@needs_a_browser
@pytest.mark.exhaustive
@pytest.mark.xdist_group("app")
class TestPage:
    def test_it_listens_on_this_machine_alone(self, address):
        port = int(address.rstrip("/").rpartition(":")[2])
        listening = {c.laddr.ip for c in psutil.Process().net_connections() if c.status == "LISTEN" and c.laddr.port == port}
        assert listening == {"127.0.0.1"}

    def test_a_video_is_shown_and_deleted(self, page, media):
        drop(page, media["good_mp4"])
        assert uploaded("good.mp4")  # otherwise its absence afterwards says nothing
        page.click("#predict")
        assert "On average: " in said(page, "good.mp4: 4 windows")
        for name in ("timeline", "attention"):
            page.wait_for_function(
                "id => document.querySelector(`#${id} img`)?.naturalHeight > 100", arg=name, timeout=SECONDS
            )  # a figure
        table = page.inner_text("#table")
        assert all(name in table for name in ("start", "calm", "glad", "sad", "1.28"))
        assert not uploaded("good.mp4")

    def test_what_cannot_be_read_is_named(self, page, media):
        drop(page, media["good_mp4"])
        page.click("#predict")
        said(page, " windows;")
        drop(page, media["text_mp4"])
        page.click("#predict")
        assert "text.mp4 cannot be predicted: " in said(page, "no readable media")
        page.wait_for_function("() => !document.querySelector('#timeline img')", timeout=SECONDS)  # what was shown is gone
        page.click("#predict")
        assert said(page, "Choose a file, or record one.")

    def test_a_file_that_is_too_large_is_refused(self, page, tmp_path):
        (tmp_path / "large.mp4").write_bytes(bytes(2 << 20))
        page.set_input_files("#file input[type=file]", tmp_path / "large.mp4")
        page.get_by_text("exceed the maximum allowed size").wait_for(timeout=SECONDS)

    def test_a_recording_is_predicted(self, page):
        page.get_by_role("tab", name="Camera").click()
        page.get_by_text("Click to Access Webcam").click()
        button = page.locator("#camera button").first  # it starts, and then stops
        page.wait_for_selector("#camera button[aria-label='start recording']", timeout=SECONDS)
        button.click()
        page.wait_for_timeout(3000)
        button.click()
        until = time.monotonic() + SECONDS / 1000
        while not uploaded("*.webm") and time.monotonic() < until:
            page.wait_for_timeout(100)
        page.wait_for_timeout(500)  # the page is told of it
        page.click("#predict")
        assert ".webm" in said(page, " windows;")

    def test_two_at_once(self, browser, address, media):
        pages = [browser.new_page() for _ in range(2)]
        names = ("good_mp4", "fast_mp4")
        for page, name in zip(pages, names, strict=True):
            page.goto(address)
            drop(page, media[name])
        for page in pages:
            page.click("#predict")
        for page, name in zip(pages, names, strict=True):
            assert Path(media[name]).name in said(page, " windows;")
            page.close()
