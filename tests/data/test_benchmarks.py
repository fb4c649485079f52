"""The benchmarks' layouts, made small: label rules, counts, and the annotation variants that are
not the right one.
"""

from __future__ import annotations

import ast
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_benchmarks import make_ade20k, make_cocostuff, make_voc

from d3s2.core.errors import D3S2Error
from d3s2.data import benchmarks
from d3s2.data.class_lists import classes_of
from d3s2.data.dataset import IGNORE, SegmentationDataset
from d3s2.data.opening import open_dataset
from d3s2.data.preparing import materialise
from d3s2.models import control_colors, mmcv_ops


def opened(format: str, root: Path, split: str = "train") -> SegmentationDataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return open_dataset(format, root, split)


@pytest.mark.parametrize(
    ("format", "make", "inside", "labels"),
    [
        ("ade20k", make_ade20k, "ADEChallengeData2016", [IGNORE, 0, 6, 149]),
        ("cocostuff", make_cocostuff, ".", [0, 10, 11, 80, 170, IGNORE]),
        ("voc2012", make_voc, "VOCdevkit/VOC2012", [0, 1, 20, IGNORE]),
    ],
)
def test_the_layout_is_found_and_the_label_rule_applied(
    tmp_path: Path, format: str, make: Callable, inside: str, labels: list[int]
) -> None:
    make(tmp_path)
    for root in (tmp_path, tmp_path / inside):
        for split in ("train", "val"):
            data = opened(format, root, split)
            assert len(data) == 1 and data.read_image(0).shape == (4, 6, 3)
            assert data.read_labels(0).ravel()[: len(labels)].tolist() == labels


def test_train_ids_of_cocostuff_are_preferred_to_raw_ones(tmp_path: Path) -> None:
    make_cocostuff(tmp_path)
    make_cocostuff(tmp_path, [11, 25, 170, 255], "_labelTrainIds")
    data = opened("cocostuff", tmp_path)
    assert data.ids == ("000000000009",) and data.read_labels(0).ravel()[:4].tolist() == [
        11,
        25,
        170,
        255,
    ]


def test_the_augmented_voc_takes_the_original_masks_where_there_are(tmp_path: Path) -> None:
    data = opened("voc2012aug", make_voc(tmp_path))
    assert data.ids == ("2007_000032", "2008_000002")
    assert data.read_labels(0).ravel()[:4].tolist() == [0, 1, 20, 255] and data.read_labels(
        1
    ).ravel()[:2].tolist() == [0, 15]
    assert opened("voc2012aug", tmp_path, "val").ids == opened("voc2012", tmp_path, "val").ids


def test_lists_with_paths_are_understood(tmp_path: Path) -> None:
    make_voc(tmp_path)
    listing = tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/trainaug.txt"
    listing.write_text("/JPEGImages/2008_000002.jpg /SegmentationClassAug/2008_000002.png\n")
    assert opened("voc2012aug", tmp_path).ids == ("2008_000002",)


def test_raw_ids_are_those_of_mmsegmentations_converter() -> None:
    import mmengine  # its folder is a neighbour of mmseg's

    tool = (
        Path(mmengine.__file__).parent.parent
        / "mmseg"
        / ".mim"
        / "tools"
        / "dataset_converters"
        / "coco_stuff164k.py"
    )
    table = next(
        ast.literal_eval(node.value)
        for node in ast.walk(ast.parse(tool.read_text()))
        if isinstance(node, ast.Assign) and node.targets[0].id == "clsID_to_trID"
    )
    ours = benchmarks.cocostuff_code(raw=True).to_train
    assert {number: train for number, train in enumerate(ours) if train >= 0} == table


@pytest.mark.parametrize(
    ("format", "make"),
    [("ade20k", make_ade20k), ("cocostuff", make_cocostuff), ("voc2012", make_voc)],
)
def test_another_number_of_images_is_a_warning_that_says_it(
    tmp_path: Path, format: str, make: Callable
) -> None:
    make(tmp_path)
    expected = {"ade20k": "20210", "cocostuff": "118287", "voc2012": "1464"}[format]
    with pytest.warns(UserWarning, match=f"{format}/train has 1 images instead of {expected}"):
        open_dataset(format, tmp_path, "train")
    assert (
        benchmarks.count_note(format, "train", int(expected))
        == ""
        == benchmarks.count_note("folder", "train", 3)
    )


def test_published_budgets() -> None:
    from d3s2.selection import budget_size

    assert [
        budget_size(0.01, benchmarks.COUNTS[name]["train"]) for name in ("ade20k", "cocostuff")
    ] == [202, 1183]


@pytest.mark.parametrize(
    ("format", "make", "values", "words"),
    [
        ("ade20k", make_ade20k, [151], "holds id 151.*ADEChallengeData2016"),
        ("ade20k", make_ade20k, [255], "holds id 255.*nor converted"),
        ("cocostuff", make_cocostuff, [11], "holds id 11.*labelTrainIds.png"),
        ("cocostuff", make_cocostuff, [182], "holds id 182.*stuff challenge"),
        ("voc2012", make_voc, [21], "holds id 21.*SegmentationObject"),
    ],
)
def test_ids_of_another_annotation_variant_are_a_sentence(
    tmp_path: Path, format: str, make: Callable, values: list[int], words: str
) -> None:
    make(tmp_path, values)
    with pytest.raises(D3S2Error, match=words):
        opened(format, tmp_path).read_labels(0)


