"""Shapes, options and contracts of the models, at the tiny size."""

import dataclasses
import importlib.util
from dataclasses import replace

import numpy as np
import pytest
import torch
from backends import INTERPRETED, require
from correctness import kept_numbers

import avfmae
import avfmae_kernels as K
from avfmae.config import ModalityConfig, ModelConfig
from avfmae.losses import info_nce
from avfmae.masking import region_of
from avfmae.models.attention import CrossAttention, SelfAttention, drop_path, layer_norm
from avfmae.models.iavcl import EvolutionaryRefinement
from avfmae.models.lgi import LGIBlock
from avfmae_kernels.device import as_on_gpu

pytestmark = pytest.mark.isa

TINY = ModelConfig.preset("tiny")


def hicmae_tiny():
    """HiCMAE at the tiny size."""
    modalities = {name: getattr(TINY, name) for name in ("video", "audio")}
    modalities = {name: dataclasses.replace(m, decoded=m.tokens - m.visible) for name, m in modalities.items()}
    return TINY.replace(encoder="vit", fusion="cross", balanced_masks=False, decoder_masks=False, **modalities)


def clips(count, cfg=TINY, seed=0):
    g = torch.Generator().manual_seed(seed)
    video = torch.randint(0, 256, (count, *cfg.video.size, 3), dtype=torch.uint8, generator=g)
    return video, torch.randn(count, 1, *cfg.audio.size, generator=g)


@pytest.mark.parametrize("region_mode", ["exact", "released"])
@pytest.mark.parametrize("token_order", ["raster", "released"])
def test_pretraining_runs_in_every_mode(region_mode, token_order):
    cfg = TINY.replace(region_mode=region_mode, token_order=token_order)
    out = avfmae.AVFMAEForPretraining(cfg)(*clips(3), avfmae.DualMask.sample(cfg, 3))
    out.loss.backward()
    assert out.pred_video.shape == (3, cfg.video.decoded, 1536) and out.pred_audio.shape == (3, cfg.audio.decoded, 256)
    assert torch.isclose(out.loss, out.loss_video + out.loss_audio + 0.0025 * out.loss_contrastive)


def test_order_of_tokens_does_not_matter_when_positions_follow_them():
    """Region-major tokens with their own positions give what raster order would: attention does not see order."""
    cfg = TINY.replace(region_mode="exact")
    model = avfmae.AVFMAEForPretraining(cfg).eval()
    masks = avfmae.DualMask.sample(cfg, 2, torch.Generator().manual_seed(0))
    index = model.audio_encoder.region_major(masks.audio.visible)
    assert not torch.equal(index, masks.audio.visible)  # not vacuous: audio regions are no runs
    assert torch.equal(index.sort(1).values, masks.audio.visible)
    regions = torch.tensor(region_of(cfg.audio))[index].unflatten(1, (cfg.audio.regions, -1))
    assert (regions == torch.arange(cfg.audio.regions)[None, :, None]).all()


def test_released_regions_are_the_runs_of_the_description():
    cfg = ModelConfig.preset("base").replace(region_mode="released")
    with torch.device("meta"):
        encoder = avfmae.AVFMAEForPretraining(cfg).video_encoder
    got = encoder.region_major(torch.arange(80)[None])[0].reshape(8, 10)
    for pair in range(4):
        for half in range(2):
            want = [10 * t + 5 * half + j for t in (2 * pair, 2 * pair + 1) for j in range(5)]
            assert got[2 * pair + half].tolist() == want


def test_unbalanced_masks_are_refused_by_exact_regions():
    masks = avfmae.DualMask.sample(TINY.replace(region_mode="released"), 4, torch.Generator().manual_seed(1))
    with pytest.raises(ValueError, match="region_mode='released'"):
        avfmae.AVFMAEForPretraining(TINY)(*clips(4), masks)


@pytest.mark.parametrize("modalities", [("video", "audio"), ("video",), ("audio",)], ids="+".join)
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_finetuning_runs_with_either_modality(modalities, task):
    model = avfmae.AVFMAEForFinetuning(TINY.replace(modalities=modalities), 3, task=task)
    video, audio = clips(2)
    out = model(video if "video" in modalities else None, audio if "audio" in modalities else None)
    assert out.logits.shape == (2, 3) and out.features.shape == (2, 64 * len(modalities))
    out.logits.sum().backward()
    unused = [n for n, p in model.named_parameters() if p.grad is None]
    assert unused == []
    with pytest.raises(ValueError, match=f"{modalities[0]}: is None"):
        model(None, None)


