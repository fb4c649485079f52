"""Every parameter at the lowest, the highest and the special values of its range, and outside of
it.

What is inside runs to the end, what is outside is refused in one sentence before the first
notebook.

A run of 00 to 04 takes a minute, so the corners of all parameters are shared out over the runs of
`RUNS`: each sets many at once, and each corner stands in one of them (a test asserts it). What no
small machine can run to its end (a million iterations, a GPU, Stable Diffusion) is in
`TAKEN`, with the reason: its value is resolved, and what it needs is asked for before the first
notebook. With D3S2_THOROUGH=1 each corner is also run alone, which takes an hour.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_scenes import small_scenes
from smoke_run import CELL_TIMEOUT

from d3s2.core.errors import D3S2Error
from d3s2.data.folder import read_classes
from d3s2.data.scenes import write_split
from d3s2.runs import config, runner
from d3s2.runs.parameters import FIELDS
from d3s2.runs.refusals import refuse_early
from d3s2.training.tracking import missing_tracker

NUMBERS = [name for name, entry in FIELDS.items() if entry.metadata["type"] is not str]
CHOICES = {name: entry.metadata["choices"] for name, entry in FIELDS.items()}


# --------------------------------------------------------------------------------------------- data
def write_folder(root: Path, masks: dict[str, list[np.ndarray]], classes: int) -> Path:
    """A data set of 40x50 pixels with these masks and photographs of noise; the last photograph of
    several is black.
    """
    rng = np.random.default_rng(0)
    for split, arrays in masks.items():
        for part in ("images", "labels"):
            (root / split / part).mkdir(parents=True)
        for number, labels in enumerate(arrays):
            photo = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
            photo = photo * 0 if number and number == len(arrays) - 1 else photo
            Image.fromarray(photo).save(root / split / "images" / f"{number}.png")
            Image.fromarray(labels).save(root / split / "labels" / f"{number}.png")
    rows = [f"{i},class {i},{40 * i},{9 * i},{255 - i}" for i in range(classes)]
    (root / "classes.csv").write_text("\n".join(["id,name,red,green,blue", *rows]) + "\n")
    return root


def halves(above: int, below: int) -> np.ndarray:
    """A mask of two classes with a border of ignored pixels."""
    labels = np.full((40, 50), above, np.uint8)
    labels[20:] = below
    labels[:2] = 255
    return labels


def one_of_all(root: Path) -> Path:
    """One image, one class, no ignored pixel; the same to validate."""
    mask = np.zeros((40, 50), np.uint8)
    return write_folder(root, {"train": [mask], "val": [mask]}, 1)


def odd(root: Path) -> Path:
    """Equal masks, one that is ignored throughout, a class that is nowhere (3), one only in the
    validation split (4), where one mask is ignored throughout and one holds nothing known.
    """
    ignored = np.full((40, 50), 255, np.uint8)
    train = [halves(0, 1), halves(0, 1), halves(2, 2), halves(0, 2), ignored]
    val = [halves(0, 1), np.full((40, 50), 4, np.uint8), ignored]
    return write_folder(root, {"train": train, "val": val}, 5)


def scenes(root: Path) -> Path:
    small_scenes(root, 24)
    write_split(root, "val", 6)
    return root


# --------------------------------------------------------------------------------------------- runs
@dataclass(frozen=True)
class Whole:
    """A run of 00 to 04 on a folder with these parameters, all others as in the profile smoke."""

    data: Callable[[Path], Path] | None
    values: dict[str, Any]


LEAST = {
    "data_format": "folder", "image_size": "16x16", "train_images": 1, "val_images": 1, "seed": 0,
    "threads": 1, "device": "cpu", "jobs": 1, "proxy_iterations": 1, "generator_iterations": 1,
    "feature_images": 1, "budget": 1, "beta": 0, "delta": 0.001, "presence_threshold": 0.0001,
    "steps": 1, "cfg_scale": 0, "lambda_seg": 0, "lambda_feat": 0.1, "window_start": 0,
    "window_end": 0, "jacobian": "detach", "sampling_batch": 1, "iterations": 1, "batch_size": 1,
    "train_seeds": 1, "full_iterations": 1, "gpus": 1, "out_of_memory": "stop",
    "control_scale": 0, "checkpointing": 0, "diffusion_model": "", "controlnet_model": "",
    "negative_prompt": "", "vae_memory": "whole", "precision": "float32", "method": "",
    "layout_control": "controlnet", "protocol": "squeezed", "training_precision": "float32",
    "strength": 0.001, "images_per_mask": 1, "guide_every": 1, "eta": 0, "judge_every": 0,
    "tracking": "none",
}  # fmt: skip
MOST = {
    "data_format": "folder", "image_size": "16x40", "train_images": 0, "val_images": 0,
    "seed": 2**31 - 1, "threads": 1024, "device": "auto", "jobs": 1024, "proxy_iterations": 7,
    "generator_iterations": 6, "feature_images": 10**9, "budget": 1.0, "beta": 1, "delta": 1000,
    "presence_threshold": 1, "steps": 4, "cfg_scale": 50, "lambda_seg": 1000, "lambda_feat": 1000,
    "window_start": 0, "window_end": 1, "jacobian": "full", "sampling_batch": 1024,
    "iterations": 2, "batch_size": 6, "train_seeds": 2, "full_iterations": 3,
    "out_of_memory": "halve", "control_scale": 2, "checkpointing": 1, "vae_memory": "tiling",
    "precision": "float16", "control_palette": "coco", "layout_control": "both",
    "protocol": "published", "training_precision": "bfloat16", "strength": 0.5,
    "images_per_mask": 2, "guide_every": 1000, "eta": 1, "judge_every": 1,
}  # fmt: skip
EMPTY = {
    "data_format": "folder", "train_images": 0, "val_images": 0, "threads": 0, "jobs": 0,
    "proxy_iterations": 7, "generator_iterations": 6, "budget": 2, "steps": 2, "lambda_seg": 0,
    "lambda_feat": 0, "window_start": 0.5, "window_end": 0.5, "iterations": 2,
    "vae_memory": "slicing", "precision": "bfloat16", "control_palette": "ade20k",
    "layout_control": "attention", "strength": 1, "images_per_mask": 3,
    "guide_every": 3, "eta": 0.5,
}  # fmt: skip
SPECIAL = {
    "profile": "smoke", "run_dir": "run", "data_format": "scenes", "data_root": "",
    "image_size": "64x64", "train_images": 5, "val_images": 2, "threads": 1,
    "feature_images": 0, "budget": 1e-9, "steps": 4, "cfg_scale": 1, "lambda_seg": 0.1,
    "lambda_feat": 0, "window_start": 1, "window_end": 1, "iterations": 2, "batch_size": 2,
    "full_iterations": 0, "generator": "embedded", "proxy_config": "",
    "proxy_checkpoint": "", "proxy_layers": "", "network": "scaled-down", "backbone_weights": "",
    "diffusion_revision": "", "controlnet_revision": "", "model_files": "local",
    "control_palette": "dataset", "judge_every": 10**7,
}  # fmt: skip
RUNS = {
    "least": Whole(one_of_all, LEAST),
    "most": Whole(odd, MOST),
    "empty": Whole(scenes, EMPTY),
    "special": Whole(None, SPECIAL),
}

LONG = "takes days"
TAKEN: dict[str, dict[Any, str]] = {
    "profile": dict.fromkeys(("scenes", "camvid", "ade20k", "cocostuff", "voc2012"), LONG),
    "data_format": dict.fromkeys(("camvid", "ade20k", "cocostuff", "voc2012", "voc2012aug"), LONG),
    "device": {"cuda": "needs a GPU"},
    "image_size": {"4096x4096": LONG},
    "proxy_iterations": {10**6: LONG},
    "generator_iterations": {10**6: LONG},
    "steps": {1000: LONG},
    "iterations": {10**6: LONG},
    "batch_size": {1024: "more than 64 GB"},
    "train_seeds": {100: LONG},
    "full_iterations": {10**7: LONG},
    "generator": {"stable-diffusion": "gigabytes of weights", "mine.models:paint": "your own"},
    "proxy_config": {"segformer/segformer_mit-b2_8xb2-160k_ade20k-512x512.py": "needs weights"},
    "model_files": {"download": "fetches"},
    "network": {"swin-s": "needs weights"},
    "training_precision": {"float16": "needs a GPU"},
    "gpus": {64: "needs the cores"},
    "images_per_mask": {100: LONG},
    "tracking": dict.fromkeys(("tensorboard", "wandb", "mlflow"), "needs its library"),
}
"""Values inside of the ranges that are not run to the end, and why."""


# -------------------------------------------------------------------------------------- what is run
def run(whole: Whole, folder: Path, **more: Any) -> tuple[list[str], Path]:
    """(The command that ran through, its run folder)."""
    values = {"profile": "smoke"} | whole.values | {"run_dir": folder / "run"} | more
    if whole.data:
        values["data_root"] = whole.data(folder / "mine")
    command = [sys.executable, "-m", "d3s2.runs.cli", "run"]
    for name, value in values.items():
        words = ["--profile", value] if name == "profile" else ["-p", f"{name}={value}"]
        command += map(str, words)
    done = start(command, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return command, folder / "run"


def start(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"D3S2_HOME": str(folder)}
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=CELL_TIMEOUT, check=False
    )


def table(run_dir: Path) -> list[tuple[Any, ...]]:
    rows = json.loads((run_dir / "report" / "results.json").read_text())["rows"]
    return [(row["set"], row["images"], row["iterations"]) for row in rows]


@pytest.mark.notebooks
def test_a_run_goes_to_its_end_and_trains_its_weights_once(tmp_path: Path) -> None:
    command, run_dir = run(RUNS["empty"], tmp_path)
    assert not (run_dir / "superseded").exists()
    for network, iterations in (("proxy", 7), ("generator", 6)):
        with open(run_dir / "weights" / network / "training_log.csv", newline="") as stream:
            assert list(csv.DictReader(stream))[-1]["iteration"] == str(iterations)
    small = [("random", 2, 2), ("balanced", 2, 2), ("d3s2", 6, 2)]  # three images of each mask
    assert table(run_dir) == [*small, ("full", 24, 2)]
    assert start(command, tmp_path).stdout.count("up to date") == 5


ENDS = {
    "least": [*[(name, 1, 1) for name in ("random", "balanced", "d3s2", "full", "full_long")]],
    "most": [
        *[("random", 5, 2), ("balanced", 5, 2), ("d3s2", 10, 2), ("full", 5, 2)],
        ("full_long", 5, 3),
    ],
    "special": [*[(name, 1, 2) for name in ("random", "balanced", "d3s2")], ("full", 5, 2)],
}


@pytest.mark.notebooks
@pytest.mark.parametrize("name", ENDS)
def test_a_run_of_many_corners_goes_to_its_end(tmp_path: Path, name: str) -> None:
    _, run_dir = run(RUNS[name], tmp_path)
    assert table(run_dir) == ENDS[name]
    words = (run_dir / "report" / "results.md").read_text()
    assert "Warning" not in words
    for path in (run_dir / "executed").glob("*.ipynb"):
        assert "RuntimeWarning" not in path.read_text(), path.name


def alone() -> list[tuple[str, str, Any]]:
    """(run, parameter, value) of every corner that is unlike the profile smoke's value."""
    usual = config.PROFILES["smoke"] | {"profile": "smoke"}
    return [
        (run, name, value)
        for run, whole in RUNS.items()
        for name, value in whole.values.items()
        if value != usual[name] and name not in ("run_dir", "data_format", "image_size")
    ]


