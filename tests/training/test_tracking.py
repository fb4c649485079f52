"""Who looks at a training changes nothing of it: the mIoU on the way, and trackers."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from training_jobs import make_job, write_splits

from d3s2.core.errors import D3S2Error
from d3s2.runs import config, readiness
from d3s2.runs.network_choice import training_network
from d3s2.runs.parameters import FIELDS
from d3s2.training import mask2former
from d3s2.training.job import (
    PREDICTIONS,
    RESULT,
    WEIGHTS,
    TrainingJob,
    TrainingResult,
    check_job,
    job_key,
)
from d3s2.training.tracking import PACKAGES, backends, missing_tracker
from d3s2.training.worker import train

MISSING = [name for name, package in PACKAGES.items() if missing_tracker(name)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_splits(tmp_path_factory.mktemp("data"))


def trained(job: TrainingJob, key: str = "") -> TrainingResult:
    """`train` as in a process of its own: mmengine keeps a visualizer by its name."""
    from mmseg.visualization import SegLocalVisualizer  # once mask2former has imported mmseg

    SegLocalVisualizer._instance_dict.clear()
    threads = torch.get_num_threads()
    result = train(job, key)
    torch.set_num_threads(threads)
    return result


def scores(work: Path) -> list[tuple[int, float]]:
    """(iteration, mIoU) of every evaluation that was logged."""
    (path,) = (work / "logs").glob("*/vis_data/scalars.json")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["step"], line["mIoU"]) for line in lines if "mIoU" in line]


@pytest.mark.processes  # it trains
def test_a_look_on_the_way_changes_no_byte(data: Path, tmp_path: Path) -> None:
    """Three iterations, judged at the end alone, and after the first and the second too."""
    jobs = [make_job(data, tmp_path / str(every), judge_every=every) for every in (0, 1)]
    results = [trained(job, job_key(jobs[0])) for job in jobs]
    assert results[0] == results[1]
    for name in (WEIGHTS, PREDICTIONS, RESULT):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "1" / name).read_bytes(), name
    assert [step for step, _ in scores(tmp_path / "0")] == [3]
    looks = scores(tmp_path / "1")
    assert [step for step, _ in looks] == [1, 2, 3] and looks[2] == scores(tmp_path / "0")[0]


def test_without_a_tracker_the_configuration_is_the_shipped_one(data: Path, tmp_path: Path) -> None:
    found = mask2former.build_config(make_job(data, tmp_path)).visualizer
    shipped = mask2former.Config.fromfile(str(mask2former.SHIPPED)).visualizer
    assert found == shipped and list(shipped.vis_backends) == backends("none", "")


@pytest.mark.parametrize(
    ("tracking", "kind"),
    [
        ("tensorboard", "TensorboardVisBackend"),
        ("wandb", "WandbVisBackend"),
        ("mlflow", "MLflowVisBackend"),
    ],
)
def test_a_tracker_stands_beside_the_logs(
    data: Path, tmp_path: Path, tracking: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """mmengine makes each of them with these words; its library is asked for later."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:///nowhere")
    job = make_job(data, tmp_path, tracking=tracking, name="d3s2-0")
    local, tracker = mask2former.build_config(job).visualizer.vis_backends
    assert (local.type, tracker.type) == ("LocalVisBackend", kind)
    from mmengine.registry import VISBACKENDS

    made = VISBACKENDS.build(dict(tracker) | {"save_dir": str(tmp_path)})
    if tracking == "wandb":
        assert made._init_kwargs["name"] == "d3s2-0"
    if tracking == "mlflow":
        assert (made._run_name, made._tracking_uri) == ("d3s2-0", "file:///nowhere")


@pytest.mark.parametrize("tracking", MISSING)
def test_a_missing_library_is_named_before_anything_begins(
    data: Path, tmp_path: Path, tracking: str
) -> None:
    with pytest.raises(D3S2Error, match=f"pip install {PACKAGES[tracking]}, or take tracking=none"):
        check_job(make_job(data, tmp_path, tracking=tracking))
    settings = config.resolve({"profile": "smoke", "tracking": tracking}, remember=False)
    said = {check.text: check.ok for check in readiness._check_tracker(settings)}
    assert said == {missing_tracker(tracking): False}
    assert list(tmp_path.iterdir()) == []


def test_what_nobody_knows_is_refused(data: Path, tmp_path: Path) -> None:
    for wrong in ({"tracking": "paper"}, {"judge_every": -1}):
        with pytest.raises(D3S2Error, match=r"judge_every .* tracking .* one of none, tensorboard"):
            check_job(make_job(data, tmp_path, **wrong))


def test_a_run_hands_both_to_its_trainings() -> None:
    assert FIELDS["tracking"].metadata["choices"] == tuple(PACKAGES)
    given = {"profile": "smoke", "tracking": "wandb", "judge_every": 5}
    found = training_network(config.resolve(given, remember=False))
    assert (found["tracking"], found["judge_every"]) == ("wandb", 5)


@pytest.mark.processes  # it trains
@pytest.mark.skipif("tensorboard" in MISSING, reason="tensorboard is not installed")
def test_tensorboard_gets_what_is_logged(data: Path, tmp_path: Path) -> None:
    assert importlib.util.find_spec("tensorboard")
    trained(make_job(data, tmp_path, tracking="tensorboard", judge_every=1))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = tmp_path.rglob("events.out.tfevents*")
    found = EventAccumulator(str(events.parent))
    found.Reload()
    seen = [(event.step, event.value) for event in found.Scalars("mIoU")]
    assert seen == pytest.approx(scores(tmp_path), abs=1e-3)
