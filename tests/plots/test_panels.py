"""Pictures in whole pixels, and the files behind the first picture of notebook 00."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.patches import FancyArrowPatch
from PIL import Image

from d3s2 import plots
from d3s2.core.errors import D3S2Error
from d3s2.core.files import write_json
from d3s2.data.preparing import materialise
from d3s2.data.splits import open_splits
from d3s2.plots import overview

RNG = np.random.default_rng(0)


def drawn(figure: plots.Picture) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(figure._repr_png_())).convert("RGB"))


@pytest.mark.parametrize(("count", "arrows", "zoom", "gap"), [(3, False, 3, 10), (4, True, 2, 30)])
def test_every_pixel_is_a_square_of_its_own_colour(
    count: int, arrows: bool, zoom: int, gap: int
) -> None:
    images = RNG.choice([0, 90, 255], (count, 40, 64, 3)).astype(np.uint8)
    named = {f"number {i}": image for i, image in enumerate(images)}
    for notes, below in (([], 1), (["below"] * count, 18)):
        picture = drawn(plots.panels(named, notes, arrows))
        for column, image in enumerate(images):
            left = 1 + column * (64 * zoom + gap)
            tile = picture[18 : 18 + 40 * zoom, left : left + 64 * zoom]
            assert (tile == image.repeat(zoom, 0).repeat(zoom, 1)).all()
        assert len(picture) == 18 + 40 * zoom + below


def test_names_notes_and_arrows_are_drawn_beside_the_pictures() -> None:
    images = {name: np.full((40, 64, 3), 90, np.uint8) for name in ("left", "right")}
    figure = plots.panels(images, ["one", "two"], arrows=True)
    assert [text.get_text() for text in figure.texts] == ["left", "one", "right", "two"]
    (arrow,) = [artist for artist in figure.get_children() if isinstance(artist, FancyArrowPatch)]
    zoom = (780 - 32) // 128
    begin, end = (arrow.get_path().vertices[place, 0] for place in (0, 2))
    assert 64 * zoom < begin < end < 64 * zoom + 30


def test_pictures_of_different_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="same shape"):
        plots.panels({"a": np.zeros((2, 2, 3), np.uint8), "b": np.zeros((3, 2, 3), np.uint8)})


# ------------------------------------------------------------------------------------- the overview
@pytest.fixture(scope="module")
def example() -> overview.ExampleRun:
    stacks = RNG.integers(0, 256, (3, 5, 6, 8, 3), dtype=np.uint8)
    return overview.ExampleRun(*stacks, {"ids": list("abcde"), "machine": "a CPU", "rows": []})


def test_an_example_comes_back_as_it_was_written(
    example: overview.ExampleRun, tmp_path: Path
) -> None:
    paths = overview.write(example, tmp_path / "figures")
    assert [path.name for path in paths] == ["default_run.png", "default_run.json", "overview.png"]
    read = overview.read_example(tmp_path / "figures")
    for name, stack in example.rows().items():
        assert (read.rows()[name] == stack).all(), name
    assert read.record == example.record
    assert paths[2].read_bytes() == example.draw()._repr_png_()


def test_a_missing_picture_is_named(example: overview.ExampleRun, tmp_path: Path) -> None:
    overview.write(example, tmp_path)
    (tmp_path / overview.PICTURE).unlink()
    with pytest.raises(D3S2Error, match=r"default_run.png is missing: python -m"):
        overview.read_example(tmp_path)


def test_the_committed_example_is_whole() -> None:
    found = overview.read_example()
    assert found.real.shape == found.painted.shape == (overview.SHOWN, 64, 64, 3)
    assert {row["set"] for row in found.record["rows"]} == {"random", "balanced", "d3s2", "full"}


def test_a_run_is_gathered_by_the_ids_of_its_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real images, masks and painted images of the same ids, in the order of selection."""
    monkeypatch.setenv("D3S2_HOME", str(tmp_path))
    counts = {"train_images": 6, "val_images": 1}
    settings = {"data_format": "scenes", "data_root": "", "image_size": "64x64"} | counts
    train, _ = open_splits(SimpleNamespace(**settings), progress=False)
    run = tmp_path / "run"
    write_json(run / "run.json", {"settings": settings, "device": "a CPU"})
    materialise(train.subset([1, 3, 4]), run / "distilled", progress=False)
    chosen = [train.ids[i] for i in (4, 1, 3)]
    for name in chosen:
        blank = np.full((64, 64, 3), int(name), np.uint8)
        Image.fromarray(blank).save(run / "distilled" / "train" / "images" / f"{name}.png")
    write_json(run / "distilled" / "card.json", {"ids_in_order_of_selection": chosen})
    row = {"set": "d3s2", "images": 3, "iterations": 5, "miou": [50.0], "per_class_iou": [1]}
    write_json(run / "report" / "results.json", {"rows": [row], "facts": {}})
    found = overview.collect(run, 2)
    assert found.record["ids"] == chosen[:2] and found.record["machine"] == "a CPU"
    assert found.record["rows"] == [{k: v for k, v in row.items() if k != "per_class_iou"}]
    for place, index in enumerate((4, 1)):
        assert (found.real[place] == train.read_image(index)).all()
        assert (found.masks[place] == train.palette[train.read_labels(index)]).all()
        assert (found.painted[place] == index).all()