@pytest.mark.notebooks
@pytest.mark.skipif(not os.environ.get("D3S2_THOROUGH"), reason="D3S2_THOROUGH=1 runs each alone")
@pytest.mark.parametrize(("data", "name", "value"), alone())
def test_every_corner_alone(tmp_path: Path, data: str, name: str, value: Any) -> None:
    quick = {"data_format": "folder", "proxy_iterations": 2, "generator_iterations": 2, "steps": 4}
    quick |= {"train_images": 0, "val_images": 0, "budget": 1, "iterations": 2, name: value}
    window = {"window_start": 0, "window_end": 1} | {name: value}
    shared = {"batch_size": 2} if name == "gpus" else {}
    run(Whole(RUNS[data].data or scenes, quick | window | shared), tmp_path)


# ------------------------------------------------------------------------------- the table is whole
def corners(name: str) -> set[Any]:
    """Values of a parameter that are run to the end, or taken."""
    run_to_the_end = {whole.values[name] for whole in RUNS.values() if name in whole.values}
    return run_to_the_end | TAKEN.get(name, {}).keys()


def test_every_parameter_and_every_corner_of_it_is_there() -> None:
    assert {name for whole in RUNS.values() for name in whole.values} == FIELDS.keys()
    assert TAKEN.keys() | OUTSIDE.keys() <= FIELDS.keys()
    for name in NUMBERS:
        meta = FIELDS[name].metadata
        assert meta["low"] in corners(name) or name == "budget", name
        assert meta["high"] is None or meta["high"] in corners(name), name
        assert name in OUTSIDE, name
    for name, choices in CHOICES.items():
        assert set(choices) <= corners(name), name
    for name in ("profile", "image_size"):
        assert name in OUTSIDE
    assert set(config.PROFILES) == corners("profile")


