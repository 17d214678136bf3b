"""Whether a run found in a folder may be continued: by all that its results depend on, each named where it differs."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

from avfmae.data.table import COLUMNS, ClipTable
from avfmae.files import digest
from avfmae.training.config import RunConfig

# Settings that results do not depend on, or that are compared by what they lead to: files by their content, a preset as a model.
FREE = {
    "recipe", "config", "out", "preset", "init", "parallel", "compile", "save_steps", "log_steps", "tensorboard", "stop_after",
    "resume_anyway", "manifest", "manifests", "label_map", "held_out", "folds", "only_fold", "val_share", "select",
    "optim.max_skipped", "data.workers", "data.clip_seconds", "data.recycle", "data.max_bad_share", "leaks",
}  # fmt: skip
FIXED = ("model", "optim.total_batch")  # without which neither weights nor steps fit


class OtherRun(ValueError):
    """The run in the folder is another one."""


def fingerprint(run: RunConfig, clips: Mapping[str, ClipTable], shards: bool, **others: object) -> dict[str, str]:
    """What the results of a run depend on, by name, each as text.

    Args:
        clips: lists by name. shards: whether their order depends on shards. others: what else matters.
    """
    found: dict[str, object] = {}
    rows = [c for c in COLUMNS if c != "label"]
    for name, table in clips.items():
        found |= {f"{name} clips": table.digest(rows), f"{name} labels": table.digest(["label"])}
    found["initial weights"] = run.init and digest([run.init])[:16]
    for name, value in dataclasses.asdict(run).items():
        parts = value.items() if name in ("data", "optim", "model") else [("", value)]
        found |= {f"{name}.{part}".rstrip("."): v for part, v in parts if not {name, f"{name}.{part}"} & FREE}
    if not shards:
        del found["data.mixed_shards"]
    return {name: json.dumps(value, default=str) for name, value in (found | others).items()}


def _difference(name: str, before: object, after: object) -> str:
    """In words; of tables, what differs in them."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = [key for key in before | after if before.get(key) != after.get(key)]
        return ", ".join(_difference(f"{name}.{key}", before.get(key), after.get(key)) for key in keys)
    return f"{name} {json.dumps(before)}, now {json.dumps(after)}"


def check_same(path: Path, saved: dict[str, str], now: dict[str, str], anyway: bool) -> None:
    """Compares a checkpoint's fingerprint with this run's, in what both know.

    Raises:
        OtherRun: they differ, and in more than ``--resume-anyway`` lets pass.
    """
    differing = [name for name in now if name in saved and saved[name] != now[name]]
    fixed = [name for name in differing if name.partition(".")[0] in FIXED or name in FIXED]
    if not differing or (anyway and not fixed):
        return
    told = ", ".join(_difference(name, json.loads(saved[name]), json.loads(now[name])) for name in differing)
    wanted = "choose another out" if fixed else "choose another out, or take it all the same with --resume-anyway"
    raise OtherRun(f"{path}: belongs to a run with another {' and '.join(differing)} ({told}); {wanted}")
