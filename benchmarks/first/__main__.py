"""Runs the parts, each in a process of its own that ends with its time, until all are done or the time is up; then makes the
page."""

import argparse
import os
import sys
import time
import traceback
from pathlib import Path

from avfmae_benchmarks.first import process
from avfmae_benchmarks.first.journal import ENDED, Journal
from avfmae_benchmarks.first.parts import PARTS, Failed, LeftOut, Part, Run

PAGE_SECONDS = 40  # kept for the page at the end
LEAST = 30  # seconds with which a part is begun
DRY = 4  # times as long as on a GPU may a part take in a dry run
LEFT_OUT = 3  # the exit code of a part that cannot be run here
NAMES = {part.name: part for part in PARTS}


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu_first.py", description="Everything that only a GPU can tell, the most worth knowing first."
    )
    parser.add_argument(
        "--out", type=Path, default=Path("gpu-first"), help="the folder of results; a run found there is gone on with"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a dry run of all parts on tiny shapes")
    parser.add_argument(
        "--minutes", type=float, default=0, help="stop cleanly before so many minutes are over; 0: when all is done"
    )
    parser.add_argument("--parts", nargs="+", choices=NAMES, metavar="NAME", help="only these, also if they have failed before")
    parser.add_argument("--list", action="store_true", help="say what the parts are, and how far a run is")
    parser.add_argument("--keep", action="store_true", help="run nothing: add the folder's rows to benchmarks/results")
    parser.add_argument(
        "--wheels", type=Path, help="the folder that gpu_wheels.py has made: what this machine lacks is taken from there"
    )
    parser.add_argument("--work", choices=(*NAMES, "page"), help=argparse.SUPPRESS)  # in a part's own process
    args = parser.parse_args(given)
    if args.minutes and 60 * args.minutes < PAGE_SECONDS + LEAST:
        parser.error(
            f"--minutes: got {args.minutes:g}, expected at least {(PAGE_SECONDS + LEAST) / 60:.1f}, for a part and the page"
        )
    args.out = args.out.resolve()
    try:
        if not args.keep:
            args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out: {args.out} cannot be a folder of results: {error.strerror}")
    return args


def main(given: list[str] | None = None) -> int:
    args = arguments(given)
    if args.work:
        return work(args)
    journal = Journal(args.out)
    if args.list:
        states = journal.states()
        for part in PARTS:
            print(f"{part.name:11} {states.get(part.name, {}).get('state', ''):15} {part.limit:4} s at most   {part.tells}")
        return 0
    if args.keep:
        return keep(args.out)
    journal.add(begun=True, device=args.device)
    end = time.monotonic() + 60 * args.minutes - PAGE_SECONDS if args.minutes else float("inf")
    for part in PARTS:
        state = journal.states().get(part.name, {}).get("state")
        asked = args.parts and part.name in args.parts
        ended = state in (("done",) if asked else ENDED)
        if (args.parts and not asked and not part.every) or (ended and not part.every):
            continue
        left, limit = end - time.monotonic(), part.limit * (DRY if args.device == "cpu" else 1)
        if left < min(LEAST, limit):
            break
        state = supervise(part, limit, left, journal, args)
        if part.name == "doctor" and state != "done":
            print("nothing can be measured here")
            return 1
    command = [sys.executable, "-m", "avfmae_benchmarks.first", "--out", str(args.out), "--device", args.device, "--work", "page"]
    if process.run(command, PAGE_SECONDS, args.out / "log.txt", environment(args)) == 0:
        print(f"page: {args.out / 'page.html'}")
    states = {name: event["state"] for name, event in journal.states().items()}
    todo = [part.name for part in PARTS if states.get(part.name) not in ENDED and (not args.parts or part.name in args.parts)]
    failed = [name for name, state in states.items() if state in ("failed", "over its limit")]
    print(f"left for the next command: {', '.join(todo)}" if todo else "all parts are done")
    if failed:
        print(f"failed: {', '.join(failed)}; see {args.out / 'log.txt'}")
    return 1 if failed else 0


def environment(args: argparse.Namespace) -> dict[str, str]:
    """Of a part's process. A dry run takes one core, and compiles nothing with torch.compile."""
    dry = {"OMP_NUM_THREADS": "1", "TORCH_COMPILE_DISABLE": "1", "CUDA_VISIBLE_DEVICES": ""} if args.device == "cpu" else {}
    return os.environ | {"PYTHONUNBUFFERED": "1", "COLUMNS": "160"} | dry


def supervise(part: Part, limit: float, left: float, journal: Journal, args: argparse.Namespace) -> str:
    """Runs a part in a process of its own until its limit, or until no time is left, and notes how it ended. Returns its
    state."""
    print(f"{part.name:11} …", end=" ", flush=True)
    journal.add(part=part.name, state="begun")
    command = [
        sys.executable,
        "-m",
        "avfmae_benchmarks.first",
        "--out",
        str(args.out),
        "--device",
        args.device,
        "--work",
        part.name,
    ]
    log, begun = args.out / "log.txt", time.monotonic()
    with log.open("a") as file:
        print(f"\n=== {part.name}: {part.tells} ===", file=file)
    code = process.run(command, min(limit, left), log, environment(args))
    took = round(time.monotonic() - begun, 1)
    event = journal.states()[part.name]
    if code is None:
        state, says = (
            ("over its limit", f"killed after {took:.0f} s") if limit <= left else ("stopped", "the time of this command was up")
        )
        journal.add(part=part.name, state=state, seconds=took, says=says)
    elif event["state"] == "begun":  # it died without a word
        journal.add(part=part.name, state="failed", seconds=took, says=f"ended with {code}; see log.txt")
    event = journal.states()[part.name]
    print(f"{event['state']} in {took:.0f} s: {event['says']}", flush=True)
    return event["state"]


def work(args: argparse.Namespace) -> int:
    """A part, in its own process: notes in the journal how it ended."""
    process.die_with_parent()
    run = Run(args.out, args.device)
    if args.work == "page":
        from avfmae_benchmarks.first.page import write

        write(run)
        return 0
    if run.dry:
        from avfmae_benchmarks import measure

        measure.SQUARE["cpu"] = 256  # nothing is learnt of speed
    begun = time.monotonic()

    def note(state: str, says: object) -> None:
        run.journal.add(part=args.work, state=state, seconds=round(time.monotonic() - begun, 1), says=str(says)[:500])

    try:
        note("done", NAMES[args.work].work(run))
        return 0
    except LeftOut as reason:
        note("left out", reason)
        return LEFT_OUT
    except Failed as reason:
        note("failed", reason)
    except SystemExit:
        note("failed", "a check failed, or an implementation; see log.txt")
    except Exception as error:
        traceback.print_exc()
        note("failed", f"{type(error).__name__}: {error}")
    return 1


def keep(out: Path) -> int:
    """Adds a run's rows to those that are kept in git."""
    from avfmae_benchmarks import order, results

    device = Journal(out).latest("device")
    if device != "cuda":
        sys.exit(f"--keep: {out} holds {'a dry run, which has measured nothing' if device else 'no run'}")
    for subject in ("step", "kernels", "scaling"):
        there = {(r["date"], r["device"]) for r in results.read(subject, results.FOLDER)}
        if new := [r for r in results.read(subject, out) if (r["date"], r["device"]) not in there]:
            print(f"{len(new)} rows added to {results.append(subject, new, results.FOLDER)}")
    print(f"the order of kernels: {order.write()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
