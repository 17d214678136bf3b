"""Manifests as people write them, and long ones, which all processes of a machine map."""

import importlib.util
import pickle
from dataclasses import replace

import numpy as np
import pytest
from processes import run_program

from avfmae.config import ModelConfig
from avfmae.data import manifest, table
from avfmae.data.clip import Clip
from avfmae.data.config import DataConfig
from avfmae.data.dataset import PretrainDataset
from avfmae.data.manifest import read_manifest, write_manifest
from avfmae.data.table import COLUMNS, ClipTable

WANTED = [Clip(0, "a b.mp4", start=0.5, label="happy, or not"), Clip(1, "c.mp4", face=(1.0, 2.0, 3.0, 4.5))]


@pytest.mark.parametrize(
    "text",
    [
        'path,label,start,face_x,face_y,face_w,face_h\na b.mp4,"happy, or not",0.5,,,,\nc.mp4,,,1,2,3,4.5\n',
        "path\tlabel\tstart\tface_x\tface_y\tface_w\tface_h\na b.mp4\thappy, or not\t0.5\t\t\t\t\nc.mp4\t\t\t1\t2\t3\t4.5\n",
        "path;label;start;face_x;face_y;face_w;face_h\r\na b.mp4;happy, or not;0,5;;;;\r\nc.mp4;;;1;2;3;4,5\r\n",
        'path, label, start, face_x, face_y, face_w, face_h\na b.mp4,"happy, or not", 0.5, , , ,\nc.mp4, "", , 1, 2, 3, 4.5\n',
        'path, label, start, face_x, face_y, face_w, face_h\n"a b.mp4", "happy, or not", 0.5,,,,\n"c.mp4", "",, 1, 2, 3, "4.5"\n',
        'path,label,start,face_x,face_y,face_w,face_h\na b.mp4,"happy, or not",0.5,NaN,NaN,nan,\nc.mp4,nan,NaN,1,2,3,4.5\n',
        '\ufeffpath,label,start,face_x,face_y,face_w,face_h\na b.mp4,"happy, or not",0.5,,,,\n\nc.mp4,,,1,2,3,4.5\n',
        'sep=;\npath;label;start;face_x;face_y;face_w;face_h\na b.mp4;"happy, or not";0.5;;;;\nc.mp4;;;1;2;3;4.5\n',
        'other,start,label,path,face_h,face_w,face_y,face_x\n7,0.5,"happy, or not",a b.mp4,,,,\n"x\ny",,,c.mp4,4.5,3,2,1',
    ],
    ids=["plain", "tabs", "semicolons", "spaces", "quotes-after-spaces", "nan", "mark", "sep", "order"],
)
def test_manifests_of_people(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.csv").write_bytes(text.encode())
    assert read_manifest("m.csv") == WANTED
    assert read_manifest(tmp_path / "m.csv") == [replace(clip, path=str(tmp_path / clip.path)) for clip in WANTED]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"path label\na.mp4 x\n", "separated by spaces"),
        ("path,label\na.mp4,x\n".encode("utf-16"), "UTF-16"),
        (b"path,label\na.mp4,x,y\n", "Expected 2 columns, got 3"),
        (b"path,path\na.mp4,b.mp4\n", "'path' 2 times"),
        (b"path,start\na.mp4,1\nb.mp4,1_0\n", "row 2: start is '1_0'"),
        (b"path,start\na.mp4,\nb.mp4,1.2.3\n", "row 2: start is '1.2.3'"),
        (b"path,end\na.mp4,.\n", "row 1: end is '.'"),
        (b"path,start,end\na.mp4,,1\nb.mp4,1.5,1.5\n", "row 2: end is not after start"),
        (b"path,start\na.mp4,0\nb.mp4,-1\n", "row 2: start is below 0"),
        (b"path,end\na.mp4,0\n", "row 1: end is not above 0"),
        (b"path,start\na.mp4,inf\n", "row 1: start is no finite number"),
        (b"path,face_x,face_y,face_w,face_h\na.mp4,-3,1,0,4\n", "row 1: face_w is not above 0"),
        (b"path,face_x,face_y\na.mp4,1,1\n", "column 'face_w' of the face's box is missing"),
        (b"path,face_x,face_y,face_w,face_h\na.mp4,,,,\nb.mp4,1,2,,4\n", "row 2: the face's box is not whole"),
    ],
    ids=[
        "spaces",
        "utf-16",
        "ragged",
        "twice",
        "number",
        "points",
        "point",
        "times",
        "start",
        "end",
        "inf",
        "face",
        "columns",
        "box",
    ],
)
def test_what_is_not_understood_is_said(text, words, tmp_path):
    (tmp_path / "m.csv").write_bytes(text)
    with pytest.raises(ValueError, match=words) as caught:
        read_manifest(tmp_path / "m.csv")
    assert "m.csv" in str(caught.value)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_names_come_back_that_are_no_utf8_or_look_like_formulas(suffix, tmp_path):
    names = [b"\xff\xe9.mp4".decode("utf-8", "surrogateescape"), "=cmd.mp4", "@a.mp4", "ü.mp4"]
    clips = [Clip(i, f"/v/{n}", label=["-0.5, 1", "=1+1", "+x", None][i]) for i, n in enumerate(names)]
    write_manifest(tmp_path / f"m.{suffix}", clips)
    assert read_manifest(tmp_path / f"m.{suffix}") == clips
    write_manifest(tmp_path / f"m.{suffix}", [replace(clip, path=str(tmp_path / names[i])) for i, clip in enumerate(clips)])
    assert [clip.path for clip in read_manifest(tmp_path / f"m.{suffix}")] == [str(tmp_path / n) for n in names]
    if suffix == "csv":
        cells = [line.decode("utf-8", "replace").split(",") for line in (tmp_path / "m.csv").read_bytes().splitlines()]
        assert [row[0] for row in cells[2:4]] == ["'=cmd.mp4", "'@a.mp4"] and "'=1+1" in cells[2] and "'+x" in cells[3]


