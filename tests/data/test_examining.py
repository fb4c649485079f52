"""All that is wrong with a folder, said at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d3s2.data.dataset import BadFile
from d3s2.data.examining import Examination, class_table, examine, lines_to_add
from d3s2.data.folder import read_classes

CLASSES = "id,name,red,green,blue\n0,sky,10,20,30\n1,road,40,50,60\n9,void,0,0,0\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Eight pairs of 4x4 pixels, half sky and half road."""
    (tmp_path / "classes.csv").write_text(CLASSES)
    labels = np.zeros((4, 4), np.uint8)
    labels[2:] = 1
    for name in "abcdefgh":
        save(tmp_path, f"images/{name}.png", np.full((4, 4, 3), 9, np.uint8))
        save(tmp_path, f"labels/{name}.png", labels)
    return tmp_path


def save(root: Path, name: str, array: np.ndarray) -> None:
    path = root / "train" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def spoil(root: Path) -> None:
    """A fault of each kind, some of them twice."""
    (root / "train/labels/a.png").unlink()
    (root / "train/images/b.png").unlink()
    for name, content in (("c", 5), ("d", 6)):
        save(root, f"labels/{name}.png", np.full((4, 4), content, np.uint8))
    colors = np.zeros((4, 4, 3), np.uint8)
    colors[1:] = 10, 20, 31
    save(root, "labels/e.png", colors)
    for name in "fg":
        (root / f"train/images/{name}.png").write_text("no picture")
    save(root, "images/h.jpg", np.zeros((4, 4, 3), np.uint8))
    save(root, "labels/h.png", np.full((5, 4), 9, np.uint8))
    with open(root / "classes.csv", "a") as stream:
        stream.write("300,tree,1,1,1\n1,bush,2,2,2\n")


def test_every_kind_of_fault_is_counted_and_shown_once(root: Path) -> None:
    spoil(root)
    found = examine("folder", root, "train", progress=False)
    said = [str(fault) for fault in found.faults.values()]
    for words in (
        ("line 5", "'300'"),
        ("line 6", "id 1 again"),
        ("h.png and h.jpg have the same id",),
        ("a.png has no mask (1 such)",),
        ("b.png has no image (1 such)",),
        ("c.png holds id 5", "(2 files with this)"),
        ("e.png holds colour (10, 20, 31)",),
        ("f.png", "damaged", "(2 files with this)"),
        ("h.png is 4x5", "4x4"),
    ):
        assert sum(all(word in text for word in words) for text in said) == 1, words
    assert len(said) == 9 and found.read == 6
    assert found.unknown == {5: 16, 6: 16, (10, 20, 31): 12}


def test_what_is_missing_in_the_classes_mends_the_folder(root: Path) -> None:
    save(root, "labels/c.png", np.full((4, 4), 5, np.uint8))
    colors = np.zeros((4, 4, 3), np.uint8)
    colors[1:], colors[1, 0] = (200, 100, 50), (10, 20, 31)
    save(root, "labels/e.png", colors)
    found = examine("folder", root, "train", progress=False)
    lines = lines_to_add([found, found])
    assert [line.split(",")[0] for line in lines] == ["5", "2", "3"]
    assert lines[1] == "2,unnamed-2,200,100,50"
    with open(root / "classes.csv", "a") as stream:
        stream.write("\n".join(lines) + "\n")
    again = examine("folder", root, "train", progress=False)
    assert not again.faults and again.pixels.tolist()[2:] == [16, 11, 1]
    assert lines_to_add([again]) == [] and len(read_classes(root / "classes.csv")[0]) == 5


def test_no_line_is_made_up_when_every_id_is_taken() -> None:
    found = Examination("train")
    found.unknown.update(dict.fromkeys(range(256), 1))
    found.unknown[(1, 2, 3)] = 1000
    assert lines_to_add([found]) == []


def test_the_table_counts_pixels_and_images(root: Path) -> None:
    save(root, "labels/a.png", np.full((4, 4), 1, np.uint8))
    save(root, "labels/b.png", np.full((4, 4), 9, np.uint8))
    save(root, "labels/c.png", np.full((4, 4), 77, np.uint8))
    found = examine("folder", root, "train", progress=False)
    assert (found.pixels.tolist(), found.images.tolist()) == ([40, 56], [5, 6])
    assert (found.ignored, found.empty) == (16, 1)
    table = [line.split() for line in class_table(found)]
    assert ["sky", "40", "41.67%", "5"] in table and ["(ignored)", "16"] in table
    assert ["unknown", "id", "77:", "16", "pixels", "in", "1", "images"] in table


def test_a_part_is_spread_over_the_split(root: Path) -> None:
    save(root, "labels/e.png", np.full((4, 4), 77, np.uint8))
    found = examine("folder", root, "train", most=2, progress=False)
    assert (found.read, found.images.tolist(), found.unknown) == (2, [1, 1], {77: 16})


def test_a_split_that_is_ignored_throughout_is_a_fault(root: Path) -> None:
    for name in "abcdefgh":
        save(root, f"labels/{name}.png", np.full((4, 4), 9, np.uint8))
    found = examine("folder", root, "train", progress=False)
    (fault,) = found.faults.values()
    assert "ignored throughout" in str(fault) and found.empty == 8
    save(root, "labels/h.png", np.full((4, 4), 1, np.uint8))
    assert not examine("folder", root, "train", progress=False).faults


@pytest.mark.parametrize("split", ["val", "train/images"])
def test_what_cannot_be_opened_is_one_fault(root: Path, split: str) -> None:
    found = examine("folder", root, split, progress=False)
    (fault,) = found.faults.values()
    assert "does not exist" in str(fault) and found.dataset is None
    assert len(class_table(found)) == 2


def test_reading_shows_how_far_it_is(
    root: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d3s2.data.examining.IN_A_LOG", {"mininterval": 0, "delay": 0})
    examine("folder", root, "train")
    assert "reading train" in capsys.readouterr().err
    examine("folder", root, "train", progress=False)
    assert capsys.readouterr().err == ""


def test_a_kind_tells_faults_apart(root: Path) -> None:
    found = Examination("train")
    for kind in ("one", "two", "one"):
        found.note(BadFile(kind, f"a sentence about {kind}"))
    assert [(kind, fault.count) for kind, fault in found.faults.items()] == [("one", 2), ("two", 1)]
