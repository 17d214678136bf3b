"""What training minimises, given a batch as the model takes it: see :data:`avfmae.training.step.LossFunction`."""

from collections.abc import Callable

from torch import Tensor

from avfmae.data.batch import Batch


def pretraining_loss(model: Callable, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """Reconstruction of both modalities and contrast, and each of them for the log."""
    out = model(batch.video, batch.audio, batch.masks, batch.boxes)
    return out.loss, {"loss_video": out.loss_video, "loss_audio": out.loss_audio, "loss_contrastive": out.loss_contrastive}
