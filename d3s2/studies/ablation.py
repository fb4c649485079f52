"""What does each part of the method add? Many small trainings, and paired differences with their
uncertainty.

    python -m d3s2.studies.ablation --arms random balanced unguided d3s2 --seeds 5

Every *arm* is a way to get a training set for the same masks (two arms, `random` and `random
masks`, draw others). Each arm is trained once for each training seed with chapter 04's recipe.
Generated arms are distilled `--distillations` times from different noise; training seed s uses
distillation s mod that number, so that pairs share seed and noise. The numbers of several arms are
committed in `reference/ablation.csv`, and appendix A1 reads them.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy import stats

from d3s2.core import machine
from d3s2.core.code_version import code_version
from d3s2.core.errors import D3S2Error, exit_code
from d3s2.core.files import digest, read_json, write_csv, write_json
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.splits import open_splits
from d3s2.guidance.losses import FeatureTargets, LossOptions
from d3s2.guidance.painting import Painter, Recipe, synthesise
from d3s2.guidance.sampler import Guidance
from d3s2.models.load import load_generator, load_proxy, weights_digest
from d3s2.runs import config
from d3s2.selection import (
    Ranking,
    budget_size,
    class_weights,
    greedy,
    presence,
    random_ranking,
)
from d3s2.statistics.features import ClassMoments, feature_statistics
from d3s2.statistics.pixels import count_pixels
from d3s2.training.job import TrainingJob
from d3s2.training.side_by_side import train_all

REFERENCE = Path(__file__).parent / "reference" / "ablation.csv"
HEADER = ("arm", "seed", "distillation", "miou", "seconds_an_image")
BOTH = {"segmentation": 0.1, "feature": 0.1}


@dataclass(frozen=True)
class Arm:
    """One way to get a training set. recipe: None = the masks' own real images; masks: "greedy" or
    "random"; images: made of each mask, from different noise.
    """

    says: str
    recipe: Recipe | None = None
    masks: str = "greedy"
    images: int = 1


def _steered(
    says: str,
    scales: Mapping[str, float] = BOTH,
    *,
    masks: str = "greedy",
    steps: int = 50,
    candidates: int = 1,
    losses: LossOptions | None = None,
    images: int = 1,
    **guidance: object,
) -> Arm:
    return Arm(
        says,
        Recipe(
            steps=steps,
            guidance=Guidance(scales, **guidance),
            candidates=candidates,
            losses=losses or LossOptions(),
        ),
        masks,
        images,
    )


ARMS: dict[str, Arm] = {
    "random": Arm("real images, drawn at random", masks="random"),
    "balanced": Arm("the real images of the selected masks"),
    "unguided": _steered("generated without guidance", {}),
    "segmentation": _steered("segmentation consistency alone", {"segmentation": 0.1}),
    "feature": _steered("class-wise feature matching alone", {"feature": 0.1}),
    "d3s2": _steered("both losses (the default)"),
    "set": _steered("both, statistics of the whole set", losses=LossOptions(scope="set")),
    "class balance": _steered(
        "both, segmentation loss averaged over classes", losses=LossOptions(balance=True)
    ),
    "half strength": _steered("both, scales halved", {"segmentation": 0.05, "feature": 0.05}),
    "double strength": _steered("both, scales doubled", {"segmentation": 0.2, "feature": 0.2}),
    "cfg 2": _steered("both, with classifier-free guidance of scale 2", cfg_scale=2.0),
    "full jacobian": _steered("both, gradient through the generator", jacobian="full"),
    "early": _steered("both, guided in the first third", window=(0.0, 1 / 3)),
    "middle": _steered("both, guided in the second third", window=(1 / 3, 2 / 3)),
    "late": _steered("both, guided in the last third", window=(2 / 3, 1.0)),
    "every 3rd": _steered("both, gradient taken anew at every third guided step", every=3),
    "25 steps": _steered("both, 25 steps", steps=25),
    "100 steps": _steered("both, 100 steps", steps=100),
    "best of 4": _steered("both, the best of four tries a mask", candidates=4),
    "d3s2 x 4": _steered("both, four images of each mask: a set four times as large", images=4),
    "unguided x 4": _steered("without guidance, four images of each mask", {}, images=4),
    "random masks": _steered("both, for randomly drawn masks", masks="random"),
}


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences in mIoU, half the width of its 95 % confidence interval, and the
    number of pairs.
    """

    mean: float
    half_width: float
    pairs: int

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return abs(self.mean) > self.half_width


