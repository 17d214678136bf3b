"""``avfmae export``: a fine-tuned model as an ONNX file or a torch.export archive, compared with the model before it is kept."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import avfmae_kernels as K
from avfmae.checkpoints import weights_file
from avfmae.extras import need
from avfmae.files import atomic_write, check_writable
from avfmae.inference.finetuned import load_finetuned
from avfmae.options import ExportConfig

TOLERANCE = 1e-4  # of logits, between the model and what is written
MOST = 4096  # clips in a batch

SAMPLE = {
    ".onnx": """\
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession({path!r})
{inputs}
logits, features = session.run(None, {feed})""",
    ".pt2": """\
import torch
model = torch.export.load({path!r}).module()
{inputs}
logits, features = model({arguments})""",
}  # fmt: skip


class Exported(nn.Module):
    """The model with its outputs as a tuple (logits, features), which exporters know."""

    def __init__(self, model: nn.Module, names: list[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *clips: Tensor) -> tuple[Tensor, Tensor]:
        out = self.model(**{"video": None, "audio": None} | dict(zip(self.names, clips, strict=True)))
        return out.logits, out.features


def export(run: ExportConfig) -> Path:
    """Writes the file and prints how it is used.

    Raises:
        ValueError: the file's suffix is another, or what was written does not give the model's numbers.
    """
    if run.out.suffix not in SAMPLE:
        raise ValueError(f"out: got {run.out}, expected a file of {' or '.join(SAMPLE)}")
    check_writable(run.out)
    model = load_finetuned(weights_file(run.model)).model
    names: list[str] = list(model.cfg.modalities)
    traced = trace(Exported(model, names), example(model, 2))
    with atomic_write(run.out) as temporary:
        if run.out.suffix == ".onnx":
            write_onnx(traced, example(model, 2), names, temporary)
        else:
            buffer = io.BytesIO()  # a file would have to be called .pt2
            torch.export.save(traced, buffer)
            temporary.write_bytes(buffer.getvalue())
        apart = largest_difference(model, temporary, run.out.suffix, names)
        if not apart < TOLERANCE:
            raise ValueError(
                f"{run.out}: gives logits that are {apart:.2g} apart from the model's, expected less than {TOLERANCE}"
            )
    shapes = {name: tuple(clip.shape[1:]) for name, clip in zip(names, example(model, 1), strict=True)}
    kinds = {"video": "uint8", "audio": "float32"}
    make = "np.zeros((1, {}), np.{})" if run.out.suffix == ".onnx" else "torch.zeros((1, {}), dtype=torch.{})"
    inputs = "\n".join(f"{n} = " + make.format(", ".join(map(str, shape)), kinds[n]) for n, shape in shapes.items())
    feed = "{" + ", ".join(f'"{name}": {name}' for name in names) + "}"
    print(f"# logits differ from the model's by {apart:.1g} at most; any number of clips from 1 on")
    print(SAMPLE[run.out.suffix].format(path=str(run.out), inputs=inputs, feed=feed, arguments=", ".join(names)))
    return run.out


def example(model: Any, clips: int) -> tuple[Tensor, ...]:
    """Inputs of a model, of its modalities, at random but always the same."""
    generator, cfg = torch.Generator().manual_seed(0), model.cfg
    made = {
        "video": torch.randint(0, 256, (clips, *cfg.video.size, 3), dtype=torch.uint8, generator=generator),
        "audio": torch.randn(clips, 1, *cfg.audio.size, generator=generator),
    }
    return tuple(made[name] for name in model.cfg.modalities)


def trace(model: nn.Module, clips: tuple[Tensor, ...]) -> torch.export.ExportedProgram:
    """The model's ops, in plain PyTorch, for any number of clips."""
    batch = torch.export.Dim("batch", min=1, max=MOST)
    with K.use("reference"), torch.no_grad():
        return torch.export.export(model.eval(), clips, dynamic_shapes=(tuple({0: batch} for _ in clips),), strict=True)


def write_onnx(traced: torch.export.ExportedProgram, clips: tuple[Tensor, ...], names: list[str], path: Path) -> None:
    """Writes an ONNX file, the weights inside it."""
    need("onnx", "export", "ONNX export")
    op: Any = need("onnxscript", "export", "ONNX export").opset18

    def stable_sort(x, stable=None, dim: int = -1, descending: bool = False):
        """ONNX's TopK takes the first of equal values first."""
        return op.TopK(x, op.Gather(op.Shape(x), op.Constant(value_ints=[dim])), axis=dim, largest=int(descending), sorted=1)

    program = torch.onnx.export(
        traced, clips, dynamo=True, input_names=names, output_names=["logits", "features"], verbose=False,
        custom_translation_table={torch.ops.aten.sort.stable: stable_sort},
    )  # fmt: skip
    assert program is not None
    program.save(path, external_data=False)


def largest_difference(model: Any, path: Path, suffix: str, names: list[str]) -> float:
    """Of the logits that a file gives of one, two and five clips from the model's."""
    if suffix == ".onnx":
        session = need("onnxruntime", "export", "ONNX export").InferenceSession(str(path))
        run = lambda clips: session.run(None, {n: c.numpy() for n, c in zip(names, clips, strict=True)})[0]  # noqa: E731
    else:
        loaded = torch.export.load(io.BytesIO(path.read_bytes())).module()
        run = lambda clips: loaded(*clips)[0].detach().numpy()  # noqa: E731
    apart = 0.0
    with torch.no_grad():
        for count in (1, 2, 5):
            clips = example(model, count)
            logits = Exported(model, names)(*clips)[0].numpy()
            apart = float(np.maximum(apart, np.abs(run(clips) - logits).max()))  # which keeps what is no number
    return apart
