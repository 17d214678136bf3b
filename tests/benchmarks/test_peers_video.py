"""MAE-DFER and SVFAP as published: released numbers, parameters, and ours of the same weights."""

import golden
import pytest
import torch
from safetensors.torch import load_file

import avfmae
from avfmae_benchmarks.peers.video import PublishedVideo
from avfmae_benchmarks.sides import published_clip

pytestmark = pytest.mark.slow

TINY = avfmae.ModelConfig.preset("tiny")


def masked(cfg, masks):
    return torch.ones(len(masks.video.visible), cfg.video.tokens, dtype=torch.bool).scatter_(1, masks.video.visible, False)


@pytest.mark.parametrize(("name", "parameters"), [("mae_dfer", 92_760_192), ("svfap", 85_517_200)])
def test_the_video_peers_have_the_published_sizes(name, parameters):
    with torch.device("meta"):
        model = PublishedVideo(avfmae.ModelConfig.preset(name))
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize(
    "cfg",
    [
        avfmae.ModelConfig.preset("mae_dfer").at_size_of(TINY).replace(region_mode="released", token_order="released"),
        avfmae.ModelConfig.preset("svfap").at_size_of(TINY),
        avfmae.ModelConfig.preset("svfap").at_size_of(TINY).replace(unmasked_context=True),
    ],
    ids=["mae_dfer", "svfap", "svfap-leak"],
)
def test_the_video_peers_compute_what_ours_do(cfg):
    torch.manual_seed(0)
    ours, peer = avfmae.AVFMAEForPretraining(cfg), PublishedVideo(cfg)
    report = avfmae.load_released(peer, avfmae.released_state_dict(ours))
    assert not report.missing and not report.dropped
    video = torch.randint(0, 256, (2, *cfg.video.size, 3), dtype=torch.uint8)
    masks = avfmae.DualMask.sample(cfg, 2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        want, got = ours(video, None, masks).pred_video, peer(published_clip(video), masked(cfg, masks))
    assert golden.relative(got, want) <= 1e-4


@pytest.mark.parametrize("name", ["mae_dfer", "svfap"])
def test_the_video_peers_give_the_released_numbers(name):
    reference = load_file(golden.DATA / f"{name}.safetensors")
    model = PublishedVideo(avfmae.ModelConfig.preset(name))
    avfmae.load_released(model, golden.weights(f"{name}_pretraining"))
    with torch.no_grad():
        pred = model(published_clip(golden.batch()[0]), reference["em"])
    assert golden.relative(pred[:, ::9, ::3], reference["eval_video"]) <= 1e-4
