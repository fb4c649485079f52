"""IoU against mmsegmentation's metric and hand-made cases; the table and its files."""

from __future__ import annotations

import csv
import json
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d3s2.core.errors import D3S2Error
from d3s2.models import mmcv_ops
from d3s2.training import evaluation
from d3s2.training.job import TrainingResult


def result(
    name: str, miou: float, per_class: tuple[float, ...], seed: int = 0, iterations: int = 600
) -> TrainingResult:
    return TrainingResult(name, miou, per_class, ((10, 5.0),), 100, 40, iterations, seed, "key")


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 9))
def test_equals_mmsegmentations_metric(seed, classes):
    mmcv_ops.install()
    from mmseg.evaluation import IoUMetric

    rng = np.random.default_rng(seed)
    predicted, labels = rng.integers(0, classes, (2, 12, 9)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.2] = 255
    matrix = evaluation.confusion(predicted, labels, classes)
    theirs = IoUMetric.intersect_and_union(
        torch.from_numpy(predicted), torch.from_numpy(labels), classes, 255
    )
    for mine, their in zip(evaluation.intersect_and_union(matrix), theirs[:2], strict=True):
        np.testing.assert_array_equal(mine, their.numpy())


def test_a_perfect_and_a_hopeless_prediction():
    labels = np.array([[0, 0, 1], [2, 2, 255]], np.uint8)
    assert evaluation.mean_iou(evaluation.confusion(labels.clip(max=2), labels, 3)) == 100
    wrong = np.array([[1, 1, 2], [0, 0, 0]], np.uint8)
    assert evaluation.mean_iou(evaluation.confusion(wrong, labels, 3)) == 0


def test_a_class_that_is_nowhere_is_nan_and_does_not_count():
    labels = np.array([[0, 1, 1, 255]], np.uint8)
    matrix = evaluation.confusion(np.array([[0, 1, 0, 2]], np.uint8), labels, 3)
    np.testing.assert_allclose(evaluation.class_iou(matrix), [50, 50, np.nan])
    assert evaluation.mean_iou(matrix) == 50
    assert math.isnan(evaluation.mean_iou(np.zeros((3, 3), np.int64)))


@pytest.mark.parametrize(
    ("predicted", "labels", "words"),
    [
        (
            np.zeros((2, 2), int),
            np.zeros((2, 3), int),
            "predictions have shape (2, 2), labels (2, 3): compare images of one size.",
        ),
        (
            np.full((2, 2), 3),
            np.zeros((2, 2), int),
            "a prediction or a label lies outside 0 .. 2: check the number of classes.",
        ),
    ],
)
def test_bad_input_is_named(predicted, labels, words):
    with pytest.raises(D3S2Error) as raised:
        evaluation.confusion(predicted, labels, 3)
    assert str(raised.value) == words


def test_the_report_says_the_same_three_times(tmp_path):
    nan = math.nan
    groups = {
        "random": [result("r0", 40.0, (30.0, 50.0, nan)), result("r1", 44.0, (38.0, 50.0, nan), 1)],
        "d3s2": [result("d0", 57.0, (57.0, 57.0, nan))],
    }
    rows = evaluation.summarise(groups)
    assert [row.miou_mean for row in rows] == [42.0, 57.0]
    assert rows[0].miou_sd == pytest.approx(8**0.5) and rows[1].miou_sd is None
    assert rows[0].per_class_iou == (34.0, 50.0, None)
    evaluation.write_report(tmp_path, rows, ["sky", "sea", "kite"], {"profile": "scenes"})
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["facts"] == {"profile": "scenes"} and stored["rows"][0]["miou"] == [40.0, 44.0]
    with open(tmp_path / "results.csv", newline="") as stream:
        table = list(csv.DictReader(stream))
    assert table[1]["set"] == "d3s2" and table[1]["miou_sd"] == "" and table[0]["iou_sky"] == "34.0"
    assert "| random | 40 | 600 | 2 | 42.0 ± 2.8 |" in (tmp_path / "results.md").read_text()


def test_trainings_of_different_lengths_are_not_averaged():
    with pytest.raises(D3S2Error, match="one length"):
        evaluation.summarise(
            {"full": [result("a", 1.0, (1.0,)), result("b", 1.0, (1.0,), iterations=1200)]}
        )
    with pytest.raises(D3S2Error) as raised:
        evaluation.summarise({"full": []})
    assert str(raised.value) == (
        "set 'full' needs trainings of one length: it has 0, of several or none."
    )


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6))
def test_a_cell_counts_the_pixels_of_its_row_called_its_column(seed, classes):
    rng = np.random.default_rng(seed)
    predicted, labels = rng.integers(0, classes, (2, 5, 4)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.3] = 255
    matrix = evaluation.confusion(predicted, labels, classes)
    for true in range(classes):
        for said in range(classes):
            assert matrix[true, said] == ((labels == true) & (predicted == said)).sum()
    assert matrix.shape == (classes, classes) and matrix.sum() == (labels != 255).sum()
    other = np.where(labels == 255, classes + 3, predicted)  # what is said of ignored pixels
    np.testing.assert_array_equal(evaluation.confusion(other, labels, classes), matrix)


