"""What d3s2 export refuses, and the card that it writes; how the rest is used is tested in
test_used_elsewhere.py.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_sets import make_run, make_set
from training_jobs import write_finished_training

from d3s2.core.errors import D3S2Error
from d3s2.core.files import read_json, write_json
from d3s2.data.folder import open_folder
from d3s2.runs import cli, export
from d3s2.runs.dataset_card import dataset_card
from d3s2.training.job import WEIGHTS


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("D3S2_HOME", str(tmp_path))
    return tmp_path


# ----------------------------------------------------------------------------------------- the card
def front_matter(source: Path) -> tuple[dict[str, Any], str]:
    card = dataset_card(read_json(source / "card.json"), open_folder(source, "train"), (32, 48))
    _, head, text = card.split("---\n", 2)
    return yaml.safe_load(head), text


def test_the_card_says_what_the_sets_own_card_says(tmp_path: Path) -> None:
    head, text = front_matter(make_set(tmp_path / "set"))
    assert head["pretty_name"] == "rectangles-d3s2" and head["size_categories"] == "n<1K"
    assert head["task_categories"] == ["image-segmentation"]
    for row in ("| source | rectangles/train |", "| images of the source | 60 |", "| seed | 3 |"):
        assert row in text
    assert (
        "| method | d3s2 |" in text and '"steps": 5' in text and "| 3 | c3 | 180, 50, 90 |" in text
    )


def test_no_licence_is_guessed(tmp_path: Path) -> None:
    head, text = front_matter(make_set(tmp_path / "set"))
    assert not any("licen" in name for name in head)
    assert "d3s2 does not know it" in text.split("## Licence")[1]


def test_a_card_of_another_method_and_a_hostile_one_are_tables(tmp_path: Path) -> None:
    source = make_set(tmp_path / "set")
    card = {"name": "a\n---\nlicense: mit", "method": "k | means", "says": "near\x1b[2J\nmeans"}
    write_json(source / "card.json", card)
    head, text = front_matter(source)
    assert "license" not in head and head["pretty_name"] == "a --- license: mit"
    assert "| method | k \\| means |" in text and "\x1b" not in text
    assert "| source | not said in card.json |" in text


# ---------------------------------------------------------------------------------- what is refused
def spoiled(home: Path, what: str) -> tuple[list[str], str]:
    """(the words of a command, what its sentence says)."""
    run, source = make_run(home / "run"), make_set(home / "set")
    target = home / "target"
    training = run / "training" / "a-0"
    write_finished_training(training, "key")
    end = ["--to", str(target)]
    if what == "nowhere":
        return [str(home / "nowhere"), *end], "nowhere is no folder"
    if what == "no set":
        return [str(home), *end], "holds no finished distilled set"
    if what == "unfinished run":
        (run / "distilled" / "manifest.json").unlink()
        return [str(run), *end], "The stage 'distilled' is missing"
    if what == "damaged run":
        (run / "distilled" / "card.json").write_text("{}")
        return [str(run), *end], "The stage 'distilled' is damaged"
    if what == "unfinished set":
        write_json(source / "in_progress.json", {})
        return [str(source), *end], "holds no finished distilled set"
    if what == "full":
        target.mkdir()
        (target / "mine.txt").write_text("mine")
        return [str(source), *end], "target is not empty: choose a new folder with --to"
    if what == "file":
        target.write_text("mine")
        return [str(source), *end], "target is a file"
    if what == "inside":
        return [str(run), "--to", str(run / "distilled" / "x")], "lies in what is exported"
    if what == "bad card":
        (source / "card.json").write_text("[]")
        return [str(source), *end], "is no card of a set"
    if what == "bad mask":
        (source / "train" / "labels" / "3.png").write_bytes(b"PNG")
        return [str(source), *end], "3.png"
    if what == "no training":
        return [str(run), "--training", "b-0", *end], "has no training 'b-0': there are a-0"
    if what == "damaged training":
        (training / WEIGHTS).write_bytes(b"")
        return [str(run), "--training", "a-0", *end], "model.safetensors is not what the training"
    if what == "old training":
        return [str(training), *end], "mmseg.json is missing"
    model = {"type": "os.system", "decode_head": {"num_classes": 2}}
    meta = {"classes": ["a", "b"], "palette": [[0, 0, 0], [1, 1, 1]]}
    if what == "one class":
        model["decode_head"]["num_classes"] = 1
        meta = {"classes": ["a"], "palette": [[0, 0, 0]]}
        model["type"] = "EncoderDecoder"
    if what == "other classes":
        meta["classes"] = ["a"]
    write_json(training / "mmseg.json", {"model": model, "dataset_meta": meta})
    return [str(training), *end], {
        "strange code": "type 'os.system'",
        "one class": "knows one class",
        "other classes": "is not what the training wrote",
    }[what]


KINDS = (
    *("nowhere", "no set", "unfinished run", "damaged run", "unfinished set", "full", "file"),
    *("inside", "bad card", "bad mask", "no training", "damaged training", "old training"),
    *("strange code", "one class", "other classes"),
)


@pytest.mark.parametrize("what", KINDS)
def test_what_cannot_be_exported_is_one_sentence(home: Path, capsys: Any, what: str) -> None:
    words, sentence = spoiled(home, what)
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert cli.main(["export", *words]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.startswith("d3s2: ") and said.count("\n") == 1
    after = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    assert after == before  # nothing is written over, nothing is left


@pytest.mark.parametrize("is_there", [False, True])
def test_a_killed_export_is_cleared_away(tmp_path: Path, is_there: bool) -> None:
    """What it left has the name of a process that has ended; it is no content of the target."""
    source = make_set(tmp_path / "set")
    target = tmp_path / "target"
    if is_there:
        target.mkdir()
    with export._whole(target, source) as partial:
        assert partial.parent == (target if is_there else tmp_path)
    for path in (target, partial):
        shutil.rmtree(path, ignore_errors=True)
    if is_there:
        target.mkdir()
    left = partial.with_name(partial.name.replace(str(os.getpid()), str(2**22 + 1)))
    left.mkdir()
    with export._whole(target, source) as partial:
        (partial / "file").write_text("whole")
        assert not left.exists() and not (target / "file").exists()
    assert (target / "file").read_text() == "whole"
    assert not [path for path in tmp_path.rglob(".*") if path.is_dir()]


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    source = make_set(tmp_path / "set")
    (tmp_path / "file").write_text("mine")
    below = export._whole(tmp_path / "file" / "below", source)
    with pytest.raises(D3S2Error, match=r"cannot be made .*choose another folder with --to"), below:
        pass