def paired_difference(
    a: Mapping[int, float], b: Mapping[int, float], level: float = 0.95
) -> Difference:
    """a - b over the seeds that both have, with Student's t interval; infinite for fewer than two
    pairs.

    Args:
        a, b: {seed: mIoU}.
    Raises:
        D3S2Error: when they share no seed.
    """
    seeds = sorted(set(a) & set(b))
    if not seeds:
        raise D3S2Error(
            f"no seed in common: {sorted(a)} and {sorted(b)}. Train both with the same seeds."
        )
    values = np.array([a[seed] - b[seed] for seed in seeds])
    if len(values) < 2:
        return Difference(float(values.mean()), float("inf"), len(values))
    error = values.std(ddof=1) / np.sqrt(len(values))
    return Difference(
        float(values.mean()),
        float(stats.t.ppf(0.5 + level / 2, len(values) - 1) * error),
        len(values),
    )


@dataclass
class Workshop:
    """The data, networks and rankings that all arms share; built from the profile's values once."""

    settings: config.Settings
    work: Path
    train: SegmentationDataset = field(init=False)
    val: SegmentationDataset = field(init=False)

    def __post_init__(self) -> None:
        self.train, self.val = open_splits(self.settings, progress=False)
        self.size = budget_size(self.settings.budget, len(self.train))
        self._painter: Painter | None = None

    @cached_property
    def ranking(self) -> Ranking:
        """The greedy selection, made on first use: it counts every pixel of the training split."""
        counts = count_pixels(self.train, progress=False)
        matrix = presence(counts, self.settings.presence_threshold)
        weights = class_weights(counts.image_counts(), self.settings.beta)
        return greedy(matrix, weights, self.size, self.settings.delta)

    def masks(self, arm: Arm, seed: int) -> np.ndarray:
        """int64[k]: which masks of the training split an arm takes for one training seed."""
        ranking = random_ranking(len(self.train), seed) if arm.masks == "random" else self.ranking
        return ranking.first(self.size)

    def painter(self) -> Painter:
        """Who paints all arms, loaded on first use: real arms need none."""
        if self._painter is None:
            weights, device = (
                self.settings.weights_folder,
                machine.pick_device(self.settings.device),
            )
            proxy = load_proxy(weights / "proxy", device)
            known = self.work / f"moments-{self._made_from('statistics.features')[:8]}.npz"
            if not known.is_file():
                feature_statistics(self.train, proxy, progress=False).save(known)
            targets = FeatureTargets.from_moments(ClassMoments.load(known), device)
            self._painter = Painter(load_generator(weights / "generator", device), proxy, targets)
        return self._painter

    def _made_from(self, *modules: str) -> str:
        """Digest of the training data, the networks' weights, and the code of these modules."""
        weights = weights_digest(self.settings.weights_folder)
        return digest([self.train.fingerprint(), weights, code_version(*modules)])

    def distil(self, name: str, distillation: int) -> Path:
        """The folder of an arm's generated set, made on first use, with its cost beside it."""
        folders = [self._paint(name, distillation, copy) for copy in range(ARMS[name].images)]
        return (
            folders[0]
            if len(folders) == 1
            else join_sets(folders, folders[0].with_name(folders[0].name + "-joined"))
        )

    def _paint(self, name: str, distillation: int, copy: int) -> Path:
        """One image of each of the arm's masks; every copy from noise of its own."""
        arm = ARMS[name]
        recipe, masks = (
            replace(arm.recipe, seed=distillation + 1000 * copy),
            self.masks(arm, distillation),
        )
        decides = {
            "recipe": asdict(recipe),
            "masks": masks.tolist(),
            "made_from": self._made_from("guidance.painting"),
        }
        folder = (
            self.work / "sets" / f"{name.replace(' ', '-')}-{distillation}-{digest(decides)[:8]}"
        )
        if not (folder / "cost.json").is_file():
            painter = self.painter()
            began = time.perf_counter()
            synthesise(painter, self.train, masks, folder, recipe)
            seconds = (time.perf_counter() - began) / self.size
            write_json(folder / "cost.json", {"seconds_an_image": round(seconds, 3)})
            print(f"{folder.name}: {seconds:.2f} s an image", flush=True)
        return folder

    def job(self, name: str, seed: int, distillations: int) -> TrainingJob:
        """The training of one arm with one seed."""
        arm = ARMS[name]
        real = str(self.train.root)
        if arm.recipe is None:
            root = real
            ids = tuple(self.train.ids[i] for i in self.masks(arm, seed))
        else:
            root = str(self.distil(name, seed % distillations).resolve())
            ids = None
        return TrainingJob(
            name=f"{name} {seed}",
            train_root=root,
            val_root=real,
            num_classes=self.train.num_classes,
            work_dir=str(self.work / "training" / f"{name.replace(' ', '-')}-{seed}"),
            train_ids=ids,
            val_ids=self.val.ids,
            iterations=self.settings.iterations,
            batch_size=self.settings.batch_size,
            seed=seed,
            size=self.train.read_image(0).shape[:2],
        )


