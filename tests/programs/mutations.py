"""Commands on damaged and hostile files, one a seed: each must end in a result or in a message, and execute nothing of the file.

``mutations.py FIRST COUNT FOLDER KIND...`` prints, as JSON, how many commands of each kind gave a result (``passed``) and a
message (``told``), and ``faults``: what must not be. A process that dies in a seed has printed the seed last.
"""

import io
import json
import os
import pickle
import resource
import signal
import sys
import traceback
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import torch

import avfmae
from avfmae.checkpoints import save_weights
from avfmae.cli import main
from avfmae.data.clip import Clip
from avfmae.data.manifest import write_manifest
from avfmae.data.prepare import preparation, prepare_clip
from avfmae.data.shards import Sample, write_shard
from avfmae.data.sources.prepared import OPENED
from avfmae.datasets.drawn import encode
from avfmae.options import PrepareConfig

SECONDS = 60  # of one command; it takes a fraction of one
EMOTIONS = ("joyful", "sad")
MEMORY = 6 << 30  # bytes of address space beyond what the imports take
FORBIDDEN = {
    "os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "os.kill", "subprocess.Popen", "pty.spawn",
    "pickle.find_class", "socket.connect", "ctypes.dlopen", "webbrowser.open", "shutil.rmtree",
}  # fmt: skip
WORDS = [
    b"NaN", b"-1", b"1e999", b'"', b'""', b",", b"\t", b"\0", b"\xff\xfe", b"=cmd|' /C calc'!A0", b"../../etc/passwd",
    b"\x1b[31m", b"concat:a|b", b"http://127.0.0.1:9/x.mp4", b"/dev/zero", b"file.m3u8", b"9" * 400, b"\r\n", b"path", b"[/red]",
]  # fmt: skip


class Evil:
    """Writes a file when it is unpickled in earnest."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """The bytes with one kind of damage."""
    out, size = bytearray(data), len(data)
    low, high = sorted(int(n) for n in rng.integers(0, size, 2))
    kind = rng.integers(9)
    if kind == 0:
        del out[low:]
    elif kind == 1:
        for place in rng.integers(0, size, int(rng.integers(1, 40))).tolist():
            out[place] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        out[: int(rng.integers(4, 64))] = rng.bytes(int(rng.integers(4, 64)))
    elif kind == 3:
        out[low:high] = out[low:high][::-1]
    elif kind == 4:
        out[low:high] = rng.bytes(high - low)
    elif kind == 5:
        out[low : low + 256] = bytes(len(out[low : low + 256]))
    elif kind == 6:  # numbers of four bytes that claim much
        for place in rng.integers(0, max(1, min(size, 4096) - 4), 4).tolist():
            out[place : place + 4] = b"\x7f\xff\xff\xff" if rng.random() < 0.5 else b"\xff\xff\xff\x7f"
    elif kind == 7:
        for place in sorted(rng.integers(0, size, int(rng.integers(1, 6))).tolist(), reverse=True):
            out[place:place] = WORDS[int(rng.integers(len(WORDS)))]
    else:
        out[low:high] = b""
    return bytes(out)


class Bench:
    """What is damaged, and the commands that meet it."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.frames, self.sound = np.random.default_rng(0).integers(0, 255, (20, 48, 64, 3), np.uint8), np.zeros(16_000)
        self.clip = str(folder / "plain.mp4")
        encode(folder / "plain.mp4", self.frames, self.sound, rate=16_000)
        self.clips = [Clip(i, self.clip, label=EMOTIONS[i], split="test", face=(1.0, 2.0, 30.0, 30.0)) for i in range(2)]
        self.weights = folder / "weights.safetensors"
        torch.manual_seed(0)
        model = avfmae.AVFMAEForFinetuning(avfmae.ModelConfig.preset("tiny"), len(EMOTIONS))
        about = {"task": "classification", "classes": list(EMOTIONS), "modalities": ["video", "audio"]}
        save_weights(model, self.weights, **about)
        self.state = model.state_dict()
        self.marker = folder / "executed"
        write_manifest(folder / "nothing.csv", [Clip(0, str(folder / "nothing.mp4"))])

    def evaluate(self, weights: Path, clips: Path) -> list[str]:
        views = ["--segments", "1", "--crops", "1", "--workers", "0"]
        return ["evaluate", str(weights), str(clips), *views, "--out", str(self.folder / "predictions.csv")]

    def pretrain(self, init: Path) -> list[str]:
        """Ends at its first clip, which is not there, if the weights are read."""
        options = ["--preset", "tiny", "--data.workers", "0", "--optim.total-batch", "2", "--init", str(init)]
        return ["pretrain", "--manifest", str(self.folder / "nothing.csv"), "--out", str(self.folder / "run"), *options]

    def evaluate_one_of(self, files: dict[str, bytes]) -> Callable:
        """Damages one of some files, which are given by suffix."""

        def command(rng: np.random.Generator) -> list[str]:
            suffix = [*files][int(rng.integers(len(files)))]
            path = self.folder / f"damaged{suffix}"
            path.write_bytes(mutated(files[suffix], rng))
            return self.evaluate(self.weights, path)

        return command

    def media(self) -> Callable:
        files = {Path(self.clip).suffix: Path(self.clip).read_bytes()}
        for suffix in (".mkv", ".avi", ".mpg", ".flv"):
            encode(self.folder / f"plain{suffix}", self.frames, self.sound, rate=16_000 if suffix != ".flv" else 44_100)
            files[suffix] = (self.folder / f"plain{suffix}").read_bytes()

        return self.evaluate_one_of(files)

    def checkpoints(self) -> Callable:
        saved = {"state_dict": self.state, "args": {"lr": 1e-3}, "epoch": np.float64(3)}
        torch.save(saved, self.folder / "zip.pth")
        torch.save(saved, self.folder / "old.pth", _use_new_zipfile_serialization=False)
        files = {f"{n}.pth": (self.folder / f"{n}.pth").read_bytes() for n in ("zip", "old")}
        evil = pickle.dumps({"model": {"x": [Evil(f"touch {self.marker}")] * 3}}, 2)

        def command(rng: np.random.Generator) -> list[str]:
            kind = rng.integers(5)
            if kind == 0:
                path = self.folder / "damaged.safetensors"
                path.write_bytes(mutated(self.weights.read_bytes(), rng))
                return self.evaluate(path, Path(self.clip))
            path = self.folder / "damaged.pth"
            if kind == 1:  # a pickle that calls a function, in the place of the weights
                data = evil if rng.random() < 0.5 else mutated(evil, rng)
                with zipfile.ZipFile(path, "w") as archive:
                    archive.writestr("archive/data.pkl", data)
                    archive.writestr("archive/version", "3\n")
            elif kind == 2:  # damage within the pickle, which the archive's checksum would tell
                with zipfile.ZipFile(io.BytesIO(files["zip.pth"])) as old, zipfile.ZipFile(path, "w") as new:
                    for name in old.namelist():
                        data = old.read(name)
                        new.writestr(name, mutated(data, rng) if name.endswith("data.pkl") else data)
            else:
                path.write_bytes(mutated(files["zip.pth" if kind == 3 else "old.pth"], rng))
            return self.pretrain(path)

        return command

    def indexes(self) -> Callable:
        run = PrepareConfig(Path(self.clip), self.folder, detector="manifest", size=64)
        made = [sample for clip in self.clips if isinstance(sample := prepare_clip(clip, run), Sample)]
        write_shard(self.folder / "0.tar", made, preparation(run))
        files = {suffix: (self.folder / f"0{suffix}").read_bytes() for suffix in (".index", ".tar")}
        few = self.folder / "prepared.csv"
        write_manifest(few, [Clip(i, f"{self.folder}/0.tar/{s.row['key']}", label=EMOTIONS[i]) for i, s in enumerate(made)])

        def command(rng: np.random.Generator) -> list[str]:
            OPENED.clear()
            damaged = ".tar" if rng.random() < 0.3 else ".index"
            for suffix, data in files.items():
                (self.folder / f"0{suffix}").write_bytes(mutated(data, rng) if suffix == damaged else data)
            return self.evaluate(self.weights, few)

        return command

    def manifests(self) -> Callable:
        for suffix in (".csv", ".parquet"):
            write_manifest(self.folder / f"few{suffix}", self.clips)
        (self.folder / "few.txt").write_text("".join(f"{clip.path} 0\n" for clip in self.clips))
        (self.folder / "few.tsv").write_text((self.folder / "few.csv").read_text().replace(",", "\t"))
        files = {suffix: (self.folder / f"few{suffix}").read_bytes() for suffix in (".csv", ".parquet", ".txt", ".tsv")}

        return self.evaluate_one_of(files)


