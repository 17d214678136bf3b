"""Dual masking: what the encoder sees, what the decoder predicts, and what of that is scored.

AVF-MAE++ §3.2. Video: a tube mask for the encoder (one spatial mask, repeated over time) and running cells for the
decoder; audio: random masks for both. HiCMAE has encoder masks only, and its decoder predicts all that they hide.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from avfmae.config import ModalityConfig, ModelConfig
from avfmae_kernels import choose_tokens, random_bits

# One stream of random numbers a use, so that the masks of a clip do not correlate.
VIDEO_ENCODER, VIDEO_DECODER, AUDIO_ENCODER, AUDIO_DECODER = range(4)
CELL = np.array([1, 1, 0, 0])  # a running cell's queue; 1 = masked


@dataclass(frozen=True)
class ModalityMask:
    """One modality's masks as token indices, so that their shapes are static and nothing is looked up on the device.

    Attributes:
        visible: (B, Nv) int64, tokens the encoder sees, ascending.
        decoded: (B, Nd) int64, tokens the decoder predicts, ascending.
        scored: (B, Nd) bool, the decoded ones that the encoder did not see: only these carry loss.
    """

    visible: Tensor
    decoded: Tensor
    scored: Tensor

    def map(self, function: Callable[[Tensor], Tensor]) -> "ModalityMask":
        return ModalityMask(*(function(t) for t in (self.visible, self.decoded, self.scored)))


@dataclass(frozen=True)
class DualMask:
    """The masks of a batch; None for a modality that the model has not. Make one with :meth:`sample`, :meth:`for_clips` or
    :meth:`from_bool`."""

    video: ModalityMask | None
    audio: ModalityMask | None

    @classmethod
    def sample(cls, cfg: ModelConfig, batch_size: int, generator: torch.Generator | None = None) -> "DualMask":
        """Random masks for ``batch_size`` clips, drawn from ``generator``."""
        seed = int(torch.randint(2**62, (), generator=generator))
        return cls.for_clips(cfg, np.arange(batch_size), seed=seed, epoch=0)

    @classmethod
    def for_clips(cls, cfg: ModelConfig, clips: Sequence[int] | np.ndarray, seed: int, epoch: int) -> "DualMask":
        """The masks that these clips have in this epoch: a function of (seed, epoch, clip id) and nothing else."""
        clips = np.asarray(clips)
        masks: dict[str, ModalityMask | None] = {"video": None, "audio": None}
        if "video" in cfg.modalities:
            decoded = _running_cell(cfg.video, clips, seed, epoch) if cfg.decoder_masks else None
            masks["video"] = _mask(_tube(cfg, clips, seed, epoch), decoded, cfg.video.tokens)
        if "audio" in cfg.modalities:
            everything = np.arange(cfg.audio.tokens)[None]
            groups = _places(cfg.audio) if cfg.balanced else everything
            visible = choose_tokens(seed, epoch, clips, AUDIO_ENCODER, groups, cfg.audio.visible // len(groups))
            decoded = None
            if cfg.decoder_masks:
                decoded = choose_tokens(seed, epoch, clips, AUDIO_DECODER, everything, cfg.audio.decoded)
            masks["audio"] = _mask(visible, decoded, cfg.audio.tokens)
        return cls(**masks)

    @classmethod
    def from_bool(
        cls, video_encoder: Tensor | None = None, video_decoder: Tensor | None = None, audio_encoder: Tensor | None = None,
        audio_decoder: Tensor | None = None,
    ) -> "DualMask":  # fmt: skip
        """From boolean masks (B, N), True = masked. Decoder masks are None for models without; both are for a modality it lacks.

        Raises:
            ValueError: a mask is not (B, N) bool, or its clips do not all keep the same number of tokens.
        """
        masks: dict[str, ModalityMask | None] = {"video": None, "audio": None}
        for name, encoder, decoder in (("video", video_encoder, video_decoder), ("audio", audio_encoder, audio_decoder)):
            if encoder is not None:
                decoded = None if decoder is None else _kept(f"{name}_decoder", decoder)
                masks[name] = _mask(_kept(f"{name}_encoder", encoder), decoded, encoder.shape[1], encoder.device)
        return cls(**masks)

    def to(self, device) -> "DualMask":
        return self.map(lambda t: t.to(device))

    def map(self, function: Callable[[Tensor], Tensor]) -> "DualMask":
        """The same masks with ``function`` of every tensor."""
        return DualMask(*(mask and mask.map(function) for mask in (self.video, self.audio)))

    def __len__(self) -> int:
        mask = self.video or self.audio
        return 0 if mask is None else len(mask.visible)


def region_of(m: ModalityConfig) -> np.ndarray:
    """The region that each token lies in: (N,) ints, regions in raster order of their places."""
    return _region_of(m.grid, m.region)


@lru_cache
def _region_of(grid: tuple[int, ...], region: tuple[int, ...]) -> np.ndarray:
    place = np.indices(grid) // np.reshape(region, (-1, *[1] * len(grid)))
    return np.ravel_multi_index(tuple(place), [g // r for g, r in zip(grid, region, strict=True)]).reshape(-1)


def _places(m: ModalityConfig) -> np.ndarray:
    """(R, tokens a region): the tokens of every region."""
    return np.argsort(region_of(m), kind="stable").reshape(m.regions, -1)


def _tube(cfg: ModelConfig, clips: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """One spatial mask a clip, repeated over time; balanced over the spatial regions where the configuration asks for it."""
    steps, *space = cfg.video.grid
    if cfg.balanced:
        of = _region_of(tuple(space), cfg.video.region[1:])
        groups = np.argsort(of, kind="stable").reshape(of.max() + 1, -1)
    else:
        groups = np.arange(np.prod(space))[None]
    spatial = choose_tokens(seed, epoch, clips, VIDEO_ENCODER, groups, cfg.video.visible // steps // len(groups))
    times = np.arange(steps) * np.prod(space)
    return (times[:, None] + spatial[:, None]).reshape(len(clips), -1)


def _running_cell(m: ModalityConfig, clips: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """2×2 cells tile the frame; in time step k a cell shows its queue rotated left by start + k + 1, start random per clip."""
    steps, rows, columns = m.grid
    start = random_bits(seed, epoch, clips, VIDEO_DECODER, 1) % len(CELL)  # (B, 1)
    rotation = start[..., None] + np.arange(steps)[:, None] + 1  # (B, T, 1)
    slot = (np.arange(rows)[:, None] % 2 * 2 + np.arange(columns) % 2).reshape(-1)  # place of a position in its cell
    masked = CELL[(slot + rotation) % len(CELL)].astype(bool).reshape(len(clips), -1)  # (B, N)
    return np.nonzero(~masked)[1].reshape(len(clips), -1)


def _kept(name: str, mask: Tensor) -> np.ndarray:
    if mask.ndim != 2 or mask.dtype != torch.bool:
        raise ValueError(f"{name}: got {mask.dtype} {tuple(mask.shape)}, expected torch.bool (B, N), True = masked")
    counts = (~mask).sum(1).unique().tolist()
    if len(counts) != 1:
        raise ValueError(f"{name}: clips keep {counts} tokens, expected the same number in each")
    return np.nonzero(~mask.cpu().numpy())[1].reshape(len(mask), -1)


def _mask(visible: np.ndarray, decoded: np.ndarray | None, tokens: int, device="cpu") -> ModalityMask:
    seen = np.zeros((len(visible), tokens), bool)
    np.put_along_axis(seen, visible, True, axis=1)
    if decoded is None:
        decoded = np.nonzero(~seen)[1].reshape(len(visible), -1)
    scored = ~np.take_along_axis(seen, decoded, axis=1)
    return ModalityMask(*(torch.from_numpy(a).to(device) for a in (visible, decoded, scored)))
