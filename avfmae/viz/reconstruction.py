"""What a pre-trained model makes of the hidden parts of clips: beside the original and what the masks leave, still and moving."""

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import cv2
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import torch
from einops import rearrange
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from torch import Tensor

from avfmae.config import ModelConfig
from avfmae.data.preprocess import preprocess
from avfmae.masking import DualMask
from avfmae.models.embed import audio_patches
from avfmae.models.pretraining import AVFMAEForPretraining
from avfmae.viz.plots import bare

if TYPE_CHECKING:
    from avfmae.data.dataset import PretrainDataset

KINDS = ("original", "masked", "reconstructed")
SIDE = 256  # pixels of a moving picture
FPS = 25


@torch.no_grad()
def reconstructed(
    model: AVFMAEForPretraining, dataset: "PretrainDataset", device: torch.device, clips: int
) -> dict[str, np.ndarray]:
    """Clips of the data set; the model predicts everything that the encoder did not see.

    The model predicts standardised patches; the true patch's mean and scale put them back into view.

    Returns:
        By modality and in the order of ``KINDS``: ``video`` (3, B, T, H, W, 3) uint8, ``audio`` (3, B, mels, frames), NaN where
        it is masked.
    """
    model.eval()
    batch = dataset.batch([(0, i) for i in np.linspace(0, len(dataset) - 1, clips).astype(int)])
    cfg, batch = model.cfg, preprocess(batch.to(device), model.cfg)
    assert batch.masks is not None
    hidden = {}
    for name in cfg.modalities:
        places = torch.ones(clips, getattr(cfg, name).tokens, dtype=torch.bool, device=device)
        hidden[f"{name}_encoder"] = places.scatter_(1, getattr(batch.masks, name).visible, False)
    masks = DualMask.from_bool(**hidden)
    predicted = model.decode(model.encode(batch.video, batch.audio, masks), masks)
    shown = {"video": _frames, "audio": _sounds}
    return {
        name: shown[name](getattr(batch, name), predicted[name].float(), getattr(masks, name).decoded, cfg)
        for name in cfg.modalities
    }


def _frames(video: Tensor, predicted: Tensor, decoded: Tensor, cfg: ModelConfig) -> np.ndarray:
    (p, q, r), (t, h, _) = cfg.video.patch, cfg.video.grid
    tubelets = rearrange(video.float(), "b (t p) (h q) (w r) c -> b (t h w) p (q r) c", p=p, q=q, r=r)
    mean, std = tubelets.mean((2, 3), keepdim=True), tubelets.flatten(2, 3).std(2)[:, :, None, None] + 1e-6
    filled, masked = tubelets.clone(), tubelets.clone()
    frames = rearrange(predicted, "b n (p s c) -> b n p s c", p=p, c=3)
    if cfg.frame_difference:
        frames = frames.cumsum(2)
    for b, index in enumerate(decoded):
        filled[b, index] = frames[b] * std[b, index] + mean[b, index]
        masked[b, index] = 128
    clips = torch.stack([tubelets, masked, filled]).clamp(0, 255).byte()
    return rearrange(clips, "k b (t h w) p (q r) c -> k b (t p) (h q) (w r) c", t=t, h=h, q=q, r=r).cpu().numpy()


def _sounds(audio: Tensor, predicted: Tensor, decoded: Tensor, cfg: ModelConfig) -> np.ndarray:
    patches = audio_patches(audio, cfg.audio.patch)
    scale = patches.std(-1, keepdim=True) + 1e-6
    filled, masked = patches.clone(), patches.clone()
    for b, index in enumerate(decoded):
        filled[b, index] = predicted[b] * scale[b, index] + patches[b, index].mean(-1, keepdim=True)
        masked[b, index] = torch.nan
    sounds = torch.stack([patches, masked, filled])
    return rearrange(sounds, "k b (t f) (p q) -> k b (f q) (t p)", t=cfg.audio.grid[0], p=cfg.audio.patch[0]).cpu().numpy()


def plot_reconstruction(panels: Mapping[str, np.ndarray]) -> Figure:
    """What :func:`reconstructed` gives, three rows a clip; at most eight frames side by side."""
    drawn = [_side_by_side(p) if p.ndim == 6 else p for p in panels.values()]
    clips, ratios = drawn[0].shape[1], [p.shape[3] / p.shape[2] for p in drawn]
    figure, axes = plt.subplots(
        3 * clips, len(drawn), figsize=(1 + sum(ratios), 3.75 * clips), width_ratios=ratios, layout="constrained", squeeze=False
    )
    for (b, k), (column, panel) in itertools.product(np.ndindex(clips, 3), enumerate(drawn)):
        axis: Axes = axes[3 * b + k, column]  # pyright: ignore[reportArgumentType]  an array of them
        if panel.ndim == 5:
            axis.imshow(panel[k, b])
        else:
            low, high = np.percentile(panel[0, b], (2, 99.5))
            axis.imshow(panel[k, b], origin="lower", aspect="auto", cmap=_colours(), vmin=low, vmax=high)
        bare(axis, xticks=[], yticks=[], ylabel="" if column else KINDS[k])
    return figure


def _side_by_side(frames: np.ndarray) -> np.ndarray:
    """(3, B, T, H, W, 3) -> (3, B, H, frames·W, 3)."""
    return rearrange(frames[:, :, :: max(1, frames.shape[2] // 8)], "k b t h w c -> k b h (t w) c")


def _colours() -> Colormap:
    return matplotlib.colormaps["magma"].with_extremes(bad="#808080")


def moving_pictures(panels: Mapping[str, np.ndarray], seconds: float) -> Iterator[tuple[float, np.ndarray]]:
    """(second, (H, W, 3) uint8 picture): the first clip's three kinds beside each other, with a line at the time.

    Args:
        panels: as :func:`reconstructed` gives them. seconds: that the clip's frames last.
    """
    spectrograms = None
    if "audio" in panels:
        sounds = panels["audio"][:, 0, ::-1, : max(1, round(100 * seconds))]  # low ones below; 10 ms a column
        low, high = np.percentile(sounds[0], (2, 99.5))
        coloured = [
            np.asarray(255 * _colours()(np.ma.masked_invalid((s - low) / max(high - low, 1e-6)))[..., :3]) for s in sounds
        ]
        spectrograms = [cv2.resize(c.astype(np.uint8), (SIDE, SIDE // 2), interpolation=cv2.INTER_AREA) for c in coloured]
    for number in range(max(1, round(seconds * FPS))):
        time, columns = number / FPS, []
        for kind in range(3):
            parts = []
            if "video" in panels:
                frames = panels["video"][kind, 0]
                frame = frames[min(len(frames) - 1, int(time / seconds * len(frames)))]
                parts.append(cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST))
            if spectrograms is not None:
                parts.append(spectrograms[kind].copy())
                parts[-1][:, min(SIDE - 1, int(time / seconds * SIDE))] = 255
            columns.append(_named(np.concatenate(parts), KINDS[kind]))
        yield time, np.concatenate(columns, axis=1)


def _named(picture: np.ndarray, name: str) -> np.ndarray:
    """The picture under a line with its name."""
    line = np.zeros((20, picture.shape[1], 3), np.uint8)
    cv2.putText(line, name, (6, 14), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
    return np.concatenate([line, picture])
