"""The one training loop of all three stages."""

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.text import Text
from torch import nn

from avfmae import engines
from avfmae.checkpoints import distributed, save_weights
from avfmae.checkpoints.state import TrainingState, checkpoints, save_checkpoint
from avfmae.console import console
from avfmae.data.batch import Bad, Batch
from avfmae.data.clip import Clip
from avfmae.data.dataset import ATTEMPTS, ClipDataset
from avfmae.data.loader import loader
from avfmae.data.quarantine import Quarantine
from avfmae.data.sampler import BatchSampler
from avfmae.data.table import ClipTable
from avfmae.files import locked
from avfmae.training.config import RunConfig
from avfmae.training.dist import Processes
from avfmae.training.resume import OtherRun, check_same, fingerprint
from avfmae.training.runlog import RunLog, memory_gb
from avfmae.training.step import LossFunction, TrainingStep
from avfmae.training.upload import uploaded


class Trainer:
    """Trains a model on a data set, step by step, so that every step can be done again.

    Batches, masks, augmentation and noise of step n are functions of (seed, n); weights and moments are saved. So a run
    that was killed continues from its last checkpoint with the losses that it would have had.

    Args:
        run: settings. dist: this process. title: for the progress bar.
        model: on its device already. dataset: of training clips. loss: see LossFunction.
        prepare: what is done to a batch on its device before the loss, given the number of the micro-batch.
        evaluate: called with the epoch's number when one is done; its dict goes into the history.
        weights: sampling weights of the clips.
        others: lists that are evaluated, by name. task: what is learnt of the labels. A run is continued with the same ones only.
        about: what is written with the weights, as JSON takes it; all that using them needs to know.
    """

    def __init__(
        self, run: RunConfig, dist: Processes, title: str, model: nn.Module, dataset: ClipDataset, loss: LossFunction,
        evaluate: Callable[[int], dict | None] = lambda epoch: None, weights: list[float] | None = None,
        prepare: Callable[[Batch, int], Batch] = lambda batch, number: batch,
        others: Mapping[str, Sequence[Clip]] | None = None, task: object = None, about: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        optim = run.optim
        self.run, self.dist, self.title, self.model, self.prepare, self.evaluate = run, dist, title, model, prepare, evaluate
        self.dataset, self.out, self.about = dataset, Path(run.out), about or {}
        self.sampler = BatchSampler.fit(
            len(dataset), optim.total_batch, optim.micro_batch, rank=dist.rank, world=dist.world, seed=run.seed,
            weights=None if weights is None else np.array(weights),
            shards=dataset.shards(), mixed_shards=run.data.mixed_shards,
        )  # fmt: skip
        self.steps = optim.epochs * self.sampler.steps_per_epoch
        self.step = TrainingStep(
            model, loss, optim, self.steps, self.sampler.steps_per_epoch, self.sampler.accumulation, run.precision,
            torch.compile(model) if run.compile else None, run.parallel,
        )  # fmt: skip
        self.found: list[Bad] = []  # bad clips since the last line of log
        lists = {"training": dataset.clips} | {name: ClipTable.of(clips) for name, clips in (others or {}).items()}
        # The main process alone reads the initial weights again, and all compare by what it found.
        found = (
            fingerprint(run, lists, self.sampler.shards is not None, task=task, faces=self.about.get("preparation"))
            if dist.is_main
            else {}
        )
        self.state = TrainingState(fingerprint=dist.gather(found)[0])
        # Several processes, and whoever may become several, write distributed checkpoints.
        self.writer = distributed.Writer(self.out / "checkpoints") if dist.world > 1 or run.parallel == "fsdp" else None
        self.resume()
        self.execute = engines.build(run.engine, self.step)
        resumed = self.state.step > 0
        self.quarantine = Quarantine(self.out, len(dataset), run.data.max_bad_share, dist.is_main, resumed)

    def resume(self) -> None:
        """Goes on from the newest checkpoint that is whole; says which are not."""
        mine, damaged = self.state.fingerprint, []
        # The main process's list is everyone's: a shared file system may show others an older one.
        for path in reversed(self.dist.gather(checkpoints(self.out / "checkpoints"))[0]):
            try:
                accept = partial(check_same, path, now=mine, anyway=self.run.resume_anyway)
                self.state = distributed.load(path, self.model, self.step.optimizer, self.step.averaged, accept)
                break
            except OtherRun:
                raise
            except (ValueError, FileNotFoundError) as error:
                damaged.append(error)
        else:
            if damaged:
                raise damaged[0]
            return
        for error in damaged:
            console.print(Text(f"{error}; continuing from {path.name}", style="yellow"))
        self.state.fingerprint = mine
        self.step.restart(self.state.step, self.state.skipped, self.state.in_a_row)

    def fit(self) -> list[dict]:
        """Trains to the end, or from where an earlier run stopped. Returns the evaluations' history.

        Raises:
            ValueError: another process trains in the same folder.
        """
        with locked(self.out / ".lock", wait=False) if self.dist.is_main else nullcontext():
            return self._fit()

    def _fit(self) -> list[dict]:
        first = self.state.step
        last = self.steps if self.run.stop_after is None else min(self.steps, self.run.stop_after)
        per_epoch = self.sampler.steps_per_epoch
        log_steps = min(self.run.log_steps, max(1, self.steps // 20))  # a short run has a loss curve too
        device, indices = self.dist.device, self.sampler.micro_batches(first, last)
        batches = uploaded(loader(self.dataset, indices, self.run.data.workers, pin=device.type == "cuda"), device)
        log = RunLog(self.out, self.steps, first, self.title, self.dist.is_main, self.run.tensorboard)
        with log, _Interrupt() as interrupt:
            if first:
                log.say(f"{self.title}: continuing at step {first} of {self.steps}")
            begun, waited, logged = time.perf_counter(), 0.0, first
            for step in range(first, last):
                asked = time.perf_counter()
                micro_batches = [self.next(batches) for _ in range(self.sampler.accumulation)]
                waited += time.perf_counter() - asked
                # a step draws numbers for stochastic depth alone
                torch.manual_seed(hash((self.run.seed, step, self.dist.rank)) % 2**63)
                values = self.execute([self.prepare(b, step * len(micro_batches) + k) for k, b in enumerate(micro_batches)])
                self.state.step = step + 1
                whole_epoch, ends = (step + 1) % per_epoch == 0, step + 1 == last
                saves = (step + 1) % self.run.save_steps == 0 or ends
                if step % log_steps == 0 or saves:
                    numbers = self.read(step, values)
                    seconds = time.perf_counter() - begun
                    numbers["clips_per_s"] = (step + 1 - logged) * self.run.optim.total_batch / seconds
                    log.step(step, numbers | {"data_wait": waited / seconds, "memory_gb": memory_gb(device)})
                    begun, waited, logged = time.perf_counter(), 0.0, step + 1
                if whole_epoch:
                    asked = time.perf_counter()
                    with self.step.shared.unsharded():
                        metrics = self.evaluate(step // per_epoch)
                    if metrics is not None:
                        self.state.history.append({"epoch": step // per_epoch, **metrics})
                        log.evaluation(step, metrics)
                    begun += time.perf_counter() - asked  # is no time of training
                stop = self.stops(interrupt, asked=logged == step + 1)
                if stop or saves:
                    self.save(values)
                if self.writer and (stop or ends):
                    self.writer.finish()
                if stop:
                    log.say(f"{self.title}: interrupted; saved at step {step + 1}. The same command continues.")
                    raise SystemExit(130)
        if self.state.step == self.steps:
            about = {"steps": self.steps, **self.about}
            for name, params in (("weights", None), ("weights-averaged", self.step.averaged)):
                if params != []:
                    model = self.step.shared.full_model(params)
                    if self.dist.is_main:
                        save_weights(model, self.out / f"{name}.safetensors", **about)
        self.dist.barrier()
        return self.state.history

    def next(self, batches: Iterator[Batch]) -> Batch:
        """The next micro-batch, whole."""
        batch = next(batches)
        self.found += batch.bad
        if len(batch.clips) < self.sampler.micro_batch:
            self.quarantine.add(self.found)
            latest = f"{batch.bad[-1].path}: {batch.bad[-1].reason}"
            raise RuntimeError(f"no readable clip was found in {ATTEMPTS} attempts to replace a bad one; the latest: {latest}")
        return batch

    def read(self, step: int, values: dict) -> dict[str, float]:
        """The step's numbers, for which the device is waited for; and what is to be checked now and then."""
        numbers = dict(zip(values, torch.stack([v.float() for v in values.values()]).tolist(), strict=True))
        self.state.skipped, self.state.in_a_row = (int(numbers.pop(n)) for n in ("skipped", "in_a_row"))
        found, self.found = self.dist.gather(self.found), []
        self.quarantine.add([b for part in found for b in part])
        if self.state.in_a_row >= self.run.optim.max_skipped:
            raise RuntimeError(
                f"{self.title}: {self.state.in_a_row} steps in a row were not finite (step {step}: loss {numbers['loss']}, "
                f"gradient norm {numbers['grad_norm']}). "
                "Lower optim.lr, set optim.clip_grad, or use precision = 'float32'; the last good checkpoint is kept."
            )
        epoch = step // self.sampler.steps_per_epoch
        return {"epoch": epoch, **numbers, "skipped": self.state.skipped, "bad_clips": len(self.quarantine.bad)}

    def stops(self, interrupt: "_Interrupt", asked: bool) -> bool:
        """Whether to end after this step; processes, which may not see a signal at the same moment, agree when ``asked``."""
        if self.dist.world == 1:
            return interrupt.received
        return asked and any(self.dist.gather(interrupt.received))

    def save(self, values: dict) -> None:
        self.state.skipped, self.state.in_a_row = (int(values[n]) for n in ("skipped", "in_a_row"))
        what = self.model, self.step.optimizer, self.state, self.step.averaged
        if self.writer:
            self.writer.save(*what)
        else:
            save_checkpoint(self.out / "checkpoints", *what)


class _Interrupt:
    """Turns SIGTERM, SIGUSR1 and Ctrl-C into a flag, so that a run ends between steps with a checkpoint; a second kills."""

    def __enter__(self) -> "_Interrupt":
        self.received, self.previous = False, {}
        try:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
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
