"""A step that is replayed from its tape is the step."""

import copy

import pytest
import torch
from backends import require
from steps import TINY, random_batch

import avfmae
import avfmae_kernels as K
from avfmae.engines.cpu.tape import Diverged, Recorder, Tape
from avfmae.engines.cuda_graph import EAGER_STEPS, Replay
from avfmae.models.iavcl import BatchNorm
from avfmae.tasks.reconstruction import pretraining_loss
from avfmae.training.config import OptimConfig
from avfmae.training.step import TrainingStep
from avfmae_benchmarks.sides import finetuning_loss, host_batch

pytestmark = pytest.mark.isa

STEPS = EAGER_STEPS + 4


def step_of(capture, stage="pretrain", precision="float32", micro_batches=1, recompute="none", **optim):
    torch.manual_seed(0)
    cfg = TINY.replace(drop_path=0.0 if stage == "pretrain" else 0.2, recompute=recompute)
    model = avfmae.AVFMAEForPretraining(cfg) if stage == "pretrain" else avfmae.AVFMAEForFinetuning(cfg, 11)
    loss = pretraining_loss if stage == "pretrain" else finetuning_loss
    optim = OptimConfig(**{"lr": 1e-2, "weight_decay": 0.1} | optim)
    return model, TrainingStep(model, loss, optim, 100, 10, micro_batches, precision, capture=capture)


def replays(step):
    """Grows with every step that comes from the tape."""
    replay, seen = step.captured.replay, []
    step.captured.replay = lambda *args: seen.append(step.captured.tape.play) or replay(*args)
    return seen


def state(model, step):
    return [t.clone() for t in (*model.state_dict().values(), *(t for s in step.optimiser.state.values() for t in s.values()))]


