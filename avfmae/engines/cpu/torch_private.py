"""torch's private interfaces that the tape needs, tried with torch 2.11 and 2.13. ``MISSING`` says what another version lacks."""

from collections.abc import Callable

import torch

MISSING: str | None = None
try:
    from torch.multiprocessing.reductions import StorageWeakRef
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_iter, tree_map

    below_autograd = torch._C._AutoDispatchBelowAutograd
except (ImportError, AttributeError) as error:
    MISSING = f"torch {torch.__version__} has no {error.name or error}"

__all__ = ["MISSING", "StorageWeakRef", "TorchDispatchMode", "below_autograd", "out_overload", "schema", "tree_iter", "tree_map"]


def schema(op: Callable):
    """The schema of an op's overload: its arguments, and which of them it writes."""
    return op._schema


def out_overload(op: Callable) -> Callable | None:
    """The overload of an op that writes its results to tensors which are given; None if it has none."""
    packet = getattr(op, "_overloadpacket", None)
    return packet.out if packet is not None and "out" in packet.overloads() else None


def callable_of(op: Callable) -> Callable:
    """What an overload calls, without the checks of its Python wrapper."""
    return getattr(op, "_op", op)
