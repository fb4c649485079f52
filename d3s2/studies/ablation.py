"""What does each part of the method add? Many small trainings, and paired differences with their
uncertainty.

    python -m d3s2.studies.ablation --arms random balanced unguided d3s2 --seeds 5

Every *arm* is a way to get a training set. Each is trained once for each training seed with chapter
04's recipe, on a set of its own: seed s paints with noise of number s, and what draws masks draws
with number s. Arms of one seed therefore share their masks (those that draw, and those that
select), the noise of each mask, the starting weights, and the order of the batches: ids are always
handed over sorted. With `--distillations 2` seed s takes set s mod 2, which is cheaper, and says
less: the unit of an interval is a set (see `intervals`).

    python -m d3s2.studies.ablation --confirm "eta 1"

trains one arm and the default once more, with as many seeds that nobody has seen, into a file of
its own. `--show` measures nothing and prints the table of what is there. An interrupted call goes
on where it was. The numbers of several arms are committed in `reference/ablation.csv`, and appendix
A1 reads them.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from d3s2.core import machine
from d3s2.core.code_version import code_version
from d3s2.core.errors import D3S2Error, exit_code
from d3s2.core.files import digest, read_json, write_csv, write_json
from d3s2.core.long_work import Steps
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.folder import open_folder
from d3s2.data.held_out import open_test
from d3s2.data.splits import open_splits
from d3s2.guidance.losses import FeatureTargets, LossOptions
from d3s2.guidance.painting import Painter, Recipe, synthesise
from d3s2.guidance.quality import kept_class_losses
from d3s2.guidance.sampler import Guidance
from d3s2.methods.intervals import Measurement, read_measurement, table
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
COMMAND = "python -m d3s2.studies.ablation"
HEADER = ("arm", "seed", "distillation", "miou", "seconds_an_image", "split")
BOTH = {"segmentation": 0.1, "feature": 0.1}
DEFAULT = "d3s2"
FREEMASK = 1.25
"""FreeMask's margin: times a class's mean loss on real images."""


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
    ignore_margin: float = 0.0,
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
            ignore_margin=ignore_margin,
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
    "eta 1": _steered("both, with fresh noise at every step (eta 1)", eta=1.0),
    "eta 1 unguided": _steered("without guidance, with fresh noise at every step", {}, eta=1.0),
    "FreeMask filter": _steered(
        "both, pixels of high proxy loss ignored in training", ignore_margin=FREEMASK
    ),
    "unguided filter": _steered(
        "without guidance, pixels of high proxy loss ignored", {}, ignore_margin=FREEMASK
    ),
    "best of 4": _steered("both, the best of four tries a mask", candidates=4),
    "d3s2 x 4": _steered("both, four images of each mask: a set four times as large", images=4),
    "unguided x 4": _steered("without guidance, four images of each mask", {}, images=4),
    "random masks": _steered("both, for randomly drawn masks", masks="random"),
}


@dataclass
class Workshop:
    """The data, networks and rankings that all arms share; built from the profile's values once.

    judge: the split that trainings are judged on, "val" or "test".
    """

    settings: config.Settings
    work: Path
    judge: str = "val"
    train: SegmentationDataset = field(init=False)
    judged: SegmentationDataset = field(init=False)

    def __post_init__(self) -> None:
        self.train, val = open_splits(self.settings, progress=False)
        self.judged = val if self.judge == "val" else open_test(self.settings)
        self.size = budget_size(self.settings.budget, len(self.train))

    @cached_property
    def ranking(self) -> Ranking:
        """The greedy selection, made on first use: it counts every pixel of the training split."""
        counts = count_pixels(self.train, progress=False)
        matrix = presence(counts, self.settings.presence_threshold)
        weights = class_weights(counts.image_counts(), self.settings.beta)
        return greedy(matrix, weights, self.size, self.settings.delta)

    def masks(self, arm: Arm, number: int) -> np.ndarray:
        """int64[k]: which masks of the training split an arm takes for the set of this number."""
        ranking = random_ranking(len(self.train), number) if arm.masks == "random" else self.ranking
        return ranking.first(self.size)

    @cached_property
    def painter(self) -> Painter:
        """Who paints all arms, loaded on first use: real arms need none."""
        weights = self.settings.weights_folder
        device = machine.pick_device(self.settings.device)
        proxy = load_proxy(weights / "proxy", device)
        known = self.work / f"moments-{self._made_from('statistics.features')[:8]}.npz"
        if not known.is_file():
            feature_statistics(self.train, proxy, progress=False).save(known)
        targets = FeatureTargets.from_moments(ClassMoments.load(known), device)
        return Painter(load_generator(weights / "generator", device), proxy, targets)

    def _made_from(self, *modules: str) -> str:
        """Digest of the training data, the networks' weights, and the code of these modules."""
        weights = weights_digest(self.settings.weights_folder)
        return digest([self.train.fingerprint(), weights, code_version(*modules)])

    def distil(self, name: str, number: int) -> Path:
        """The folder of an arm's painted set of this number, made on first use, with its cost
        beside it.
        """
        folders = [self._paint(name, number, copy) for copy in range(ARMS[name].images)]
        if len(folders) == 1:
            return folders[0]
        return join_sets(folders, folders[0].with_name(folders[0].name + "-joined"))

    def _paint(self, name: str, number: int, copy: int) -> Path:
        """One image of each of the arm's masks; every copy from noise of its own."""
        arm = ARMS[name]
        recipe = replace(arm.recipe, seed=number + 1000 * copy)
        masks = self.masks(arm, number)
        decides = {
            "recipe": asdict(recipe),
            "masks": masks.tolist(),
            "made_from": self._made_from("guidance.painting"),
        }
        folder = self.work / "sets" / f"{name.replace(' ', '-')}-{number}-{digest(decides)[:8]}"
        if (folder / "cost.json").is_file():
            return folder
        painter = self.painter
        if recipe.ignore_margin:
            self._hand_over_class_losses(folder)
        missing = self.size - len(list(folder.glob("records/*.json")))
        began = time.perf_counter()
        synthesise(painter, self.train, masks, folder, recipe)
        seconds = (time.perf_counter() - began) / max(1, missing)
        write_json(folder / "cost.json", {"seconds_an_image": round(seconds, 3)})
        return folder

    def _hand_over_class_losses(self, folder: Path) -> None:
        """Put what the filter compares with into a set's folder: one pass over the data for all."""
        known = self.work / f"class-losses-{self._made_from('guidance.quality')[:8]}.json"
        kept_class_losses(self.painter.proxy, self.train, known)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(known, folder / "class_losses.json")

    def job(self, name: str, seed: int, number: int) -> TrainingJob:
        """The training of one arm with one seed, on the arm's set of this number.

        Ids are sorted, of real and of painted images alike: one seed's order of batches is then an
        order of the same masks.
        """
        arm = ARMS[name]
        real = str(self.train.root)
        root = real if arm.recipe is None else str(self.distil(name, number).resolve())
        if arm.recipe is None:
            ids = [self.train.ids[i] for i in self.masks(arm, number)]
        else:
            ids = list(open_folder(root, "train").ids)
        place = f"{name.replace(' ', '-')}-{seed}-of-{number}"
        return TrainingJob(
            name=f"{name} {seed}",
            train_root=root,
            val_root=real,
            num_classes=self.train.num_classes,
            work_dir=str(self.work / "training" / self.judge / place),
            train_ids=tuple(sorted(ids)),
            val_ids=self.judged.ids,
            val_split=self.judge,
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


@dataclass(frozen=True)
class Trainings:
    """Which trainings are made. distillations: sets of each arm that its seeds share, 0 = every
    seed has one of its own.
    """

    arms: Sequence[str]
    seeds: Sequence[int]
    distillations: int = 0

    def number(self, seed: int) -> int:
        """Which set (draw, noise) a seed is trained on."""
        return seed % self.distillations if self.distillations else seed


def measure_arms(
    work: Path, out: Path, plan: Trainings, settings: config.Settings, judge: str = "val"
) -> None:
    """Distil and train what is missing; write `out` (one line a training, see `HEADER`) and its
    facts after each seed, so that what is interrupted leaves complete pairs.

    Raises D3S2Error for an `out` that was measured in another way.
    """
    shop = Workshop(settings, work, judge)
    facts = {
        "images": shop.size,
        "iterations": settings.iterations,
        "batch_size": settings.batch_size,
        "validation_images": len(shop.judged),
        "distillations": plan.distillations or "one a seed",
        "split": judge,
    }
    rows = _earlier(out, facts)
    with Steps("trainings", len(plan.seeds) * len(plan.arms)) as steps:
        for seed in plan.seeds:
            rows |= _measure_seed(shop, plan, seed)
            _write(out, rows, facts)
            steps.add(len(plan.arms))


def _measure_seed(
    shop: Workshop, plan: Trainings, seed: int
) -> dict[tuple[str, int], list[object]]:
    """The rows of one seed: all its sets, then all its trainings side by side."""
    number = plan.number(seed)
    jobs = {name: shop.job(name, seed, number) for name in plan.arms}
    results = train_all(list(jobs.values()), shop.settings.jobs)
    rows: dict[tuple[str, int], list[object]] = {}
    for (name, job), result in zip(jobs.items(), results, strict=True):
        arm = ARMS[name]
        painted = arm.recipe is not None
        cost = Path(job.train_root) / "cost.json"
        varies = painted or arm.masks == "random"
        rows[name, seed] = [
            name,
            seed,
            number if varies else "",
            round(result.miou, 3),
            read_json(cost)["seconds_an_image"] if painted else "",
            shop.judge,
        ]
    return rows


def _earlier(out: Path, facts: Mapping[str, object]) -> dict[tuple[str, int], list[object]]:
    """The rows of a measurement before, which this one adds to; it must have been made in the same
    way.
    """
    if not out.is_file():
        return {}
    before = {"split": "val"} | read_json(out.with_suffix(".json"))
    other = [name for name, value in facts.items() if before.get(name) != value]
    if other:
        raise D3S2Error(
            f"{out} was measured with {other[0]} {before.get(other[0])}, now it is "
            f"{facts[other[0]]}: give another file with --out, or delete this one to begin anew."
        )
    with open(out, newline="", encoding="utf-8") as stream:
        kept = [row if len(row) == len(HEADER) else [*row, "val"] for row in csv.reader(stream)]
    return {(row[0], int(row[1])): list(row) for row in kept[1:]}


def _write(
    out: Path, rows: Mapping[tuple[str, int], list[object]], facts: Mapping[str, object]
) -> None:
    """The CSV with the arms in the order of `ARMS`, and beside it, as JSON, the command that makes
    all of it.
    """
    order = list(ARMS)
    places = sorted(rows, key=lambda place: (order.index(place[0]), place[1]))
    seeds = {seed for _, seed in places}
    command = f"{COMMAND} --seeds {max(seeds) - min(seeds) + 1}"
    if min(seeds):
        command += f" --seeds-from {min(seeds)}"
    if facts["distillations"] != "one a seed":
        command += f" --distillations {facts['distillations']}"
    if facts["split"] != "val":
        command += f" --split {facts['split']}"
    names = dict.fromkeys(name for name, _ in places)
    arms = " ".join(f"'{name}'" if " " in name else name for name in names)
    write_csv(out, [HEADER, *(rows[place] for place in places)])
    write_json(out.with_suffix(".json"), {"command": f"{command} --arms {arms}", **facts})


def read_scores(path: Path = REFERENCE) -> Measurement:
    """What was measured. Raises D3S2Error when it is missing."""
    return read_measurement(path, COMMAND)


def confirmation(path: Path = REFERENCE) -> Path:
    """Where the fresh seeds of a winner go, beside the measurement that it won."""
    return path.with_stem(path.stem + "-confirmed")


def _confirm(arm: str, options: argparse.Namespace) -> None:
    """Turn the options into those of a confirmation: this arm and the default, on seeds above all
    that the measurement has, into a file of its own. Raises D3S2Error without a measurement.
    """
    seen = {seed for scores in read_scores(options.out).scores.values() for seed in scores}
    options.arms = [DEFAULT, arm]
    options.seeds_from = max(options.seeds_from, max(seen) + 1)
    options.out = confirmation(options.out)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command of the module's text."""
    options = _parser().parse_args(arguments)

    def work() -> None:
        if options.confirm:
            _confirm(options.confirm, options)
        if options.show:
            print(table(read_scores(options.out), REFERENCES, options.arms))
        else:
            settings = config.resolve(
                {"profile": "scenes", "jobs": options.parallel, "threads": options.threads},
                remember=False,
            )
            machine.set_threads(settings.threads)
            seeds = range(options.seeds_from, options.seeds_from + options.seeds)
            plan = Trainings(options.arms, seeds, options.distillations)
            measure_arms(options.work, options.out, plan, settings, options.split)
            print(table(read_scores(options.out), REFERENCES))

    return exit_code(work)


REFERENCES = ("random", "balanced", "unguided", DEFAULT)
"""Arms that every other one is compared with."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description="Measure what each part of D3S2 adds."
    )
    option = parser.add_argument
    known = list(ARMS)
    option("--work", type=Path, default=Path("runs/ablation"), help="folder of sets and trainings")
    option("--out", type=Path, default=REFERENCE, help="the CSV to write")
    option("--arms", nargs="+", default=known, choices=known, metavar="ARM", help=", ".join(known))
    option("--seeds", type=int, default=5, help="trainings of each arm")
    option("--seeds-from", type=int, default=0, help="the first seed")
    option(
        "--distillations",
        type=int,
        default=0,
        help="sets of each arm that its seeds share; 0 = every seed has its own",
    )
    option("--split", choices=("val", "test"), default="val", help="what trainings are judged on")
    option(
        "--confirm",
        choices=[name for name in known if name != DEFAULT],
        metavar="ARM",
        help=f"train ARM and {DEFAULT} on seeds that --out has not seen, into a file beside it",
    )
    option("--show", action="store_true", help="measure nothing, print what --out holds of --arms")
    option("--threads", type=int, default=0, help="CPU threads for sampling, 0 = all cores")
    option("--parallel", type=int, default=0, help="trainings side by side, 0 = one a core")
    return parser


if __name__ == "__main__":
    sys.exit(main())
