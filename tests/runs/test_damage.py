"""Damage to any one file of a finished run is found, the file is remade with the same bytes, and
what was damaged never comes back.
"""

from __future__ import annotations

import json
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from short_run import ShortRun, short_notebooks
from training_jobs import write_finished_training, write_splits

from d3s2.core.errors import D3S2Error
from d3s2.core.files import read_json, write_json
from d3s2.data.splits import open_splits
from d3s2.models.load import weights_digest
from d3s2.runs import config, runner
from d3s2.runs.notebooks import read_chapters
from d3s2.runs.stages import MANIFEST, Stage, verify
from d3s2.runs.weights import ensure_weights
from d3s2.training.job import FINISHED, PREDICTIONS, RESULT, WEIGHTS, finished_key

STAGES = ("statistics", "selection", "distilled", "training", "report")


def flipped(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def truncated(path: Path, rng: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: rng.randrange(path.stat().st_size)])


def deleted(path: Path, _: random.Random) -> None:
    path.unlink()


DAMAGE: tuple[Callable[[Path, random.Random], None], ...] = (flipped, truncated, deleted)


@contextmanager
def damaged(path: Path, kind: Callable, rng: random.Random) -> Iterator[None]:
    good = path.read_bytes()
    kind(path, rng)
    try:
        yield
    finally:
        path.write_bytes(good)


def each_byte(path: Path) -> Iterator[bytes]:
    """The file's bytes with a bit of each byte flipped, written there one after the other."""
    good = path.read_bytes()
    for place in range(len(good)):
        flip = bytes([good[place] ^ 1 << place % 8])
        path.write_bytes(good[:place] + flip + good[place + 1 :])
        yield path.read_bytes()
    path.write_bytes(good)


# ----------------------------------------------------------------------------------- every byte
def test_every_byte_of_a_manifest_counts(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "x", {"a": 1}, external={"data": "1"})
    folder = stage.begin()
    for name in "ab":
        write_json(folder / f"{name}.json", name)
    stage.finish()
    for data in each_byte(folder / MANIFEST):
        assert not verify(tmp_path, "x", stage.key), data
    assert verify(tmp_path, "x", stage.key)


@pytest.mark.parametrize("name", [FINISHED, RESULT])
def test_every_byte_of_a_finished_training_counts(tmp_path: Path, name: str) -> None:
    write_finished_training(tmp_path / "a", "key")
    for data in each_byte(tmp_path / "a" / name):
        assert finished_key(tmp_path / "a") != "key", data
    assert finished_key(tmp_path / "a") == "key"


# -------------------------------------------------------------------------------- a finished run
@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> ShortRun:
    """An unbroken run of the short sequence."""
    notebooks = short_notebooks(tmp_path_factory.mktemp("damage") / "notebooks")
    run = ShortRun(tmp_path_factory.mktemp("unbroken"), notebooks)
    run.finish()
    return run


