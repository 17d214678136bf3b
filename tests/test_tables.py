"""Tables on the terminal and pages: tables on their side where that fits and they do not; nothing is cut off."""

import io

import pytest
from rich.console import Console

from avfmae.viz.pages import Page
from avfmae.viz.tables import print_table

METRICS = {f"metric {i}": f"0.{i:02d} ± 0.01" for i in range(12)}


def printed(rows, width):
    out = io.StringIO()
    print_table(rows, "results", Console(file=out, width=width, markup=False))
    return out.getvalue()


@pytest.mark.parametrize(("width", "turned"), [(80, True), (400, False)])
def test_every_number_is_there(width, turned):
    rows = [{"epoch": kind} | METRICS for kind in ("last [a]", "best on test")]
    text = printed(rows, width)
    assert all(text.count(value.replace(" ", "\u00a0")) == 2 for value in METRICS.values()) and "…" not in text
    assert ("│ metric 3  " in text) == turned and max(map(len, text.splitlines())) <= width


def test_the_table_of_a_regression_fits_eighty_columns():
    names = [f"{metric}{dimension}" for metric in ("PCC", "CCC", "MSE", "ACC") for dimension in ("", "_arousal", "_valence")]
    kinds = ("last epoch (2)", "best on held-out (2)", "best on test (legacy) (1)")
    text = printed([{"epoch": kind} | dict.fromkeys(names, "0.29 ± 0.00") for kind in kinds], 80)
    assert text.count("0.29\u00a0±\u00a00.00") == 36 and all(name in text for name in names)


def test_what_fits_in_no_way_is_folded():
    text = printed([{"who": f"person {k}"} | METRICS for k in range(30)], 100)
    assert "…" not in text and text.count("±") == 30 * len(METRICS)


def test_a_page_shows_names_that_are_not_utf8(tmp_path):
    page = Page(tmp_path, "clips")
    page.add("Set aside", rows=[{"clip": "caf\udce9.mp4", "reason": "is empty"}])
    assert r"caf\udce9.mp4" in page.write().read_text(encoding="utf-8")
