"""Pickles read as data: plain values and tensors are built, everything else becomes an inert stub, and nothing is executed.

A pickle is a program for a small stack machine. Python's machine imports and calls whatever the program names, which is
how a checkpoint of unknown origin takes over a computer. The machine here never looks a name up: a name is a string, and
the only functions that run are those of a closed table, ``MAKERS``, on arguments that they check. What else the
program calls, builds or fills becomes a :class:`Stub` that remembers it.

Forty bytes can refer to 2^40 values, where each of forty tuples holds the one before it twice, and a hundred thousand
lists can lie in one another. Nothing here or in the callers may therefore walk a whole value: neither ``repr``, ``str``
nor ``hash`` of what a pickle holds, unless its type is known to be a plain one.
"""

import math
import pickletools
import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath, PureWindowsPath
from typing import BinaryIO

import numpy as np
import torch

VALUES = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
}  # fmt: skip
"""The op codes that push their own argument."""
PUSHED: dict[str, Callable[[], object]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set,
}  # fmt: skip
PYTHON_2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}  # names of modules up to protocol 2
KEY_PARTS = 1000  # values that a key of a dict or set may consist of


class Global:
    """A class or function that a pickle names; it has not been imported."""

    def __init__(self, name: str):
        self.name = name


class Stub:
    """What a pickle would have made by a call that is not allowed: the name "argparse.Namespace", its arguments, what its
    attributes would have been set from, and what would have been put into it (values, or pairs of a mapping)."""

    def __init__(self, name: str, args: object = ()):
        self.name, self.args, self.state, self.items = name, args, None, []

    def __repr__(self) -> str:
        return f"<{self.name}, not made>"


class _EmptyArray:
    """A NumPy array between the call that makes it and the state that fills it."""


def load(file: BinaryIO, persistent: Callable[[object], object] = lambda saved: Stub("persistent", saved)) -> object:
    """The value of the pickle that begins where the file stands; the file is left behind its end. ValueError: there is none.

    ``persistent`` gives the value that stands outside the pickle under an identity; of a checkpoint, a storage.
    """
    machine = _Machine(persistent)
    try:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.step(opcode.name, argument)
    except Exception as error:  # of a damaged pickle any step may fail in any way
        raise ValueError(f"its pickle is damaged: {error}") from error


