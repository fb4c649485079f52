"""How good are the painted images? Numbers for every way of painting, and for the photographs.

    python -m d3s2.studies.images --work runs/images --arms unguided d3s2 --images 200

Paints the masks of the val split, which neither the generator nor the proxy has seen, and holds the
images against the photographs of these masks:

* Fréchet distance between features of the proxy, and of the judge: a second segmenter, of other
  widths and from another seed, that never guides;
* how often a small classifier tells painted from real (0.5 = it cannot);
* pixel agreement and class-mean recall, by the proxy and by the judge.

With `--teach N`, also what the images of the arms of `--teachers` and the photographs teach: the
mIoU on val of a small segmenter trained on paintings of N train masks, beside that of the same
trained on their photographs. All of it is our choice.
"""

from __future__ import annotations

import argparse
import csv
import functools
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from d3s2.core import machine
from d3s2.core.errors import D3S2Error, exit_code
from d3s2.core.files import digest, read_json, write_csv, write_json
from d3s2.core.places import EMBEDDED_WEIGHTS
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.folder import open_folder
from d3s2.data.splits import open_splits
from d3s2.data.tensors import read_images
from d3s2.guidance.losses import FeatureTargets
from d3s2.guidance.painting import Painter, Recipe, synthesise
from d3s2.guidance.quality import recognition
from d3s2.methods.embeddings import pooled_features
from d3s2.models.fitting import Schedule
from d3s2.models.load import JUDGE, digest_of, load_generator, load_proxy
from d3s2.models.pretraining import train_proxy
from d3s2.models.proxy import ProxySegmenter
from d3s2.runs import config
from d3s2.statistics.features import ClassMoments, feature_statistics
from d3s2.studies import ablation
from d3s2.studies.likeness import frechet_distance, told_apart
from d3s2.training.evaluation import confusion, mean_iou

REFERENCE = Path(__file__).parent / "reference" / "images.csv"
HEADER = (
    "arm",
    "images",
    "frechet_proxy",
    "frechet_judge",
    "told_apart",
    "proxy_pixels",
    "proxy_recall",
    "judge_pixels",
    "judge_recall",
    "seconds_an_image",
    "taught_with",
    "taught",
)
TAUGHT = 2
"""How many columns at the end are about teaching."""
PHOTOGRAPHS = "photographs"
OTHER_PHOTOGRAPHS = "photographs of train"
"""A second sample of the real: what a perfect painter's Fréchet distance would be."""
ARMS: dict[str, Recipe] = {
    name: ablation.ARMS[name].recipe
    for name in (
        "unguided",
        "eta 1 unguided",
        "segmentation",
        "feature",
        "half strength",
        "d3s2",
        "eta 1",
        "every step",
    )
}
"""Ways of painting, as the ablation has and trains them."""
TEACHING = Schedule(iterations=2000, learning_rate=2e-3)
TEACHING_CHANNELS = (24, 48, 72, 96)


@dataclass(frozen=True)
class Desk:
    """What all measurements share."""

    train: SegmentationDataset
    real: SegmentationDataset
    val: SegmentationDataset
    painter: Painter
    judge: ProxySegmenter
    work: Path


def set_up(work: Path, generator: Path, images: int, device: str = "cpu") -> Desk:
    """The embedded scenes, networks and statistics; generator: the folder of the one to judge."""
    settings = config.resolve({"profile": "scenes"}, remember=False)
    train, val = open_splits(settings, progress=False)
    if not 4 <= images <= len(val):
        raise D3S2Error(f"images is {images}: val has {len(val)} masks, 4 at least are asked.")
    proxy = load_proxy(EMBEDDED_WEIGHTS / "proxy", device)
    known = work / "moments.npz"
    if not known.is_file():
        work.mkdir(parents=True, exist_ok=True)
        feature_statistics(train, proxy, progress=False).save(known)
    targets = FeatureTargets.from_moments(ClassMoments.load(known), device)
    painter = Painter(load_generator(generator, device), proxy, targets)
    judge = load_proxy(EMBEDDED_WEIGHTS / JUDGE, device)
    work = work / digest_of({"generator": generator})[:8]
    return Desk(train, val.subset(range(images)), val, painter, judge, work)


def measure(desk: Desk, arm: str, teach: int = 0) -> list[object]:
    """One row of the table (`HEADER`) for an arm of `ARMS`, or for either set of photographs.

    teach: how many train masks are painted to train a segmenter on, 0 = none.
    """
    seconds: float | str = ""
    if arm in ARMS:
        shown, seconds = paint(desk, arm, desk.real)
    elif arm == PHOTOGRAPHS:
        shown = desk.real
    else:
        shown = desk.train.subset(range(len(desk.real)))
    row: list[object] = [arm, len(shown)]
    for network in (desk.painter.proxy, desk.judge):
        pair = (shown, desk.real)
        features = [pooled_features(images, network, progress=False) for images in pair]
        row.append(float(f"{frechet_distance(*features):.4g}"))
    apart = round(told_apart(desk.real, shown)[0], 3) if arm in ARMS else ""
    row.append(apart)
    for network in (desk.painter.proxy, desk.judge):
        row += [round(share, 4) for share in recognition(network, shown)]
    return [*row, seconds, *([teach, taught(desk, arm, teach)] if teach else ["", ""])]