def test_raw_ids_named_as_train_ids_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(D3S2Error, match=r"holds id 181.*labelTrainIds"):
        opened("cocostuff", make_cocostuff(tmp_path, [181], "_labelTrainIds")).read_labels(0)


@pytest.mark.parametrize(
    ("format", "make"),
    [("ade20k", make_ade20k), ("cocostuff", make_cocostuff), ("voc2012", make_voc)],
)
def test_colours_instead_of_ids_are_a_sentence(tmp_path: Path, format: str, make: Callable) -> None:
    make(tmp_path)
    data = opened(format, tmp_path)
    Image.fromarray(np.full((4, 6, 3), (128, 0, 0), np.uint8)).save(data.label_paths[0])
    with pytest.raises(D3S2Error, match=r"colour \(128, 0, 0\).*take the"):
        data.read_labels(0)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        D3S2Error, match=r"does not hold ade20k: expected ADEChallengeData2016.*d3s2 fetch ade20k"
    ):
        open_dataset("ade20k", tmp_path, "train")
    make_ade20k(tmp_path / "a")
    (tmp_path / "a/ADEChallengeData2016/annotations/training/ADE_train_00000001.png").unlink()
    with pytest.raises(D3S2Error, match="has no mask"):
        open_dataset("ade20k", tmp_path / "a", "train")
    with pytest.raises(D3S2Error, match="no split 'test'"):
        open_dataset("ade20k", tmp_path / "a", "test")
    make_voc(tmp_path / "v")
    lists = tmp_path / "v/VOCdevkit/VOC2012/ImageSets/Segmentation"
    (lists / "train.txt").write_text("2007_000032\n2007_000032\n")
    with pytest.raises(D3S2Error, match="2 images, 1 of them different"):
        open_dataset("voc2012", tmp_path / "v", "train")
    (lists / "trainaug.txt").unlink()
    with pytest.raises(D3S2Error, match=r"trainaug\.txt is missing"):
        open_dataset("voc2012aug", tmp_path / "v", "train")


@pytest.mark.parametrize(
    ("format", "make"),
    [("ade20k", make_ade20k), ("cocostuff", make_cocostuff), ("voc2012", make_voc)],
)
def test_prepared_data_keeps_classes_and_ids(tmp_path: Path, format: str, make: Callable) -> None:
    data = opened(format, make(tmp_path / "raw"))
    written = materialise(data, tmp_path / "out", progress=False)
    assert written.classes == data.classes and (written.read_labels(0) == data.read_labels(0)).all()


@pytest.mark.parametrize(
    ("format", "count"), [("ade20k", 150), ("cocostuff", 171), ("voc2012", 21), ("voc2012aug", 21)]
)
def test_classes_are_mmsegmentations_each_in_a_colour_of_its_own(format: str, count: int) -> None:
    classes, listed = benchmarks.benchmark_classes(format), classes_of(format.removesuffix("aug"))
    assert [info.name for info in classes] == [info.name for info in listed]
    assert len({info.color for info in classes}) == count
    first: dict = {}
    assert all(
        first.setdefault(old.color, new.color) == old.color
        for old, new in zip(listed, classes, strict=True)
    )


def test_metainfo_is_what_mmsegmentation_holds() -> None:
    mmcv_ops.install()  # makes mmseg importable
    from mmseg.datasets import ADE20KDataset

    assert tuple(info.name for info in classes_of("ade20k")) == tuple(
        map(str.strip, ADE20KDataset.METAINFO["classes"])
    )
    assert [list(info.color) for info in classes_of("ade20k")] == ADE20KDataset.METAINFO["palette"]


# ---------------------------------------------------------------------------------- control colours
def test_ade20k_has_149_control_colours_for_150_classes() -> None:
    classes = benchmarks.benchmark_classes("ade20k")
    colors = control_colors.control_colors(classes, "ade20k")
    names = [info.name for info in classes]
    assert len(np.unique(colors, axis=0)) == 149
    assert (colors[names.index("road")] == colors[names.index("skyscraper")]).all()


def test_every_class_of_cocostuff_has_a_panoptic_colour_but_the_dropped_ones() -> None:
    classes = benchmarks.benchmark_classes("cocostuff")
    colors = control_colors.control_colors(classes, "coco")
    panoptic = {info.color for info in classes_of("coco_panoptic")}
    black = {info.name for info, color in zip(classes, colors, strict=True) if not color.any()}
    assert black == set(control_colors.DROPPED) and len(black) == 12
    assert {tuple(color) for color in colors.tolist()} - {(0, 0, 0)} == panoptic  # all 133 are used


def test_voc_is_painted_in_cocos_colours_and_unknown_classes_are_a_sentence() -> None:
    voc = benchmarks.benchmark_classes("voc2012")
    colors = control_colors.control_colors(voc, "coco")
    panoptic = {info.name: info.color for info in classes_of("coco_panoptic")}
    assert tuple(colors[1]) == panoptic["airplane"] and not colors[0].any()
    assert (control_colors.control_colors(voc, "dataset") == [info.color for info in voc]).all()
    with pytest.raises(D3S2Error, match="no colour for class 'background'"):
        control_colors.control_colors(voc, "ade20k")
    with pytest.raises(D3S2Error, match="control palette is 'voc'"):
        control_colors.control_colors(voc, "voc")