class _Machine:
    def __init__(self, persistent: Callable[[object], object]):
        self.persistent, self.memo = persistent, {}
        self.stack, self.outer = [], []  # values since the last mark, and the stacks below each mark

    def step(self, op: str, argument: object) -> None:
        stack = self.stack
        match op:
            case _ if op in VALUES:
                stack.append(argument)
            case _ if op in PUSHED:
                stack.append(PUSHED[op]())
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.outer.append(stack)
                self.stack = []
            case "POP" if stack:
                stack.pop()
            case "POP" | "POP_MARK":
                self.to_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack[-int(op[-1]) :] = [tuple(stack[-int(op[-1]) :])]
            case "TUPLE":
                self.push(tuple(self.to_mark()))
            case "LIST":
                self.push(self.to_mark())
            case "FROZENSET":
                self.push(frozenset(map(_key, self.to_mark())))
            case "DICT":
                self.push(_dict(_pairs(self.to_mark())))
            case "APPEND":
                self.put([stack.pop()])
            case "APPENDS" | "ADDITEMS":
                self.put(self.to_mark())
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self.put([(key, value)])
            case "SETITEMS":
                self.put(_pairs(self.to_mark()))
            case "GLOBAL":
                stack.append(_named(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_named(module, name))
            case "REDUCE" | "NEWOBJ":
                args, function = stack.pop(), stack.pop()
                stack.append(made(function, args))
            case "NEWOBJ_EX":
                keywords, args, function = stack.pop(), stack.pop(), stack.pop()
                stack.append(made(function, args) if not keywords else Stub(_name(function), (args, keywords)))
            case "INST":
                self.push(made(_named(*argument.split(" ", 1)), tuple(self.to_mark())))
            case "OBJ":
                function, *args = self.to_mark()
                self.push(made(function, tuple(args)))
            case "BUILD":
                state = stack.pop()
                self.replace(_built(stack[-1], state))
            case "PERSID":
                stack.append(self.persistent(argument))
            case "BINPERSID":
                stack.append(self.persistent(stack.pop()))
            case "EXT1" | "EXT2" | "EXT4":
                stack.append(Global(f"extension {argument}"))
            case _:
                raise ValueError(f"op code {op} is not allowed")

    def push(self, value: object) -> None:
        self.stack.append(value)

    def to_mark(self) -> list:
        values, self.stack = self.stack, self.outer.pop()
        return values

    def put(self, values: list) -> None:
        """Puts values, or pairs of a mapping, into the last value."""
        target = self.stack[-1]
        if type(target) is list:
            target.extend(values)
        elif type(target) is dict:
            target.update(_dict(values))
        elif type(target) is set:
            target.update(map(_key, values))
        elif type(target) is Stub:
            target.items.extend(values)
        else:
            raise ValueError(f"a {type(target).__name__} takes no items")

    def replace(self, value: object) -> None:
        """Puts another object in the place of the last one, which nothing but the memo can refer to yet."""
        old, self.stack[-1] = self.stack[-1], value
        if value is not old:
            self.memo = {key: value if known is old else known for key, known in self.memo.items()}


def _pairs(values: list) -> list[tuple]:
    return list(zip(values[::2], values[1::2], strict=True))


def _dict(pairs: list) -> dict:
    return {_key(key): value for key, value in pairs}


def _key(value: object) -> object:
    """The value, which a dict or set will hash: Python then walks all tuples that it refers to, shared ones again and again."""
    parts = [value]
    for done, part in enumerate(parts):
        if done == KEY_PARTS:
            raise ValueError(f"a key consists of more than {KEY_PARTS} values")
        if isinstance(part, tuple):
            parts += part[: KEY_PARTS + 1]
    return value


def _name(function: object) -> str:
    return function.name if isinstance(function, (Global, Stub)) else type(function).__name__


def _named(module: object, name: object) -> object:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise ValueError(f"a class is named by {type(module).__name__} and {type(name).__name__}, expected two texts")
    name = f"{PYTHON_2.get(module, module)}.{name}"
    return DTYPES.get(name) or Global(name)


def made(function: object, args: object) -> object:
    """The value of a call: of an allowed one with fitting arguments, or else a stub of it."""
    maker = MAKERS.get(function.name) if isinstance(function, Global) else None
    made = maker(*args) if maker and isinstance(args, tuple) else NotImplemented
    return Stub(_name(function), args) if made is NotImplemented else made


def _built(value: object, state: object) -> object:
    """The value with its state set: of NumPy's and of stubs; a dict's attributes (a state dict's ``_metadata``) are left out."""
    if type(value) is _EmptyArray:
        return _filled(state)
    if isinstance(value, np.dtype):
        return value.newbyteorder(state[1]) if isinstance(state, tuple) and state[1] in ("<", ">") else value
    if type(value) is Stub:
        value.state = state
    return value


# What may be made. Each maker checks its arguments and gives NotImplemented where they do not fit, which makes a stub.


def _mapping(*args: object) -> object:
    """A plain dict for OrderedDict(pairs), defaultdict(factory, values) and Counter(values)."""
    values = args[-1] if args and isinstance(args[-1], (dict, list, tuple)) else {}
    pairs = list(values.items() if isinstance(values, dict) else values)
    return _dict(pairs) if all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs) else NotImplemented


def _collection(kind: type) -> Callable:
    def make(*args: object) -> object:
        if len(args) != 1 or not isinstance(args[0], (list, tuple, set)):
            return NotImplemented if args else kind()
        return kind(args[0] if kind is list else map(_key, args[0]))

    return make


def _checked(make: Callable, *kinds: type | tuple[type, ...]) -> Callable:
    """``make`` of arguments of these types, no more and no fewer of them."""
    return lambda *args: make(*args) if len(args) == len(kinds) and all(map(isinstance, args, kinds)) else NotImplemented