CASES = {
    "late": {"clip_grad": 0.1},
    "early": {"clip_grad": None},
    "bf16, late": {"precision": "bf16", "clip_grad": 0.1},
    "bf16, early": {"precision": "bf16", "clip_grad": None},
    "micro-batches, average": {"micro_batches": 2, "ema": 0.9},
    "fine-tuning, stochastic depth": {"stage": "finetune"},
    "recomputed": {"recompute": "selective"},
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_replays_are_the_step_to_the_bit(case):
    """Clips, masks, rates and stochastic depth change from step to step; numbers, weights, moments and averages are the same."""
    options, results = CASES[case], []
    for capture in (False, True):
        model, step = step_of(capture, **options)
        seen = replays(step) if capture else []
        numbers = []
        for k in range(STEPS):
            torch.manual_seed(k)
            batches = [
                host_batch(TINY, options.get("stage", "pretrain"), 4, seed=10 * k + m)
                for m in range(options.get("micro_batches", 1))
            ]
            numbers.append({name: float(v) for name, v in step(batches).items()})
        results.append((numbers, state(model, step) + [a.clone() for a in step.averaged]))
    assert len(seen) == STEPS - EAGER_STEPS - 1
    assert results[0][0] == results[1][0] and len({n["loss"] for n in results[0][0]}) == STEPS
    assert all(map(torch.equal, results[0][1], results[1][1]))


def test_what_is_not_finite_is_left_out_of_a_replay():
    """Batch statistics that the replay had written before it found out are put back."""
    model, step = step_of(True)
    seen = replays(step)
    for k in range(STEPS):
        step([random_batch(k)])
    bad = random_batch(99)
    bad.audio[0] = torch.nan
    before = state(model, step)
    norms = [m for m in model.modules() if isinstance(m, BatchNorm)]
    counted = [int(n.num_batches_tracked) for n in norms]
    values = step([bad])
    assert float(values["skipped"]) == 1 and values["loss"].isnan()
    assert all(map(torch.equal, before, state(model, step)))
    assert norms and counted == [int(n.num_batches_tracked) for n in norms] != [0] * len(norms)
    values = step([random_batch(100)])
    assert values["loss"].isfinite() and float(values["in_a_row"]) == 0 and len(seen) == STEPS - EAGER_STEPS + 1


def test_masks_that_do_not_fit_are_refused_by_a_replay_too():
    _, step = step_of(True)
    for k in range(EAGER_STEPS + 1):
        step([random_batch(k)])
    bad = random_batch()
    bad.masks = avfmae.DualMask.sample(TINY.replace(region_mode="released"), 4, torch.Generator().manual_seed(3))
    with pytest.raises(ValueError, match="regions hold"):
        step([bad])


def test_another_batch_size_runs_eagerly_and_another_setting_is_captured_anew():
    model, step = step_of(True)
    for k in range(EAGER_STEPS + 1):
        step([random_batch(k)])
    seen, tape = replays(step), step.captured.tape
    step([random_batch(size=3)])
    assert not seen
    step([random_batch()])
    assert len(seen) == 1
    frozen = model.video_encoder.blocks[0].mlp.requires_grad_(False)
    before = copy.deepcopy(frozen.state_dict())
    for k in range(EAGER_STEPS + 2):
        step([random_batch(k)])
    assert step.captured.tape is not tape and len(seen) == 2
    assert all(torch.equal(before[n], p) for n, p in frozen.state_dict().items())
    with K.use("reference"):
        step([random_batch()])
    assert step.captured.runs == 1
    step.restart(1, 0, 0)
    assert step.captured.runs == 0 and step.captured.tape is None


def test_a_tape_reads_no_memory_that_it_has_not_written():
    model, step = step_of(True, precision="bf16")
    for k in range(EAGER_STEPS + 1):
        step([random_batch(k)])
    twin = copy.deepcopy(state(model, step))
    arena = step.captured.tape.arena
    expected = {n: float(v) for n, v in step([random_batch(50)]).items()}
    after = state(model, step)
    for t, value in zip(
        (*model.state_dict().values(), *(t for s in step.optimiser.state.values() for t in s.values())), twin, strict=True
    ):
        t.copy_(value)
    step.number.fill_(EAGER_STEPS + 1)
    step.refresh()
    arena.fill_(255)  # NaN in every floating-point dtype
    assert {n: float(v) for n, v in step([random_batch(50)]).items()} == expected
    assert all(map(torch.equal, after, state(model, step)))


def recorded(function, *inputs):
    recorder = Recorder(inputs)
    with recorder:
        out = function(*inputs)
    return recorder, Tape.of(recorder, out)


def test_memory_is_shared_by_what_is_not_needed_at_the_same_time():
    def function(x):
        for _ in range(10):
            y = torch.empty_like(x)
            y.copy_(x)
            x = y * 2
        return {"x": x}

    x = torch.randn(1000)
    recorder, tape = recorded(function, x)
    assert torch.equal(tape.play(x)["x"], x * 1024) and torch.equal(tape.play(-x)["x"], -x * 1024)
    assert tape.arena.numel() == 2 * 4032  # two blocks of 4000 bytes, in cache lines: what is read, and what is written
    assert sum(call.function is torch.ops.aten.empty_like.default for call in recorder.calls) == 10


def test_results_without_memory_are_told_apart_from_those_with_it():
    """The answer that attention's backward was not asked for has no numbers, and so has no place of its own."""
    require("region_attention", "cpp")
    qkv, grad = torch.randn(6, 5, 96), torch.randn(6, 5, 32)

    def function(qkv):
        kept = [torch.ops.avfmae.region_attention_backward(grad, qkv * k, 4, False) for k in (1, 2)]
        return {"first": kept[0][0].flatten(1) * 1, "second": kept[1][0].flatten(1) * 1}

    _, tape = recorded(function, qkv)
    for given in (qkv, -qkv):
        assert all(torch.equal(tape.play(given)[name], value) for name, value in function(given).items())
    assert tape.arena.numel() > 0


def test_what_nobody_reads_is_not_done_and_what_acts_is():
    weight, counter = torch.randn(4, 3), torch.zeros(())

    def function(x):
        counter.add_(1)
        (x @ weight).exp()  # unread
        rows = torch.empty(2, 4)
        first, second = rows.unbind()
        first.copy_(x)
        second.fill_(1)
        return {"out": rows.T @ torch.ones(2), "weighed": x @ weight.detach()[:, :2]}

    x = torch.randn(4)
    recorder, tape = recorded(function, x)
    used = {call.function for call in recorder.calls}
    assert torch.ops.aten.exp.default in used
    for given in (x, -x):
        out = tape.play(given)
        assert torch.equal(out["out"], given + 1) and torch.allclose(out["weighed"], given @ weight[:, :2])
    assert float(counter) == 3 and not tape.at_stake
    weight.mul_(2)  # what is found is found anew
    assert torch.allclose(tape.play(x)["weighed"], x @ weight[:, :2])


@pytest.mark.parametrize("select", [lambda x: x[x > 0], lambda x: x[x.nonzero()[:, 0]]], ids=["boolean index", "nonzero"])
def test_where_shapes_follow_from_numbers_there_is_no_tape(select):
    replay = Replay(lambda batches: {"sum": select(batches[0].audio.flatten()).sum()})
    batch = random_batch()
    for _ in range(EAGER_STEPS + 3):
        batch.audio = torch.randn(1, 50).clamp(min=0)
        assert float(replay([batch])["sum"]) == float(batch.audio[batch.audio > 0].sum())
    assert replay.tape is None


def test_a_question_with_another_answer_undoes_what_was_written():
    counter = torch.zeros(())

    def function(batches):
        x = batches[0].audio
        counter.add_(1)
        return {"sum": x.sum() if bool((x > 0).all()) else -x.sum()}

    replay = Replay(function)
    positive, negative = random_batch(), random_batch()
    positive.audio, negative.audio = torch.ones(1, 3), -torch.ones(1, 3)
    for _ in range(EAGER_STEPS + 2):
        assert float(replay([positive])["sum"]) == 3
    assert len(replay.tape.at_stake) == 1
    with pytest.raises(Diverged):
        replay.tape.play(*negative.tensors())
    counter.fill_(10)
    assert float(replay([negative])["sum"]) == 3 and float(counter) == 11
