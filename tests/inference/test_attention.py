"""Attention maps: the shares are those of the last block, they lie at their patches, and the model stays as it was."""

import numpy as np
import pytest
import torch

import avfmae
from avfmae.inference.attention import attention_maps
from avfmae.models.finetuning import AVFMAEForFinetuning
from avfmae.viz.attention import Look, attention_figure

MEMBERS = {"lgi4": {}, "lgi": {"encoder": "lgi"}, "vit": {"encoder": "vit", "fusion": "cross"}}
VIDEO_ONLY = {"encoder": "tpsbt", "fusion": "none", "modalities": ("video",), "skip_blocks": (), "stages": (1, 1)}


def make(**changes):
    torch.manual_seed(0)
    cfg = avfmae.ModelConfig.preset("demo").replace(**changes)
    video = torch.randint(0, 256, (2, *cfg.video.size, 3), dtype=torch.uint8)
    return AVFMAEForFinetuning(cfg, 3).eval(), video, torch.randn(2, 1, *cfg.audio.size)


@pytest.mark.parametrize("changes", [*MEMBERS.values(), VIDEO_ONLY], ids=[*MEMBERS, "tpsbt"])
@torch.no_grad()
def test_shares_sum_to_one_and_the_model_stays(changes):
    model, video, audio = make(**changes)
    before = model(video, audio).logits
    maps = attention_maps(model, video, audio)
    assert torch.equal(model(video, audio).logits, before) and set(maps) == set(model.cfg.modalities)
    for name, shares in maps.items():
        assert shares.shape == (2, *getattr(model.cfg, name).grid)
        assert torch.allclose(shares.flatten(1).sum(1), torch.ones(2), atol=1e-5)
        assert shares.std() > 1e-6 and (shares[0] - shares[1]).abs().max() > 1e-6


@torch.no_grad()
def test_a_plain_encoder_has_the_weights_of_its_last_block():
    model, video, audio = make(**MEMBERS["vit"])
    block, given = model.video_encoder.blocks[-1], []
    hook = block.attn.register_forward_pre_hook(lambda _, inputs: given.append(inputs))
    shares = attention_maps(model, video, audio)["video"]
    hook.remove()
    x, branch, norm = given[0][:3]
    q, k, _ = torch.nn.functional.linear(norm(x + branch), block.attn.qkv.weight, block.attn.bias).chunk(3, -1)
    q, k = (t.unflatten(-1, (block.attn.heads, -1)).transpose(1, 2) for t in (q, k))
    weights = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1).mean((1, 2))
    assert torch.allclose(shares.flatten(1), weights, atol=1e-6)


@torch.no_grad()
def test_regions_have_their_share_and_patches_theirs_of_it():
    """Without queries in one of both stages, the map is that of the other."""
    model, video, audio = make()
    encoder = model.video_encoder
    block, region_of = encoder.blocks[-1], encoder.region_of
    width = block.local_attn.q_bias.numel()

    def by_region():
        return attention_maps(model, video, audio)["video"].flatten(1)

    block.local_attn.qkv.weight[:width] = 0
    regions = by_region()
    for region in range(encoder.regions):
        inside = regions[:, region_of == region]
        assert torch.allclose(inside, inside[:, :1].expand_as(inside), atol=1e-7)
    assert regions.std() > 1e-6
    block.region_attn.qkv.weight[:width] = 0
    assert torch.allclose(by_region(), torch.full_like(regions, 1 / regions.shape[1]), atol=1e-6)


def test_the_picture_glows_where_attention_lies():
    shares = {"video": np.zeros((2, 4, 4)), "audio": np.zeros((8, 8))}
    shares["video"][0, 1, 2], shares["audio"][3, 5] = 1, 1
    look = Look(
        "face 1", np.full((4, 64, 64, 3), 100, np.uint8), np.random.default_rng(0).normal(size=(128, 128)), shares, (0, 1)
    )
    (_, _, end), (_, lit, _), (_, heard, last), (_, lit_sound, _) = look.rows()
    assert (end, last) == (1, 1.28) and lit.shape == (64, 4 * 64, 3) and heard.shape == (128, 128, 3)
    frame = lit[:, :64, 0]
    assert frame[16:32, 32:48].min() > 2 * np.delete(frame, np.s_[16:32], axis=0).max()
    glow = lit_sound[..., 0] - lit_sound[..., 2]  # orange
    assert glow[128 - 96 : 128 - 80, 48:64].min() > 0.1 and np.delete(glow, np.s_[48:64], axis=1).max() < 0.01
    assert [len(part.axes) for part in attention_figure([look, look]).subfigs] == [4, 4]