def test_a_long_manifest_is_read_once_and_mapped(tmp_path, monkeypatch):
    """What is sent to a process is a name; another process, or the same one later, reads no CSV."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(manifest, "SHARED", 1000)
    monkeypatch.setattr(manifest, "BLOCK", 3000)
    clips = [
        Clip(i, f"{tmp_path}/{i // 7:06d}.tar/{i:04d}", label=str(i % 3), subject=None if i % 5 else "s") for i in range(500)
    ]
    write_manifest(tmp_path / "m.csv", clips)
    first = read_manifest(tmp_path / "m.csv")
    assert first == clips and first[-1] == clips[-1] and first[3:6] == clips[3:6] and len(first.batches) > 3
    monkeypatch.setattr(manifest, "_batches", None)
    second = read_manifest(tmp_path / "m.csv")
    sent = pickle.dumps(second)
    assert len(sent) < 400 and pickle.loads(sent) == clips
    data = PretrainDataset(second, ModelConfig.preset("tiny"), DataConfig(), "pretrain")
    assert np.array_equal(data.shards(), np.arange(500) // 7)
    monkeypatch.undo()
    write_manifest(tmp_path / "m.csv", clips[:9])
    assert read_manifest(tmp_path / "m.csv") == clips[:9]


@pytest.mark.slow
def test_a_training_process_imports_neither_pandas_nor_a_compiler(tmp_path):
    """For the list: each costs a process tens of megabytes, and a machine has many. Numbers, missing ones and text are read."""
    write_manifest(tmp_path / "m.csv", [Clip(i, f"{tmp_path}/{i}.tar/0", start=0.5 if i else None, label="a") for i in range(9)])
    loaded = run_program("loaded_modules", "--list", tmp_path / "m.csv", check=True).stdout.split()
    assert "pyarrow.compute" in loaded and importlib.util.find_spec("pandas")
    assert not {"pandas", "torch._dynamo", "sympy", "triton", "matplotlib"} & set(loaded)


def test_a_long_list_is_sent_as_a_file(monkeypatch):
    monkeypatch.setattr(table, "SHARED", 1000)
    clips = ClipTable.of(Clip(7 * i, f"/v/{i}.mp4", face=(0.0, 1.0, 2.0, 3.0) if i % 2 else None) for i in range(300))
    sent = pickle.dumps(clips)
    assert len(sent) < 300 and pickle.loads(sent) == list(clips)


@pytest.mark.parametrize("change", [{"path": "/v/x.mp4"}, {"label": "x"}, {"label": None}, {"start": 0.5}], ids=str)
def test_the_digest_is_of_all_values(change):
    clips = [Clip(i, f"/v/{i}.mp4", label="ab"[i % 2]) for i in range(5)]
    before = ClipTable.of(clips)
    assert before.digest(COLUMNS) == ClipTable.of(before).digest(COLUMNS) == ClipTable.of(list(clips)).digest(COLUMNS)
    clips[3] = replace(clips[3], **change)
    assert ClipTable.of(clips).digest(COLUMNS) != before.digest(COLUMNS)


def test_a_manifest_that_could_not_be_written_leaves_the_one_before(tmp_path):
    path = tmp_path / "clips.csv"
    write_manifest(path, [Clip(0, str(tmp_path / "a.mp4"))])
    before = path.read_bytes()

    def clips():
        yield Clip(0, str(tmp_path / "b.mp4"))
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_manifest(path, clips())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