def join_sets(folders: Sequence[Path], joined: Path) -> Path:
    """One set of all the images of several sets of the same masks, in `joined`, made on first use;
    the ids end with the number of their set.
    """
    if (joined / "cost.json").is_file():  # written last
        return joined
    for number, folder in enumerate(folders):
        for file in sorted(folder.glob("train/*/*.png")):
            target = joined / file.relative_to(folder).with_stem(f"{file.stem}-{number}")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    shutil.copyfile(folders[0] / "classes.csv", joined / "classes.csv")
    seconds = [read_json(folder / "cost.json")["seconds_an_image"] for folder in folders]
    write_json(joined / "cost.json", {"seconds_an_image": round(float(np.mean(seconds)), 3)})
    return joined


def measure_arms(
    work: Path,
    out: Path,
    arms: Sequence[str],
    seeds: int,
    distillations: int,
    settings: config.Settings,
) -> None:
    """Distil and train what is missing; write `out` (arm, seed, distillation, mIoU, seconds an
    image) and its facts.
    """
    shop = Workshop(settings, work)
    # Seed by seed, so that an interrupted measurement leaves complete pairs.
    jobs = [
        (name, seed, shop.job(name, seed, distillations)) for seed in range(seeds) for name in arms
    ]
    results = train_all([job for *_, job in jobs], settings.jobs)
    rows = {}
    for (name, seed, job), result in zip(jobs, results, strict=True):
        generated = ARMS[name].recipe is not None
        cost = (
            read_json(Path(job.train_root) / "cost.json")["seconds_an_image"] if generated else ""
        )
        rows[name, seed] = [
            name,
            seed,
            seed % distillations if generated else "",
            round(result.miou, 3),
            cost,
        ]
    facts = {
        "images": shop.size,
        "iterations": settings.iterations,
        "batch_size": settings.batch_size,
        "validation_images": len(shop.val),
        "distillations": distillations,
    }
    _write(out, _earlier(out, facts) | rows, facts)


def _earlier(out: Path, facts: Mapping[str, object]) -> dict[tuple[str, int], list[object]]:
    """The rows of a measurement before, which this one adds to; it must have been made in the same
    way.
    """
    if not out.is_file():
        return {}
    before = read_json(out.with_suffix(".json"))
    other = [name for name, value in facts.items() if before.get(name) != value]
    if other:
        raise D3S2Error(
            f"{out} was measured with {other[0]} {before.get(other[0])}, now it is "
            f"{facts[other[0]]}: give another file with --out, or delete this one to begin anew."
        )
    with open(out, newline="", encoding="utf-8") as stream:
        return {(row[0], int(row[1])): list(row) for row in list(csv.reader(stream))[1:]}


