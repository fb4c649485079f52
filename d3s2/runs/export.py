"""Results for use without d3s2: a distilled set as an image folder with a configuration that trains
on it, a trained Mask2Former as configuration and checkpoint.

    d3s2 export runs/scenes --to my-set                               the set of a run
    d3s2 export runs/scenes/compare/sets/… --to my-set                a set that d3s2 compare made
    d3s2 export runs/scenes --training balanced-0 --to my-model       a training of a run

The target is made whole or not at all, and nothing that lies there is written over. What needs
mmsegmentation is imported last: what is wrong is said before those seconds.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from d3s2 import __version__
from d3s2.core.errors import D3S2Error
from d3s2.core.files import explained, read_json, remove_abandoned, write_json, write_text
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.folder import open_folder, write_image_folder
from d3s2.data.preparing import materialise
from d3s2.models.plain_config import require_plain_types
from d3s2.runs import config
from d3s2.runs.dataset_card import dataset_card
from d3s2.runs.network_choice import training_network
from d3s2.runs.parameters import Settings
from d3s2.runs.stages import IN_PROGRESS, Stage
from d3s2.training.job import CONFIG, FINISHED, WEIGHTS, TrainingJob, read_result

CARD = "card.json"
README = "README.md"
TRAINS = "mmseg_config.py"
OPENS = "config.py"
CHECKPOINT = "checkpoint.pth"


# ------------------------------------------------------------------------------------ what is there
def is_run(folder: Path) -> bool:
    """Whether a folder is that of a run."""
    return (folder / config.RUN_FILE).is_file()


def find_set(source: Path) -> Path:
    """The folder of the distilled set: of a run, or `source` itself.

    Raises D3S2Error for what is no folder, a run whose set is missing, unfinished or damaged, and a
    folder that holds no finished set.
    """
    _require_folder(source)
    if is_run(source):
        return Stage.find(source, "distilled").folder
    if (source / CARD).is_file() and not (source / IN_PROGRESS).is_file():
        return source
    raise D3S2Error(
        f"{source} holds no finished distilled set (no {config.RUN_FILE} of a run, no {CARD} of a "
        "set): name the folder of a run that has gone through notebook 03, or of a set that d3s2 "
        "compare made."
    )


def find_training(source: Path, name: str) -> Path:
    """The folder of a training: of a run by its name, or without a name `source` itself.

    Raises D3S2Error for a training that there is not, naming those there are.
    """
    _require_folder(source)
    folder = source / "training" / name if name else source
    if not folder.is_dir():
        there = sorted(path.parent.name for path in (source / "training").glob(f"*/{FINISHED}"))
        known = f"there are {', '.join(there)}" if there else "it has none: run notebook 04 first"
        raise D3S2Error(f"{source} has no training {name!r}: {known}.")
    return folder


def is_training(source: Path) -> bool:
    """Whether a folder is that of one training."""
    return (source / FINISHED).is_file()


def settings_of(source: Path, names: Mapping[str, Any], were_given: bool) -> Settings:
    """What says how a network is trained on a set: of a run its own parameters, of a set the given
    ones.

    Raises D3S2Error for parameters that are given beside a run.
    """
    if not is_run(source):
        return config.resolve(names, remember=False)
    if were_given:
        raise D3S2Error(
            f"{source} is a run and has parameters of its own: --profile, -f and -p are for the "
            "folder of a set; leave them away."
        )
    return config.resolve({"run_dir": str(source)})


def _require_folder(source: Path) -> None:
    if not source.is_dir():
        raise D3S2Error(
            f"{source} is no folder: name that of a run, of a distilled set or of a training."
        )


# ------------------------------------------------------------------------------------ what is made
def export_set(source: Path, target: Path, settings: Settings) -> Path:
    """Write the distilled set of `source` into the folder `target`: images and masks as 8-bit PNG
    of train ids, `train/metadata.jsonl`, the card, and the configuration of a training on them.

    Returns the target. Raises D3S2Error for everything `find_set` and the readers of images find, a
    target that is not empty or lies in the set, and a full disk.
    """
    folder = find_set(source)
    card = read_json(folder / CARD)
    if not isinstance(card, dict):
        raise D3S2Error(f"{folder / CARD} is no card of a set: make the set again.")
    dataset = open_folder(folder, "train")
    with _whole(target, folder) as partial:
        made = materialise(dataset, partial)
        write_image_folder(partial / "train", made.ids)
        height, width, _ = made.read_image(0).shape

        from d3s2.training.plain_training import as_python, training_config, words_of

        job = _job(settings, made, (height, width))
        names = training_config(job, made.class_names, made.palette)
        write_text(partial / TRAINS, as_python(names, words_of(job)))
        write_json(partial / CARD, card)
        write_text(partial / README, dataset_card(card, made, (height, width)))
    return target


def export_training(source: Path, name: str, target: Path) -> Path:
    """Write a finished training as `config.py` and `checkpoint.pth`, which mmsegmentation's
    `init_model` opens, into the folder `target`.

    name: of a run's training, or "" where `source` is the training's own folder. Returns the
    target. Raises D3S2Error for everything `find_training` finds, a training that is not finished
    or was damaged, one of one class, whose answers mmsegmentation's own head cannot give, a
    configuration that is missing or names strange code, a target that is not empty or lies in the
    training, and a full disk.
    """
    folder = find_training(source, name)
    result = read_result(folder)
    found = _configuration(folder)
    if len(found["dataset_meta"]["classes"]) == 1:
        raise D3S2Error(
            f"The training in {folder} knows one class, for which mmsegmentation's own head gives "
            "no answer: open it with d3s2."
        )
    words = (
        f"A Mask2Former that d3s2 {__version__} trained: {result.train_images} images, "
        f"{result.iterations} iterations, validation mIoU {result.miou:.1f} %.\n"
        f"mmseg.apis.init_model({OPENS!r}, {CHECKPOINT!r}, device='cpu') opens it.\n"
        "mmcv needs its compiled operations (MultiScaleDeformableAttention)."
    )
    with _whole(target, folder) as partial:
        from d3s2.training.plain_training import as_python, write_checkpoint_pth

        write_text(partial / OPENS, as_python(found, words))
        meta = {"dataset_meta": found["dataset_meta"], "d3s2_version": __version__}
        write_checkpoint_pth(folder / WEIGHTS, partial / CHECKPOINT, meta)
    return target


def _configuration(folder: Path) -> dict[str, Any]:
    """What a training's `mmseg.json` holds. Raises D3S2Error for another file than it was."""
    path = folder / CONFIG
    if not path.is_file():
        raise D3S2Error(
            f"{path} is missing: a training of an earlier version of d3s2, which is to be made "
            "again, or one of another network than Mask2Former, which cannot be exported."
        )
    found = read_json(path)
    try:
        whole = found["model"]["decode_head"]["num_classes"] == len(
            found["dataset_meta"]["classes"]
        )
    except (KeyError, TypeError):
        whole = False
    if not whole:
        raise D3S2Error(f"{path} is not what the training wrote: train it again.")
    require_plain_types(found)
    return found


