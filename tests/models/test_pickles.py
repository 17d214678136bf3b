"""A checkpoint's pickle is read as data: plain values come back as they were, and nothing in it is executed."""

import argparse
import collections
import contextlib
import io
import multiprocessing
import pathlib
import pickle
import subprocess
import time
import warnings

import numpy as np
import pytest
import torch
import torch_files
from torch_files import call, data, named, several, text

import avfmae
from avfmae.checkpoints import archives, load_released, pickles
from avfmae.checkpoints.pickles import Stub

PLAIN = {
    "numbers": [0, 1, -5, 255, 65_536, 2**40, -(2**100), 1.5, 1 + 2j],
    "words": ["", "é\n", "x" * 300],
    "others": (None, True, False),
    "bytes": [b"", b"\x00\xff" * 200, bytearray(b"x")],
    "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
    "sets": [{1, 2}, frozenset([3])],
    "dicts": [{}, {"a": {"b": []}}],
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_come_back_as_they_were(protocol):
    file = io.BytesIO(pickle.dumps(PLAIN, protocol) + b"rest")
    assert pickles.load(file) == PLAIN and file.read() == b"rest"
    circle = [1]
    circle.append(circle)
    read = pickles.load(io.BytesIO(pickle.dumps(circle, protocol)))
    assert read[1] is read


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_values_of_common_classes_come_back_as_plain_ones(protocol):
    numbers = np.arange(6.0).reshape(2, 3)
    values = {
        "ordered": collections.OrderedDict(a=1),
        "default": collections.defaultdict(list, a=[1]),
        "count": collections.Counter("aab"),
        "path": pathlib.Path("a/b"),
        "size": torch.Size([1, 2]),
        "device": torch.device("cuda", 1),
        "dtype": torch.bfloat16,
        "float": np.float64(71.5),
        "int": np.int32(-7),
        "bool": np.bool_(True),
        "array": numbers,
        "columns": np.asfortranarray(numbers),
        "swapped": np.arange(3, dtype=">i4"),
        "words": np.array(["a", "bc"]),
        "none": np.zeros((0, 3)),
    }
    read = pickles.load(io.BytesIO(pickle.dumps(values, protocol)))
    assert read["path"] == pathlib.PurePath("a/b") and type(read["default"]) is type(read["ordered"]) is dict
    for name, value in values.items():
        assert np.array_equal(read[name], value), name
        assert getattr(read[name], "dtype", None) == getattr(value, "dtype", None), name


def test_what_is_unknown_becomes_a_stub_with_its_attributes():
    read = pickles.load(io.BytesIO(pickle.dumps([argparse.Namespace(lr=3e-4), argparse.Namespace, np.array([None])])))
    assert (read[0].name, read[0].state) == ("argparse.Namespace", {"lr": 3e-4})
    assert isinstance(read[1], pickles.Global) and isinstance(read[2], Stub)


@pytest.mark.parametrize("how", ["zip", "before 1.6", "protocol 4"])
@pytest.mark.parametrize("mapped", [False, True], ids=["memory", "mapped"])
def test_tensors_of_every_kind(how, mapped, tmp_path):
    shared = torch.arange(10.0)
    tensors = {
        "part": shared[2:5], "stride": shared[::2], "transposed": torch.randn(3, 4).t(), "expanded": torch.ones(1).expand(5),
        "scalar": torch.tensor(1.5), "empty": torch.empty(0, 3), "parameter": torch.nn.Parameter(torch.randn(3)),
        "named": torch.nn.Parameter(torch.randn(2), requires_grad=False),
    }  # fmt: skip
    tensors["named"].note = "an attribute"
    kinds = "float64 float16 bfloat16 int64 int32 int16 int8 uint8 bool complex64 complex128 uint16 uint32 float8_e4m3fn"
    tensors |= {kind: torch.tensor([0.0, 1.0, 2.0]).to(getattr(torch, kind)) for kind in kinds.split()}
    options = {"zip": {}, "before 1.6": {"_use_new_zipfile_serialization": False}, "protocol 4": {"pickle_protocol": 4}}[how]
    torch.save(tensors, tmp_path / "x.pth", **options)
    read = archives.read(tmp_path / "x.pth", mapped)
    for name, tensor in tensors.items():
        assert type(read[name]) is torch.Tensor and not read[name].requires_grad, name
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(read[name].to(torch.complex128), tensor.to(torch.complex128)), name
    before = (tmp_path / "x.pth").read_bytes()
    read["part"][0] = 77
    assert read["stride"][1] == 77 and (tmp_path / "x.pth").read_bytes() == before  # memory is shared, the file is not written


def test_an_archive_packed_anew_and_one_of_the_other_byte_order_load(tmp_path):
    path, weight = tmp_path / "x.pth", torch.randn(5)
    torch.save({"w": weight}, path)
    torch_files.rewrite(path, {"byteorder": b"big", "data/0": weight.numpy().byteswap().tobytes()})  # not aligned any more
    for mapped in (False, True):
        assert torch.equal(archives.read(path, mapped)["w"], weight)


@pytest.mark.parametrize(
    "size, stride, offset", [((4,), (1,), 0), ((2,), (1,), 2), ((2,), (5,), 0), ((-1,), (1,), 0), ((2,), (1,), -1)]
)
def test_tensors_beyond_their_storage_are_refused(size, stride, offset, tmp_path):
    class Beyond:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (torch.ones(3).storage(), offset, size, stride, False, {})

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(Beyond(), tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"beyond its storage|cannot have"):
        archives.read(tmp_path / "x.pth")


# Pickles of a few bytes whose value has no end for whoever walks it.

SHARED = b"]" + b"2\x86" * 60  # each of sixty tuples holds the one before it twice
SHARED_KEY = b")" + b"2\x86" * 60  # of tuples alone, which may be keys
ENDLESS = {
    "content": SHARED,
    "deep content": b"(" + b"l(" * 100_000 + b"l" + b"a" * 100_000,
    "place": b"}" + text("model") + SHARED + b"s",
    "keys": b"}" + SHARED_KEY + b"K\x01s",
    "keys, several": b"}(" + SHARED_KEY + b"K\x01u",
    "keys from a mark": b"(" + SHARED_KEY + b"K\x01d",
    "keys of an OrderedDict": call(named("collections", "OrderedDict"), b"](" + several(SHARED_KEY, b"K\x01") + b"e"),
    "key of 10000 values": b"}(" + b"K\x01" * 10_000 + b"tK\x01s",
    "set": b"\x8f(" + SHARED_KEY + b"\x90",
    "frozenset": b"(" + SHARED_KEY + b"\x91",
    "called set": call(named("builtins", "set"), b"](" + SHARED_KEY + b"e"),
    "module's name": SHARED + text("x") + b"\x93",
    "class's name": text("x") + SHARED + b"\x93",
    "storage's name": several(text("storage"), named("torch", "FloatStorage"), SHARED, text("cpu"), b"K\x01") + b"Q",
    "tensor's size": call(
        named("torch._utils", "_rebuild_tensor_v2"),
        several(text("storage"), named("torch", "FloatStorage"), text("0"), text("cpu"), b"K\x03") + b"Q",
        b"K\x00", several(SHARED), several(b"K\x01"), b"\x89", b"}",
    ),
    "a dict in itself under 3000 keys": b"}q\x00(" + b"".join(text(f"k{i}") + b"h\x00" for i in range(3000)) + b"u",
    "arguments": call(named("builtins", "eval"), SHARED),
}  # fmt: skip


@pytest.mark.parametrize("what", ENDLESS)
def test_a_value_without_end_is_refused_at_once(what, tmp_path):
    """In a process of its own: a walk of it would neither end nor be interrupted."""
    path = tmp_path / "x.pth"
    torch.save({"w": torch.ones(3)}, path)
    torch_files.rewrite(path, {"data.pkl": b"\x80\x02" + ENDLESS[what] + b"."})
    process = multiprocessing.get_context("fork").Process(target=refuse, args=(path, tmp_path / "message"))
    process.start()
    process.join(30)
    process.kill()
    message = (tmp_path / "message").read_text()
    assert message.startswith(str(path)) and len(message) < 1000 and "recursion" not in message


def refuse(path, message) -> None:
    with pytest.raises(ValueError) as caught:
        load_released(avfmae.AVFMAEForFinetuning(avfmae.ModelConfig.preset("tiny").replace(modalities=("audio",)), 2), path)
    message.write_text(str(caught.value))


# Attacks: op codes that, run by Python's unpickler, call touch on a file.

SYSTEM = named("os", "system")


def legacy_bytes(command: str) -> bytes:
    file = io.BytesIO()
    torch.save(Calls(subprocess.getoutput, command), file, _use_new_zipfile_serialization=False)
    return file.getvalue()


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def attacks(mark: str) -> dict[str, bytes]:
    command, python = f"touch {mark}", f"open({mark!r}, 'w').close()"
    imported = call(named("importlib", "import_module"), text("os"))
    words = b"](" + text("touch") + text(mark) + b"e"
    namespace = named("argparse", "Namespace") + b")R"

    def namespace_with(attribute: str) -> bytes:  # as many classes, it takes any attribute, methods of the protocol too
        return namespace + b"}" + text(attribute) + SYSTEM + b"sb"

    return {
        "os.system": call(SYSTEM, text(command)),
        "posix.system": call(named("posix", "system"), text(command)),
        "exec": call(named("builtins", "exec"), text(python)),
        "eval": call(named("__builtin__", "eval"), text(python)),
        "subprocess": call(named("subprocess", "run"), words),
        "getattr of an import": call(call(named("builtins", "getattr"), imported, text("system")), text(command)),
        "dotted name": b"\x80\x04" + call(text("torch") + text("serialization.os.system") + b"\x93", text(command)),
        "dotted allowed name": b"\x80\x04"
        + call(text("torch._utils") + text("_rebuild_parameter.__globals__.get") + b"\x93", text("x"))
        + b"0"
        + call(text("torch._utils") + text("torch.serialization.os.system") + b"\x93", text(command)),
        "functools.partial": call(call(named("functools", "partial"), SYSTEM, text(command))),
        "operator.attrgetter": call(call(call(named("operator", "attrgetter"), text("system")), imported), text(command)),
        "operator.methodcaller": call(call(named("operator", "methodcaller"), text("system"), text(command)), imported),
        "INST": b"(" + text(command) + b"ios\nsystem\n",
        "OBJ": b"(" + SYSTEM + text(command) + b"o",
        "OBJ of a class": b"(" + named("subprocess", "Popen") + words + b"o",
        "copyreg": call(named("copyreg", "_reconstructor"), *[named("subprocess", "Popen")] * 2, words),
        "BUILD": namespace_with("__setstate__") + text(command) + b"b",
        "APPEND": namespace_with("append") + text(command) + b"a",
        "APPENDS": namespace_with("append") + b"(" + text(command) + b"e",
        "ADDITEMS": b"\x80\x04" + namespace_with("add") + b"(" + text(command) + b"\x90",
        "map in a list": call(named("builtins", "list"), call(named("builtins", "map"), SYSTEM, b"](" + text(command) + b"e")),
        "map in a set": call(named("builtins", "set"), call(named("builtins", "map"), SYSTEM, b"](" + text(command) + b"e")),
        "map in an OrderedDict": call(
            named("collections", "OrderedDict"), call(named("builtins", "map"), SYSTEM, several(text(command)))
        ),
        "pickle in a pickle": call(named("_pickle", "loads"), data(pickle.dumps(Calls(subprocess.getoutput, command)))),
        "torch.load": call(named("torch.storage", "_load_from_bytes"), data(legacy_bytes(command))),
        "rebuilding with another function": call(
            named("torch._tensor", "_rebuild_from_type_v2"), SYSTEM, named("builtins", "int"), several(text(command)), b"}"
        ),
        "objects in an array": pickle.dumps(np.array([Calls(subprocess.getoutput, command)], dtype=object), 2)[2:-1],
    }


ATTACKS = [*attacks("")]


def run_by_python(path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(Exception):  # after the fact
            torch.load(path, weights_only=False)


@pytest.mark.parametrize("name", ATTACKS)
def test_nothing_is_executed(name, tmp_path):
    """Each would have been by the plain unpickler, beside weights that load all the same."""
    mark, path = tmp_path / "mark", tmp_path / "x.pth"
    torch.save({"model": {"w": torch.ones(3)}}, path)
    ops = attacks(str(mark))[name]
    torch_files.rewrite(path, {"data.pkl": torch_files.record(path, "data.pkl")[:-1] + ops + b"0."})
    run_by_python(path)
    wait_for(mark)
    mark.unlink()
    read(path)
    assert not mark.exists()
    # in the place of the weights' own values too
    torch_files.rewrite(path, {"data.pkl": b"\x80\x02}" + text("model") + b"}" + text("w") + ops + b"ss."})
    read(path)
    assert not mark.exists()


def wait_for(mark) -> None:
    """Some attacks start a process and do not wait for it."""
    for _ in range(200):
        if mark.exists():
            return
        time.sleep(0.01)
    raise AssertionError("the plain unpickler does not execute it either")


def read(path) -> object:
    try:
        return archives.read(path)
    except ValueError:  # a refusal is as good
        return None


@pytest.mark.parametrize("where", ["content", "first pickle", "third pickle", "storage keys"])
def test_nothing_of_an_old_file_is_executed(where, tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "x.pth"
    evil = Calls(subprocess.getoutput, f"touch {mark}")
    parts = [pickle.dumps(part, 2) for part in (archives.LEGACY, archives.LEGACY_VERSION, {}, {"w": 1}, [])]
    parts[{"content": 3, "first pickle": 0, "third pickle": 2, "storage keys": 4}[where]] = pickle.dumps(evil, 2)
    path.write_bytes(b"".join(parts))
    run_by_python(path)
    wait_for(mark)
    mark.unlink()
    read(path)
    assert not mark.exists()


def test_a_pickle_cannot_change_what_may_be_called(tmp_path):
    """BUILD sets attributes of whatever lies on the stack, of functions and classes too."""
    path, build = tmp_path / "x.pth", named("torch._utils", "_rebuild_tensor_v2") + b"}" + text("__kwdefaults__") + b"}sb0"
    torch.save({"w": torch.ones(3)}, path)
    good = torch_files.record(path, "data.pkl")
    defaults = torch._utils._rebuild_tensor_v2.__kwdefaults__
    torch_files.rewrite(path, {"data.pkl": good[:2] + build + good[2:]})
    assert torch.equal(archives.read(path)["w"], torch.ones(3)) and torch._utils._rebuild_tensor_v2.__kwdefaults__ is defaults
    torch_files.rewrite(
        path, {"data.pkl": good[:2] + named("collections", "OrderedDict") + b"}" + text("x") + text("y") + b"sb0" + good[2:]}
    )
    archives.read(path)
    assert not hasattr(collections.OrderedDict, "x")