def test_hicmae_loss_is_over_all_masked_tokens():
    cfg = hicmae_tiny()
    masks = avfmae.DualMask.sample(cfg, 2)
    assert masks.video.scored.all() and masks.video.decoded.shape[1] == cfg.video.tokens - cfg.video.visible
    out = avfmae.AVFMAEForPretraining(cfg)(*clips(2), masks)
    out.loss.backward()
    assert out.pred_video.shape[1] == masks.video.decoded.shape[1]


def test_last_tokens_of_attention_are_what_all_of_it_gives():
    attention, norm = SelfAttention(32, 2), torch.nn.LayerNorm(32)
    x, before = torch.randn(3, 7, 32), torch.randn(3, 7, 32)
    (x_all, all_of_it), (x_last, last) = attention(x, before, norm), attention(x, before, norm, last=3)
    assert torch.allclose(last, all_of_it[:, -3:], atol=1e-6) and torch.equal(x_last, x_all[:, -3:])


def test_one_key_needs_no_query():
    attention, norm, identity = CrossAttention(32, 2), torch.nn.LayerNorm(32), torch.nn.LayerNorm(32)
    x, context = torch.randn(3, 5, 32), torch.randn(3, 1, 32)
    context = identity(context)
    _, answer = attention(x, None, norm, context, identity)
    assert torch.allclose(answer, attention.one_key(context).expand(3, 5, 32), atol=1e-4)


def test_shortened_blocks_are_what_the_whole_block_gives():
    block = LGIBlock(32, 2)
    x, before = torch.randn(2, 4, 6, 32), torch.randn(2, 4, 6, 32)
    whole = sum(block(x, before))
    assert torch.allclose(sum(block.locals_only(x, before)), whole[:, :, 1:].flatten(1, 2), atol=1e-5)
    assert torch.allclose(sum(block.regions_only(x, before)), whole[:, :, 0], atol=1e-5)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    x = torch.ones(20_000, 3, 2)
    y = drop_path(x, 0.25, training=True)
    assert set(y.unique().tolist()) == {0.0, float(torch.tensor(1 / 0.75))}
    assert (y.flatten(1).std(1) == 0).all() and abs(y.mean() - 1) < 0.02
    assert drop_path(x, 0.25, training=False) is x


def test_refinement_projects_only_a_double_width_joint_feature():
    refine = EvolutionaryRefinement(16).eval()
    video, audio = torch.randn(2, 5, 16), torch.randn(2, 3, 16)
    assert refine(torch.randn(2, 4, 32), video, audio).shape == (2, 4, 16)
    assert refine(torch.randn(2, 4, 16), video, audio).shape == (2, 4, 16)


def test_fixed_negatives_make_the_contrast_independent_of_the_batch():
    v, a = torch.randn(12, 8), torch.randn(12, 8)
    loss, logits = info_nce(v, a, 0.07)
    assert logits.shape == (12, 12) and torch.allclose(info_nce(v, a, 0.07, negatives=11)[0], loss, atol=1e-5)
    with pytest.raises(ValueError, match="negatives: 12 other clips"):
        info_nce(v, a, 0.07, negatives=12)


@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=str)
def test_autocast_keeps_close_to_float32(dtype):
    model, masks = avfmae.AVFMAEForPretraining(TINY).eval(), avfmae.DualMask.sample(TINY, 4)
    with torch.no_grad():
        exact = model(*clips(4), masks)
        with torch.autocast("cpu", dtype):
            cast = model(*clips(4), masks)
    assert torch.isclose(exact.loss, cast.loss, rtol=2e-2) and cast.loss.dtype == torch.float32


