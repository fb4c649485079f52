"""The training loop: it goes on after a break with the same bytes, takes batches in parts, and
shares them between processes.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from training_jobs import make_job, wait_for, write_data, write_splits

from d3s2.core.errors import D3S2Error
from d3s2.training import loop as loop_module
from d3s2.training import mask2former, side_by_side
from d3s2.training.job import (
    PREDICTIONS,
    RESULT,
    WEIGHTS,
    TrainingJob,
    job_key,
    open_split,
    write_job,
)
from d3s2.training.loop import random_state, set_random_state, split
from d3s2.training.registered import Progress
from d3s2.training.side_by_side import train_all


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_splits(tmp_path_factory.mktemp("data"))


def kill_after_checkpoint(job: TrainingJob) -> None:
    """Start the job, and send SIGKILL to its process once it has written a checkpoint."""
    logs = Path(job.work_dir) / "logs"
    logs.mkdir(parents=True)
    write_job(logs / "job.json", job)
    core = str(min(os.sched_getaffinity(0)))
    child = subprocess.Popen(
        [sys.executable, "-m", "d3s2.training.worker", str(logs / "job.json"), core]
    )
    wait_for(lambda: any(logs.glob("checkpoint-*.pt")), 90)
    child.send_signal(signal.SIGKILL)
    child.wait()


@pytest.mark.processes
def test_a_killed_training_goes_on_and_ends_with_the_same_bytes(data, tmp_path):
    job = make_job(data, tmp_path / "whole", iterations=60, checkpoint_every=7)
    (whole,) = train_all([job], progress=None)
    broken = replace(job, work_dir=str(tmp_path / "broken"))
    kill_after_checkpoint(broken)
    assert not (tmp_path / "broken" / RESULT).exists()
    (kept,) = (tmp_path / "broken" / "logs").glob("checkpoint-*.pt")
    assert torch.load(kept, weights_only=True)["iteration"] in range(7, 60, 7)
    kept.with_name(f"checkpoint-{16 * '0'}.pt").write_bytes(b"of another job: must not be read")
    (result,) = train_all([broken], progress=None)
    assert result.curve == whole.curve and result.per_class_iou == whole.per_class_iou
    for name in (WEIGHTS, PREDICTIONS):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not any(tmp_path.glob("*/logs/checkpoint-*"))  # no longer needed


@pytest.mark.processes
def test_two_processes_share_a_batch_and_predict_in_the_order_of_the_data(data, tmp_path):
    job = make_job(data, tmp_path / "two", processes=2, iterations=6)
    (two,) = train_all([job], progress=None)
    stored = np.load(tmp_path / "two" / PREDICTIONS)
    model = training_model(job, tmp_path / "two")
    images = open_split(data, "val", None, job.size)
    with torch.no_grad():
        for k in range(3):
            answer = predict(model, images.read_image(k))
            np.testing.assert_array_equal(stored[images.ids[k]], answer)
    assert len(stored) == 3 and (two.processes, two.parts) == (2, 1)
    assert job_key(job) == job_key(replace(job, processes=1))


def training_model(job: TrainingJob, folder: Path) -> torch.nn.Module:
    from d3s2.training import mask2former

    return mask2former.build_model(job, folder / WEIGHTS)


def predict(model: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    from mmseg.structures import SegDataSample

    size = image.shape[:2]
    batch = {
        "inputs": [torch.from_numpy(image[..., ::-1].copy()).permute(2, 0, 1)],
        "data_samples": [SegDataSample(metainfo={"img_shape": size, "ori_shape": size})],
    }
    (answer,) = model(**model.data_preprocessor(batch, False), mode="predict")
    return answer.pred_sem_seg.data[0].numpy()


@pytest.mark.processes
def test_a_process_that_fails_among_several_is_named_by_its_own_error(data, tmp_path):
    broken = tmp_path / "data"
    write_data(broken, "train", 2, (32, 48), 0)
    write_data(broken, "val", 1, (32, 48), 1)
    (broken / "train" / "images" / "1.png").write_bytes(b"\x89PNG, but no more")
    with pytest.raises(D3S2Error, match=r"1\.png"):
        train_all([make_job(broken, tmp_path / "run", processes=2, iterations=4)], progress=None)


def test_more_gpus_than_there_are_is_a_sentence(data, tmp_path):
    count = torch.cuda.device_count()
    job = make_job(data, tmp_path, device="cuda", processes=count + 2, batch_size=2 * (count + 2))
    with pytest.raises(D3S2Error, match=f"gpus is {count + 2} but PyTorch sees {count}"):
        train_all([job], progress=None)


# -------------------------------------------------------------------------------------------- parts
def test_parts_are_consecutive_and_complete():
    batch = {"inputs": [*range(6)], "data_samples": [*"abcdef"]}
    parts = [*split(batch, 3)]
    assert parts == [
        {"inputs": [2 * k, 2 * k + 1], "data_samples": [*"abcdef"[2 * k : 2 * k + 2]]}
        for k in range(3)
    ]


class Mean(BaseModel):
    """A model whose loss is a mean over the images: parts of equal size then change nothing but the
    rounding.
    """

    def __init__(self):
        super().__init__()
        self.line = torch.nn.Linear(3, 1)

    def forward(self, inputs, data_samples, mode="loss"):
        aim = torch.stack([*data_samples])
        return {"loss": (self.line(torch.stack([*inputs])) - aim).square().mean()}


@pytest.mark.parametrize("parts", [2, 4])
def test_parts_give_the_step_of_the_whole_batch(tmp_path, parts):
    weights = [trained_mean(tmp_path / str(p), p) for p in (1, parts)]
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)
    assert not torch.equal(weights[0], start_of_mean())


def test_a_damaged_checkpoint_is_not_taken(tmp_path):
    (tmp_path / "half.pt").write_bytes(b"PK\x03\x04 and no more")
    whole = trained_mean(tmp_path / "whole")
    anew = trained_mean(tmp_path / "anew", checkpoint=str(tmp_path / "half.pt"))
    assert torch.equal(whole, anew)
    (log,) = (tmp_path / "anew").glob("*/*.log")
    (line,) = [line for line in log.read_text().splitlines() if "half.pt" in line]
    assert "WARNING" in line and f"{tmp_path / 'half.pt'} cannot be read (" in line
    assert line.endswith("): the training begins anew")


class Stranger:
    """What runs when it is read as a pickle."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return Path.touch, (self.place,)


