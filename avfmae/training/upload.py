"""Batches from the host's memory to the device that trains."""

from collections.abc import Iterable, Iterator

import torch

from avfmae.data.batch import Batch


def uploaded(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on their device. To a GPU, uint8 clips go on a stream of their own, one batch ahead of the work."""
    if device.type != "cuda":
        yield from batches
        return
    stream, ahead = torch.cuda.Stream(device), None
    for batch in batches:
        with torch.cuda.stream(stream):
            moved = batch.to(device)
            arrived = stream.record_event()
        if ahead is not None:
            yield _arrive(*ahead)
        ahead = moved, arrived
    if ahead is not None:
        yield _arrive(*ahead)


def _arrive(batch: Batch, arrived: "torch.cuda.Event") -> Batch:
    here = torch.cuda.current_stream()
    here.wait_event(arrived)
    for tensor in batch.tensors():
        tensor.record_stream(here)
    return batch
