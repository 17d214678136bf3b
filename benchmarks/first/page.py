"""The page of a first run: one HTML file with its pictures inside, made anew from the folder's files whenever it is asked for."""

import base64
import io
from collections.abc import Iterable
from html import escape

from avfmae_benchmarks import results
from avfmae_benchmarks.first.parts import PARTS, Run

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem; padding: 0 1rem; color: #1a202c; }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; } td, th { padding: .2rem .7rem; text-align: left; vertical-align: top;
border-bottom: 1px solid #e2e8f0; } td.n { text-align: right; font-variant-numeric: tabular-nums; } td.name { font-family:
ui-monospace, monospace; font-size: 12px; word-break: break-all; } img { max-width: 100%; } .dry { background: #c53030; color:
white; font-size: 2.4rem; font-weight: 700; padding: 1rem 1.5rem; line-height: 1.2; } .failed, .over { color: #c53030;
font-weight: 600; } .done { color: #276749; } .left { color: #718096; }
"""
DRY = "Dry run on a processor. Shapes are tiny, and no number on this page says anything about a GPU or about speed."


def cell(value: object) -> str:
    if isinstance(value, float):
        return f'<td class="n">{value:.4g}</td>'
    text = str(value)
    return f'<td class="n">{text}</td>' if text.replace(".", "", 1).isdigit() else f"<td>{escape(text)}</td>"


def table(head: Iterable[str], rows: Iterable[Iterable]) -> str:
    cells = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{escape(h)}</th>' for h in head)}</tr>{cells}</table>"


def picture(figure, run: Run, name: str) -> str:
    """A figure inside the page, and the roofline as a file of its own: a machine on loan gives few files back."""
    if figure is None:
        return ""
    if run.dry:
        figure.text(
            0.5, 0.5, "dry run", color="#c53030", alpha=0.35, fontsize=90, weight="bold", rotation=20, ha="center", va="center"
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    if name == "roofline.png":
        (run.out / name).write_bytes(buffer.getvalue())
    return f'<p><img alt="{name}" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"></p>'


def parts(run: Run) -> str:
    states = run.journal.states()
    rows = []
    for part in PARTS:
        event = states.get(part.name, {"state": "not yet"})
        kind = event["state"].split()[0]
        rows.append(
            f'<tr><td>{part.name}</td><td class="{kind}">{event["state"]}</td><td class="n">{event.get("seconds", "")}</td>'
            f"<td>{escape(event.get('says', part.tells))}</td></tr>"
        )
    return f"<table><tr><th>part</th><th></th><th>s</th><th></th></tr>{''.join(rows)}</table>"


def steps(run: Run) -> str:
    from avfmae_benchmarks.step import speed_up

    rows = []
    of_run = results.read("step", run.out)
    for row in of_run:
        kind = [row["stage"], row["size"], row["batch"], f"{row['side']} {row['precision']}"]
        if not row["ms"]:
            rows.append([*kind, row["note"], "", "", "", ""])
            continue
        same = [r for r in of_run if r["stage"] == row["stage"] and r["size"] == row["size"]]
        ups = ", ".join(f"{up:.2f} × {other}" for other, up in speed_up(same, row).items())
        numbers = [float(row[name]) for name in ("ms", "clips_per_s", "tflops", "peak_gb")]
        rows.append([*kind, *numbers, f"{float(row['matrix_share']):.0%}", ups])
    return table(
        ("stage", "size", "batch", "side", "ms a step", "clips/s", "useful TFLOP/s", "peak GB", "of matrix rate", "in turns"),
        rows,
    )


def longest(run: Run) -> str:
    """The kernels that a step takes most time for."""
    event = next((e for e in reversed(run.journal.events()) if "kernels" in e), None)
    if event is None:
        return ""
    what = "ops of a step on the processor" if run.dry else "kernels of a captured step"
    rows = "".join(
        f'<tr><td class="name">{escape(name)}</td>{cell(float(calls))}{cell(float(ms))}<td class="n">{share:.1%}</td></tr>'
        for name, calls, ms, share in event["kernels"]
    )
    covered = sum(share for *_, share in event["kernels"])
    return (
        f"<h2>The {len(event['kernels'])} {what} that take most time</h2><p>Of {event['of']}; together {covered:.0%} of "
        f"{event['ms']:.4g} ms under the "
        f"profiler.</p><table><tr><th></th><th>calls</th><th>ms</th><th>share</th></tr>{rows}</table>"
    )


def faults(run: Run) -> str:
    latest = {e["test"]: e for e in run.journal.events() if "test" in e}
    rows = [(test, event["reason"]) for test, event in latest.items() if event["outcome"] == "failed"]
    rows += [("does not compile", fault) for fault in run.journal.latest("faults") or ()]
    rows += [
        (f"{r['case']} {r['precision']} {r['direction']} {r['implementation']}", r["note"])
        for r in results.read("kernels", run.out)
        if r.get("note")
    ]
    return f"<h2>Faults</h2>{table(('', ''), rows)}" if rows else ""


def write(run: Run) -> None:
    """Writes ``page.html`` and its pictures from what there is so far."""
    try:
        from avfmae_benchmarks.plots import bars, roofline

        pictures = picture(roofline(run.out), run, "roofline.png") if results.read("kernels", run.out) else ""
        speeds = picture(bars(run.out), run, "step.png") if results.read("step", run.out) else ""
    except ImportError as error:
        pictures, speeds = (
            f"<p>No pictures: {escape(str(error))}. They are drawn where matplotlib is, by the same command with --parts "
            "doctor.</p>",
            "",
        )
    where, limits = run.journal.latest("where") or {}, run.journal.latest("limits") or {}
    scaled = [
        [
            r["stage"],
            r["size"],
            r["batch"],
            *([float(r["ms"]), float(r["clips_per_s"]), float(r["tflops"]), float(r["peak_gb"])] if r["ms"] else [r["note"]]),
        ]
        for r in results.read("scaling", run.out)
    ]
    body = [
        f'<p class="dry">{DRY}</p>' if run.dry else "",
        f"<h1>{escape(where.get('device', 'nothing measured yet'))}</h1>",
        table(("", ""), [*where.items(), *limits.items(), *(run.journal.latest("facts") or {}).items()]),
        "<h2>Parts</h2>",
        parts(run),
        faults(run),
        "<h2>A training step</h2>",
        steps(run),
        speeds,
        "<h2>Kernels under the roofs that were measured here</h2>",
        pictures,
        longest(run),
        "<h2>Sizes and batches</h2>",
        table(("stage", "size", "batch", "ms a step", "clips/s", "useful TFLOP/s", "peak GB"), scaled),
        "<h2>What runs</h2>",
        table(("op", "implementation"), (run.journal.latest("runs") or {}).items()),
    ]
    title = "Dry run" if run.dry else "First run"
    page = f"<!doctype html><meta charset=utf-8><title>avfmae: {title}</title><style>{STYLE}</style>{''.join(body)}"
    (run.out / "page.html").write_text(page)
