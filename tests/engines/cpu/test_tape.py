"""A step that is replayed from its tape is the step."""

import copy

import pytest
import torch
from backends import require
from steps import TINY, random_batch, written

import avfmae
import avfmae_kernels as K
from avfmae import engines
from avfmae.engines.captured import EAGER_STEPS
from avfmae.engines.cpu import replay as replay_module
from avfmae.engines.cpu.replay import Replay
from avfmae.engines.cpu.tape import GuardFailed, Recorder, Tape
from avfmae.models.iavcl import BatchNorm
from avfmae.tasks.reconstruction import pretraining_loss
from avfmae.training.config import OptimConfig
from avfmae.training.step import TrainingStep
from avfmae_benchmarks.sides import finetuning_loss, host_batch

pytestmark = [pytest.mark.isa, pytest.mark.slow]

REPLAYED_FROM = EAGER_STEPS + 2  # after the steps that run eagerly, the recorded one and the one that proves the tape
STEPS = REPLAYED_FROM + 3


def step_of(stage="pretrain", precision="float32", micro_batches=1, recompute="none", **optim):
    torch.manual_seed(0)
    cfg = TINY.replace(drop_path=0.0 if stage == "pretrain" else 0.2, recompute=recompute)
    model = avfmae.AVFMAEForPretraining(cfg) if stage == "pretrain" else avfmae.AVFMAEForFinetuning(cfg, 11)
    loss = pretraining_loss if stage == "pretrain" else finetuning_loss
    optim = OptimConfig(**{"lr": 1e-2, "weight_decay": 0.1} | optim)
    return TrainingStep(model, loss, optim, 100, 10, micro_batches, precision)


def replayed(**options):
    """A step, the fastest engine's form of it, and a list that grows with every step that comes from the tape."""
    step = step_of(**options)
    execute = engines.build("cpu", step)
    replay = execute if isinstance(execute, Replay) else execute.step
    play, seen = replay.play, []
    replay.play = lambda tensors: seen.append(replay.tape) or play(tensors)
    return step, execute, replay, seen


CASES = {
    "after the backward pass": {"clip_grad": 0.1},
    "in the backward pass": {"clip_grad": None},
    "bf16, after": {"precision": "bf16", "clip_grad": 0.1},
    "bf16, in": {"precision": "bf16", "clip_grad": None},
    "micro-batches, average": {"micro_batches": 2, "ema": 0.9},
    "fine-tuning, stochastic depth": {"stage": "finetune"},
    "recomputed": {"recompute": "selective"},
}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_replays_are_the_step_to_the_bit(case):
    """Clips, masks, rates and stochastic depth change from step to step; numbers, weights, moments and averages are the same."""
    options, results = CASES[case], []
    for tape in (False, True):
        step, execute, replay, seen = replayed(**options)
        if not tape:
            replay.capture = replay.step  # never recorded
            replay.replay = lambda tensors, batches, replay=replay: replay.step(batches)
        numbers = []
        for k in range(STEPS):
            torch.manual_seed(k)
            batches = [
                host_batch(TINY, options.get("stage", "pretrain"), 4, seed=10 * k + m)
                for m in range(options.get("micro_batches", 1))
            ]
            numbers.append({name: float(v) for name, v in execute(batches).items()})
        results.append((numbers, written(step)))
        assert len(seen) == (STEPS - REPLAYED_FROM + 1 if tape else 0)  # the first is the proof
    assert results[0][0] == results[1][0] and len({n["loss"] for n in results[0][0]}) == STEPS
    assert all(map(torch.equal, results[0][1], results[1][1]))


def test_what_is_not_finite_is_left_out_of_a_replay():
    """Batch statistics that the replay had written before it found out are put back."""
    step, execute, _, seen = replayed()
    for k in range(STEPS):
        execute([random_batch(k)])
    bad = random_batch(99)
    bad.audio[0] = torch.nan
    before = written(step)
    norms = [m for m in step.model.modules() if isinstance(m, BatchNorm)]
    counted = [int(n.num_batches_tracked) for n in norms]
    values = execute([bad])
    assert float(values["skipped"]) == 1 and values["loss"].isnan() and values["grad_norm"].isnan()
    assert all(map(torch.equal, before, written(step)))
    assert norms and counted == [int(n.num_batches_tracked) for n in norms] != [0] * len(norms)
    values = execute([random_batch(100)])
    assert values["loss"].isfinite() and float(values["in_a_row"]) == 0 and len(seen) == STEPS - REPLAYED_FROM + 3


def test_masks_that_do_not_fit_are_refused_by_a_replay_too():
    _, execute, *_ = replayed()
    for k in range(REPLAYED_FROM):
        execute([random_batch(k)])
    bad = random_batch()
    bad.masks = avfmae.DualMask.sample(TINY.replace(region_mode="released"), 4, torch.Generator().manual_seed(3))
    with pytest.raises(ValueError, match="regions hold"):
        execute([bad])


