"""IoU against mmsegmentation's metric and hand-made cases; the table and its files."""

from __future__ import annotations

import csv
import json
import math

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
        (np.zeros((2, 2), int), np.zeros((2, 3), int), "shape"),
        (np.full((2, 2), 3), np.zeros((2, 2), int), "outside 0 .. 2"),
    ],
)
def test_bad_input_is_named(predicted, labels, words):
    with pytest.raises(D3S2Error, match=words):
        evaluation.confusion(predicted, labels, 3)


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
    with pytest.raises(D3S2Error, match="none"):
        evaluation.summarise({"full": []})
