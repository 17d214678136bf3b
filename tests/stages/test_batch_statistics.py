"""Batch statistics that a supervised stage measures are those of its training clips."""

import pytest
import torch

import avfmae
from avfmae.checkpoints import save_weights
from avfmae.data.batch import Batch
from avfmae.data.config import DataConfig
from avfmae.data.manifest import read_manifest
from avfmae.datasets.drawn import EMOTIONS, DemoSet, make_demo_set
from avfmae.stages import batch_statistics
from avfmae.stages.config import FinetuneConfig
from avfmae.stages.finetune import SupervisedStage
from avfmae.stages.psi import Hybrid
from avfmae.stages.splits import Split
from avfmae.tasks.classification import Classification
from avfmae.training.config import OptimConfig
from avfmae.training.dist import processes

TINY = avfmae.ModelConfig.preset("tiny")


@pytest.fixture
def model():
    """A fine-tuning model with freshly drawn weights of pre-training, whose pooled features hardly differ between clips."""
    torch.manual_seed(0)
    model = avfmae.AVFMAEForFinetuning(TINY, 3)
    avfmae.load_released(model, avfmae.checkpoints.released_state_dict(avfmae.AVFMAEForPretraining(TINY)))
    return model


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(1)
    return [
        Batch(
            torch.randint(0, 255, (clips, *TINY.video.size, 3), dtype=torch.uint8, generator=generator),
            torch.randn(clips, 1, *TINY.audio.size, generator=generator),
            None, None, list(range(clips)),
        )
        for clips in (3, 3)
    ]  # fmt: skip


def test_batch_statistics_are_those_of_the_clips(model, batches):
    means = {}

    def record(norm, inputs, _):
        means.setdefault(norm, []).append(inputs[0].double().mean((0, 2)))

    norms = batch_statistics.batch_norms(model)
    assert len(norms) == 2
    for norm in norms:
        norm.frozen = True
        norm.running_mean.fill_(7)
        norm.register_forward_hook(record)
    batch_statistics.measure_batch_norm(model, batches)
    for norm in norms:
        assert len(means[norm]) == len(batches) * TINY.fusion_depth and norm.momentum == 0.1
        torch.testing.assert_close(norm.running_mean.double(), torch.stack(means[norm]).mean(0), rtol=1e-5, atol=1e-6)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    return read_manifest(make_demo_set(folder, DemoSet("faces", first=7, people=1, labels={e: e for e in EMOTIONS})))


def started(clips, out, init):
    """A fine-tuning stage before its first step."""
    run = FinetuneConfig(
        preset="tiny", out=out, init=init, precision="float32",
        data=DataConfig(workers=0, segments=1, crops=1), optim=OptimConfig(epochs=1, total_batch=3),
    )  # fmt: skip
    with processes() as dist:
        return SupervisedStage(run, dist, Classification(tuple(EMOTIONS)), Split("split", clips, [], []), "fine-tuning")


@pytest.mark.parametrize("stage", ["pre-training", "supervised"])
def test_only_a_supervised_stage_s_statistics_are_kept(stage, clips, tmp_path):
    torch.manual_seed(0)
    given = avfmae.AVFMAEForPretraining(TINY) if stage == "pre-training" else avfmae.AVFMAEForFinetuning(TINY, len(EMOTIONS))
    for norm in batch_statistics.batch_norms(given):
        norm.running_mean.fill_(7)
    save_weights(given, tmp_path / "given.safetensors")
    model = started(clips, tmp_path / "run", tmp_path / "given.safetensors").model
    norms = batch_statistics.batch_norms(model)
    assert len(norms) == 2 and all(norm.frozen for norm in norms)
    kept = [bool((norm.running_mean == 7).all()) for norm in norms]
    assert kept == [stage == "supervised"] * 2


def test_a_run_is_compared_by_all_of_its_task(clips, tmp_path):
    """PSI's smoothing by data set is no part of what weights tell of a task."""
    save_weights(avfmae.AVFMAEForFinetuning(TINY, len(EMOTIONS)), tmp_path / "given.safetensors")
    run = FinetuneConfig(
        preset="tiny", out=tmp_path / "run", init=tmp_path / "given.safetensors", precision="float32",
        data=DataConfig(workers=0, segments=1, crops=1), optim=OptimConfig(epochs=1, total_batch=3),
    )  # fmt: skip
    with processes() as dist:
        found = [
            SupervisedStage(run, dist, Hybrid(tuple(EMOTIONS), (("x", rate),)), Split("split", clips, [], []), "PSI")
            for rate in (0.1, 0.4)
        ]
    first, second = (stage.trainer.state.fingerprint["task"] for stage in found)
    assert first != second and '["x", 0.1]' in first