@pytest.mark.processes
@pytest.mark.notebooks
def test_damage_to_any_file_of_a_run_is_found(
    finished: ShortRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the runner, which makes the notebook of the file current no more, and by whoever opens the
    stage.
    """
    monkeypatch.setenv("D3S2_HOME", str(finished.folder.parent.parent))
    names = finished.names()
    chapters = {chapter.name[:2]: chapter for chapter in read_chapters(finished.notebooks)}
    settings = config.resolve(names, remember=False)
    keys = runner.chapter_keys(list(chapters.values()), settings)
    writers = dict(zip(STAGES, ("01", "02", "03", "04", "04"), strict=True))
    files = [
        (writers[name], name, finished.folder / name / file)
        for name in STAGES
        for file in (MANIFEST, *read_json(finished.folder / name / MANIFEST)["files"])
    ]
    files += [
        (number, "", finished.folder / "executed" / f"{chapter.name}.{kind}")
        for number, chapter in chapters.items()
        for kind in ("ipynb", "json")
    ]
    kinds = {path.name if stage == "training" else path.suffix for _, stage, path in files}
    assert {FINISHED, RESULT, WEIGHTS, PREDICTIONS, ".npz", ".csv", ".png", ".md"} <= kinds
    rng = random.Random(0)
    for number, stage, path in files:
        for kind in DAMAGE:
            with damaged(path, kind, rng):
                assert not runner.is_current(chapters[number], settings, keys), (path, kind)
                if stage:
                    with pytest.raises(D3S2Error, match=rf"{stage}|cannot be read"):
                        Stage.find(finished.folder, stage)
                if stage == "report":
                    with pytest.raises(D3S2Error, match=r"report|no results"):
                        runner.results(finished.folder)
    assert runner.is_finished(names, finished.notebooks)


@pytest.mark.processes
@pytest.mark.notebooks
def test_what_was_damaged_is_remade_and_never_copied_back(
    finished: ShortRun, tmp_path: Path
) -> None:
    """One file of every stage at once, an executed notebook and a record; of the two trainings the
    good one is copied from the superseded stage, the damaged one is trained again.
    """
    run = ShortRun(tmp_path / "home", finished.notebooks)
    shutil.copytree(finished.folder.parent.parent, tmp_path / "home")
    rng = random.Random(1)
    harmed = {
        "statistics": "moments.npz",
        "selection": "selected.json",
        "distilled": "card.json",
        "training": f"d3s2-0/{WEIGHTS}",
        "report": "results.csv",
    }
    bad = {}
    for number, (stage, name) in enumerate(harmed.items()):
        path = run.folder / stage / name
        DAMAGE[number % len(DAMAGE)](path, rng) if stage != "training" else flipped(path, rng)
        bad[stage] = path.read_bytes() if path.exists() else None
    edited = run.folder / "executed" / "00_start_here.ipynb"
    flipped(edited, rng)
    of_somebody = edited.read_bytes()
    truncated(run.folder / "executed" / "02_mask_selection.json", rng)
    printed = run.finish()
    assert "up to date" not in printed and "mIoU" in printed
    wanted, made = finished.files(*STAGES), run.files(*STAGES)
    kept = [name for name in wanted if "/logs/" not in name]
    differ = [name for name in kept if made.get(name) != wanted[name]]
    assert differ == []
    assert (run.folder / "superseded" / edited.name).read_bytes() == of_somebody
    lie = {path.read_bytes() for path in (run.folder / "superseded").rglob("*") if path.is_file()}
    assert bad["training"] in lie
    costs = [
        [read_json(home / "training" / name / "logs" / "cost.json") for home in homes]
        for name in ("d3s2-0", "random-0")
        for homes in [(finished.folder, run.folder)]
    ]
    assert costs[0][0] != costs[0][1] and costs[1][0] == costs[1][1]
    assert run.finish().count("up to date") == 5


@pytest.mark.processes
def test_damaged_data_is_found_and_drawn_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It belongs to all runs of a home, so it is moved away by hand."""
    monkeypatch.setenv("D3S2_HOME", str(tmp_path))
    settings = config.resolve({"profile": "smoke", "train_images": 3, "val_images": 2})
    open_splits(settings, progress=False)
    (folder,) = (tmp_path / "data").iterdir()
    good = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert len(good) == 2 * 5 + 2
    rng = random.Random(2)
    for path in good:
        for kind in DAMAGE:
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
            with damaged(path, kind, rng):
                if path.name == "prepared.json" and kind is deleted:
                    continue  # then it is prepared to its end: see below
                with pytest.raises(D3S2Error, match=r"move it away|missing|cannot|damaged|lacks"):
                    open_splits(settings, progress=False)
    folder.rename(tmp_path / "away")
    open_splits(settings, progress=False)
    (folder / "prepared.json").unlink()
    open_splits(settings, progress=False)
    assert {path: path.read_bytes() for path in good} == good


@pytest.mark.processes
def test_damaged_weights_of_a_run_are_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D3S2_HOME", str(tmp_path / "home"))
    data = write_splits(tmp_path / "data")
    values = {"profile": "camvid", "data_format": "folder", "data_root": str(data)}
    values |= {"image_size": "32x48", "proxy_iterations": 2, "generator_iterations": 2}
    settings = config.resolve(values | {"threads": 1, "device": "cpu"})
    train, _ = open_splits(settings, progress=False)

    def silent(_: str) -> None:
        """Report to nobody."""

    folder = ensure_weights(settings, train, silent)
    stage = Stage.find(settings.run_dir, "weights")
    wanted = weights_digest(folder)
    rng = random.Random(3)
    names = [MANIFEST, *read_json(folder / MANIFEST)["files"]]
    assert sum(name.endswith(".safetensors") for name in names) == 2
    for name in names:
        for kind in DAMAGE:
            with damaged(folder / name, kind, rng):
                assert not verify(settings.run_dir, "weights", stage.key), (name, kind)
                with pytest.raises(D3S2Error, match=r"weights"):
                    Stage.find(settings.run_dir, "weights")
    flipped(next(folder.glob("proxy/*.safetensors")), rng)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ensure_weights(settings, train, silent)
    assert weights_digest(folder) == wanted
    assert verify(settings.run_dir, "weights", stage.key)
    assert json.loads((folder / MANIFEST).read_text())["key"] == stage.key
