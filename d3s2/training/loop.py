"""The loop of a training: mmengine's by iterations, which also goes on after a break and takes a
large batch in parts.

Every so many iterations it writes a checkpoint: weights, optimizer, schedules, random states, loss
curve. A training that finds one goes on from there; in one process on the CPU, its result has the
same bytes as that of an unbroken run.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info, is_main_process
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import IterBasedTrainLoop, ValLoop

from d3s2.core.files import atomic_path
from d3s2.core.halving import in_halves
from d3s2.data.dataset import IGNORE
from d3s2.models.openmmlab import LOOPS
from d3s2.training.registered import BatchedHead, Progress


@LOOPS.register_module(name="D3S2TrainLoop", force=True)
class TrainLoop(IterBasedTrainLoop):
    """`max_iters` iterations, then one evaluation, which counts.

    checkpoint: the file to write, and to go on from where it is there; "" for neither; every:
    iterations between two; parts: a batch goes through the network in so many parts, one after the
    other, whose gradients add up to that of the whole batch (see `announce`); judge_every:
    iterations between two more evaluations on the way, for the logs, 0 = none; seconds_before: how
    long the training ran before the break, 0 without one.
    """

    def __init__(
        self,
        *arguments: Any,
        checkpoint: str = "",
        every: int = 500,
        parts: int = 1,
        judge_every: int = 0,
        **more: Any,
    ):
        super().__init__(*arguments, **more)
        self.checkpoint = Path(checkpoint) if checkpoint else None
        self.every = every
        self.parts = parts
        self.judge_every = judge_every
        self.seconds_before = 0.0
        self._began = time.perf_counter()

    def run(self) -> torch.nn.Module:
        """Train to the end, and evaluate."""
        runner = self.runner
        runner.call_hook("before_train")
        runner.call_hook("before_train_epoch")
        kept = self._restore()
        runner.optim_wrapper.initialize_count_status(
            runner.model, self._iter * self.parts, self._max_iters * self.parts
        )
        batches = iter(self.dataloader)  # endless
        if kept is not None:  # only now: making the iterator takes a random number
            set_random_state(kept["random"], runner.seed, self._iter)
        while self._iter < self._max_iters:
            runner.model.train()
            self.run_iter(next(batches))
            is_due = self._iter % self.every == 0 and self._iter < self._max_iters
            if self.checkpoint and is_due and is_main_process():
                self._save()
            if self.judge_every and self._iter % self.judge_every == 0:
                self._look()
        runner.val_loop.run()
        runner.call_hook("after_train_epoch")
        runner.call_hook("after_train")
        return runner.model

    def run_iter(self, data_batch: Mapping[str, list]) -> None:
        """One step of the optimizer for {"inputs": [...], "data_samples": [...]}."""
        runner = self.runner
        runner.call_hook("before_train_iter", batch_idx=self._iter, data_batch=data_batch)
        announce(runner.model, data_batch["data_samples"], self.parts)
        losses = []
        for part in split(data_batch, self.parts):
            losses.append(runner.model.train_step(part, optim_wrapper=runner.optim_wrapper))
        outputs = mean_losses(losses)
        runner.call_hook(
            "after_train_iter", batch_idx=self._iter, data_batch=data_batch, outputs=outputs
        )
        self._iter += 1

    def _look(self) -> None:
        """Judge the network as it is, but at the end, where that is done anyway. Whatever is drawn
        meanwhile, the training goes on with the numbers that it would have drawn without.
        """
        if self._iter < self._max_iters:
            kept = random_state()
            self.runner.val_loop.run()
            put_back(kept)

    def _save(self) -> None:
        """Of several processes the first one is enough: their weights are the same."""
        with atomic_path(self.checkpoint) as partial:
            torch.save(self._state(), partial)

    def _state(self) -> dict[str, Any]:
        """All that the rest of the training depends on, in types that `torch.load` takes from a
        stranger.
        """
        runner = self.runner
        return {
            "iteration": self._iter,
            "seconds": self.seconds_before + time.perf_counter() - self._began,
            "model": bare(runner.model).state_dict(),
            "optimizer": runner.optim_wrapper.state_dict(),
            "schedules": [_numbers(schedule.state_dict()) for schedule in runner.param_schedulers],
            "progress": progress_of(runner).state(),
            "random": random_state(),
        }

    def _restore(self) -> dict[str, Any] | None:
        """Everything but the random states, which are returned with the rest; None = there is
        nothing to go on from.
        """
        if self.checkpoint is None or not self.checkpoint.is_file():
            return None
        try:
            kept = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the file, there is nothing to go on from
            words = f"{self.checkpoint} cannot be read ({error}): the training begins anew"
            print_log(words, "current", logging.WARNING)
            return None
        runner = self.runner
        self._iter = kept["iteration"]
        self.seconds_before = kept["seconds"]
        bare(runner.model).load_state_dict(kept["model"])
        runner.optim_wrapper.load_state_dict(kept["optimizer"])
        for schedule, state in zip(runner.param_schedulers, kept["schedules"], strict=True):
            schedule.load_state_dict(state)
        progress_of(runner).load(kept["progress"])
        self.dataloader.sampler.skip(self._iter * self.dataloader.batch_size)
        return kept


@LOOPS.register_module(name="D3S2JudgeLoop", force=True)
class JudgeLoop(ValLoop):
    """mmengine's evaluation, of which a batch that a GPU's memory is too small for is taken in
    halves where `out_of_memory` is "halve".
    """

    def __init__(self, *arguments: Any, out_of_memory: str = "stop", **more: Any):
        super().__init__(*arguments, **more)
        self.out_of_memory = out_of_memory

    @torch.no_grad()
    def run_iter(self, idx: int, data_batch: Mapping[str, list]) -> None:
        """Judge one batch {"inputs": [...], "data_samples": [...]}."""
        runner = self.runner
        runner.call_hook("before_val_iter", batch_idx=idx, data_batch=data_batch)

        def answers(places: Sequence[int]) -> list:
            piece = {name: [each[k] for k in places] for name, each in data_batch.items()}
            return runner.model.val_step(piece)

        every = range(len(data_batch["inputs"]))
        parts = in_halves(answers, every, self.out_of_memory, "", "a smaller image_size")
        outputs = [answer for part in parts for answer in part]
        self.evaluator.process(data_samples=outputs, data_batch=data_batch)
        runner.call_hook("after_val_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs)


def split(batch: Mapping[str, list], parts: int) -> Iterator[dict[str, list]]:
    """The batch in `parts` consecutive pieces of one size."""
    size = len(batch["inputs"]) // parts
    for first in range(0, size * parts, size):
        piece = slice(first, first + size)
        yield {name: values[piece] for name, values in batch.items()}


def announce(model: torch.nn.Module, samples: Sequence[Any], parts: int) -> None:
    """Tell the head what the losses of a batch are divided by that it does not see at once: one in
    parts, or shared by processes. A model without such a head is left alone.
    """
    head = getattr(bare(model), "decode_head", None)
    if isinstance(head, BatchedHead) and (parts > 1 or get_dist_info()[1] > 1):
        present = [sample.gt_sem_seg.data.unique() for sample in samples]
        whole = head.divisors([classes[classes != IGNORE] for classes in present])
        head.whole = (*whole, parts)


def mean_losses(parts: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Each of the losses, averaged over a batch's parts."""
    means = {}
    for name in parts[0]:
        means[name] = sum(part[name] for part in parts) / len(parts)
    return means