def gradients(model, *inputs):
    """The loss (or the logits' squares) and every gradient."""
    model.zero_grad()
    out = model(*inputs)
    loss = out.loss if hasattr(out, "loss") else out.logits.square().sum()
    loss.backward()
    return [loss.detach()] + [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.exhaustive
@pytest.mark.parametrize("stage", ["pretraining", "finetuning"])
def test_whole_model_compiles_without_a_graph_break(stage):
    """Compiled products are torch's, eager ones oneDNN's: they round differently. Biases before a batch norm have
    gradients that are zero in exact arithmetic, so that each bound counts the largest gradient too."""
    torch.manual_seed(0)
    cfg = TINY.replace(depth=2, skip_blocks=(0, 1))  # every kind of block, few of each: tracing takes a second a block
    if stage == "pretraining":
        model, inputs = avfmae.AVFMAEForPretraining(cfg), (*clips(2), avfmae.DualMask.sample(cfg, 2))
    else:
        model, inputs = avfmae.AVFMAEForFinetuning(cfg, 3).eval(), clips(2)
    want = [g.clone() for g in gradients(model, *inputs)]
    got = gradients(torch.compile(model, fullgraph=True, backend="aot_eager"), *inputs)
    assert len(got) == len(want) > 100
    largest = max(b.norm() for b in want)
    assert all((a - b).norm() <= 1e-3 * b.norm() + 1e-6 * largest for a, b in zip(got, want, strict=True))


@pytest.mark.exhaustive
@pytest.mark.parametrize(("implementation", "device"), [INTERPRETED])
def test_the_model_trains_alike_on_triton(implementation, device):
    """A whole step on Triton kernels, in the interpreter."""
    require("region_attention", implementation, device)
    video = ModalityConfig((4, 64, 64), (2, 16, 16), (2, 2, 4), visible=8, decoded=16)
    audio = ModalityConfig((128, 64), (16, 16), (4, 4), visible=6, decoded=16)
    cfg = TINY.replace(depth=2, skip_blocks=(0, 1), fusion_depth=1, video=video, audio=audio)
    g = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (2, *cfg.video.size, 3), dtype=torch.uint8, generator=g)
    sound, masks = torch.randn(2, 1, *cfg.audio.size, generator=g), avfmae.DualMask.sample(cfg, 2, g)
    torch.manual_seed(0)
    model = avfmae.AVFMAEForPretraining(cfg)
    found = []
    for choice in ("reference", implementation):
        model.zero_grad()
        with K.use(choice):
            model(frames, sound, masks).loss.backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    plain, ours = found
    assert len(plain) == len(ours) > 100_000 and (plain - ours).norm() <= 2e-4 * plain.norm()


def test_recomputation_changes_memory_and_nothing_else():
    torch.manual_seed(0)
    state = avfmae.AVFMAEForPretraining(TINY).state_dict()
    inputs, masks = clips(4), avfmae.DualMask.sample(TINY, 4)
    results, kept = {}, {}
    for recompute in ("none", "selective", "full"):
        model = avfmae.AVFMAEForPretraining(TINY.replace(recompute=recompute))
        model.load_state_dict(state)
        results[recompute] = [g.clone() for g in gradients(model, *inputs, masks)]
        kept[recompute] = kept_numbers(lambda: model(*inputs, masks).loss)  # noqa: B023
    for recompute in ("selective", "full"):
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(results["none"], results[recompute], strict=True))
    assert kept["full"] < kept["none"]


def test_a_step_keeps_less_than_the_plain_path():
    model, inputs = avfmae.AVFMAEForPretraining(TINY), (*clips(4), avfmae.DualMask.sample(TINY, 4))
    kept = {}
    for implementation in ("reference", "auto"):
        with K.use(implementation):
            kept[implementation] = kept_numbers(lambda: model(*inputs).loss)
    assert kept["auto"] <= 0.65 * kept["reference"]  # 0.53 for Base


def test_no_copy_between_the_stages_of_a_block():
    """Stages I to IV read and write one buffer's slots: nothing is concatenated, cloned or transposed in memory."""
    require("region_attention", "cpp")
    block = LGIBlock(64, 1)
    x, branch = (torch.randn(2, 4, 6, 64, requires_grad=True).sin() for _ in range(2))
    with K.use("cpp"), torch.profiler.profile(record_shapes=True) as profile:
        total, last = block(x, branch)
        torch.autograd.backward((total, last), (torch.ones_like(total), torch.ones_like(last)))
    names = ("aten::cat", "aten::clone", "aten::copy_", "aten::_to_copy")

    def of_a_product(event) -> bool:  # libraries turn and pack their matrices as they like
        while event := event.cpu_parent:
            if event.name in ("aten::addmm", "mkldnn::_linear_pointwise"):
                return True
        return False

    moved = [e for e in profile.events() if e.name in names and not of_a_product(e)]
    assert moved, "the packed projections' biases are put together"
    tokens = [e for e in moved if any(len(shape) > 1 for shape in e.input_shapes if isinstance(shape, list))]
    assert not tokens, [(e.name, e.input_shapes) for e in tokens]