def test_another_batch_size_runs_eagerly_and_another_setting_is_recorded_anew():
    step, execute, replay, seen = replayed()
    for k in range(REPLAYED_FROM):
        execute([random_batch(k)])
    tape = replay.tape
    assert len(seen) == 1
    execute([random_batch(size=3)])
    assert len(seen) == 1
    execute([random_batch()])
    assert len(seen) == 2
    frozen = step.model.video_encoder.blocks[0].mlp.requires_grad_(False)
    before = copy.deepcopy(frozen.state_dict())
    for k in range(REPLAYED_FROM + 1):
        execute([random_batch(k)])
    assert replay.tape is not tape and len(seen) == 4
    assert all(torch.equal(before[n], p) for n, p in frozen.state_dict().items())
    with K.use("reference"):
        execute([random_batch()])
    assert replay.runs == 1


def test_a_tape_reads_no_memory_that_it_has_not_written():
    step, execute, replay, _ = replayed(precision="bf16")
    for k in range(REPLAYED_FROM):
        execute([random_batch(k)])
    before = [t.clone() for t in replay.tape.written]
    expected = {n: float(v) for n, v in execute([random_batch(50)]).items()}
    after = written(step)
    for tensor, value in zip(replay.tape.written, before, strict=True):
        tensor.copy_(value)
    replay.tape.arena.fill_(255)  # NaN in every floating-point dtype
    assert {n: float(v) for n, v in execute([random_batch(50)]).items()} == expected
    assert all(map(torch.equal, after, written(step)))


@pytest.mark.parametrize("fault", ["a wrong bit", "an exception"])
def test_a_tape_that_is_not_the_step_is_dropped_with_a_reason(fault, capsys):
    """The wrong replay leaves no trace: all steps are those of a run without a tape."""
    results = []
    for faulty in (False, True):
        step, execute, replay, seen = replayed()
        for k in range(EAGER_STEPS + 1):
            execute([random_batch(k)])
        if faulty:
            weight, play = step.model.video_decoder.head.weight, replay.tape.play

            def broken(*tensors, play=play, weight=weight):
                outputs = play(*tensors)
                if fault == "an exception":
                    raise TypeError("an op has another schema")
                weight.detach().view(torch.int32)[0, 0] ^= 1  # the last bit of one number
                return outputs

            replay.tape.play = broken
        numbers = [float(execute([random_batch(k)])["loss"]) for k in range(10, 13)]
        results.append((numbers, written(step)))
        assert len(seen) == (1 if faulty else 3) and (replay.tape is None) == faulty
    assert results[0][0] == results[1][0] and all(map(torch.equal, results[0][1], results[1][1]))
    (line,) = capsys.readouterr().err.splitlines()
    expected = {"a wrong bit": "differs from the eager step in 1 of", "an exception": "TypeError: an op has another schema"}
    assert line.startswith("avfmae: engine cpu: a replay") and expected[fault] in line and "run eagerly" in line


def test_fingerprints_tell_every_bit_and_every_exchange():
    t = torch.randn(5, 3)
    bit, exchange = t.clone(), t.flip(0)
    bit.view(torch.int32)[2, 1] ^= 1 << 30
    assert len({*replay_module.fingerprints([t, bit, exchange])}) == 3
    assert replay_module.fingerprints([t.to(torch.bfloat16)]) == replay_module.fingerprints([t.to(torch.bfloat16).clone()])


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


def test_dead_calls_are_eliminated_and_side_effects_are_kept():
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
    assert float(counter) == 3 and not tape.written_before_last_guard
    weight.mul_(2)  # an external tensor is read anew
    assert torch.allclose(tape.play(x)["weighed"], x @ weight[:, :2])


@pytest.mark.parametrize("select", [lambda x: x[x > 0], lambda x: x[x.nonzero()[:, 0]]], ids=["boolean index", "nonzero"])
def test_where_shapes_follow_from_numbers_there_is_no_tape(select):
    replay = Replay(lambda batches: {"sum": select(batches[0].audio.flatten()).sum()})
    batch = random_batch()
    for _ in range(EAGER_STEPS + 3):
        batch.audio = torch.randn(1, 50).clamp(min=0)
        assert float(replay([batch])["sum"]) == float(batch.audio[batch.audio > 0].sum())
    assert replay.tape is None


def test_a_guard_that_fails_undoes_what_was_written():
    counter = torch.zeros(())

    def function(batches):
        x = batches[0].audio
        counter.add_(1)
        return {"sum": x.sum() if bool((x > 0).all()) else -x.sum()}

    replay = Replay(function)
    positive, negative = random_batch(), random_batch()
    positive.audio, negative.audio = torch.ones(1, 3), -torch.ones(1, 3)
    for _ in range(EAGER_STEPS + 3):
        assert float(replay([positive])["sum"]) == 3
    assert len(replay.tape.written_before_last_guard) == 1
    with pytest.raises(GuardFailed):
        replay.tape.play(*negative.tensors())
    counter.fill_(10)
    assert float(replay([negative])["sum"]) == 3 and float(counter) == 11
