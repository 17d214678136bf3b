"""A model as a folder, as Hugging Face lays it out: ``config.json``, ``model.safetensors`` and a model card."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from avfmae.checkpoints.weights import save_weights
from avfmae.extras import need
from avfmae.files import atomic_write

CONFIG, MODEL, CARD = "config.json", "model.safetensors", "README.md"
NAMES = ("weights.safetensors", MODEL)  # of a training run's folder, and of one that is made here

CARD_TEXT = """\
---
library_name: avfmae
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


def save_pretrained(model: nn.Module, folder: str | Path, **about: Any) -> Path:
    """Writes a model's folder. What is loaded from it is the same, bit by bit.

    Args:
        about: what goes with the weights: the task, its classes, how clips are read; as JSON takes it.
    """
    folder = Path(folder)
    cfg: Any = model.cfg
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(model, folder / MODEL, **about)
    with atomic_write(folder / CONFIG) as path:
        path.write_text(json.dumps({"config": asdict(cfg), **about}, indent=1))
    classes = f" of {', '.join(map(str, about['classes']))}" if "classes" in about else ""
    task = f"Fine-tuned for {about['task']}{classes}." if "task" in about else "Pre-trained on unlabelled clips."
    kind = "Predictor" if "task" in about else "FeatureExtractor"
    call = '("talk.mp4").frame' if "task" in about else '(["talk.mp4"]).arrays'
    code = f'avfmae.{kind}.from_pretrained("{folder.name}"){call}'
    modalities = " and ".join(about.get("modalities", ("video", "audio")))
    fields = {name: getattr(cfg, name) for name in ("encoder", "fusion", "width", "depth")}
    with atomic_write(folder / CARD) as path:
        path.write_text(CARD_TEXT.format(title=folder.name, task=task, code=code, modalities=modalities, **fields))
    return folder


def weights_file(path: str | Path) -> Path:
    """The weights of a run's or a model's folder, or the file itself; of ``owner/name``, which is no file here, from the hub.

    Raises:
        FileNotFoundError: they are not there. RuntimeError: ``huggingface_hub`` is not installed.
    """
    local = Path(path)
    if not local.exists() and len(local.parts) == 2 and not local.suffix and not local.is_absolute():
        local = Path(need("huggingface_hub", "hub", f"{path}, which is no file here,").snapshot_download(str(path)))
    if local.is_dir():
        local = next((local / name for name in NAMES if (local / name).is_file()), local / NAMES[0])
    if not local.is_file():
        raise FileNotFoundError(f"{local}: no such model")
    return local


def push_to_hub(folder: str | Path, name: str, private: bool = False) -> None:
    """Uploads a model's folder to Hugging Face's hub as ``owner/name``."""
    hub = need("huggingface_hub", "hub", "push_to_hub").HfApi()
    hub.create_repo(name, private=private, exist_ok=True)
    hub.upload_folder(repo_id=name, folder_path=str(folder))
