"""`d3s2 rehearse`: what stands in, what is short, and that each real profile gets to its end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from d3s2.core.errors import D3S2Error
from d3s2.core.places import notebooks_folder
from d3s2.data.benchmarks import FORMATS
from d3s2.data.dataset import IGNORE
from d3s2.data.miniatures import CLASSES, write_miniature
from d3s2.data.opening import open_dataset
from d3s2.models.mmseg_proxy import load_mmseg_proxy
from d3s2.models.stable_diffusion import DiffusionOptions, load_stable_diffusion
from d3s2.models.stand_ins import write_checkpoint, write_diffusion
from d3s2.runs import cli, config, rehearsal, runner
from d3s2.runs.model_choice import choose_models
from d3s2.runs.network_choice import missing_backbone
from d3s2.runs.profiles import PROFILES

REAL = ("ade20k", "cocostuff", "voc2012")


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("D3S2_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "home"


@pytest.mark.filterwarnings("ignore:.*instead of")
@pytest.mark.parametrize("data_format", FORMATS)
def test_a_miniature_is_read_as_the_benchmark_it_stands_for(
    tmp_path: Path, data_format: str
) -> None:
    write_miniature(data_format, tmp_path, train=5, val=3, size=(30, 40))
    train, val = (open_dataset(data_format, tmp_path, split) for split in ("train", "val"))
    assert (len(train), len(val)) == (5, 3)
    assert not {*train.ids} & {*val.ids}
    seen = set()
    for dataset in (train, val):
        for index in range(len(dataset)):
            labels = dataset.read_labels(index)
            assert dataset.read_image(index).shape == (30, 40, 3) and (labels == IGNORE).any()
            seen |= {int(value) for value in set(labels.flat) - {IGNORE}}
    assert 3 < len(seen) <= CLASSES and max(seen) < train.num_classes


def test_a_miniature_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(D3S2Error, match="data_format is 'scenes': choose ade20k"):
        write_miniature("scenes", tmp_path)


def test_the_stand_in_has_just_the_files_that_are_asked_for_and_version_15s_schedule(
    tmp_path: Path,
) -> None:
    options = DiffusionOptions(*write_diffusion(tmp_path), precision="float32")
    for source in options.sources():
        for path in Path(source.place).rglob("*.*"):
            name = path.relative_to(source.place).as_posix()
            assert path.is_dir() or any(fnmatch(name, one) for one in source.patterns()), name
    names = [f"class {number}" for number in range(5)]
    colors = torch.randint(0, 256, (5, 3), dtype=torch.uint8).numpy()
    generator = load_stable_diffusion(options, names, colors)
    assert generator.scheduler.config.steps_offset == 1
    assert not generator.scheduler.config.set_alpha_to_one
    assert generator.noise_shape(64, 128) == (4, 8, 16)
    with pytest.raises(D3S2Error, match="multiples of 64"):
        generator.noise_shape(96, 64)
    layout = torch.randint(0, 5, (1, 64, 64))
    z = torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        there = generator.unet(z, torch.tensor(801), layout, torch.ones(1, 5))
        other = generator.unet(z, torch.tensor(801), layout.flip(2), torch.ones(1, 5))
    assert not torch.equal(there, other)  # the ControlNet says something


@pytest.mark.processes
def test_a_checkpoint_of_a_part_is_that_part_alone(tmp_path: Path) -> None:
    name = PROFILES["voc2012"]["proxy_config"]
    whole = write_checkpoint(name, tmp_path / "whole.pth")
    load_mmseg_proxy(name, whole, num_classes=21)
    part = torch.load(write_checkpoint(name, tmp_path / "part.pth", "backbone"))["state_dict"]
    assert set(torch.load(whole)["state_dict"]) >= {f"backbone.{key}" for key in part} and part


@pytest.mark.processes
@pytest.mark.parametrize("profile", REAL)
def test_what_is_missing_is_stood_in_for_and_said(own_home: Path, profile: str) -> None:
    found = rehearsal.prepare({"profile": profile})
    assert len(found.stand_ins) == 4
    settings = config.resolve(found.names, remember=False)
    assert settings.data_format == profile and settings.network == "swin-s"
    assert settings.precision == PROFILES[profile]["precision"]
    assert not missing_backbone(settings)
    assert not [line for one in choose_models(settings).pretrained.values() for line in one.check()]
    made = {path: path.stat().st_mtime_ns for path in (own_home / "data").rglob("*")}
    again = rehearsal.prepare({"profile": profile})
    assert again == found
    # nothing is made twice: a rehearsal that stopped goes on
    assert {path: path.stat().st_mtime_ns for path in (own_home / "data").rglob("*")} == made
    mine = rehearsal.prepare({"profile": profile, "steps": 5, "data_root": str(own_home)})
    assert mine.names["steps"] == 5 and mine.names["data_root"] == str(own_home)
    assert len(mine.stand_ins) == 3


def test_a_run_says_all_that_is_missing_before_it_makes_anything(
    own_home: Path, tmp_path: Path
) -> None:
    names = {"profile": "ade20k", "run_dir": str(tmp_path / "run"), "device": "cpu"}
    with pytest.raises(D3S2Error) as caught:
        runner.run(names)
    said = str(caught.value)
    for words in (
        "name it with -p data_root",
        "fetch ade20k",
        "stable-diffusion-v1-5",
        "control_v11p_sd15_seg",
        "the proxy's checkpoint",
        "the ImageNet weights of Swin-S",
    ):
        assert words in said
    listed = [line for line in said.splitlines() if line.startswith("- ")]
    short = [line for line in listed if "(estimated)" in line]  # of a machine with too small a disk
    assert len(listed) - len(short) == 5 and not (tmp_path / "run").exists()
    if not torch.cuda.is_available():
        with pytest.raises(D3S2Error, match="sees no GPU"):
            runner.run(names | {"device": "cuda"})
    with pytest.raises(D3S2Error, match=r"stop for:(.|\n)*nowhere"):
        runner.run(names | {"data_root": str(tmp_path / "nowhere")})


def test_what_the_run_fetches_itself_is_not_missing(own_home: Path, tmp_path: Path) -> None:
    names = {"profile": "ade20k", "device": "cpu", "model_files": "download"}
    with pytest.raises(D3S2Error) as caught:
        runner.run(names)
    said = str(caught.value)
    assert "stable-diffusion" not in said and "the proxy's checkpoint" in said


@pytest.mark.processes
def test_a_run_that_nothing_stops_says_first_what_it_will_take(
    own_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.say_estimate({"profile": "scenes"})
    assert not capsys.readouterr().out
    cli.say_estimate(rehearsal.prepare({"profile": "voc2012"}).names)
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("estimate, not a measurement")
    first_words = [line.split()[0] for line in said[1:]]
    parts = ["preparing", "statistics", "painting", "trainings", "together"]
    assert first_words == ["to", "disk", *parts]


@pytest.mark.notebooks
@pytest.mark.parametrize("profile", REAL)
def test_every_notebook_of_a_real_profile_is_rehearsed(tmp_path: Path, profile: str) -> None:
    """To the table where it is the first; the others, whose trainings differ in the number of
    classes alone, to the painted set.
    """
    words = [sys.executable, "-m", "d3s2.runs.cli", "rehearse", "--profile", profile]
    is_whole = profile == REAL[0] or os.environ.get("D3S2_THOROUGH") == "1"
    if not is_whole:
        (tmp_path / "notebooks").mkdir()
        for notebook in sorted(notebooks_folder().glob("0[0-3]*.ipynb")):
            shutil.copy(notebook, tmp_path / "notebooks")
        words += ["--notebooks", str(tmp_path / "notebooks")]
    words += ["-p", "iterations=2"]  # of the 20 that it takes otherwise: minutes on one core
    done = subprocess.run(
        words,
        env=os.environ | {"D3S2_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rehearsed to the end: 4 parts stood in" in done.stdout
    folder = tmp_path / "runs" / f"rehearse-{profile}"
    assert len(list((folder / "distilled").rglob("*.png"))) >= 3
    assert len(list((folder / "training").glob("*/model.safetensors"))) == (4 if is_whole else 0)
