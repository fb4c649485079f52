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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info, is_main_process
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import IterBasedTrainLoop

from d3s2.core.files import atomic_path
from d3s2.models.openmmlab import LOOPS
from d3s2.training.registered import Progress


@LOOPS.register_module(name="D3S2TrainLoop", force=True)
class TrainLoop(IterBasedTrainLoop):
    """`max_iters` iterations, then one evaluation.

    checkpoint: the file to write, and to go on from where it is there; "" for neither. every:
    iterations between two.
    parts: a batch goes through the network in so many parts, one after the other, whose gradients
    are averaged.
    seconds_before: how long the training ran before the break, 0 without one.
    """

    def __init__(
        self, *arguments: Any, checkpoint: str = "", every: int = 500, parts: int = 1, **more: Any
    ):
        super().__init__(*arguments, **more)
        self.checkpoint, self.every, self.parts = (
            Path(checkpoint) if checkpoint else None,
            every,
            parts,
        )
        self.seconds_before, self._began = 0.0, time.perf_counter()

    def run(self) -> torch.nn.Module:
        """Train to the end, and evaluate."""
        runner = self.runner
        runner.call_hook("before_train")
        runner.call_hook("before_train_epoch")
        kept = self._restore()
        runner.optim_wrapper.initialize_count_status(
            runner.model, self._iter * self.parts, self._max_iters * self.parts
        )
        batches = iter(
            self.dataloader
        )  # endless; takes a random number, so the state is put back only now
        if kept is not None:
            set_random_state(kept["random"], runner.seed, self._iter)
        while self._iter < self._max_iters:
            runner.model.train()
            self.run_iter(next(batches))
            if self.checkpoint and self._iter % self.every == 0 and self._iter < self._max_iters:
                self._save()
        runner.val_loop.run()
        runner.call_hook("after_train_epoch")
        runner.call_hook("after_train")
        return runner.model

    def run_iter(self, data_batch: Mapping[str, list]) -> None:
        """One step of the optimizer for {"inputs": [...], "data_samples": [...]}."""
        runner, losses = self.runner, []
        runner.call_hook("before_train_iter", batch_idx=self._iter, data_batch=data_batch)
        for part in split(data_batch, self.parts):
            losses.append(runner.model.train_step(part, optim_wrapper=runner.optim_wrapper))
        outputs = {name: sum(loss[name] for loss in losses) / self.parts for name in losses[0]}
        runner.call_hook(
            "after_train_iter", batch_idx=self._iter, data_batch=data_batch, outputs=outputs
        )
        self._iter += 1

    def _save(self) -> None:
        """Of several processes the first one writes: their weights are the same."""
        if not is_main_process():
            return
        runner = self.runner
        with atomic_path(self.checkpoint) as partial:
            torch.save(
                {
                    "iteration": self._iter,
                    "seconds": self.seconds_before + time.perf_counter() - self._began,
                    "model": bare(runner.model).state_dict(),
                    "optimizer": runner.optim_wrapper.state_dict(),
                    # One schedule keeps a method of its own among the numbers: that is no state.
                    "schedules": [
                        {
                            name: value
                            for name, value in schedule.state_dict().items()
                            if not callable(value)
                        }
                        for schedule in runner.param_schedulers
                    ],
                    "progress": _progress(runner).state(),
                    "random": random_state(),
                },
                partial,
            )

    def _restore(self) -> dict[str, Any] | None:
        """Everything but the random states, which are returned with the rest; None = there is
        nothing to go on from.
        """
        if self.checkpoint is None or not self.checkpoint.is_file():
            return None
        runner = self.runner
        try:
            kept = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with the file, there is nothing to go on from
            print_log(
                f"{self.checkpoint} cannot be read ({error}): the training begins anew",
                "current",
                logging.WARNING,
            )
            return None
        self._iter, self.seconds_before = kept["iteration"], kept["seconds"]
        bare(runner.model).load_state_dict(kept["model"])
        runner.optim_wrapper.load_state_dict(kept["optimizer"])
        for schedule, state in zip(runner.param_schedulers, kept["schedules"], strict=True):
            schedule.load_state_dict(state)
        _progress(runner).load(kept["progress"])
        self.dataloader.sampler.skip(self._iter * self.dataloader.batch_size)
        return kept


def split(batch: Mapping[str, list], parts: int) -> Iterator[dict[str, list]]:
    """The batch in `parts` consecutive pieces of one size."""
    size = len(batch["inputs"]) // parts
    for first in range(0, size * parts, size):
        yield {name: values[first : first + size] for name, values in batch.items()}


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
    return state | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def set_random_state(state: Mapping[str, Any], seed: int, iteration: int) -> None:
    """Put `random_state` back. Of several processes, which drew different numbers, each one begins
    a new sequence.
    """
    rank, processes = get_dist_info()
    if processes > 1:
        seed = np.random.SeedSequence([seed, iteration, rank]).generate_state(1)[0].item()
        random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)  # noqa: NPY002
        return
    name, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def bare(model: torch.nn.Module) -> torch.nn.Module:
    """The network itself, without what shares it between processes."""
    return model.module if is_model_wrapper(model) else model


def _progress(runner: Any) -> Progress:
    return next(hook for hook in runner.hooks if isinstance(hook, Progress))