def test_sky_called_sea_is_in_the_row_of_the_sky():
    matrix = evaluation.confusion(np.array([1, 1, 0]), np.array([0, 0, 0]), 2)
    assert matrix.tolist() == [[1, 2], [0, 0]]
    np.testing.assert_allclose(evaluation.class_iou(matrix), [100 / 3, 0])


@pytest.mark.parametrize("wrong", [3, 4, 200, 254])
def test_an_id_beyond_the_classes_is_refused_on_either_side(wrong):
    good, bad = np.array([0, 1, 2]), np.array([0, wrong, 2])
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(D3S2Error, match=r"outside 0 \.\. 2"):
            evaluation.confusion(*pair, 3)
    with pytest.raises(D3S2Error, match=r"outside 0 \.\. 2"):
        evaluation.confusion(np.array([-1, 1, 2]), good, 3)
    assert evaluation.confusion(good, good, 3).trace() == 3  # the last class is inside


@settings(deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6))
def test_iou_is_its_formula_and_its_mean_that_of_the_classes_that_have_one(seed, classes):
    rng = np.random.default_rng(seed)
    matrix = rng.integers(0, 9, (classes, classes)) * (rng.random((classes, classes)) < 0.4)
    found = evaluation.class_iou(matrix)
    known = []
    for c in range(classes):
        either = matrix[c].sum() + matrix[:, c].sum() - matrix[c, c]
        assert math.isnan(found[c]) == (either == 0)
        if either:
            known.append(100 * matrix[c, c] / either)
            assert found[c] == pytest.approx(known[-1])
    mean = evaluation.mean_iou(matrix)
    assert mean == pytest.approx(sum(known) / len(known)) if known else math.isnan(mean)


def test_a_class_is_averaged_over_the_trainings_that_have_it():
    nan = math.nan
    trainings = [
        result("a", 40.0, (30.0, nan, nan, 0.0)),
        result("b", 44.0, (50.0, 20.0, nan, 10.0), 1),
        result("c", 45.0, (40.0, 60.0, nan, nan), 2),
    ]
    (row,) = evaluation.summarise({"set": trainings})
    assert row.per_class_iou == (40.0, 40.0, None, 5.0)
    assert (row.miou, row.miou_mean, row.seeds) == ((40.0, 44.0, 45.0), 43.0, 3)
    assert row.miou_sd == pytest.approx(7**0.5)  # of a sample: divided by one less
    assert (row.images, row.iterations) == (40, 600)


def test_the_table_holds_what_the_rows_hold_cell_by_cell(tmp_path):
    trainings = [result("a", 41.26, (30.0, math.nan)), result("b", 43.46, (51.0, math.nan), 1)]
    rows = evaluation.summarise({"two": trainings, "one": trainings[:1]})
    assert evaluation.markdown_table(rows).splitlines() == [
        "| training set | images | iterations | trainings | val mIoU (%) |",
        "|---|---:|---:|---:|---:|",
        "| two | 40 | 600 | 2 | 42.4 ± 1.6 |",
        "| one | 40 | 600 | 1 | 41.3 |",
    ]
    evaluation.write_report(tmp_path, rows, ["sky", "sea"], {"b": 1, "a": None})
    with open(tmp_path / "results.csv", newline="") as stream:
        head, two, one = csv.reader(stream)
    assert head == [*evaluation.COLUMNS, "iou_sky", "iou_sea"]
    assert [float(cell) for cell in two[1:6]] == pytest.approx([40, 600, 2, 42.36, 2.2 / 2**0.5])
    assert two[6:] == ["40.5", ""] and one == ["one", "40", "600", "1", "41.26", "", "30.0", ""]
    stored = json.loads((tmp_path / "results.json").read_text())
    assert stored["facts"] == {"a": None, "b": 1} and stored["classes"] == ["sky", "sea"]
    assert stored["rows"][1]["per_class_iou"] == [30.0, None]
    assert stored["rows"][1]["miou_sd"] is None and stored["rows"][0]["set"] == "two"


def test_classes_without_a_pixel_are_no_division_by_zero():
    matrix = np.array([[4, 0, 0], [0, 0, 0], [0, 0, 0]])
    with np.errstate(all="raise"), warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(evaluation.class_iou(matrix), [100, math.nan, math.nan])
        assert evaluation.mean_iou(matrix) == 100
        assert math.isnan(evaluation.mean_iou(np.zeros((3, 3), np.int64)))
