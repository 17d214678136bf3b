"""``avfmae reconstruct``: what a pre-trained model makes of the hidden parts of one's own videos, as pictures."""

from dataclasses import replace
from pathlib import Path

import torch

from avfmae.checkpoints import load_released, read_about, weights_file
from avfmae.console import console
from avfmae.data.clip import Clip
from avfmae.data.config import DataConfig, Preparation
from avfmae.data.cropping import with_a_detector
from avfmae.data.dataset import PretrainDataset
from avfmae.data.faces import chosen_detector
from avfmae.data.sources import MediaError
from avfmae.files import printable
from avfmae.inference.evaluate import say
from avfmae.models.pretraining import AVFMAEForPretraining
from avfmae.options import ReconstructConfig


def reconstruct(run: ReconstructConfig) -> list[Path]:
    """Draws original, masked and reconstructed frames and spectrogram of a window of each video. Returns the pictures.

    Raises:
        ValueError: no video can be read, or the weights are a fine-tuned model's.
    """
    import matplotlib.pyplot as plt

    from avfmae.viz.plots import reconstruction

    path = weights_file(run.model)
    about = read_about(path)
    if "task" in about:
        raise ValueError(f"{path}: is a fine-tuned model, which has no decoder; expected a pre-trained one")
    model = AVFMAEForPretraining(about["config"])
    load_released(model, path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = replace(DataConfig(**about.get("data", {})), missing_audio="silence", multi_scales=(1.0,), workers=0)
    how = Preparation.of(about.get("preparation"))
    if how is None or how.detector == "precropped":  # of which nothing is known, or whose frames were faces already
        how = Preparation(chosen_detector("auto"), margin=data.face_margin)
    how, _ = with_a_detector(how, None)
    written = []
    for video in run.videos:
        dataset = PretrainDataset([Clip(0, str(video))], model.cfg, data, "pretrain", run.seed, preparation=how)
        try:
            dataset.read(dataset.clips[0], 0)  # what cannot be read would be replaced by itself
            figure = reconstruction(model.to(device), dataset, device, 1)
        except MediaError as error:
            say(f"cannot read {error}")
            continue
        run.out.mkdir(parents=True, exist_ok=True)
        written.append(run.out / f"{printable(video.name)}.png")
        figure.savefig(written[-1])
        plt.close(figure)  # pyplot would keep it
        console.print(str(written[-1]), highlight=False)
    if not written:
        raise ValueError(f"none of the {len(run.videos)} videos can be read")
    return written
