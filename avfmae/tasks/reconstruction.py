"""What training minimises, given a batch as the model takes it: see :data:`avfmae.training.step.LossFunction`."""

from collections.abc import Callable

from torch import Tensor

from avfmae.data.batch import Batch


def pretraining_loss(model: Callable, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Reconstruction of the modalities and contrast between them, and each of them for the log."""
    out = model(batch.video, batch.audio, batch.masks, batch.boxes)
    parts = {name: getattr(out, name) for name in ("loss_video", "loss_audio", "loss_contrastive")}
    return out.loss, {name: part for name, part in parts.items() if part is not None}
