"""Chapter 05: the same training sets under other networks than chapter 04's.

A *student* is one of mmsegmentation's convolutional networks in the place of Mask2Former (see
`student_networks`): data, augmentation, loop, optimizer, schedule and evaluation stay those of
chapter 04, the network alone is another. It has a key of its own, and what decides the trainings of
chapter 04 knows nothing of this module. `python -m d3s2.training.students` is the process in which
`side_by_side.train_all` trains one where it cannot be forked.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from d3s2.core.code_version import code_version
from d3s2.core.errors import D3S2Error
from d3s2.core.files import digest, read_json
from d3s2.core.processes import end_with_parent
from d3s2.training import worker
from d3s2.training.job import TrainingJob, TrainingResult, check_job, job_key, read_result

MASK2FORMER = "mask2former"
"""Chapter 04's network, which is no student."""
STUDENTS = {
    "lraspp": "LR-ASPP on a MobileNetV3 (small)",
    "unet": "FCN on a U-Net of 16 to 256 channels",
}
"""The students by name; all are trained from scratch."""
NETWORK_NAMES = (MASK2FORMER, *STUDENTS)
CODE = "training.students"
"""The module whose sources, and those of all that it imports, decide a student's result."""
HALVINGS = 16
"""Sides must be multiples of this: a U-Net halves them four times."""


@dataclass(frozen=True)
class StudentJob(TrainingJob):
    """A training of another network than Mask2Former. student: a name of `STUDENTS`."""

    student: str = "lraspp"


def with_network(job: TrainingJob, network: str) -> TrainingJob:
    """The same training with this network, of `NETWORK_NAMES`; a student's takes one process.

    Raises D3S2Error for an unknown network, one beside the full Swin-S, whose schedule is for
    pretrained weights, and a size that a U-Net cannot halve.
    """
    if network not in NETWORK_NAMES:
        raise D3S2Error(
            f"there is no network {network!r} to train: choose of {', '.join(NETWORK_NAMES)}."
        )
    if network == MASK2FORMER:
        return job
    if job.network != "scaled-down":
        raise D3S2Error(
            f"network {network!r} is trained from scratch, with the schedule of network=scaled-down"
            f"; this run has network={job.network}: set -p network=scaled-down."
        )
    height, width = job.size
    if network == "unet" and (height % HALVINGS or width % HALVINGS):
        raise D3S2Error(
            f"images are {height}x{width}, but network 'unet' takes sides that are multiples of "
            f"{HALVINGS}: choose another image_size, or another network."
        )
    values = {each.name: getattr(job, each.name) for each in fields(TrainingJob)}
    return StudentJob(**values | {"processes": 1}, student=network)


def network_of(job: TrainingJob) -> str:
    """Of `NETWORK_NAMES`, what a job trains."""
    return job.student if isinstance(job, StudentJob) else MASK2FORMER


def student_key(job: StudentJob) -> str:
    """sha256 over what decides a student's result: `job_key`, the student's name among it, and the
    source of what builds and trains it. Raises D3S2Error as `job_key`.
    """
    return digest({"job": job_key(job), "code": code_version(CODE)})


def read_student(path: str | Path) -> StudentJob | None:
    """The job in a file that `job.write_job` wrote, None for one of chapter 04's. Raises D3S2Error
    for a file that is missing or damaged.
    """
    values = read_json(path)
    if "student" not in values:
        return None
    for name in ("size", "train_ids", "val_ids"):
        if values[name] is not None:
            values[name] = tuple(values[name])
    return StudentJob(**values)


# ---------------------------------------------------------------------------- one training, in here
def train_student(job: StudentJob, key: str = "") -> TrainingResult:
    """Train and judge a student in this process, as `worker.train` does Mask2Former; there is no
    `mmseg.json`. Raises D3S2Error for everything `check_job` and `job_key` find.
    """
    from d3s2.training import student_networks  # imports mmseg: some seconds

    begun = time.perf_counter()
    check_job(job)
    key = key or student_key(job)
    folder = Path(job.work_dir)
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "logs" / f"checkpoint-{key[:16]}.pt"
    runner = student_networks.build_runner(job, job.student, checkpoint)
    runner.train()
    worker.leave_results(job, key, runner, begun)
    return read_result(folder)


def main(arguments: Sequence[str]) -> int:
    """The child: `python -m d3s2.training.students <job.json> <core> [<key>]`, for a job of either
    kind. Anything that goes wrong ends up in its log.
    """
    end_with_parent()
    path, core, *key = arguments
    job = read_student(path)
    if job is None:
        return worker.main(arguments)
    return worker.run_as_child(job, int(core), lambda: train_student(job, *key))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
