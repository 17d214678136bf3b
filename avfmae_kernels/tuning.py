"""The configurations that autotuning has chosen, kept in a file: another process on such a GPU need not time them again.

The environment variable AVFMAE_AUTOTUNE_FILE names the file. It is JSON, by GPU, kernel and what the kernel is specialised by.
"""

import json
import os
from pathlib import Path

import torch

FILE = Path(os.environ["AVFMAE_AUTOTUNE_FILE"]) if os.environ.get("AVFMAE_AUTOTUNE_FILE") else None


def gpu() -> str:
    """What choices hold for: the GPU, and the compiler."""
    import triton

    return f"{torch.cuda.get_device_name()}, Triton {triton.__version__}"


def kept(file: Path) -> dict[str, dict[str, list]]:
    """By GPU and kernel, pairs of what the kernel is specialised by and the configuration that it runs with."""
    try:
        return json.loads(file.read_text())
    except FileNotFoundError:
        return {}
    except json.JSONDecodeError as error:
        raise ValueError(f"AVFMAE_AUTOTUNE_FILE={file}: is no JSON ({error}); remove it") from None


def recall(tuner, kernel: str, file: Path) -> None:
    """Gives an autotuner the choices that the file has for this GPU, as far as they are among its configurations still."""
    configurations = {json.dumps(c.all_kwargs(), sort_keys=True): c for c in tuner.configs}
    for key, choice in kept(file).get(gpu(), {}).get(kernel, []):
        if (text := json.dumps(choice, sort_keys=True)) in configurations:
            tuner.cache[tuple(key)] = configurations[text]


def keep(tuner, kernel: str, file: Path) -> None:
    """Writes an autotuner's choices into the file, beside those of others. Of two processes that write at once, one may be
    lost."""
    content = kept(file)
    content.setdefault(gpu(), {})[kernel] = [[list(key), choice.all_kwargs()] for key, choice in tuner.cache.items()]
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1))
    os.replace(temporary, file)
