"""The files of ``torch.save``, all three kinds, read without executing anything: tensors, plain values and inert stubs.

Since torch 1.6 such a file is a zip archive: ``NAME/data.pkl`` is a pickle, in which tensors refer to the storages
``NAME/data/KEY``. Before, it was a row of pickles with the storages behind them, and before 0.2 a tar archive of storages,
tensors and a pickle. The pickles are read by :mod:`avfmae.checkpoints.pickles`.
"""

import io
import os
import reprlib
import struct
import sys
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from avfmae.checkpoints import pickles
from avfmae.checkpoints.pickles import MAKERS, Global, Stub

ZIP = b"PK\x03\x04"
LEGACY, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of a file from before the zip archives
STORAGES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32, "ShortStorage": torch.int16,
    "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool, "UntypedStorage": torch.uint8,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.int8, "QUInt8Storage": torch.uint8, "QInt32Storage": torch.int32,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Storage:
    """Memory that tensors share; their elements are of ``dtype``, where a tensor does not say otherwise."""

    memory: torch.UntypedStorage
    dtype: torch.dtype


def read(path: str | os.PathLike, mapped: bool = False) -> object:
    """What ``torch.save`` wrote, on the CPU, parameters as tensors without gradients. ValueError: it is no such file, or damaged.

    ``mapped``: tensors are views of the file, without a copy in memory; they must not outlive it.
    """
    with open(path, "rb") as file:
        if file.peek(len(ZIP)).startswith(ZIP):
            return _read_zip(file, np.memmap(path, np.uint8, "c") if mapped else None)
        return _read_tar(file) if file.peek(512)[257:262] == b"ustar" else _read_legacy(file)


def _read_zip(file: BinaryIO, whole: np.ndarray | None) -> object:
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise ValueError("it is truncated: its list of contents, which comes last, is missing") from error
    records = {name.partition("/")[2]: info for name, info in archive.NameToInfo.items()}
    if "data.pkl" not in records:
        raise ValueError("it is a zip archive, but not one that torch.save wrote")

    def record(name: str) -> np.ndarray:
        if name not in records:
            raise ValueError(f"record {name} is missing")
        info = records[name]
        if info.compress_type != zipfile.ZIP_STORED:
            return np.frombuffer(bytearray(archive.read(info)), np.uint8)
        file.seek(info.header_offset + 26)  # the lengths of the name and of what else stands before the bytes
        start = info.header_offset + 30 + sum(struct.unpack("<HH", file.read(4)))
        file.seek(start)
        found = np.fromfile(file, np.uint8, info.file_size) if whole is None else whole[start : start + info.file_size]
        if info.CRC and zlib.crc32(found) != info.CRC:  # 0 where torch was told not to compute it
            raise ValueError(f"record {name} is damaged: its bytes do not give the checksum that was saved with them")
        return found

    order = bytes(record("byteorder")).decode() if "byteorder" in records else "little"

    def storage(dtype: torch.dtype, key: str, count: int) -> Storage:
        found = record(f"data/{key}")
        if len(found) < count * dtype.itemsize:
            raise ValueError(f"record data/{key} has {len(found)} bytes, expected {count * dtype.itemsize}")
        if found.ctypes.data % dtype.itemsize:  # as another program packs it
            found = found.copy()
        memory = torch.from_numpy(found).untyped_storage()
        if order != sys.byteorder:
            memory.byteswap(dtype)
        return Storage(memory, dtype)

    return pickles.load(io.BytesIO(bytes(record("data.pkl"))), _storage_resolver(storage, {}))


def _read_legacy(file: BinaryIO) -> object:
    total = Path(file.name).stat().st_size
    try:
        head = [pickles.load(file) for _ in range(3)]  # the third tells of the machine that wrote it
    except ValueError:
        head = []
    if head[:2] != [LEGACY, LEGACY_VERSION]:
        raise ValueError("torch.save did not write it")
    storages: dict[str, Storage] = {}

    def storage(dtype: torch.dtype, key: str, count: int) -> Storage:
        if count * dtype.itemsize > total:
            raise ValueError(f"storage {key} has {count} elements, more than the file")
        return Storage(torch.UntypedStorage(count * dtype.itemsize), dtype)

    whole_of = _storage_resolver(storage, storages)

    def persistent(saved: object) -> object:
        whole = whole_of(saved)
        if isinstance(whole, Stub) or len(saved) <= 5 or saved[5] is None:
            return whole
        return _part(whole, *saved[5][1:])

    content = pickles.load(file, persistent)
    keys = pickles.load(file)
    plain = isinstance(keys, list) and all(type(key) in (str, int) for key in keys)
    if not plain or set(map(str, keys)) != set(storages):
        raise ValueError("its list of storages is not of those that its tensors lie in")
    for key in keys:  # their bytes, each after the number of its elements
        storage = storages[str(key)]
        into = torch.empty(0, dtype=torch.uint8).set_(storage.memory).numpy()
        (count,) = struct.unpack("<q", file.read(8).ljust(8))
        if count * storage.dtype.itemsize != len(into) or file.readinto(into) != len(into):
            raise ValueError(f"it is truncated: of {len(storages)} storages, {key} is not whole")
    return content


