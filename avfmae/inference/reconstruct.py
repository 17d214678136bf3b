"""``avfmae reconstruct``: what a pre-trained model makes of the hidden parts of one's own videos, as pictures and as videos."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from avfmae.console import console, say
from avfmae.data.clip import Clip
from avfmae.data.config import SAMPLE_RATE, DataConfig, Preparation
from avfmae.data.cropping import with_a_detector
from avfmae.data.dataset import PretrainDataset, read_window_audio, sample_window
from avfmae.data.faces import chosen_detector
from avfmae.data.sources import MediaError, open_clip
from avfmae.files import check_writable, unique_names
from avfmae.models.pretraining import AVFMAEForPretraining
from avfmae.options import ReconstructConfig


def reconstruct(run: ReconstructConfig) -> list[Path]:
    """Draws original, masked and reconstructed frames and spectrogram of a window of each video, and writes them as an mp4 too.

    Returns:
        The pictures; each has its mp4 beside it.

    Raises:
        ValueError: no video can be read, or the weights are a fine-tuned model's.
    """
    import matplotlib.pyplot as plt

    from avfmae.viz.reconstruction import FPS, moving_pictures, plot_reconstruction, reconstructed
    from avfmae.viz.video import frames_of_sound, write_mp4

    check_writable(run.out, is_folder=True)
    model = AVFMAEForPretraining.from_pretrained(run.model)
    about = model.about
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # nothing is drawn but the masks, and the sound stays in step
    data = replace(DataConfig(**about.get("data", {})), missing_audio="silence", multi_scales=(1.0,), roll=False, workers=0)
    how = Preparation.of(about.get("preparation"))
    if how is None or how.detector == "precropped":  # of which nothing is known, or whose frames were faces already
        how = Preparation(chosen_detector("auto"), margin=data.face_margin)
    how, _ = with_a_detector(how, None)
    position, written = np.random.default_rng(run.seed).random(), []
    for video, name in zip(run.videos, unique_names(run.videos), strict=True):
        try:
            source = open_clip(str(video), data.sound_track or how.sound_track)
            source.check_serves(model.cfg.modalities)
            info, whole = source.info, Clip(0, str(video))
            window = sample_window(info, whole, position, model.cfg.video.size[0], data, spread=False)
            clip = replace(whole, start=window.start - info.start, end=window.end - info.start)
            dataset = PretrainDataset([clip], model.cfg, data, "pretrain", run.seed, preparation=how)
            dataset.read(clip, 0)  # what cannot be read would be replaced by itself
            panels = reconstructed(model.to(device), dataset, device, 1)
            sound = read_window_audio(source, window, "silence")
        except (MediaError, OSError) as error:
            say(f"cannot read {error}")
            continue
        written.append(run.out / f"{name}.png")
        figure = plot_reconstruction(panels)
        figure.savefig(written[-1])
        plt.close(figure)  # pyplot would keep it
        heard = frames_of_sound(sound, SAMPLE_RATE) if info.has_audio else None
        write_mp4(written[-1].with_suffix(".mp4"), moving_pictures(panels, window.end - window.start), FPS, heard)
        console.print(f"{written[-1]}, and .mp4", highlight=False)
    if len(written) < len(run.videos):
        raise ValueError(f"{len(run.videos) - len(written)} of {len(run.videos)} videos could not be read")
    return written