def test_a_checkpoint_of_a_stranger_runs_nothing(tmp_path):
    torch.save({"iteration": Stranger(tmp_path / "ran")}, tmp_path / "strange.pt")
    whole = trained_mean(tmp_path / "whole")
    anew = trained_mean(tmp_path / "anew", checkpoint=str(tmp_path / "strange.pt"))
    assert torch.equal(whole, anew) and not (tmp_path / "ran").exists()
    torch.load(tmp_path / "strange.pt", weights_only=False)
    assert (tmp_path / "ran").exists()  # it would have


def start_of_mean() -> torch.Tensor:
    torch.manual_seed(0)
    return Mean().line.weight.detach()


def trained_mean(folder: Path, parts: int = 1, checkpoint: str = "") -> torch.Tensor:
    torch.manual_seed(0)
    model = Mean()
    numbers = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    samples = [{"inputs": row[:3], "data_samples": row[3:]} for row in numbers]
    loop = {"max_iters": 5, "parts": parts, "checkpoint": checkpoint}
    runner = runner_of(folder, model, samples, loop)
    runner.train()
    return model.line.weight.detach()


def runner_of(folder: Path, model: Mean, samples: Sequence[dict], loop: dict, **more) -> Runner:
    """Four samples a step, of the training loop that is tested; nothing is evaluated."""
    loader = {
        "batch_size": 4,
        "dataset": samples,
        "sampler": {"type": "InfiniteSampler", "seed": 0},
        "collate_fn": {"type": "pseudo_collate"},
    }
    parts = loop.get("parts", 1)
    wrapper = {"optimizer": {"type": "AdamW", "lr": 0.1}, "accumulative_counts": parts}
    runner = Runner(
        model,
        str(folder),
        loader,
        train_cfg={"type": "D3S2TrainLoop", **loop},
        optim_wrapper=wrapper,
        default_scope="mmseg",
        val_dataloader=loader
        | {"batch_size": 1, "sampler": {"type": "DefaultSampler", "shuffle": False}},
        val_cfg={"type": "ValLoop"},
        val_evaluator={"type": "D3S2IoU", "folder": str(folder)},
        default_hooks={"logger": None},
        experiment_name=str(folder),
        **more,
    )
    runner.val_loop.run = lambda: None
    return runner