def test_flash_is_refused_where_it_is_not_installed():
    if importlib.util.find_spec("flash_attn"):
        pytest.skip("flash-attn is installed")
    cfg = TINY.replace(attention="flash")
    with pytest.raises(RuntimeError, match=r"attention='flash' needs flash_attn: pip install 'avfmae\[flash\]'"):
        avfmae.AVFMAEForPretraining(cfg)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ModelConfig.preset("small"), "preset: got 'small'"),
        (lambda: TINY.replace(regions="exact"), "no field regions"),
        (lambda: TINY.replace(region_mode="blocks"), "region_mode: got 'blocks'"),
        (lambda: TINY.replace(width=65, heads=2), "heads: 2 does not divide the width 65"),
        (lambda: TINY.replace(skip_blocks=(1, 4)), "skip_blocks: got"),
        (lambda: TINY.replace(unmasked_context=True), "unmasked_context: got True with encoder='lgi4', which is no pyramid"),
        (lambda: TINY.replace(stages=(1, 1, 1, 1)), "stages: got (1, 1, 1, 1)"),
        (lambda: avfmae.AVFMAEForFinetuning(TINY.replace(modalities=("text",)), 2), "modalities: got"),
        (
            lambda: avfmae.AVFMAEForPretraining(TINY.replace(encoder="resnet")),
            "encoder: got 'resnet', expected one of lgi4, lgi, vit, tpsbt",
        ),
        (
            lambda: avfmae.AVFMAEForPretraining(TINY.replace(fusion="sum")),
            "fusion: got 'sum', expected one of iavcl, dier, hafe, cross, none",
        ),
        (
            lambda: avfmae.AVFMAEForPretraining(TINY.replace(balanced_masks=False)),
            "balanced_masks: got False, expected True with encoder='lgi4' and region_mode='exact'",
        ),
        (
            lambda: avfmae.AVFMAEForPretraining(TINY.replace(modalities=("audio",))),
            "fusion: got 'iavcl' with modalities=('audio',)",
        ),
        (lambda: avfmae.AVFMAEForPretraining(TINY.replace(encoder="tpsbt")), "encoder: got 'tpsbt' with modalities=("),
        (lambda: TINY.replace(decoder_masks=False), "expected the 96 tokens that are not visible with decoder_masks=False"),
        (lambda: TINY.replace(video=replace(TINY.video, decoded=96)), "tokens, expected half with decoder_masks=True"),
        (
            lambda: TINY.replace(audio=replace(TINY.audio, visible=13)),
            "a multiple of 8 with balanced_masks=True and audio.region",
        ),
        (
            lambda: avfmae.AVFMAEForPretraining(TINY.replace(region_mode="released", video=replace(TINY.video, visible=8))),
            "video.visible: got 8, expected a multiple of 16 with encoder='lgi4' and video.region=(2, 2, 4)",
        ),
        (
            lambda: avfmae.AVFMAEForPretraining(
                TINY.replace(region_mode="released", balanced_masks=False, audio=replace(TINY.audio, visible=13))
            ),
            "audio.visible: got 13, expected a multiple of 8 with encoder='lgi4'",
        ),
        (
            lambda: avfmae.AVFMAEForPretraining(TINY.replace(video=replace(TINY.video, region=(4, 2, 4)))),
            "video.region, audio.region: make 4 and 8 regions, expected equally many with fusion='iavcl'",
        ),
        (lambda: avfmae.AVFMAEForPretraining(TINY)(*clips(2), avfmae.DualMask.sample(TINY, 3)), "got batches of 2, 2, 3"),
        (lambda: avfmae.AVFMAEForFinetuning(TINY, 2)(torch.zeros(1, 16, 96, 96, 3), clips(1)[1]), "video: got torch.float32"),
        (
            lambda: avfmae.AVFMAEForFinetuning(TINY, 2)(clips(1)[0], torch.zeros(1, 128, 256)),
            "audio: got torch.float32 (1, 128, 256)",
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_wrong_arguments_are_named(make, words):
    with pytest.raises(ValueError) as caught:
        make()
    assert words in str(caught.value)


def test_masks_depend_on_seed_epoch_and_clip_alone():
    many = avfmae.DualMask.for_clips(TINY, np.arange(9), seed=3, epoch=2)
    one = avfmae.DualMask.for_clips(TINY, [7], seed=3, epoch=2)
    assert torch.equal(many.video.visible[7], one.video.visible[0]) and torch.equal(many.audio.decoded[7], one.audio.decoded[0])
    other = avfmae.DualMask.for_clips(TINY, [7], seed=3, epoch=3)
    assert not torch.equal(other.audio.visible, one.audio.visible)


def test_masks_have_the_described_shape():
    cfg = ModelConfig.preset("base")
    masks = avfmae.DualMask.sample(cfg, 64, torch.Generator().manual_seed(0))
    assert masks.video.visible.shape == (64, 80) and masks.audio.visible.shape == (64, 24)
    assert masks.video.decoded.shape == (64, 400) and masks.audio.decoded.shape == (64, 64)
    spatial = masks.video.visible.unflatten(1, (8, 10)) - 100 * torch.arange(8)[:, None]
    assert (spatial == spatial[:, :1]).all()  # a tube
    assert (((spatial % 100) < 50).sum(-1) == 5).all()  # balanced over the halves
    decoded = torch.zeros(64, 800, dtype=torch.bool).scatter_(1, masks.video.decoded, True).reshape(64, 8, 5, 2, 5, 2)
    cells = decoded.permute(0, 1, 2, 4, 3, 5).flatten(4)  # clip, time, cell row, cell column, slot in the cell
    assert (cells.sum(-1) == 2).all() and (cells == cells[:, :, :1, :1]).all()
    queue = cells[:, :, 0, 0]
    assert (queue[:, 1:] == queue[:, :-1].roll(-1, dims=-1)).all()  # it runs
    assert len(queue[:, 0].unique(dim=0)) == 4  # from every start
    seen = torch.zeros(64, 800, dtype=torch.bool).scatter_(1, masks.video.visible, True)
    assert torch.equal(masks.video.scored, ~seen.gather(1, masks.video.decoded))


def test_golden_decoder_masks_are_running_cells():
    """The released sampler's masks follow the queue that ours follow."""
    import golden
    from safetensors.torch import load_file

    mask = load_file(golden.DATA / "avfmae_base.safetensors")["dm"]
    cfg = ModelConfig.preset("base")
    ours = avfmae.DualMask.sample(cfg, 64).video.decoded
    ours = {tuple(row.tolist()) for row in ours}
    assert all(tuple((~m).nonzero()[:, 0].tolist()) in ours for m in mask)


@pytest.mark.parametrize(
    ("masks", "words"),
    [((torch.zeros(2, 8), None, torch.zeros(2, 8, dtype=torch.bool), None), "video_encoder: got torch.float32"),
     ((torch.eye(3, 8).bool().cumsum(0).bool(), None, torch.zeros(3, 8, dtype=torch.bool), None), "video_encoder: clips keep")],
    ids=["dtype", "counts"],
)  # fmt: skip
def test_wrong_masks_are_named(masks, words):
    with pytest.raises(ValueError) as caught:
        avfmae.DualMask.from_bool(*masks)
    assert words in str(caught.value)


@pytest.mark.parametrize("last", [None, 7])
def test_long_attention_goes_another_way_on_a_gpu_to_the_same_answer(last):
    """A region's 101 tokens are torch's there; a CPU that stands in for a GPU computes them."""
    torch.manual_seed(0)
    attention, norm = SelfAttention(64, 2), layer_norm(64)
    x = torch.randn(2, 101, 64) if last else torch.randn(2, 3, 101, 64)
    with K.use("reference"), torch.no_grad():
        ours = attention(x, None, norm, last)
        with as_on_gpu(90):
            theirs = attention(x, None, norm, last)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