def test_what_is_too_long_to_run_is_taken(tmp_path: Path) -> None:
    for name, values in TAKEN.items():
        for value in values:
            fitting = {"batch_size": 64} if name == "gpus" else {}
            given = {"profile": "camvid", "run_dir": str(tmp_path), name: value} | fitting
            assert getattr(config.resolve(given, remember=False), name) == value


# ------------------------------------------------------------------------------------ just outside
BELOW_AND_ABOVE = {
    name: [
        *([] if meta["low"] is None else [meta["low"] - (1 if meta["type"] is int else 1e-6)]),
        *([] if meta["high"] is None else [meta["high"] + (1 if meta["type"] is int else 1e-6)]),
        *([] if meta["type"] is int else [float("nan"), float("inf"), float("-inf")]),
    ]
    for name, meta in ((name, FIELDS[name].metadata) for name in NUMBERS)
}
OUTSIDE: dict[str, list[Any]] = BELOW_AND_ABOVE | {
    "profile": ["smok", "Smoke"],
    "image_size": ["", "16", "15x16", "16x15", "4097x16", "16x4097", "0x0", "-16x16", "16.0x16"],
    "budget": [0, -1e-9, 1.5, float("nan"), float("inf")],
    "steps": [0, 1001, 3, 999],
    "window_start": [*BELOW_AND_ABOVE["window_start"], 0.81],
    "window_end": [*BELOW_AND_ABOVE["window_end"], 0.09],
    "delta": [0, *BELOW_AND_ABOVE["delta"]],
    "presence_threshold": [0, *BELOW_AND_ABOVE["presence_threshold"]],
    "gpus": [*BELOW_AND_ABOVE["gpus"], 3],  # which do not share a batch of 4
}
OUTSIDE |= {name: ["", "else"] for name, choices in CHOICES.items() if choices}
OUTSIDE["generator"] += ["mine:", ":paint", "mine.paint", "mine/models:paint", "mine:paint()"]
BY_DATA = {
    "train_images": [6],
    "val_images": [4],
    "budget": [6, 5.5],
    "image_size": ["17x32", "32x20"],
    "data_root": ["", "/nowhere"],
    "device": [] if os.environ.get("CUDA_VISIBLE_DEVICES") else ["cuda"],
    "generator": ["stable-diffusion"],
    "proxy_config": ["nowhere.py", *TAKEN["proxy_config"]],
    "network": ["swin-s"],
    "training_precision": [] if os.environ.get("CUDA_VISIBLE_DEVICES") else ["float16"],
    "tracking": [name for name in TAKEN["tracking"] if missing_tracker(name)],
}
"""Values that other values, or a machine without a GPU and models, make impossible."""


