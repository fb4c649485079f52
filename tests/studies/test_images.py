"""The table of painted images: real paintings by tiny networks, and what stands in a row."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from training_jobs import CLASSES, write_data

from d3s2.core.errors import D3S2Error
from d3s2.data.folder import open_folder
from d3s2.guidance.losses import FeatureTargets
from d3s2.guidance.painting import Painter
from d3s2.models.fitting import Schedule
from d3s2.models.generator import LayoutGenerator, LayoutUNet, noise_schedule
from d3s2.models.load import load_proxy
from d3s2.models.proxy import ProxySegmenter
from d3s2.statistics.features import feature_statistics
from d3s2.studies import images
from d3s2.studies.images import HEADER, Desk, measure, paint, segmenter_miou, write_rows

FACTS = {"command": "it", "generator": "abc"}


@pytest.fixture
def desk(tmp_path, monkeypatch) -> Desk:
    torch.manual_seed(0)
    write_data(tmp_path, "train", 8, (32, 48), 0)
    write_data(tmp_path, "val", 6, (32, 48), 1)
    train, val = (open_folder(tmp_path, split) for split in ("train", "val"))
    proxy, judge = (ProxySegmenter(CLASSES, widths).eval() for widths in ((8, 12), (6, 10, 14)))
    targets = FeatureTargets.from_moments(feature_statistics(train, proxy, progress=False))
    unet = LayoutUNet(CLASSES, (32, 32), layers=1).eval()
    painter = Painter(LayoutGenerator(unet, noise_schedule()), proxy, targets)
    short = {name: replace(recipe, steps=4) for name, recipe in images.ARMS.items()}
    monkeypatch.setattr(images, "ARMS", short)
    monkeypatch.setattr(images, "TEACHING", Schedule(20, 4, 0.02))
    return Desk(train, val.subset([4, 0, 2, 3]), val, painter, judge, tmp_path / "work")


def test_paintings_come_in_the_order_of_their_masks_and_are_made_once(desk):
    painted, seconds = paint(desk, "d3s2", desk.real)
    assert painted.ids == desk.real.ids == ("4", "0", "2", "3") and seconds > 0
    for index in range(4):
        assert (painted.read_labels(index) == desk.real.read_labels(index)).all()
    files = sorted(painted.root.glob("train/images/*.png"))
    before = [file.stat().st_mtime_ns for file in files]
    assert paint(desk, "d3s2", desk.real)[1] == seconds
    assert [file.stat().st_mtime_ns for file in files] == before
    other, _ = paint(desk, "eta 1", desk.real)
    assert (other.read_image(0) != painted.read_image(0)).any()
    assert paint(desk, "d3s2", desk.train)[0].root != painted.root


@pytest.mark.processes
def test_a_row_of_photographs_has_no_distance_and_one_of_paintings_has(desk):
    photographs = dict(zip(HEADER, measure(desk, images.PHOTOGRAPHS), strict=True))
    assert photographs["frechet_proxy"] == photographs["frechet_judge"] == 0
    assert photographs["images"] == 4 and photographs["told_apart"] == ""
    others = dict(zip(HEADER, measure(desk, images.OTHER_PHOTOGRAPHS), strict=True))
    assert others["frechet_proxy"] > 0 and others["images"] == 4
    row = dict(zip(HEADER, measure(desk, "d3s2"), strict=True))
    assert row["frechet_proxy"] > others["frechet_proxy"] and row["frechet_judge"] > 0
    assert row["frechet_proxy"] != row["frechet_judge"]
    assert 0 <= row["told_apart"] <= 1 and row["seconds_an_image"] > 0 and row["taught"] == ""
    painted, _ = paint(desk, "d3s2", desk.real)
    for name, network in (("proxy", desk.painter.proxy), ("judge", desk.judge)):
        found = images.recognition(network, painted)
        assert (row[f"{name}_pixels"], row[f"{name}_recall"]) == pytest.approx(found, abs=1e-4)


@pytest.mark.processes
def test_what_images_teach_is_the_score_of_the_segmenter_trained_on_them(desk):
    scores = {arm: measure(desk, arm, teach=5)[-1] for arm in ("unguided", images.PHOTOGRAPHS)}
    folders = sorted(desk.work.glob("taught-*"))
    assert len(folders) == 2
    found = sorted(segmenter_miou(load_proxy(folder), desk.val) for folder in folders)
    assert found == pytest.approx(sorted(scores.values()), abs=0.5)  # weights are kept in half
    assert found[1] > found[0] + 1
    painted = [path for path in desk.work.glob("unguided-*") if len(list(path.rglob("*.png"))) > 8]
    assert len(painted) == 1  # five masks of train


@pytest.mark.processes
def test_only_the_named_arms_teach(desk, tmp_path, monkeypatch):
    monkeypatch.setattr(images, "set_up", lambda work, generator, masks: desk)
    out = tmp_path / "images.csv"
    words = [
        "--arms",
        "unguided",
        "d3s2",
        "--teach",
        "5",
        "--teachers",
        "unguided",
        "--images",
        "4",
    ]
    assert images.main([*words, "--threads", "1", "--out", str(out)]) == 0
    taught = {row[0]: row[-2:] for row in read(out)[1:]}
    assert taught.pop("d3s2") == taught.pop(images.OTHER_PHOTOGRAPHS) == ["", ""]
    assert sorted(taught) == [images.PHOTOGRAPHS, "unguided"]
    assert all(masks == "5" and 0 < float(score) <= 100 for masks, score in taught.values())
    # another arm later keeps what was taught before
    assert images.main(["--arms", "eta 1", "--images", "4", "--out", str(out)]) == 0
    assert {row[0]: row[-2:] for row in read(out)[1:]}["unguided"] == taught["unguided"]


def test_a_segmenter_that_is_right_has_everything(desk):
    def right(pixels):
        red = torch.arange(CLASSES) * 60 / 127.5 - 1
        return SimpleNamespace(logits=-(pixels[:, :1] - red[None, :, None, None]).abs())

    assert segmenter_miou(right, desk.val) == 100.0
    wrong = lambda pixels: SimpleNamespace(logits=-right(pixels).logits)  # noqa: E731
    assert segmenter_miou(wrong, desk.val) < 20


def read(path: Path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.reader(stream))


def row_of(arm: str, count: int, *taught: object) -> list[object]:
    middle = [""] * (len(HEADER) - 2 - images.TAUGHT)
    return [arm, count, *middle, *(taught or ["", ""])]


def test_rows_are_added_replaced_and_kept(tmp_path):
    out = tmp_path / "images.csv"
    write_rows(out, [row_of("a", 1), row_of("b", 2)], FACTS)
    write_rows(out, [row_of("b", 3), row_of("c", 4)], FACTS)
    assert [row[:2] for row in read(out)] == [list(HEADER[:2]), ["a", "1"], ["b", "3"], ["c", "4"]]
    before = out.read_bytes()
    with pytest.raises(D3S2Error, match="was measured with generator abc, now it is other"):
        write_rows(out, [row_of("a", 5)], FACTS | {"generator": "other"})
    assert out.read_bytes() == before


def test_what_a_row_was_taught_is_kept_until_it_is_taught_anew(tmp_path):
    out = tmp_path / "images.csv"
    write_rows(out, [row_of("a", 1, 40, 55.5), row_of("b", 2)], FACTS)
    write_rows(out, [row_of("a", 3), row_of("b", 4, 40, 44.4)], FACTS)
    assert [(row[1], *row[-2:]) for row in read(out)[1:]] == [
        ("3", "40", "55.5"),
        ("4", "40", "44.4"),
    ]
    write_rows(out, [row_of("a", 3, 80, 66.6)], FACTS)
    assert read(out)[1][-2:] == ["80", "66.6"]