def _write(
    out: Path, rows: Mapping[tuple[str, int], list[object]], facts: Mapping[str, object]
) -> None:
    """The CSV with the arms in the order of `ARMS`, and beside it, as JSON, the command that makes
    all of it.
    """
    order = list(ARMS)
    places = sorted(rows, key=lambda place: (order.index(place[0]), place[1]))
    arms = " ".join(
        f"'{name}'" if " " in name else name for name in dict.fromkeys(name for name, _ in places)
    )
    command = (
        f"python -m d3s2.studies.ablation --seeds {max(seed for _, seed in places) + 1} "
        f"--distillations {facts['distillations']}"
    )
    write_csv(out, [HEADER, *(rows[place] for place in places)])
    write_json(out.with_suffix(".json"), {"command": f"{command} --arms {arms}", **facts})


def read_scores(
    path: Path = REFERENCE,
) -> tuple[dict[str, dict[int, float]], dict[str, float], dict[str, object]]:
    """({arm: {seed: mIoU}}, {arm: mean seconds an image}, how it was measured). Raises D3S2Error
    when missing.
    """
    if not path.is_file():
        raise D3S2Error(f"{path} is missing: measure it with `python -m d3s2.studies.ablation`.")
    scores: dict[str, dict[int, float]] = {}
    seconds: dict[str, list[float]] = {}
    with open(path, newline="", encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            scores.setdefault(row["arm"], {})[int(row["seed"])] = float(row["miou"])
            if row["seconds_an_image"]:
                seconds.setdefault(row["arm"], []).append(float(row["seconds_an_image"]))
    return (
        scores,
        {arm: float(np.mean(values)) for arm, values in seconds.items()},
        read_json(path.with_suffix(".json")),
    )


def table(
    scores: Mapping[str, Mapping[int, float]],
    against: Iterable[str] = ("random", "balanced", "unguided"),
) -> str:
    """Markdown: mean, deviation, and the difference to each reference arm with its 95 %
    interval.
    """
    references = [name for name in against if name in scores]
    lines = [
        "| arm | trainings | mIoU (%) | "
        + " | ".join(f"minus {name}" for name in references)
        + " |",
        "|---|---:|---:|" + "---:|" * len(references),
    ]
    for name, values in scores.items():
        spread = f" ± {np.std([*values.values()], ddof=1):.1f}" if len(values) > 1 else ""
        cells = []
        for reference in references:
            difference = paired_difference(values, scores[reference])
            cells.append(
                "" if name == reference else f"{difference.mean:+.1f} ± {difference.half_width:.1f}"
            )
        lines.append(
            f"| {name} | {len(values)} | {np.mean([*values.values()]):.1f}{spread} | "
            + " | ".join(cells)
            + " |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command of the module's text."""
    parser = argparse.ArgumentParser(
        prog="python -m d3s2.studies.ablation", description="Measure what each part of D3S2 adds."
    )
    parser.add_argument(
        "--work", type=Path, default=Path("runs/ablation"), help="folder of the sets and trainings"
    )
    parser.add_argument("--out", type=Path, default=REFERENCE, help="the CSV to write")
    parser.add_argument(
        "--arms",
        nargs="+",
        default=list(ARMS),
        choices=list(ARMS),
        metavar="ARM",
        help=", ".join(ARMS),
    )
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each arm")
    parser.add_argument("--distillations", type=int, default=2, help="generated sets of each arm")
    parser.add_argument(
        "--threads", type=int, default=0, help="CPU threads for sampling, 0 = all cores"
    )
    parser.add_argument(
        "--parallel", type=int, default=0, help="trainings side by side, 0 = one a core"
    )
    options = parser.parse_args(arguments)

    def work() -> None:
        settings = config.resolve(
            {"profile": "scenes", "jobs": options.parallel, "threads": options.threads},
            remember=False,
        )
        machine.set_threads(settings.threads)
        measure_arms(
            options.work, options.out, options.arms, options.seeds, options.distillations, settings
        )
        print(table(read_scores(options.out)[0]))

    return exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
