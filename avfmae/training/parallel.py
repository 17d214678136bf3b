"""How the processes of a run share its model: one place that knows, on PyTorch's own engines.

``"ddp"``: each process has all weights (DistributedDataParallel), and gradients are averaged while backward goes on.
``"fsdp"``: each process has a part of every weight, gradient and moment (FSDP2); a block's weights are gathered for its work.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from avfmae.models.attention import DropsBranches
from avfmae.world import world_size

if TYPE_CHECKING:
    from avfmae.data.batch import Batch

Parallel = Literal["ddp", "fsdp"]
ENTRIES = ("locals_only", "regions_only", "aggregate", "feed_back")  # methods, beside forward, that blocks are called through
Loss = Callable[["Batch"], tuple[Tensor, dict[str, Tensor]]]


def local(tensor: Tensor) -> Tensor:
    """This process's part of a sharded tensor, on the same memory; any other tensor itself."""
    part = getattr(tensor, "to_local", None)
    return tensor if part is None else part()


class Replicated:
    """Every process has the whole model.

    Args:
        model: on its device.
    """

    casts = False  # whether weights are cast where they are used, so that no copies are kept

    def __init__(self, model: nn.Module):
        self.model, self.needs_warmup_backward = model, world_size() > 1

    def wrap_loss(self, loss: Loss) -> Loss:
        """The loss, through DistributedDataParallel where there are several processes; called with the weights in use in place.

        Gradients become views of the buckets that are sent. Which weights get one is the same in every step.
        """
        if not self.needs_warmup_backward:
            return loss
        with warnings.catch_warnings():  # torch 2.13 has another name for broadcast_buffers, which 2.11 has not
            warnings.simplefilter("ignore", FutureWarning)
            return nn.parallel.DistributedDataParallel(
                _Loss(self.model, loss), broadcast_buffers=False, init_sync=False, gradient_as_bucket_view=True, static_graph=True
            )

    def sync_grads_on_last(self, loss: Loss, last: bool) -> AbstractContextManager:
        """Around a micro-batch: gradients are averaged over processes in the last one's backward pass."""
        return loss.no_sync() if isinstance(loss, nn.parallel.DistributedDataParallel) and not last else nullcontext()

    def global_grad_norm(self, norm: Tensor) -> Tensor:
        """The norm of all gradients, from that of this process's."""
        return norm

    def unsharded(self) -> AbstractContextManager:
        """Within, a forward pass without gradients needs no other process."""
        return nullcontext()

    def full_model(self, params: list[Tensor] | None = None) -> nn.Module:
        """The model on this process, in float32; with ``params`` in the place of its parameters. Every process must ask."""
        if params is None:
            return self.model
        model = copy.deepcopy(self.model)
        torch._foreach_copy_([p.detach() for p in model.parameters()], params)
        return model


class Sharded:
    """Every process has a part of each weight: float32, gathered in ``dtype`` for a block's forward and backward pass.

    Gradients are reduced in float32, after each micro-batch, into the parts. Norms and tokens are gathered in ``dtype`` too.

    Args:
        model: on its device; it is changed in place.
    """

    casts, needs_warmup_backward = True, False

    def __init__(self, model: nn.Module, dtype: torch.dtype):
        from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        if (version := tuple(map(int, torch.__version__.split(".")[:2]))) < (2, 13):
            raise ValueError(f"parallel: got 'fsdp' with torch {'.'.join(map(str, version))}, expected 2.13 or later")
        warnings.filterwarnings("ignore", ".*returned a view tensor")  # which nothing of ours writes into
        self.model = model
        self.plain = copy.deepcopy(model).to("meta")
        policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
        blocks = [module for module in model.modules() if isinstance(module, DropsBranches)]
        for module in (*blocks, model):
            # The model's own weights are let go as well: after an evaluation they must be what the optimizer has.
            fully_shard(module, mp_policy=policy, reshard_after_forward=True)
            for name in ENTRIES:
                if hasattr(module, name):
                    register_fsdp_forward_method(module, name)
        self.parts: list[Any] = [module for module in model.modules() if isinstance(module, FSDPModule)]

    def wrap_loss(self, loss: Loss) -> Loss:
        return loss

    def sync_grads_on_last(self, loss: Loss, last: bool) -> AbstractContextManager:
        return nullcontext()

    def global_grad_norm(self, norm: Tensor) -> Tensor:
        square = norm.square()
        dist.all_reduce(square)
        return square.sqrt()

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        for part in self.parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        try:
            yield
        finally:
            for part in self.parts:
                part.set_reshard_after_forward(True, recurse=False)
                part.reshard()

    def full_model(self, params: list[Tensor] | None = None) -> nn.Module:
        named = dict(self.model.state_dict())
        if params is not None:
            named |= dict(zip((n for n, _ in self.model.named_parameters()), params, strict=True))
        full = {name: t.full_tensor().cpu() if hasattr(t, "full_tensor") else t.cpu() for name, t in named.items()}
        self.plain.load_state_dict(full, assign=True)
        return self.plain


class _Loss(nn.Module):
    """A loss as a module, which is what DistributedDataParallel takes."""

    def __init__(self, model: nn.Module, loss: Loss):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: "Batch") -> tuple[Tensor, dict[str, Tensor]]:
        return self.loss(batch)


def share(model: nn.Module, how: Parallel, dtype: torch.dtype) -> Replicated | Sharded:
    """Shares a model among the processes of this run; one process has all of it, however it is asked.

    Args:
        dtype: that matrix products are computed in.
    """
    return Sharded(model, dtype) if how == "fsdp" and world_size() > 1 else Replicated(model)


def set_up_parallel_loss(step: Any, batch: "Batch") -> None:
    """Wraps a training step's loss for its processes, on the stream that steps run on.

    DistributedDataParallel orders its buckets of gradients in the first backward pass. A resumed run must add up in the order of
    an unbroken one, so the first backward pass is a warm-up that changes nothing.
    """
    with step.params.in_use():
        step.parallel_loss = step.shared.wrap_loss(step.compute)
    if step.shared.needs_warmup_backward:
        statistics = [b.clone() for b in step.batch_statistics]
        with torch.random.fork_rng([step.device] if step.device.type == "cuda" else []), step.params.in_use():
            step.forward_loss(batch)[0].backward()
        step.params.drop_grads()
        for buffer, before in zip(step.batch_statistics, statistics, strict=True):
            buffer.copy_(before)
