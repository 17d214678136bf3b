"""The bias of a packed projection: queries and values have a part of it each, keys none.

Joining the parts takes two launches on a GPU, for every attention of a step. Parts that lie in one piece of memory already, as a
step's copies in bfloat16 do, are read as they lie.
"""

import torch
from torch import Tensor, nn


class PackedBias(nn.Module):
    """A module with parameters (C) that are parts of one bias; ``packed`` names them in their order, None where there is none."""

    packed: tuple[str | None, ...]

    @property
    def parts(self) -> dict[int, Tensor]:
        """By place."""
        return {place: getattr(self, name) for place, name in enumerate(self.packed) if name}

    @property
    def bias(self) -> Tensor:
        """The parts one behind the other, zeros where there is none: (len(packed)·C)."""
        parts = self.parts
        if not torch.compiler.is_compiling() and together(parts, len(self.packed)):
            return _Whole.apply(len(self.packed), tuple(parts), *parts.values())
        nothing = torch.zeros_like(next(iter(parts.values())))
        return torch.cat([parts.get(place, nothing) for place in range(len(self.packed))])

    @torch.no_grad()
    def laid_together(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Copies of the parts, by name, that :attr:`bias` need not join once they are this module's parameters."""
        width = next(iter(self.parts.values())).numel()
        whole = next(iter(self.parts.values())).new_zeros(len(self.packed), width, dtype=dtype)
        return {name: whole[place].copy_(self.parts[place]) for place, name in enumerate(self.packed) if name}


def together(parts: dict[int, Tensor], count: int) -> bool:
    """Whether parts lie at their places of a piece of memory that has room for ``count`` of them, and nothing else."""
    memory = {part.untyped_storage()._cdata for part in parts.values()}
    return len(memory) == 1 and all(
        part.storage_offset() == place * part.numel() and part.untyped_storage().nbytes() == count * part.nbytes
        for place, part in parts.items()
    )


class _Whole(torch.autograd.Function):
    """The piece of memory that the parts lie in; each part's gradient is its share of the whole's."""

    @staticmethod
    def forward(ctx, count, places, *parts):
        ctx.count, ctx.places = count, places
        return parts[0].as_strided((count * parts[0].numel(),), (1,), 0)

    @staticmethod
    def backward(ctx, grad):
        shares = grad.chunk(ctx.count)
        return None, None, *(shares[place] for place in ctx.places)
