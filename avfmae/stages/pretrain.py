"""Stage 1: masked pre-training on unlabelled clips."""

from pathlib import Path

import torch

from avfmae.checkpoints import load_released
from avfmae.console import console
from avfmae.data.dataset import PretrainDataset
from avfmae.data.manifest import read_manifest
from avfmae.data.preprocess import preprocess
from avfmae.models.pretraining import AVFMAEForPretraining
from avfmae.stages.config import PretrainConfig
from avfmae.stages.crops import how_clips_were_read, preparation_of_run
from avfmae.tasks.reconstruction import pretraining_loss
from avfmae.training.dist import processes
from avfmae.training.trainer import Trainer


def pretrain(run: PretrainConfig) -> Path:
    """Runs or continues the stage. Returns the weights, ``out/weights.safetensors``."""
    if run.manifest is None:
        raise ValueError("manifest: is not set; give the clips with --manifest FILE")
    clips = read_manifest(run.manifest)
    with processes() as dist:
        torch.manual_seed(run.seed)
        model = AVFMAEForPretraining(run.model)
        if run.init is not None:
            console.print(str(load_released(model, run.init)), highlight=False)
        model.to(dist.device)
        how = preparation_of_run(run, clips)
        dataset = PretrainDataset(clips, run.model, run.data, "pretrain", run.seed, preparation=how)
        trainer = Trainer(run, dist, f"pre-training {run.preset}", model, dataset, pretraining_loss,
                          prepare=lambda batch, number: preprocess(batch, run.model, fused=True),
                          about=how_clips_were_read(run, how))  # fmt: skip
        trainer.fit()
        with trainer.step.shared.unsharded():
            if dist.is_main:
                from avfmae.viz.pages import stage_report

                stage_report(
                    run.out, "Pre-training", run.preset, [run.manifest], model=model, dataset=dataset, device=dist.device
                )
        dist.barrier()
    return Path(run.out) / "weights.safetensors"
