"""A fine-tuned model as its weights tell of it: with its task, and how its clips were read."""

from dataclasses import dataclass
from pathlib import Path

from avfmae.checkpoints import read_about
from avfmae.data.config import DataConfig, Preparation
from avfmae.models.finetuning import AVFMAEForFinetuning
from avfmae.tasks import task_class
from avfmae.tasks.interface import Task


@dataclass
class Finetuned:
    """A fine-tuned model, its task, and how its clips were read, cut to faces and computed with."""

    model: AVFMAEForFinetuning
    task: Task
    data: DataConfig
    preparation: Preparation | None
    precision: str


def load_finetuned(weights: Path) -> Finetuned:
    """From a fine-tuning's ``weights.safetensors``."""
    about = read_about(weights)
    if "task" not in about:
        raise ValueError(f"{weights}: is not the result of a fine-tuning; it carries no task")
    model = AVFMAEForFinetuning.from_pretrained(weights)
    try:
        task = task_class(about["task"]).of_weights(about, model.get_parameter("head.bias").numel())
        data, how = DataConfig(**about.get("data", {})), Preparation.of(about.get("preparation"))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{weights}: its metadata is not understood ({error!r})") from error
    return Finetuned(model, task, data, how, about.get("precision", "float32"))
