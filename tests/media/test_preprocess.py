"""A batch made on its device against the plain way, one clip after the other with Pillow and the filterbank's library."""

import numpy as np
import pytest
import torch
from backends import DEVICES
from PIL import Image
from pillow_augment import RAND_AUGMENT

import avfmae
from avfmae.data import augment
from avfmae.data import dataset as datasets
from avfmae.data.audio import AUDIOSET_MEAN, AUDIOSET_STD
from avfmae.data.clip import Clip
from avfmae.data.config import DataConfig
from avfmae.data.dataset import ClipDataset, PretrainDataset
from avfmae.data.preprocess import preprocess
from avfmae_benchmarks.peers.filterbank import fbank

TINY = avfmae.ModelConfig.preset("tiny")


@pytest.fixture(scope="module")
def clips(media):
    return [Clip(i, media[n]) for i, n in enumerate(("good_mp4", "good_mkv", "click_mp4", "short_mp4"))]  # frames of one size


def plainly(dataset, items):
    """What a worker of the plain pipeline would give: video (B·views, T, H, W, 3) and audio (B·views, frames, mels)."""
    videos, audios = [], []
    size = dataset.cfg.video.size[1:]
    for item in items:
        sample, _ = dataset[item]
        crops = dataset.data.crops if dataset.purpose == "evaluate" else 1
        for k, box in enumerate(sample.boxes):
            video = augment.crop(sample.windows[k // crops], box, size, "bicubic" if dataset.purpose == "train" else "bilinear")
            if sample.draw is not None:
                for operation, strength, sign in sample.draw.operations:
                    pillow = RAND_AUGMENT[operation](10 * strength, sign, size[::-1])
                    video = np.stack([np.asarray(pillow(Image.fromarray(f))) for f in video])
                video = video[:, :, ::-1] if sample.draw.flip else video
                if sample.draw.erase is not None:
                    top, left, noise = sample.draw.erase
                    video = video.copy()
                    video[:, top : top + noise.shape[1], left : left + noise.shape[2]] = noise
            videos.append(video)
            sound = sample.sounds[k // crops]
            features = fbank((np.roll(sound, sample.shift) * sample.gain).astype(np.float32))[:256]
            padded = np.zeros((256, 128), np.float32)
            padded[: len(features)] = features
            audios.append((padded - AUDIOSET_MEAN) / (2 * AUDIOSET_STD))
    return np.stack(videos), np.stack(audios)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("purpose", ["pretrain", "train", "evaluate"])
def test_is_the_plain_pipeline(purpose, device, clips):
    """One level apart, by Pillow's two roundings; colours that are spread out afterwards can make more of it."""
    dataset = ClipDataset(clips, TINY, DataConfig(), purpose, seed=4)
    items = [(epoch, i) for epoch in range(4) for i in range(len(clips))]
    batch = preprocess(dataset.batch(items).to(torch.device(device)), TINY)
    video, audio = plainly(dataset, items)
    assert batch.video.shape == video.shape and batch.audio.shape == (len(audio), 1, 256, 128)
    difference = np.abs(batch.video.cpu().numpy().astype(int) - video)
    if purpose == "train":
        assert difference.mean() < 0.5 and (difference > 8).mean() < 0.01
    else:
        assert difference.max() <= 1
    # In the log domain; of the clicks on silence the library's float32 makes up to 5e-3.
    apart = 2 * AUDIOSET_STD * np.abs(batch.audio[:, 0].cpu().numpy() - audio)
    assert apart.max() < 5e-3 and apart[:-1:4].mean() < 1e-4 and (apart > 1e-3).mean() < 1e-3


def test_clips_of_different_sizes_go_another_way_to_the_same_end(clips, media):
    mixed = [clips[0], Clip(1, media["odd_size_mp4"]), clips[2]]
    dataset = ClipDataset(mixed, TINY, DataConfig(), "pretrain", seed=4)
    batch = dataset.batch([(0, i) for i in range(3)])
    assert batch.raw.boxes is None and batch.raw.frames.shape[2:4] == (64, 64)
    together = preprocess(batch, TINY).video
    for i in (0, 2):
        alone = preprocess(dataset.batch([(0, i)]), TINY).video[0]
        assert (together[i].int() - alone.int()).abs().max() <= 1


@pytest.mark.parametrize("purpose", ["pretrain", "evaluate"])
def test_of_large_frames_only_the_crops_leave_the_worker(purpose, clips, monkeypatch):
    dataset = ClipDataset(clips, TINY, DataConfig(), purpose, seed=4)
    items = [(0, i) for i in range(4)]
    whole = preprocess(dataset.batch(items), TINY)
    monkeypatch.setattr(datasets, "LARGEST_WHOLE", 64 * 111)
    raw = dataset.batch(items).raw
    assert raw.boxes is None and raw.frames.shape == whole.video.shape
    assert (preprocess(dataset.batch(items), TINY).video.int() - whole.video.int()).abs().max() <= 1


@pytest.mark.parametrize("device", DEVICES)
def test_the_model_sees_through_boxes_what_it_would_see_of_crops(device, clips):
    """The loss of stored frames with boxes is that of the cropped clips."""
    dataset = PretrainDataset(clips, TINY, DataConfig(), "pretrain", seed=4)
    torch.manual_seed(0)
    model = avfmae.AVFMAEForPretraining(TINY).to(device).eval()
    raw = dataset.batch([(0, i) for i in range(4)]).to(torch.device(device))
    fused, cropped = preprocess(raw, TINY, fused=True), preprocess(raw, TINY)
    assert fused.video.shape[2:4] == (64, 112) and fused.boxes.shape == (4, 4) and cropped.boxes is None
    losses = [model(b.video, b.audio, b.masks, b.boxes).loss_video for b in (fused, cropped)]
    assert torch.isclose(*losses, rtol=1e-4) and losses[0] > 0
