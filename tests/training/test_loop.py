"""The training loop: it goes on after a break with the same bytes, takes batches in parts, and
shares them between processes.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from training_jobs import make_job, wait_for, write_data, write_splits

from d3s2.core.errors import D3S2Error
from d3s2.training import side_by_side
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
from d3s2.training.side_by_side import train_all

pytestmark = pytest.mark.processes


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


def test_two_processes_share_a_batch_and_predict_in_the_order_of_the_data(data, tmp_path):
    job = make_job(data, tmp_path / "two", processes=2, iterations=6)
    (two,) = train_all([job], progress=None)
    stored = np.load(tmp_path / "two" / PREDICTIONS)["labels"]
    model = training_model(job, tmp_path / "two")
    images = open_split(data, "val", None, job.size)
    with torch.no_grad():
        for k in range(3):
            np.testing.assert_array_equal(stored[k], predict(model, images.read_image(k)))
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


def start_of_mean() -> torch.Tensor:
    torch.manual_seed(0)
    return Mean().line.weight.detach()


def trained_mean(folder: Path, parts: int = 1, checkpoint: str = "") -> torch.Tensor:
    torch.manual_seed(0)
    model = Mean()
    numbers = torch.randn(40, 4, generator=torch.Generator().manual_seed(1))
    samples = [{"inputs": row[:3], "data_samples": row[3:]} for row in numbers]
    loop = {"type": "D3S2TrainLoop", "max_iters": 5, "parts": parts, "checkpoint": checkpoint}
    loader = {
        "batch_size": 4,
        "dataset": samples,
        "sampler": {"type": "InfiniteSampler", "seed": 0},
        "collate_fn": {"type": "pseudo_collate"},
    }
    wrapper = {"optimizer": {"type": "AdamW", "lr": 0.1}, "accumulative_counts": parts}
    runner = Runner(
        model,
        str(folder),
        loader,
        train_cfg=loop,
        optim_wrapper=wrapper,
        default_scope="mmseg",
        val_dataloader=loader
        | {"batch_size": 1, "sampler": {"type": "DefaultSampler", "shuffle": False}},
        val_cfg={"type": "ValLoop"},
        val_evaluator={"type": "D3S2IoU"},
        default_hooks={"logger": None},
        experiment_name=str(folder),
        param_scheduler=None,
    )
    runner.val_loop.run = lambda: None
    runner.train()
    return model.line.weight.detach()


def test_random_states_come_back():
    state = random_state()
    drawn = draw()
    set_random_state(state, 0, 0)
    assert draw() == drawn != draw()


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


def test_out_of_memory_says_what_to_lower(data, tmp_path, small_memory):
    with pytest.raises(D3S2Error, match="too small for 2 images at once"):
        train_all([make_job(data, tmp_path / "run")], progress=None)


def test_out_of_memory_halves_on_request_until_it_fits(data, tmp_path, small_memory):
    lines: list[str] = []
    jobs = [make_job(data, tmp_path / name, batch_size=2, name=name) for name in "ab"]
    results = train_all(jobs, 1, progress=lines.append, out_of_memory="halve")
    assert [result.parts for result in results] == [2, 2]
    assert [line.split(",")[0] for line in lines if "out of memory" in line] == ["a: out of memory"]
    assert train_all(jobs, 1, progress=None) == results  # finished: not trained again in one part
