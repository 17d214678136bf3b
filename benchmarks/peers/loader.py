"""The published loader, built anew: decord, Pillow a frame at a time, float tensors, a Kaldi filterbank; all of it in the worker.

What HiCMAE and AVF-MAE++ as released do for a clip of pre-training: the video is opened and 16 frames at stride 4 are decoded;
every frame becomes a Pillow image, is cut to a corner or centre box at one of four scales and resized to 160 pixels; the stack
becomes a normalised float32 tensor (3, 16, 160, 160). The sound is a wav file beside the video, loaded whole and cut to the
frames' time.
"""

import wave
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from avfmae.data.audio import AUDIOSET_MEAN, AUDIOSET_STD, MELS
from avfmae.data.augment import multi_scale_box
from avfmae.extras import need
from avfmae_benchmarks.peers.filterbank import fbank
from avfmae_kernels.gather_patches import IMAGENET_MEAN, IMAGENET_STD

FRAMES, STRIDE, SIZE, FBANK_FRAMES = 16, 4, 160, 256


class PublishedLoader:
    """Reads one clip as published. ``parts`` are its stages, in order; each takes what the one before gives."""

    def __init__(self, seed: int = 0):
        self.rng = np.random.default_rng(seed)
        self.parts = {"decode": self.decode, "augment": self.augment, "filterbank": self.filterbank}

    def __call__(self, video: Path) -> tuple[torch.Tensor, torch.Tensor]:
        """(3, T, H, W) float32 and (1, frames, mels) float32."""
        return self.filterbank(self.augment(self.decode(video)))

    def decode(self, video: Path):
        decord = need("decord", "bench", "the published loader")
        reader = decord.VideoReader(str(video), num_threads=1, ctx=decord.cpu(0))
        first = int(self.rng.integers(max(1, len(reader) - FRAMES * STRIDE)))
        numbers = np.minimum(first + STRIDE * np.arange(FRAMES), len(reader) - 1)
        return video, reader.get_batch(numbers.tolist()).asnumpy(), first / reader.get_avg_fps()

    def augment(self, decoded):
        video, frames, start = decoded
        images = [Image.fromarray(frame).convert("RGB") for frame in frames]
        left, top, right, bottom = (round(v) for v in multi_scale_box((0, 0, *images[0].size), self.rng))
        images = [image.crop((left, top, right, bottom)).resize((SIZE, SIZE), Image.Resampling.BILINEAR) for image in images]
        stack = torch.from_numpy(np.concatenate([np.array(image) for image in images], axis=2))
        clip = stack.permute(2, 0, 1).contiguous().float().div(255)
        clip = clip.view(FRAMES, 3, SIZE, SIZE).transpose(0, 1)
        mean, std = (torch.tensor(v)[:, None, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
        return video, clip.sub(mean).div(std), start

    def filterbank(self, augmented):
        video, clip, start = augmented
        with wave.open(str(video.with_suffix(".wav"))) as file:
            rate = file.getframerate()
            whole = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 32768
        sound = whole[int(start * rate) :][: FRAMES * STRIDE * rate // 25]
        features = fbank((sound * (self.rng.beta(10, 10) + 0.5)).astype(np.float32))[:FBANK_FRAMES]
        padded = np.zeros((FBANK_FRAMES, MELS), np.float32)
        padded[: len(features)] = features
        return clip, torch.from_numpy((padded - AUDIOSET_MEAN) / (2 * AUDIOSET_STD))[None]
