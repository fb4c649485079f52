"""What guidance costs: python -m d3s2.studies.benchmark guidance

Samples the same masks of the embedded scenes, from the same noise, with and without guidance. The
variants take turns within one run, so that a busy machine slows all alike, and the medians are
compared. Peak memory is that of a process of its own for each variant on a CPU, and the allocator's
on a GPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from d3s2.core import machine
from d3s2.core.errors import D3S2Error, exit_code
from d3s2.data.scenes import CLASSES, draw_scene
from d3s2.data.tensors import class_sets, to_float
from d3s2.guidance.losses import FeatureTargets, LossOptions, guidance_losses
from d3s2.guidance.sampler import Guidance, finish, initial_noise, sample
from d3s2.models.load import load_generator, load_proxy
from d3s2.runs import config
from d3s2.statistics.features import ClassMoments

_BOTH = Guidance({"segmentation": 0.1, "feature": 0.1}, window=(0.1, 0.8))
VARIANTS: dict[str, tuple[Guidance, LossOptions]] = {
    "unguided": (Guidance(), LossOptions()),
    "detach": (_BOTH, LossOptions()),
    "full": (replace(_BOTH, jacobian="full"), LossOptions()),
    "detach, 40 to 80 %": (replace(_BOTH, window=(0.4, 0.8)), LossOptions()),
    "full, 40 to 80 %": (replace(_BOTH, jacobian="full", window=(0.4, 0.8)), LossOptions()),
    "detach, encoder only": (
        _BOTH,
        LossOptions(layers=("encoder1", "encoder2", "encoder3", "encoder4")),
    ),
    "detach, every 2nd": (replace(_BOTH, every=2), LossOptions()),
    "detach, every 3rd (the default)": (replace(_BOTH, every=3), LossOptions()),
    "full, every 2nd": (replace(_BOTH, every=2, jacobian="full"), LossOptions()),
}
"""What is measured: guidance and losses. The default window is 10 to 80 % of the steps."""


def samplers(batch: int, steps: int, device: str) -> dict[str, Callable[[], object]]:
    """Each variant as a function that samples `batch` images on the scenes' shipped weights."""
    folder = config.resolve({"profile": "scenes"}, remember=False).weights_folder
    generator, proxy = (
        load_generator(folder / "generator", device),
        load_proxy(folder / "proxy", device),
    )
    scenes = [draw_scene(0, "train", index) for index in range(batch)]
    images = torch.cat([to_float(image[None], device) for image, _ in scenes])
    labels = torch.stack([torch.from_numpy(mask).long() for _, mask in scenes]).to(device)
    with torch.no_grad():
        features = proxy(images).features
    moments = ClassMoments(len(CLASSES), [feature.shape[1] for feature in features])
    moments.update(features, labels)
    targets, classes = (
        FeatureTargets.from_moments(moments, device),
        class_sets(labels, len(CLASSES)),
    )
    noise = initial_noise(range(batch), tuple(images.shape[1:])).to(device)

    def sampler(guidance: Guidance, options: LossOptions) -> Callable[[], object]:
        def run() -> object:
            losses = guidance_losses(proxy, labels, targets, options)
            return finish(
                sample(generator, noise, labels, classes, steps, guidance, losses)
            ).x.cpu()

        return run

    return {name: sampler(*variant) for name, variant in VARIANTS.items()}


def time_variants(
    names: Sequence[str], batch: int, steps: int, repeats: int, device: str
) -> dict[str, float]:
    """Median seconds of each variant; they take turns, after one round that does not count."""
    runs = samplers(batch, steps, device)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(repeats + 1):
        for name in names:
            began = time.perf_counter()
            runs[name]()
            if turn:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_megabytes(name: str, batch: int, device: str) -> float:
    """Peak memory of one variant: of the process on a CPU, which must have run nothing else, of the
    allocator on a GPU.
    """
    run = samplers(batch, 2, device)[name]
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    run()
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return machine.peak_memory()


def report(options: argparse.Namespace) -> str:
    """The table: guided steps, seconds an image, ratio to unguided, peak memory."""
    device = machine.pick_device(options.device)
    names = options.only or list(VARIANTS)
    # Memory first: a child starts with its parent's peak, which is small as long as nothing is
    # loaded here.
    memory = (
        {}
        if options.no_memory
        else {name: f"{_peak_in_its_own_process(name, options):8.0f}" for name in names}
    )
    seconds = time_variants(names, options.batch, options.steps, options.repeats, device)
    conditions = f"{device}, {torch.get_num_threads()} threads, median of {options.repeats}"
    lines = [
        f"{options.batch} images, {options.steps} steps, {conditions}",
        f"{'':22s} {'guided':>7s} {'s/image':>8s} {'ratio':>6s} {'peak MB':>8s}",
    ]
    for name, value in seconds.items():
        guidance, _ = VARIANTS[name]
        first, last = (round(edge * options.steps) for edge in guidance.window)
        guided = -(-(last - first) // guidance.every) if guidance.scales else 0
        ratio = value / seconds["unguided"]
        costs = f"{value / options.batch:8.2f} {ratio:6.2f} {memory.get(name, ''):>8s}"
        lines.append(f"{name:22s} {guided:4d}/{options.steps:<2d} {costs}")
    return "\n".join(lines)


def _peak_in_its_own_process(name: str, options: argparse.Namespace) -> float:
    command = [
        sys.executable,
        "-m",
        "d3s2.studies.benchmark",
        "guidance",
        "--peak-of",
        name,
        "--batch",
        str(options.batch),
        "--device",
        options.device,
        "--threads",
        str(options.threads),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise D3S2Error(f"measuring the memory of {name!r} failed: {done.stderr.strip()[-400:]}")
    return float(json.loads(done.stdout))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m d3s2.studies.benchmark", description="Measure what parts of d3s2 cost."
    )
    commands = parser.add_subparsers(required=True, metavar="what")
    guidance = commands.add_parser(
        "guidance", help="time and memory of guided over unguided sampling"
    )
    guidance.add_argument("--batch", type=int, default=8, help="images sampled together")
    guidance.add_argument(
        "--steps", type=int, default=10, help="sampling steps, a divisor of 1,000"
    )
    guidance.add_argument("--repeats", type=int, default=3, help="rounds that count")
    guidance.add_argument("--threads", type=int, default=0, help="CPU threads; 0 = all cores")
    guidance.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    guidance.add_argument(
        "--only", nargs="+", choices=list(VARIANTS), help="these variants, 'unguided' among them"
    )
    guidance.add_argument(
        "--no-memory", action="store_true", help="leave out the processes that measure memory"
    )
    guidance.add_argument("--peak-of", choices=list(VARIANTS), help=argparse.SUPPRESS)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """The command of the module's text; 0, or 2 for bad input."""
    options = _parser().parse_args(arguments)

    def work() -> None:
        if min(options.batch, options.repeats) < 1 or (
            options.only and "unguided" not in options.only
        ):
            raise D3S2Error(
                "batch and repeats count from 1, and the variants need 'unguided', which they are "
                "compared with."
            )
        machine.set_threads(options.threads)
        if options.peak_of:
            print(
                json.dumps(
                    peak_megabytes(
                        options.peak_of, options.batch, machine.pick_device(options.device)
                    )
                )
            )
        else:
            print(report(options))

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
