"""Where in a checkpoint's content the weights are: every training code keeps them under another key."""

import re
import reprlib
from collections.abc import Iterator, Mapping

from torch import Tensor

from avfmae.checkpoints.pickles import Stub

PLACES = ("model", "module", "state_dict", "model_state_dict", "model_ema", "ema", "ema_state_dict")
"""The keys under which training codes keep the weights in a checkpoint; the first that holds tensors is taken."""
PREFIXES = re.compile(r"^(?:_orig_mod\.|module\.|model\.)+")  # of torch.compile, of data parallelism and of Lightning


def find_weights(content: object, source: str) -> tuple[dict[str, Tensor], str, list[str]]:
    """The weights of a checkpoint's content without prefixes; where they were; and where further ones are."""
    top = _entries(content)
    if top is None:
        raise ValueError(f"{source}: holds a {_kind(content)}, expected a dict of weights")
    found = {key: tensors for key in PLACES if (tensors := _tensors(top.get(key)))}
    bare = _tensors(top)
    if not found and not _look_like_weights(bare):
        found = {place: tensors for place, tensors in _places(top) if _look_like_weights(tensors)}
        if len(found) > 1:
            places = ", ".join(map(reprlib.repr, [*found][:8]))
            raise ValueError(f"{source}: holds weights under {places}, expected weights in one place")
    place, *others = found or [""]
    state = found.get(place, bare)
    if not state:
        has = ", ".join(map(reprlib.repr, list(top)[:8])) or "nothing"
        raise ValueError(f"{source}: holds no tensors, neither bare nor under {', '.join(map(repr, PLACES))}; it has {has}")
    return state, place, others


def _places(top: Mapping) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The tensors under each key, "net", and then under each key of these, "state.net". What is there twice comes once."""
    level, seen = [("", top)], set()  # what was seen is not searched again: that would take longer than reading the file did
    for _ in range(2):
        above, level = level, []
        for place, parent in above:
            for key, value in (_entries(parent) or {}).items():
                if isinstance(key, str) and id(value) not in seen:
                    seen.add(id(value))
                    level.append((f"{place}.{key}" if place else key, value))
                    yield level[-1][0], _tensors(value)


def _entries(value: object) -> Mapping | None:
    """A dict, or what a mapping of a training script's own class held, or else the attributes of such an object."""
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, Stub):
        return None
    if value.items and all(_names_a_tensor(item) for item in value.items):
        return dict(value.items)
    return value.state if isinstance(value.state, Mapping) else None


def _names_a_tensor(item: object) -> bool:
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], Tensor)


def _tensors(value: object) -> dict[str, Tensor]:
    return {PREFIXES.sub("", item[0]): item[1] for item in (_entries(value) or {}).items() if _names_a_tensor(item)}


def _look_like_weights(state: Mapping[str, Tensor]) -> bool:
    return any(name.endswith(".weight") for name in state)


def _kind(value: object) -> str:
    return value.name if isinstance(value, Stub) else type(value).__name__