def paint(desk: Desk, arm: str, masks: SegmentationDataset) -> tuple[SegmentationDataset, float]:
    """(paintings of these masks in the order of the masks, seconds an image); made on first use, a
    painting that was broken off goes on.
    """
    name = digest([arm, masks.split, masks.ids])[:8]
    folder = desk.work / f"{arm.replace(' ', '-')}-{name}"
    if not (folder / "cost.json").is_file():
        began = time.perf_counter()
        synthesise(desk.painter, masks, range(len(masks)), folder, ARMS[arm])
        seconds = (time.perf_counter() - began) / len(masks)
        write_json(folder / "cost.json", {"seconds_an_image": round(seconds, 3)})
    painted = open_folder(folder, "train")
    places = {name: number for number, name in enumerate(painted.ids)}
    ordered = painted.subset([places[name] for name in masks.ids])
    return ordered, read_json(folder / "cost.json")["seconds_an_image"]


# ----------------------------------------------------------------------------- what images teach
def taught(desk: Desk, arm: str, masks: int) -> float:
    """mIoU on val, in percent, of a small segmenter trained on an arm's images of the first train
    masks; for photographs on these themselves.
    """
    real = desk.train.subset(range(masks))
    shown = paint(desk, arm, real)[0] if arm in ARMS else real
    folder = desk.work / f"taught-{digest([arm, masks])[:8]}"
    network = train_proxy(shown, folder, TEACHING, print, channels=TEACHING_CHANNELS)
    return round(segmenter_miou(network, desk.val), 2)


@torch.no_grad()
def segmenter_miou(network: ProxySegmenter, dataset: SegmentationDataset) -> float:
    """mIoU in percent of a segmenter on a data set."""
    matrix = np.zeros((dataset.num_classes, dataset.num_classes), dtype=np.int64)
    for index in range(len(dataset)):
        predicted = network(read_images(dataset, [index])).logits.argmax(1)[0].numpy()
        matrix += confusion(predicted, dataset.read_labels(index), dataset.num_classes)
    return mean_iou(matrix)


# ------------------------------------------------------------------------------------ the table
def write_rows(out: Path, rows: Sequence[Sequence[object]], facts: Mapping[str, object]) -> None:
    """Add rows to the table, each in the place of an earlier one of its arm, and say beside it how
    it was made. A row that was not taught keeps what the earlier one was. Raises D3S2Error where
    the table there was made otherwise.
    """
    earlier: dict[str, Sequence[object]] = {}
    if out.is_file():
        before = read_json(out.with_suffix(".json"))
        if other := [name for name, value in facts.items() if before.get(name) != value]:
            raise D3S2Error(
                f"{out} was measured with {other[0]} {before.get(other[0])}, now it is "
                f"{facts[other[0]]}: give another file with --out, or delete this one."
            )
        with open(out, newline="", encoding="utf-8") as stream:
            earlier = {row[0]: row for row in list(csv.reader(stream))[1:]}
    table = dict(earlier)
    for row in rows:
        arm = str(row[0])
        untaught = row[-1] == "" and arm in earlier
        table[arm] = [*row[:-TAUGHT], *earlier[arm][-TAUGHT:]] if untaught else row
    write_csv(out, [HEADER, *table.values()])
    write_json(out.with_suffix(".json"), dict(facts))


def _command(options: argparse.Namespace) -> None:
    machine.set_threads(options.threads)
    desk = set_up(options.work, options.generator, options.images)
    facts = {
        "command": f"python -m d3s2.studies.images --images {options.images}",
        "generator": digest_of({"generator": options.generator}),
        "masks": f"the first {options.images} of val",
    }
    teachers = {PHOTOGRAPHS, *(options.arms if options.teachers is None else options.teachers)}
    for arm in [PHOTOGRAPHS, OTHER_PHOTOGRAPHS, *options.arms]:
        row = measure(desk, arm, options.teach if arm in teachers else 0)
        print(*row, sep="  ", flush=True)
        write_rows(options.out, [row], facts)


def main(arguments: list[str] | None = None) -> int:
    """The command of the module's text; 0, or 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m d3s2.studies.images", description="Judge painted images by numbers."
    )
    parser.add_argument("--work", type=Path, default=Path("runs/images"))
    parser.add_argument("--out", type=Path, default=REFERENCE)
    parser.add_argument("--generator", type=Path, default=EMBEDDED_WEIGHTS / "generator")
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--teach", type=int, default=0, help="train masks to teach with; 0 = none")
    parser.add_argument(
        "--teachers", nargs="+", choices=list(ARMS), help="arms that teach; all of --arms if unsaid"
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0 = all cores")
    return exit_code(functools.partial(_command, parser.parse_args(arguments)))


if __name__ == "__main__":
    sys.exit(main())
