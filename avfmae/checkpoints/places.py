"""Where in a checkpoint's content the weights are, and under which names: every training code keeps them elsewhere."""

import re
import reprlib
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from avfmae.checkpoints.pickles import Stub
from avfmae.files import printable

PLACES = (
    "", "model", "module", "state_dict", "model_state_dict", "model_state", "net", "network", "weights",
    "model_ema", "ema", "ema_state_dict",
)  # fmt: skip
"""The keys under which training codes keep the weights in a checkpoint ("": they are bare); the first with some is taken."""
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|module|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
"""What torch.compile, parallel training and recomputation put before the names of a whole model or of a part of it."""
LEVELS = 3  # of keys in keys that are searched, "state.net.module"
MODULES = 32  # of modules in modules; encoders have a dozen
PARTS = 8  # of a name that may be a prefix; a bound, since a damaged file's names may have very many parts


def find_weights(content: object, source: str, names: Collection[str]) -> tuple[dict[str, Tensor], str, list[str]]:
    """The weights of a checkpoint's content, without what is put before their names; where they were; and where further ones are.

    Args:
        names: of the model's tensors. Weights are where most of them are, or at least half as many.

    Raises:
        ValueError: the content holds no tensors, or weights in several unusual places; says what it holds.
    """
    top = _entries(content)
    if top is None:
        raise ValueError(f"{source}: holds a {_kind(content)}, expected a dict of weights")
    found, fitting = {}, Counter()
    for place, tensors in _places(top):
        prefix, fitting[place] = _prefix(tensors, names)
        found[place] = {name.removeprefix(prefix): t for name, t in tensors.items()}
    most = max(fitting.values(), default=0)
    # In the order of PLACES, as _places gives them.
    likely = [place for place in found if 2 * fitting[place] >= most and (most or _look_like_weights(found[place]))]
    if not likely:
        has = ", ".join(f"{reprlib.repr(key)} ({_kind(value)})" for key, value in islice(top.items(), 8)) or "nothing"
        raise ValueError(f"{source}: holds no weights, neither bare nor under keys like 'model' and 'state_dict'; it has {has}")
    if len(likely) > 1 and likely[0] not in PLACES:
        places = ", ".join(map(reprlib.repr, likely[:8]))
        raise ValueError(f"{source}: holds weights under {places}, expected weights in one place")
    return found[likely[0]], likely[0], likely[1:]


def _rank(place: str) -> int:
    return PLACES.index(place) if place in PLACES else len(PLACES)


def _prefix(tensors: Mapping[str, Tensor], names: Collection[str]) -> tuple[str, int]:
    """What stands before the model's names, "model." of Lightning or "video.backbone.", and before how many of them."""
    counts = Counter()
    for name in tensors:
        start = 0
        for _ in range(PARTS):
            if name[start:] in names:
                counts[name[:start]] += 1
                break
            start = name.find(".", start) + 1
            if not start:
                break
    # Of prefixes that stand before as many names the shortest: "model.", not "ema_model.".
    prefix = max(counts, key=lambda prefix: (counts[prefix], -len(prefix)), default="")
    return prefix, counts[prefix]


def _places(top: Mapping) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The tensors that are bare, under each key, "net", and then under each key of these. What is there twice comes once."""
    level, seen = [("", top)], set()  # what was seen is not searched again: that would take longer than reading the file did
    for _ in range(LEVELS + 1):
        below = []
        for place, parent in level:
            if tensors := _tensors(parent):
                yield place, tensors
            entries = ((key, value) for key, value in (_entries(parent) or {}).items() if isinstance(key, str))
            for key, value in sorted(entries, key=lambda entry: _rank(entry[0])):
                if id(value) not in seen and not isinstance(value, Tensor):
                    seen.add(id(value))
                    below.append((f"{place}.{key}" if place else key, value))
        level = below


def _entries(value: object) -> Mapping | None:
    """A dict, or what a mapping of a training script's own class held, or else the attributes of such an object."""
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, Stub):
        return None
    if isinstance(value.state, Mapping) and isinstance(value.state.get("_modules"), Mapping):
        return _state_dict(value)
    if value.items and all(_names_a_tensor(item) for item in value.items):
        return dict(value.items)
    return value.state if isinstance(value.state, Mapping) else None


def _state_dict(module: Stub) -> dict[str, Tensor]:
    """The state dict of a module that was pickled whole."""
    found, level, seen = {}, [("", module)], set()
    for _ in range(MODULES):
        below = []
        for prefix, part in level:
            state = part.state if isinstance(part, Stub) and isinstance(part.state, Mapping) else {}
            for kind in ("_parameters", "_buffers", "_modules"):
                for name, value in (_entries(state.get(kind)) or {}).items():
                    if not isinstance(name, str):
                        continue
                    if (tensor := _tensor(value)) is not None:
                        found[prefix + name] = tensor
                    elif id(value) not in seen:
                        seen.add(id(value))
                        below.append((f"{prefix}{name}.", value))
        level = below
    return found


def _names_a_tensor(item: object) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) and _tensor(item[1]) is not None


def _tensor(value: object) -> Tensor | None:
    """A tensor, or a NumPy array as one; None: the value is something else."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub" and value.dtype.isnative:
        return torch.from_numpy(value)
    return value if isinstance(value, Tensor) else None


def _tensors(value: object) -> dict[str, Tensor]:
    entries = (_entries(value) or {}).items()
    return {
        WRAPPERS.sub("", name): tensor
        for name, each in entries
        if isinstance(name, str) and (tensor := _tensor(each)) is not None
    }


def _look_like_weights(state: Mapping[str, Tensor]) -> bool:
    return any(name.endswith(".weight") for name in state)


def _kind(value: object) -> str:
    return printable(value.name[:80]) if isinstance(value, Stub) else type(value).__name__