class Watch:
    """Notes what is executed while ``on``."""

    def __init__(self):
        self.on, self.seen = False, []
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple) -> None:
        if self.on and event in FORBIDDEN:
            self.seen.append(f"{event} {arguments!r}"[:200])
        elif self.on and event == "exec" and getattr(arguments[0], "co_filename", "").startswith("<"):
            caller = sys._getframe(1).f_code.co_filename  # libraries make classes from text that is theirs
            if not caller.startswith((sys.prefix, sys.base_prefix, "<frozen")):
                self.seen.append(f"exec {arguments[0]!r} by {caller}")


def timed_out(*_: object) -> None:
    raise TimeoutError(f"takes longer than {SECONDS} s")


def run(arguments: list[str], watch: Watch) -> tuple[bool, str | None]:
    """Whether it gave a result, and what must not be."""
    said = io.StringIO()
    signal.alarm(SECONDS)
    watch.on, passed, fault = True, True, None
    try:
        with redirect_stdout(said), redirect_stderr(said):
            main(arguments)
    except SystemExit as error:
        passed = False
        if not isinstance(error.code, str) or not error.code.startswith("avfmae "):
            fault = f"ended with {error.code!r}"
        elif "\x1b" in error.code:
            fault = f"said an escape sequence: {error.code!r}"
    except BaseException:
        fault = traceback.format_exc()[-1500:]
    finally:
        watch.on = False
        signal.alarm(0)
    return passed, f"executed {watch.seen.pop(0)}" if watch.seen else fault


if __name__ == "__main__":
    first, count, folder, kinds = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]
    bench = Bench(folder)
    commands = {kind: getattr(bench, kind)() for kind in kinds}
    watch = Watch()
    signal.signal(signal.SIGALRM, timed_out)
    for arguments in (bench.evaluate(bench.weights, Path(bench.clip)), bench.pretrain(bench.weights)):
        run(arguments, Watch())  # so that what they import is not taken for something that a file asks for
    if sys.platform == "linux":
        limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    results = {}
    for kind, command in commands.items():
        passed, faults = 0, {}
        for seed in range(first, first + count):
            print(kind, seed, file=sys.stderr, flush=True)
            good, fault = run(command(np.random.default_rng([seed, *kind.encode()])), watch)
            passed += good
            if fault is not None or bench.marker.exists():
                faults[seed] = fault or "executed what a pickle asks for"
                bench.marker.unlink(missing_ok=True)
        results[kind] = {"passed": passed, "told": count - passed, "faults": faults}
    print(json.dumps(results))
