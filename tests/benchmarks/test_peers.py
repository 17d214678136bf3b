"""The peers are the published models: parameters, work, and numbers."""

import golden
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode

import avfmae
from avfmae.training.config import OptimConfig
from avfmae_benchmarks.peers.hicmae import HiCMAE
from avfmae_benchmarks.peers.released import ReleasedAVFMAE, ReleasedClassifier
from avfmae_benchmarks.peers.training import PublishedBatch, PublishedStep, audio_targets, pretraining_loss, video_targets
from avfmae_benchmarks.sides import host_batch, peer_model, published_batch, published_clip

pytestmark = pytest.mark.slow

OUTPUT, GRADIENT = 1e-4, 1e-3


def batch(*masks, decoders=None):
    video, audio = golden.batch()
    return PublishedBatch(published_clip(video), audio, masks or None, decoders)


def no_autocast():
    return torch.autocast("cpu", enabled=False)


def check_training(model, batch, reference, keys):
    loss = pretraining_loss(model, model.cfg, batch, no_autocast)
    loss.backward()
    gradients = avfmae.released_gradients(model)
    norms = torch.stack([gradients[name].norm() for name, _ in golden.keys(keys) if not golden.is_buffer(name)])
    assert golden.relative(loss.detach(), reference["loss"][0]) <= OUTPUT
    assert golden.relative(norms, reference["grad_norms"]) <= GRADIENT


def test_hicmae_gives_the_released_numbers():
    reference = load_file(golden.DATA / "hicmae_base.safetensors")
    model = HiCMAE(avfmae.ModelConfig.preset("hicmae_base"))
    report = avfmae.load_released(model, golden.weights("hicmae_pretraining"))
    assert not report.missing and not report.dropped
    clips = batch(reference["em"], reference["ea"])
    with torch.no_grad():
        video, audio, *_ = model(clips.video, clips.audio, *clips.masks)
        torch.manual_seed(0)
        sdpa = HiCMAE(model.cfg, sdpa=True)
        sdpa.load_state_dict(model.state_dict())
        assert golden.relative(sdpa(clips.video, clips.audio, *clips.masks)[0], video) <= OUTPUT
    assert golden.relative(video[:, ::9, ::3], reference["eval_video"]) <= OUTPUT
    assert golden.relative(audio, reference["eval_audio"]) <= OUTPUT
    check_training(model, clips, reference, "hicmae_pretraining")


def test_avfmae_as_released_gives_the_released_numbers():
    reference = load_file(golden.DATA / "avfmae_base.safetensors")
    model = ReleasedAVFMAE(avfmae.ModelConfig.preset("base"))
    report = avfmae.load_released(model, golden.weights("avfmae_pretraining"))
    assert not report.missing and not report.dropped
    clips = batch(reference["em"], reference["ea"], decoders=(reference["dm"], reference["da"]))
    model.eval()
    with torch.no_grad():
        video, audio, *_ = model(clips.video, clips.audio, *clips.masks, *(~d for d in clips.decoders))
    assert golden.relative(video[:, ::5, ::3], reference["eval_video"]) <= OUTPUT
    assert golden.relative(audio, reference["eval_audio"]) <= OUTPUT
    assert golden.relative(video_targets(clips.video, model.cfg)[:, ::40, ::5], reference["target_video"]) <= OUTPUT
    assert golden.relative(audio_targets(clips.audio, model.cfg)[:, ::8], reference["target_audio"]) <= OUTPUT
    check_training(model.train(), clips, reference, "avfmae_pretraining")


def test_the_released_classifier_gives_the_released_numbers():
    reference = load_file(golden.DATA / "avfmae_base.safetensors")
    model = ReleasedClassifier(avfmae.ModelConfig.preset("base"), 11)
    avfmae.load_released(model, golden.weights("avfmae_finetuning_11_classes"))
    clips = batch()
    with torch.no_grad():
        assert golden.relative(model.eval()(clips.video, clips.audio), reference["ft_logits"]) <= OUTPUT


@pytest.mark.parametrize(
    ("kind", "preset", "parameters", "gigaflops"),
    [
        (HiCMAE, "hicmae_base", 99_609_344, 30.28),
        (ReleasedAVFMAE, "base", 187_942_660, 28.24),
        (ReleasedAVFMAE, "large", 336_322_308, 48.47),
        (ReleasedAVFMAE, "huge", 572_665_092, 77.90),
        (lambda cfg: ReleasedClassifier(cfg, 11), "base", 169_122_851, 83.64),
        (lambda cfg: ReleasedClassifier(cfg, 11), "large", 303_233_319, 155.0),
        (lambda cfg: ReleasedClassifier(cfg, 11), "huge", 521_309_229, 276.7),
    ],
    ids=["hicmae", "base", "large", "huge", "base-finetune", "large-finetune", "huge-finetune"],
)
def test_peers_do_the_published_work(kind, preset, parameters, gigaflops):
    """Matrix products forward, a clip: what the published code does, dead work included."""
    cfg = avfmae.ModelConfig.preset(preset)
    with torch.device("meta"):
        model = kind(cfg)
    assert sum(p.numel() for p in model.parameters()) == parameters
    model.to_empty(device="cpu")  # numbers do not matter to their count
    model.eval()
    clips = published_batch(cfg, host_batch(cfg, "pretrain", 1))
    decoders = tuple(~d for d in clips.decoders or ())
    masks = () if isinstance(model, ReleasedClassifier) else (*clips.masks, *decoders)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(clips.video, clips.audio, *masks)
    assert counter.get_total_flops() / 1e9 == pytest.approx(gigaflops, rel=2e-3)


def test_the_published_step_trains_and_stops_at_what_is_not_finite():
    torch.manual_seed(0)
    cfg = avfmae.ModelConfig.preset("tiny").replace(token_order="released", region_mode="released")
    model, clips = peer_model("released", cfg, "pretrain"), published_batch(cfg, host_batch(cfg, "pretrain", 4))
    step = PublishedStep(model, pretraining_loss, OptimConfig(lr=1e-3), "float32")
    losses = [step(clips) for _ in range(12)]
    assert losses[-1] < 0.9 * losses[0]
    clips.audio[0] = torch.nan
    with pytest.raises(RuntimeError, match="loss is nan"):
        step(clips)