def _job(settings: Settings, dataset: SegmentationDataset, size: tuple[int, int]) -> TrainingJob:
    """The training of chapter 04 on these images, in one process."""
    return TrainingJob(
        name="plain",
        train_root="",
        val_root="",
        num_classes=dataset.num_classes,
        work_dir="",
        iterations=settings.iterations,
        batch_size=settings.batch_size,
        seed=settings.seed,
        size=size,
        device="cuda" if settings.device == "cuda" else "cpu",
        **training_network(settings) | {"processes": 1},
    )


@contextmanager
def _whole(target: Path, source: Path) -> Iterator[Path]:
    """A folder to write in, which becomes `target` once the block has ended well. On an exception
    nothing is left of it; what a killed process left is removed by the next one.

    Raises D3S2Error for a target that is there and not an empty folder, one inside of `source`,
    whose files are counted, and one that cannot be made.
    """
    target = target.resolve()
    if target.is_relative_to(source.resolve()):
        raise D3S2Error(f"{target} lies in what is exported: choose a folder elsewhere with --to.")
    if target.exists() and not target.is_dir():
        raise D3S2Error(f"{target} is a file: choose a new folder with --to.")
    partial = _room(target)
    try:
        with explained(target):
            yield partial
            os.sync()  # what the images' own writes left to the system
            if target.is_dir():  # perhaps a disk of its own, which nothing can take the place of
                for path in sorted(partial.iterdir()):
                    os.replace(path, target / path.name)
            else:
                os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _room(target: Path) -> Path:
    """A new folder on the target's disk; what a killed process left there is removed."""
    short = hashlib.sha256(target.name.encode(errors="surrogateescape")).hexdigest()[:12]
    room = target if target.is_dir() else target.parent
    partial = room / f".{short}.{os.getpid()}.part"
    try:
        room.mkdir(parents=True, exist_ok=True)
        remove_abandoned(room, f".{short}.*.part")
        if room == target and any(target.iterdir()):
            raise D3S2Error(f"{target} is not empty: choose a new folder with --to.")
        partial.mkdir()
    except OSError as error:
        raise D3S2Error(
            f"{target} cannot be made ({error.strerror}): choose another folder with --to."
        ) from error
    return partial
