"""A model as a folder, as Hugging Face lays it out: ``config.json``, ``model.safetensors`` and a model card."""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from safetensors import safe_open

from avfmae.checkpoints.weights import load_released, read_about, save_weights
from avfmae.config import ModelConfig
from avfmae.extras import need
from avfmae.files import atomic_write, write_json
from avfmae.models.base import AudioVisualModel
from avfmae.models.finetuning import AVFMAEForFinetuning

M = TypeVar("M", bound=AudioVisualModel)

CONFIG, MODEL, CARD = "config.json", "model.safetensors", "README.md"
NAMES = ("weights.safetensors", MODEL)  # of a training run's folder, and of one that is made here

CARD_TEXT = """\
---
library_name: avfmae
pipeline_tag: {pipeline}
tags: [audio-visual, emotion, masked-autoencoder]
---
# {title}

A model of avfmae: encoder `{encoder}`, fusion `{fusion}`, width {width}, depth {depth}; it takes {modalities}. {task}

```python
import avfmae

{code}
```

What it predicts is how annotators or actors of its training data named a face and a voice, and not what a person feels.
"""


def save_pretrained(model: AudioVisualModel, folder: str | Path, **about: Any) -> Path:
    """Writes a model's folder. What is loaded from it is the same, bit by bit.

    Args:
        about: what goes with the weights: the task, its classes, how clips are read; as JSON takes it.
    """
    return _save(model, Path(folder), Path(folder).name, about)


def _save(model: AudioVisualModel, folder: Path, name: str, given: Mapping[str, Any]) -> Path:
    """As save_pretrained; ``name`` is what the card calls the model."""
    cfg = model.cfg
    about: dict[str, Any] = {**model.about, **({"task": model.task} if isinstance(model, AVFMAEForFinetuning) else {}), **given}
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(model, folder / MODEL, **about)
    write_json(folder / CONFIG, {"config": asdict(cfg), **about})
    classes = f" of {', '.join(map(str, about['classes']))}" if "classes" in about else ""
    task = f"Fine-tuned for {about['task']}{classes}." if "task" in about else "Pre-trained on unlabelled clips."
    kind = "Predictor" if "task" in about else "FeatureExtractor"
    call = '("talk.mp4").frame' if "task" in about else '(["talk.mp4"]).arrays'
    code = f'avfmae.{kind}.from_pretrained("{name}"){call}'
    modalities = " and ".join(cfg.modalities)
    fields = {field: getattr(cfg, field) for field in ("encoder", "fusion", "width", "depth")}
    fields["pipeline"] = "feature-extraction" if "task" not in about else f"{cfg.modalities[0]}-classification"
    with atomic_write(folder / CARD) as path:
        path.write_text(CARD_TEXT.format(title=name.rpartition("/")[2], task=task, code=code, modalities=modalities, **fields))
    return folder


def load_pretrained(kind: type[M], path: str | Path, num_outputs: int | None = None, **options: Any) -> M:
    """See ``from_pretrained`` of the models."""
    file = weights_file(path, **options)
    about = read_about(file)
    is_tuned, is_wanted_tuned = "task" in about, issubclass(kind, AVFMAEForFinetuning)
    args: list[Any] = [cfg := about.pop("config")]
    assert isinstance(cfg, ModelConfig)
    if is_wanted_tuned and not is_tuned and num_outputs is None:
        raise ValueError(f"{file}: is a pre-trained model, which has no head; expected num_outputs for a new one")
    if is_tuned and not is_wanted_tuned:
        raise ValueError(f"{file}: is a fine-tuned model, which has no decoder; load it with AVFMAEForFinetuning")
    if is_wanted_tuned:
        if num_outputs is None:
            with safe_open(file, "pt") as tensors:
                num_outputs = len(tensors.get_tensor("head.bias"))
        args += [num_outputs, about.get("task", "classification")]
    model = kind(*args)
    load_released(model, file)
    model.about = about  # goes with it where it is saved again
    return model.eval()


FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")  # suffixes of weights; a hub's names have dots too


def weights_file(path: str | Path, **options: Any) -> Path:
    """The weights of a run's or a model's folder, or the file itself; of ``owner/name``, which is no file here, from the hub.

    Args:
        options: of ``snapshot_download``.

    Raises:
        FileNotFoundError: they are not there. RuntimeError: ``huggingface_hub`` is not installed.
    """
    local = Path(path)
    if not local.exists() and len(local.parts) == 2 and local.suffix not in FILES and not local.is_absolute():
        hub = need("huggingface_hub", "hub", f"{path}, which is no file here,")
        try:
            local = Path(hub.snapshot_download(str(path), **{"allow_patterns": [*NAMES, CONFIG]} | options))
        except Exception as error:  # its own, and those of the libraries below it
            said = " ".join(str(error).split()) or type(error).__name__
            raise FileNotFoundError(
                f"{path}: is no file here, and cannot be had from Hugging Face's hub ({said[:300]})"
            ) from error
    if local.is_dir():
        local = next((local / name for name in NAMES if (local / name).is_file()), local / NAMES[0])
    if not local.is_file():
        raise FileNotFoundError(f"{local}: no such model")
    return local


def push_to_hub(
    model: AudioVisualModel, repo_id: str, about: Mapping[str, Any] | None = None, *, private: bool | None = None,
    token: str | bool | None = None, branch: str | None = None, **options: Any,
) -> str:  # fmt: skip
    """Uploads the folder that :func:`save_pretrained` writes to Hugging Face's hub as ``owner/name``; gives the commit's address.

    Args:
        about: see there. private: of a repository that is made; None: as the owner's are by default.
        branch: is made where there is none; None: the main one.
        options: of huggingface_hub's ``upload_folder``, such as ``commit_message`` and ``create_pr``.
    """
    hub = need("huggingface_hub", "hub", "push_to_hub").HfApi()
    with tempfile.TemporaryDirectory() as folder:
        made = _save(model, Path(folder), repo_id, about or {})
        hub.create_repo(repo_id, private=private, token=token, exist_ok=True)
        if branch is not None:
            hub.create_branch(repo_id, branch=branch, token=token, exist_ok=True)
        return str(hub.upload_folder(repo_id=repo_id, folder_path=str(made), revision=branch, token=token, **options))