def _read_tar(file: BinaryIO) -> object:
    archive = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  (the file is the caller's)
    members = {member.name: member for member in archive if member.isreg()}
    if not {"storages", "tensors", "pickle"} <= members.keys():
        inside = ", ".join(map(repr, [*members][:4])) or "nothing"
        raise ValueError(f"it is a tar archive, but not one that torch.save wrote; it holds {inside}")
    storages, tensors, content = (archive.extractfile(members[name]) for name in ("storages", "tensors", "pickle"))
    made: dict[object, object] = {}
    for _ in range(pickles.load(storages)):
        key, _, kind = pickles.load(storages)
        dtype, (count,) = STORAGES[kind.name.rpartition(".")[2]], struct.unpack("<q", storages.read(8))
        data = storages.read(max(0, count) * dtype.itemsize)
        if len(data) != count * dtype.itemsize:
            raise ValueError(f"it is truncated: storage {key} is not whole")
        made[key] = Storage(torch.from_numpy(np.frombuffer(bytearray(data), np.uint8)).untyped_storage(), dtype)
    for key, whole, offset, count in pickles.load(storages):
        made[key] = _part(made[whole], offset, count)
    for _ in range(pickles.load(tensors)):
        key, storage, _ = pickles.load(tensors)
        (dims,) = struct.unpack("<i4x", tensors.read(8))
        numbers = struct.unpack(f"<{2 * dims + 1}q", tensors.read(8 * (2 * dims + 1)))
        made[key] = _view(made[storage], numbers[-1], numbers[:dims], numbers[dims:-1], made[storage].dtype)

    def persistent(saved: object) -> object:
        return saved[0] if isinstance(saved, tuple) and saved else made[int(saved)]  # a class beside its source code

    return pickles.load(content, persistent)


def _part(whole: Storage, offset: int, count: int) -> Storage:
    """A view of a storage, of a time when storages had them."""
    size = whole.dtype.itemsize
    return Storage(whole.memory[offset * size : (offset + count) * size], whole.dtype)


def _storage_resolver(
    make: Callable[[torch.dtype, str, int], Storage], storages: dict[str, Storage]
) -> Callable[[object], object]:
    """A function that gives the storage that a pickle refers to, or a stub where it refers to something else.

    Each storage is made once, and kept in ``storages``.
    """

    def persistent(saved: object) -> object:
        reference = _reference(saved)
        if reference is None:
            return Stub("persistent", saved)
        key = reference[1]
        return storages.get(key) or storages.setdefault(key, make(*reference))

    return persistent


def _reference(saved: object) -> tuple[torch.dtype, str, int] | None:
    """Element type, key and number of elements of the storage that a pickle refers to, if that is what it refers to."""
    if not (isinstance(saved, tuple) and len(saved) >= 5 and saved[0] == "storage" and isinstance(saved[1], Global)):
        return None
    dtype = STORAGES.get(saved[1].name.rpartition(".")[2])
    if dtype is None or type(saved[2]) not in (str, int) or type(saved[4]) is not int or saved[4] < 0:
        return None
    return dtype, str(saved[2]), saved[4]


def _tensor(storage: object = None, offset: int = 0, size: tuple = (), stride: tuple = (), *rest: object) -> object:
    """``torch._utils._rebuild_tensor`` and its second version: (…, requires_grad, hooks, metadata)."""
    if not isinstance(storage, Storage) or rest[2:3] not in ((), ({},), (None,)):
        return NotImplemented
    return _view(storage, offset, size, stride, storage.dtype)


def _tensor_v3(*args: object) -> object:
    """The version for element types that have no storage class: (…, requires_grad, hooks, dtype, metadata)."""
    if len(args) < 7 or not isinstance(args[0], Storage) or not isinstance(args[6], torch.dtype) or any(args[7:]):
        return NotImplemented
    return _view(*args[:4], args[6])


def _view(storage: Storage, offset: object, size: object, stride: object, dtype: torch.dtype) -> Tensor:
    numbers = [offset, *size, *stride]
    if len(size) != len(stride) or any(type(n) is not int or n < 0 for n in numbers):
        given = ", ".join(map(reprlib.repr, (size, stride, offset)))
        raise ValueError(f"a tensor cannot have this size, strides and offset: {given}")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and (last + 1) * dtype.itemsize > storage.memory.nbytes():
        raise ValueError(f"a tensor of size {reprlib.repr(tuple(size))} reaches beyond its storage")
    return torch.empty(0, dtype=dtype).set_(storage.memory, offset if 0 not in size else 0, tuple(size), tuple(stride))


def _unwrap(*args: object) -> object:
    """The tensor inside a parameter, or inside a copy of another device's tensor; an array becomes a tensor."""
    if args and isinstance(args[0], np.ndarray):
        return torch.from_numpy(args[0])
    return args[0] if args and isinstance(args[0], Tensor) else NotImplemented


def _subclass(function: object = None, kind: object = None, args: object = (), state: object = None) -> object:
    """A tensor of a class of its own: the plain tensor."""
    return pickles.made(function, args)


MAKERS |= {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _unwrap,
    "torch._utils._rebuild_parameter_with_state": _unwrap,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _unwrap,
    "torch._utils._rebuild_device_tensor_from_numpy": _unwrap,
    "torch._utils._rebuild_xla_tensor": _unwrap,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch.nn.parameter.Parameter": _unwrap,
}