def _encoded(text: str, encoding: str) -> object:
    """Bytes, as protocols below 3 spell them."""
    return text.encode("latin1") if encoding in ("latin1", "latin-1") else NotImplemented


def _bytearray(*args: object) -> object:
    data = MAKERS["_codecs.encode"](*args) if len(args) == 2 else args[0] if args else b""
    return bytearray(data) if isinstance(data, (bytes, bytearray)) else NotImplemented


def _path(kind: type) -> Callable:
    return lambda *parts: kind(*parts) if all(isinstance(p, str) for p in parts) else NotImplemented


def _device(*args: object) -> object:
    try:
        return torch.device(*args) if args and isinstance(args[0], str) else NotImplemented
    except (RuntimeError, TypeError):  # a device that this torch does not know
        return NotImplemented


def _counts(values: object) -> bool:
    return isinstance(values, (tuple, list)) and all(type(v) is int and v >= 0 for v in values)


def _dtype(name: object = None, *copied: object) -> object:
    """A NumPy type of numbers or text; never of objects or of records."""
    fits = isinstance(name, str) and re.fullmatch(r"b1|[iu][1248]|f(2|4|8|16)|c(8|16|32)|[SU]\d{1,6}", name)
    return np.dtype(name) if fits else NotImplemented


def _scalar(*args: object) -> object:
    array = _array(*args[::-1], (), "C")
    return array[()] if isinstance(array, np.ndarray) else NotImplemented


def _array(*args: object) -> object:
    if len(args) != 4:
        return NotImplemented
    data, dtype, shape, order = args
    fits = isinstance(data, (bytes, bytearray)) and isinstance(dtype, np.dtype) and _counts(shape)
    if not fits or len(data) != dtype.itemsize * math.prod(shape):
        return NotImplemented
    return np.frombuffer(bytearray(data), dtype).reshape(shape, order="F" if order == "F" else "C")


def _filled(state: object) -> object:
    array = NotImplemented
    if isinstance(state, tuple) and len(state) == 5:
        _, shape, dtype, fortran, data = state
        data = data.encode("latin1") if isinstance(data, str) else data  # of Python 2
        array = _array(data, dtype, shape, "F" if fortran else "C")
    return Stub("numpy.ndarray", state) if array is NotImplemented else array


DTYPES: Mapping[str, torch.dtype] = {f"torch.{n}": d for n, d in vars(torch).items() if isinstance(d, torch.dtype)}
MAKERS: dict[str, Callable] = {
    "collections.OrderedDict": _mapping,
    "collections.defaultdict": _mapping,
    "collections.Counter": _mapping,
    "builtins.set": _collection(set),
    "builtins.frozenset": _collection(frozenset),
    "builtins.list": _collection(list),
    "builtins.dict": _mapping,
    "builtins.bytes": _checked(bytes),  # no bytes; others go by encode
    "builtins.bytearray": _bytearray,
    "builtins.complex": _checked(complex, (int, float), (int, float)),
    "_codecs.encode": _checked(_encoded, str, str),
    "torch.Size": lambda *args: torch.Size(args[0]) if len(args) == 1 and _counts(args[0]) else NotImplemented,
    "torch.device": _device,
    "numpy.dtype": _dtype,
}
"""Every function that a pickle can have called, by the name that it gives. :mod:`avfmae.checkpoints.archives` adds tensors."""
for _module in ("numpy.core", "numpy._core"):
    MAKERS[f"{_module}.multiarray.scalar"] = _scalar
    MAKERS[f"{_module}.multiarray._reconstruct"] = lambda *args: _EmptyArray()
    MAKERS[f"{_module}.numeric._frombuffer"] = _array
for _module in ("pathlib", "pathlib._local"):
    for _kind, _pure in {"": PurePosixPath, "Posix": PurePosixPath, "Windows": PureWindowsPath}.items():
        MAKERS[f"{_module}.{_kind}Path"] = MAKERS[f"{_module}.Pure{_kind}Path"] = _path(_pure)