def _numbers(state: Mapping[str, Any]) -> dict[str, Any]:
    """A schedule's state without the method that one kind keeps among its numbers: that is no
    state.
    """
    return {name: value for name, value in state.items() if not callable(value)}


def random_state() -> dict[str, Any]:
    """The states of all random generators of this process, in types that `torch.load` takes from a
    stranger.
    """
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - of the generator that mmseg draws from
    state = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Any], seed: int, iteration: int) -> None:
    """Put `random_state` back. Of several processes, which drew different numbers, each one begins
    a new sequence.
    """
    rank, processes = get_dist_info()
    if processes > 1:
        own = np.random.SeedSequence([seed, iteration, rank]).generate_state(1)[0].item()
        random.seed(own)
        np.random.seed(own)  # noqa: NPY002
        torch.manual_seed(own)
        return
    put_back(state)


def put_back(state: Mapping[str, Any]) -> None:
    """Let all random generators of this process go on from a `random_state` of its own."""
    name, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((name, keys.numpy(), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def bare(model: torch.nn.Module) -> torch.nn.Module:
    """The network itself, without what shares it between processes."""
    return model.module if is_model_wrapper(model) else model


def progress_of(runner: Any) -> Progress:
    """The hook of a runner that records the loss."""
    return next(hook for hook in runner.hooks if isinstance(hook, Progress))
