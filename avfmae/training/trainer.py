"""The one training loop of all three stages."""

import hashlib
import os
import signal
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from avfmae.checkpoints import save_weights
from avfmae.data.dataset import ATTEMPTS, Batch, ClipDataset, Plan, loader
from avfmae.training.config import RunConfig
from avfmae.training.distributed import Processes
from avfmae.training.logging import Quarantine, RunLog, memory_gb
from avfmae.training.optim import build_optimiser, learning_rate
from avfmae.training.state import TrainingState, checkpoints, load_checkpoint, save_checkpoint

# Gives a batch's loss and the parts of it worth logging.
LossFunction = Callable[[nn.Module, Batch, int], tuple[Tensor, dict[str, Tensor]]]


class Trainer:
    """Trains a model on a data set, step by step, so that every step can be done again.

    Batches, masks, augmentation and noise of step n are functions of (seed, n); weights and moments are saved. So a run
    that was killed continues from its last checkpoint with the losses that it would have had.

    Args:
        run: settings. at: this process. title: for the progress bar.
        model: on its device already. dataset: of training clips. loss: see LossFunction.
        evaluate: called with the epoch's number when one is done; its dict goes into the history.
        weights: sampling weights of the clips.
    """

    def __init__(
        self,
        run: RunConfig,
        at: Processes,
        title: str,
        model: nn.Module,
        dataset: ClipDataset,
        loss: LossFunction,
        evaluate: Callable[[int], dict | None] = lambda epoch: None,
        weights: list[float] | None = None,
    ):
        optim = run.optim
        self.run, self.at, self.title, self.model, self.loss, self.evaluate = run, at, title, model, loss, evaluate
        self.dataset, self.out = dataset, Path(run.out)
        self.plan = Plan.fit(len(dataset), optim.total_batch, optim.micro_batch, rank=at.rank, world=at.world, seed=run.seed,
                             weights=None if weights is None else tuple(weights))  # fmt: skip
        self.steps = optim.epochs * self.plan.steps_per_epoch
        self.optimiser = build_optimiser(model, optim)
        self.batch_statistics = [b for m in model.modules() if isinstance(m, nn.BatchNorm1d) for b in m.buffers()]
        clips = hashlib.sha256("\n".join(Path(clip.path).name for clip in dataset.clips).encode()).hexdigest()[:16]
        fingerprint = {"clips": clips, "total_batch": optim.total_batch, "seed": run.seed, "epochs": optim.epochs}
        self.state = TrainingState(fingerprint=fingerprint)
        self.resume(fingerprint)
        resumed = self.state.step > 0
        self.quarantine = Quarantine(self.out, len(dataset), run.data.max_bad_share, at.is_main, resumed)
        self.parallel = model
        if at.world > 1:
            # Buffers are equal already: batch statistics are shared. Some weights cannot reach the loss, hence "unused".
            self.parallel = DistributedDataParallel(model, find_unused_parameters=True, broadcast_buffers=False)

    def resume(self, fingerprint: dict) -> None:
        found = checkpoints(self.out / "checkpoints")
        if not found:
            return
        self.state = load_checkpoint(found[-1], self.model, self.optimiser)
        if self.state.fingerprint != fingerprint:
            changed = [k for k in fingerprint if self.state.fingerprint.get(k) != fingerprint[k]]
            raise ValueError(
                f"{found[-1]}: belongs to a run with another {' and '.join(changed)} "
                f"({', '.join(f'{k} {self.state.fingerprint.get(k)}, now {fingerprint[k]}' for k in changed)}); choose another out"
            )

    def fit(self) -> list[dict]:
        """Trains to the end, or from where an earlier run stopped. Returns the evaluations' history."""
        first = self.state.step
        last = self.steps if self.run.stop_after is None else min(self.steps, self.run.stop_after)
        per_epoch = self.plan.steps_per_epoch
        batches = iter(loader(
            self.dataset, self.plan.micro_batches(first, last), self.run.data.workers, pin=self.at.device.type == "cuda"
        ))  # fmt: skip
        with RunLog(self.out, self.steps, first, self.title, self.at.is_main) as log, _Interrupt() as interrupt:
            if first:
                log.say(f"{self.title}: continuing at step {first} of {self.steps}")
            for step in range(first, last):
                values = self.step(step, batches)
                if step % self.run.log_steps == 0 or step + 1 == last:
                    log.step(step, values)
                self.state.step = step + 1
                if (step + 1) % per_epoch == 0:
                    epoch = step // per_epoch
                    if (metrics := self.evaluate(epoch)) is not None:
                        self.state.history.append({"epoch": epoch, **metrics})
                        log.evaluation(step, metrics)
                # All processes see the same step, but perhaps not the same moment's signal: ask for the sum.
                stop = self.at.sum([float(interrupt.received)])[0] > 0 if self.at.world > 1 else interrupt.received
                if stop or (step + 1) % self.run.save_steps == 0 or step + 1 == last:
                    self.save()
                if stop:
                    log.say(f"{self.title}: interrupted; saved at step {step + 1}. The same command continues.")
                    raise SystemExit(130)
        if self.at.is_main and self.state.step == self.steps:
            save_weights(self.model, self.out / "weights.safetensors", steps=self.steps)
        self.at.barrier()
        return self.state.history

    def step(self, step: int, batches) -> dict[str, float]:
        """One optimiser step over ``accumulation`` micro-batches; returns what to log."""
        optim, accumulation = self.run.optim, self.plan.accumulation
        rate = learning_rate(step, self.plan.steps_per_epoch, optim)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group["lr_scale"]
        torch.manual_seed(hash((self.run.seed, step, self.at.rank)) % 2**63)  # stochastic depth, and nothing else
        before = [b.clone() for b in self.batch_statistics]
        self.model.train()
        begun, waited, totals, bad = time.perf_counter(), 0.0, {}, []
        for micro in range(accumulation):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            bad += batch.bad
            if len(batch.clips) < self.plan.micro_batch:
                self.quarantine.add(bad)
                raise RuntimeError(
                    f"no readable clip was found in {ATTEMPTS} attempts to replace a bad one; "
                    f"the latest: {bad[-1].path}: {bad[-1].reason}"
                )
            batch = batch.to(self.at.device)
            last = micro + 1 == accumulation
            with nullcontext() if last or self.at.world == 1 else self.parallel.no_sync():
                with self.autocast():
                    loss, parts = self.loss(self.parallel, batch, step * accumulation + micro)
                (loss / accumulation).backward()
            for name, value in {"loss": loss, **parts}.items():
                totals[name] = totals.get(name, 0.0) + float(value.detach()) / accumulation
        norm = float(nn.utils.clip_grad_norm_(self.model.parameters(), optim.clip_grad or float("inf")))
        *sums, any_bad = self.at.sum([*totals.values(), float(len(bad))])
        totals = {name: value / self.at.world for name, value in zip(totals, sums, strict=True)}
        if any_bad:
            self.quarantine.add([b for found in self.at.gather(bad) for b in found])
        if torch.isfinite(torch.tensor([totals["loss"], norm])).all():
            self.optimiser.step()
            self.state.in_a_row = 0
        else:
            self.skip(step, totals["loss"], norm, before)
        self.optimiser.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - begun
        return {
            "epoch": step // self.plan.steps_per_epoch, **totals, "lr": rate, "grad_norm": norm,
            "clips_per_s": optim.total_batch / seconds, "data_wait": waited / seconds,
            "memory_gb": memory_gb(self.at.device), "skipped": self.state.skipped, "bad_clips": len(self.quarantine.bad),
        }  # fmt: skip

    def skip(self, step: int, loss: float, norm: float, statistics_before: list[Tensor]) -> None:
        """Leaves a non-finite step out, with the batch statistics that it may have spoilt."""
        self.state.skipped += 1
        self.state.in_a_row += 1
        with torch.no_grad():
            for buffer, before in zip(self.batch_statistics, statistics_before, strict=True):
                buffer.copy_(before)
        if self.state.in_a_row >= self.run.optim.max_skipped:
            raise RuntimeError(
                f"{self.title}: {self.state.in_a_row} steps in a row were not finite (step {step}: loss {loss}, gradient norm {norm}). "
                "Lower optim.lr, set optim.clip_grad, or use precision = 'float32'; the last good checkpoint is kept."
            )

    def autocast(self):
        precision = self.run.precision
        if precision == "auto":
            precision = "bf16" if self.at.device.type == "cuda" else "float32"
        return torch.autocast(self.at.device.type, torch.bfloat16, enabled=precision == "bf16")

    def save(self) -> None:
        if self.at.is_main:
            save_checkpoint(self.out / "checkpoints", self.model, self.optimiser, self.state)
        self.at.barrier()


class _Interrupt:
    """Turns SIGTERM and Ctrl-C into a flag, so that a run ends between two steps with a checkpoint; a second one kills."""

    def __enter__(self) -> "_Interrupt":
        self.received, self.previous = False, {}
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                self.previous[number] = signal.signal(number, self.handle)
        except ValueError:  # not the main thread
            pass
        return self

    def handle(self, number, frame) -> None:
        if self.received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = True

    def __exit__(self, *_) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