def cases(table: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(name, value) for name, values in table.items() for value in values]


@pytest.fixture(scope="module")
def odd_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return odd(tmp_path_factory.mktemp("odd") / "mine")


@pytest.fixture
def given(tmp_path: Path, odd_data: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Parameters that are taken."""
    monkeypatch.setenv("D3S2_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    places = {"data_root": str(odd_data), "run_dir": str(tmp_path / "run")}
    return {
        "profile": "smoke",
        "data_format": "folder",
        "train_images": 0,
        "val_images": 0,
    } | places


@pytest.mark.parametrize(("name", "value"), cases(OUTSIDE))
def test_just_outside_is_refused_by_a_sentence(
    given: dict[str, Any], name: str, value: Any
) -> None:
    with pytest.raises(D3S2Error) as caught:
        config.resolve(given | {name: value}, remember=False)
    sentence = str(caught.value)
    assert name in sentence and str(value) in sentence and "\n" not in sentence


@pytest.mark.parametrize(("name", "value"), cases(BY_DATA))
def test_what_the_data_or_the_machine_does_not_have_is_refused_before_the_first_notebook(
    given: dict[str, Any], name: str, value: Any
) -> None:
    refuse_early(config.resolve(given, remember=False))
    with pytest.raises(D3S2Error) as caught:
        refuse_early(config.resolve(given | {name: value}, remember=False))
    first, *listed = str(caught.value).splitlines()  # one sentence, or a list of them
    assert not listed or (first.endswith("stop for:") and all(x.startswith("- ") for x in listed))
    assert (
        not Path(given["run_dir"]).exists()
        and not (Path(given["run_dir"]).parent / "home").exists()
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_run_is_refused_where_nothing_has_a_class(
    given: dict[str, Any], tmp_path: Path, split: str
) -> None:
    ignored, some = np.full((40, 50), 255, np.uint8), halves(0, 1)
    masks = {"train": [some, some], "val": [some]} | {split: [ignored, ignored]}
    root = write_folder(tmp_path / "ignored", masks, 2)
    with pytest.raises(D3S2Error, match=f"no mask of ignored/{split} has a pixel of a class"):
        runner.run(given | {"data_root": str(root)})
    assert not Path(given["run_dir"]).exists()


def test_scenes_have_one_size(tmp_path: Path) -> None:
    with pytest.raises(D3S2Error, match=r"image_size is '64x65' but scenes are drawn at 64x64"):
        config.resolve({"profile": "smoke", "image_size": "64x65", "run_dir": str(tmp_path)})


def test_the_odd_data_is_odd(odd_data: Path) -> None:
    assert len(read_classes(odd_data / "classes.csv")[0]) == 5