# ------------------------------------------------------------------- going on, step by step
class Noisy(Sequence):
    """Samples with noise from every generator that mmseg draws from."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict:
        noise = torch.tensor(draw())
        return {"inputs": noise + index, "data_samples": torch.tensor([noise.sum() - index / 9])}


class Watch(Hook):
    """Notes what the loop says and in which order; stops at one step, as a killed process does."""

    def __init__(self, stop: int = -1):
        self.stop = stop
        self.heard: list[object] = []
        self.rates: list[float] = []

    def before_train(self, runner):
        self.heard.append("before")

    def before_train_epoch(self, runner):
        self.heard.append("before epoch")

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if batch_idx == self.stop:
            raise InterruptedError
        assert runner.model.training and len(data_batch["inputs"]) == 4
        self.rates.append(runner.optim_wrapper.get_lr()["lr"][0])
        self.heard.append(batch_idx)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        assert self.heard[-1] == batch_idx == runner.iter and set(outputs) == {"loss"}
        assert len(data_batch["inputs"]) == 4
        runner.model.eval()  # as an evaluation between two steps would

    def after_train_epoch(self, runner):
        self.heard.append("after epoch")

    def after_train(self, runner):
        self.heard.append("after")


def train_noisy(folder: Path, checkpoint: Path | None, parts: int, stop: int = -1):
    """(weights, curve, what `Watch` saw, the loop): nine steps, a checkpoint at every third."""
    torch.manual_seed(0)
    model, watch, progress = Mean(), Watch(stop), Progress(str(folder / "progress.json"), 4)
    loop = {"max_iters": 9, "every": 3, "parts": parts, "checkpoint": str(checkpoint or "")}
    rates = {"type": "OneCycleLR", "eta_max": 0.1, "total_steps": 9, "by_epoch": False}
    more = {
        "param_scheduler": [rates],
        "custom_hooks": [progress, watch],
        "randomness": {"seed": 5},
    }
    runner = runner_of(folder, model, Noisy(), loop, **more)
    runner.val_loop.run = lambda: watch.heard.append("evaluated")
    if stop < 0:
        assert runner.train() is model
    else:
        with pytest.raises(InterruptedError):
            runner.train()
    return model.state_dict(), progress.curve, watch, runner.train_loop


@pytest.mark.parametrize("parts", [1, 2])
def test_a_broken_training_is_the_rest_of_the_unbroken_one(tmp_path, parts, monkeypatch):
    """In one process: weights, losses, rates and steps, after a break at the seventh or eighth."""
    whole, curve, unbroken, _ = train_noisy(tmp_path / "whole", None, parts)
    assert unbroken.heard == [
        "before",
        "before epoch",
        *range(9),
        "evaluated",
        "after epoch",
        "after",
    ]
    assert [step for step, _ in curve] == [4, 8, 9]
    checkpoint, begun, drawn = tmp_path / "kept.pt", time.perf_counter(), []
    monkeypatch.setattr(
        loop_module,
        "set_random_state",
        lambda state, *place: (drawn.append(place), set_random_state(state, *place)),
    )
    for stop, last in ((2, None), (4, 3), (8, 6)):
        before = torch.load(checkpoint)["seconds"] if checkpoint.exists() else 0
        train_noisy(tmp_path / f"broken-{stop}", checkpoint, parts, stop)
        assert checkpoint.is_file() == (last is not None)
        if last:
            kept = torch.load(checkpoint, weights_only=True)
            assert kept["iteration"] == last
            assert before < kept["seconds"] < time.perf_counter() - begun
    weights, rest, watch, loop = train_noisy(tmp_path / "end", checkpoint, parts)
    assert watch.heard == ["before", "before epoch", 6, 7, 8, "evaluated", "after epoch", "after"]
    assert rest == curve and watch.rates == unbroken.rates[6:]
    for name, value in whole.items():
        assert torch.equal(weights[name], value), name
    assert loop.seconds_before == kept["seconds"]
    assert drawn == [(5, 3), (5, 6)]  # the seed and the step, of which other processes make theirs
    assert torch.load(checkpoint)["iteration"] == 6  # none at the end: the result is written then


def test_what_is_not_said_is_no_checkpoint_every_500_steps_and_one_part(tmp_path):
    loop = runner_of(tmp_path, Mean(), Noisy(), {"max_iters": 1}).train_loop
    assert (loop.checkpoint, loop.every, loop.parts, loop.seconds_before) == (None, 500, 1, 0.0)


def test_the_other_processes_write_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(loop_module, "is_main_process", lambda: False)
    train_noisy(tmp_path, tmp_path / "kept.pt", 1)
    assert not (tmp_path / "kept.pt").exists()


def test_random_states_come_back():
    state = random_state()
    drawn = draw()
    set_random_state(state, 0, 0)
    assert draw() == drawn != draw()


def test_random_states_survive_the_disk_between_two_normal_numbers(tmp_path):
    """numpy and Python keep the second of a pair of normal numbers: it is part of the state."""
    random.gauss(0, 1)
    np.random.randn()  # noqa: NPY002
    torch.save(random_state(), tmp_path / "state.pt")
    drawn = (random.gauss(0, 1), np.random.randn(), draw())  # noqa: NPY002
    set_random_state(torch.load(tmp_path / "state.pt", weights_only=True), 0, 0)
    assert (random.gauss(0, 1), np.random.randn(), draw()) == drawn  # noqa: NPY002


def test_the_random_state_of_a_gpu_comes_back(monkeypatch):
    """A generator of its own stands for the GPU's; without a GPU its state is left alone."""
    gpu = torch.Generator().manual_seed(3)
    monkeypatch.setattr(torch.cuda, "get_rng_state", gpu.get_state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", gpu.set_state)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    state = random_state()
    drawn = torch.rand(3, generator=gpu)
    set_random_state(state, 0, 0)
    assert torch.equal(torch.rand(3, generator=gpu), drawn)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    set_random_state(state, 0, 0)
    assert not torch.equal(torch.rand(3, generator=gpu), drawn)
    assert "cuda" not in random_state()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    del state["cuda"]  # of a checkpoint that a CPU wrote
    set_random_state(state, 0, 0)


def test_after_a_break_each_of_several_processes_draws_numbers_of_its_own(monkeypatch):
    state, drawn = random_state(), {}
    for place in itertools.product((0, 1), (500, 1000), (0, 1, 2)):
        for processes in (2, 3):  # of the same place, the same
            seed, iteration, rank = place
            info = (rank, processes)
            monkeypatch.setattr(loop_module, "get_dist_info", lambda info=info: info)
            set_random_state(state, seed, iteration)
            drawn.setdefault(place, []).append(draw())
    assert all(first == again for first, again in drawn.values())
    for generator in range(3):
        assert len({first[generator] for first, _ in drawn.values()}) == 12


def draw() -> list[float]:
    return [random.random(), np.random.random(), torch.rand(1).item()]  # noqa: NPY002 - the generators mmseg draws from


# ------------------------------------------------------------------------------------ out of memory
GREEDY = """
import sys
import torch
from d3s2.training import loop, worker

real = loop.split


def split(batch, parts):
    for part in real(batch, parts):
        if len(part["inputs"]) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        yield part


loop.split = split
sys.exit(worker.main(sys.argv[1:]))
"""


@pytest.fixture
def small_memory(monkeypatch, tmp_path):
    """Trainings in processes whose memory takes one image at a time."""
    (tmp_path / "greedy.py").write_text(GREEDY)
    monkeypatch.setattr(
        side_by_side, "_command", lambda: [sys.executable, str(tmp_path / "greedy.py")]
    )
    monkeypatch.setattr(side_by_side, "_is_forked", lambda job: False)


@pytest.mark.processes
def test_out_of_memory_says_what_to_lower(data, tmp_path, small_memory):
    with pytest.raises(D3S2Error, match="too small for 2 images at once"):
        train_all([make_job(data, tmp_path / "run")], progress=None)


@pytest.mark.processes
def test_out_of_memory_halves_on_request_until_it_fits(data, tmp_path, small_memory):
    lines: list[str] = []
    jobs = [make_job(data, tmp_path / name, batch_size=2, name=name) for name in "ab"]
    results = train_all(jobs, 1, progress=lines.append, out_of_memory="halve")
    assert [result.parts for result in results] == [2, 2]
    assert [line.split(",")[0] for line in lines if "out of memory" in line] == ["a: out of memory"]
    assert train_all(jobs, 1, progress=None) == results  # finished: not trained again in one part


class Judge:
    """A runner whose network answers for at most so many images at once."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.model = self
        self.called: list[str] = []

    def call_hook(self, name: str, **more) -> None:
        self.called.append(name)

    def val_step(self, piece: dict[str, list]) -> list[str]:
        if len(piece["inputs"]) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        pairs = zip(piece["inputs"], piece["data_samples"], strict=True)
        return [f"{image}{sample}" for image, sample in pairs]

    def process(self, data_samples: list[str], data_batch: dict[str, list]) -> None:
        self.answers = data_samples


def test_a_batch_to_judge_is_halved_where_it_is_too_large():
    batch = {"inputs": [*range(5)], "data_samples": [*"abcde"]}
    judge = Judge(2)
    loop = object.__new__(loop_module.JudgeLoop)
    loop._runner = loop.evaluator = judge
    loop.out_of_memory = "stop"
    with pytest.raises(D3S2Error, match="too small for 5 images at once: set out_of_memory"):
        loop.run_iter(0, batch)
    loop.out_of_memory = "halve"
    loop.run_iter(0, batch)
    assert judge.answers == ["0a", "1b", "2c", "3d", "4e"]
    assert judge.called == ["before_val_iter", "before_val_iter", "after_val_iter"]


def test_the_way_out_of_want_of_memory_reaches_the_process(data, tmp_path, monkeypatch):
    started: list[TrainingJob] = []

    def refuse(pool, job):
        started.append(job)
        raise KeyboardInterrupt

    monkeypatch.setattr(side_by_side._Pool, "start", refuse)
    for how in ("stop", "halve"):
        with pytest.raises(KeyboardInterrupt):
            train_all([make_job(data, tmp_path / how)], progress=None, out_of_memory=how)
    assert [job.out_of_memory for job in started] == ["stop", "halve"]
    loops = [mask2former.build_config(job).val_cfg for job in started]
    assert [each["out_of_memory"] for each in loops] == ["stop", "halve"]
