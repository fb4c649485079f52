"""What a reader is told of the line they wrote: right, not written, or what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pytest
import torch
from notebook_contract import code_cells, reader

from d3s2.course import checks

RNG = np.random.default_rng(0)
LABELS = np.array([[0, 0, 0, 255], [0, 0, 1, 1], [2, 2, 1, 1], [2, 2, 2, 2]])
CALLED = np.array([[0, 0, 0, 0], [0, 1, 1, 1], [2, 1, 1, 1], [2, 2, 2, 2]])
CLEAN, EPSILON = RNG.normal(0.2, 1, (2, 3, 3)), RNG.normal(0, 1, (2, 3, 3))
PHI, SOFT = RNG.normal(1, 1, (4, 4)), RNG.choice([0.0, 0.25, 0.5], (4, 4))
SHARE, TAU = np.array([0.5, 0.01, 0.0, 0.015]), 0.02
A_I, A_S = np.array([1.0, 0.5, 0.2, 0.0]), np.array([2.0, 0.0, 0.3, 1.0])
WEIGHTS, DELTA = np.array([0.5, 1.5, 1.0, 1.0]), 0.7
LOG_P = np.log(RNG.dirichlet(np.ones(3), (4, 4)).transpose(2, 0, 1))
G = RNG.normal(0, 2, CLEAN.shape)
MATRIX = np.array([[40, 7, 3], [5, 30, 1], [2, 4, 8]])
INSIDE, MASK = RNG.random((4, 4)), (RNG.random((4, 4)) > 0.5).astype(float)
VALID = LABELS != 255
TRUE = np.array([LOG_P[LABELS[y, x], y, x] for y, x in zip(*np.nonzero(VALID), strict=True)])
DISTANCES = np.array([[0.0, 3.0], [2.5, 4.0], [1.0, 0.5], [5.0, 1.5]])
P = np.array([0.012, 0.2, 0.21, 0.9])
PULL = 0.8 * np.linalg.norm(EPSILON) * 0.1 * G / np.linalg.norm(G)  # at a = 0.36

CASES: dict[str, tuple[tuple[Any, ...], Any, dict[str, Any]]] = {
    "check_noised": (
        (CLEAN, EPSILON, 0.36),
        0.6 * CLEAN + 0.8 * EPSILON,
        {
            "lack their square roots": 0.36 * CLEAN + 0.64 * EPSILON,
            "swapped": 0.8 * CLEAN + 0.6 * EPSILON,
            "noise is added in full": 0.6 * CLEAN + EPSILON,
            "image is added in full": CLEAN + 0.8 * EPSILON,
            "noise is subtracted": 0.6 * CLEAN - 0.8 * EPSILON,
            "noise is missing": 0.6 * CLEAN,
        },
    ),
    "check_share": (
        (LABELS, 1),
        4 / 15,
        {
            "divided by all pixels": 4 / 16,
            "number of pixels": 4,
            "all other classes": 11 / 15,
            "class against not class": 4 / 11,
            "share of the labelled": 15 / 16,
            "percent": 400 / 15,
        },
    ),
    "check_class_mean": (
        (PHI, SOFT),
        np.average(PHI, weights=SOFT),
        {
            "divided by the number of cells": (SOFT * PHI).sum() / 16,
            "the soft mask is missing": PHI.mean(),
            "that is a sum": (SOFT * PHI).sum(),
            "counts alike": PHI[SOFT > 0].mean(),
            "the feature is missing": SOFT.sum(),
            "squared": (SOFT**2 * PHI).sum() / SOFT.sum(),
        },
    ),
    "check_presence": (
        (SHARE, TAU),
        np.array([1, 0.5, 0, 0.75]),
        {
            "the minimum is missing": np.array([25, 0.5, 0, 0.75]),
            "not the larger": np.array([25, 1, 1, 1]),
            "all or nothing": np.array([1, 0, 0, 0]),
            "not divided by it": np.array([0.02, 0.01, 0, 0.015]),
            "divide by it": SHARE * 0.02,
            "the threshold is missing": SHARE,
        },
    ),
    "check_gain": (
        (A_I, A_S, WEIGHTS, DELTA),
        0.5 * np.log(1 + 1 / 2.7) + 1.5 * np.log(1 + 0.5 / 0.7) + np.log(1 + 0.2),
        {
            "the logarithm is missing": 0.5 / 2.7 + 1.5 * 0.5 / 0.7 + 0.2,
            "the weights of the classes": np.log1p([1 / 2.7, 0.5 / 0.7, 0.2]).sum(),
            "over an empty selection": WEIGHTS @ np.log1p(A_I / 0.7),
            "delta is missing": 0.5 * np.log(1.5) + np.log(1 + 0.2 / 0.3),
            "with the mask, not what": WEIGHTS @ np.log1p((A_I + A_S) / 0.7),
            "without the mask": WEIGHTS @ np.log1p(A_S / 0.7),
            "1 + is missing": 0.5 * np.log(1 / 2.7) + 1.5 * np.log(0.5 / 0.7) + np.log(0.2),
            "the mean over the classes": WEIGHTS @ np.log1p(A_I / (0.7 + A_S)) / 4,
        },
    ),
    "check_loss": (
        (LOG_P, LABELS),
        -TRUE.mean(),
        {
            "that is a sum": -TRUE.sum(),
            "divided by all pixels": -TRUE.sum() / 16,
            "logarithm and its sign": np.exp(TRUE).mean(),
            "that is 1 - p": 1 - np.exp(TRUE).mean(),
            "the mean over all classes": -LOG_P[:, VALID].mean(),
            "surest class": -LOG_P.max(0)[VALID].mean(),
            "sign is not": TRUE.mean(),
        },
    ),
    "check_guided": (
        (EPSILON, G, 0.36, 0.1),
        EPSILON + PULL,
        {
            "sign is wrong": EPSILON - PULL,
            "not divided by its length": EPSILON + PULL * np.linalg.norm(G),
            "length of eps": EPSILON + PULL / np.linalg.norm(EPSILON),
            "sqrt(1 - a) is missing": EPSILON + PULL / 0.8,
            "lacks its square root": EPSILON + PULL * 0.8,
            "in the place of": EPSILON + PULL / 0.8 * 0.6,
            "raw rule": EPSILON + 0.8 * 0.1 * G,
            "eps itself is missing": PULL,
        },
    ),
    "check_iou": (
        (LABELS, CALLED, 0),
        4 / 5,
        {
            "pixels without a label are in the union": 4 / 6,
            "share of all correct": 13 / 15,
            "intersection is counted twice": 4 / 9,
            "Dice": 8 / 9,
            "number of pixels in both": 4,
            "that is the union": 5,
        },
    ),
    "check_matrix_iou": (
        (MATRIX, 1),
        30 / 47,
        {
            "pixels that are the class": 30 / 36,
            "pixels called the class": 30 / 41,
            "counted twice": 30 / 77,
            "Dice": 60 / 77,
            "share of all correct": 78 / 100,
            "all pixels of the split": 30 / 100,
            "percent": 3000 / 47,
        },
    ),
    "check_dice": (
        (INSIDE, MASK),
        1 - (2 * (INSIDE * MASK).sum() + 1) / (INSIDE.sum() + MASK.sum() + 1),
        {
            "how alike": (2 * (INSIDE * MASK).sum() + 1) / (INSIDE.sum() + MASK.sum() + 1),
            "the 2 before": 1 - ((INSIDE * MASK).sum() + 1) / (INSIDE.sum() + MASK.sum() + 1),
            "both + 1": 1 - 2 * (INSIDE * MASK).sum() / (INSIDE.sum() + MASK.sum()),
            "+ 1 above": 1 - 2 * (INSIDE * MASK).sum() / (INSIDE.sum() + MASK.sum() + 1),
            "+ 1 below": 1 - (2 * (INSIDE * MASK).sum() + 1) / (INSIDE.sum() + MASK.sum()),
            "union below": (
                1
                - (2 * (INSIDE * MASK).sum() + 1)
                / (INSIDE.sum() + MASK.sum() - (INSIDE * MASK).sum() + 1)
            ),
        },
    ),
    "check_radius": (
        (DISTANCES,),
        2.5,
        {
            "largest of all": 5.0,
            "smallest of all": 0.0,
            "average image": 4.5 / 4,
            "axes are swapped": 0.5,
            "best image's": 1.0,
        },
    ),
    "check_holm": (
        (P, 2),
        0.6,  # 4 x .012, 3 x .2, 2 x .21: the second
        {
            "not corrected": 0.21,
            "Bonferroni": 0.84,
            "than the one before it": 0.42,
            "one too small": 0.4,
            "that divides": 0.105,
            "whole family": 0.9,
        },
    ),
}
GARBAGE = (None, "three", object(), lambda: 0, [], {}, [[1], [1, 2]], 1j, np.nan, np.inf, True)
MISTAKES = [(name, part) for name, (_, _, wrongs) in CASES.items() for part in wrongs]


def told(name: str, mine: Any, *guess: Any) -> str:
    return getattr(checks, name)(mine, *CASES[name][0], *guess)


def test_every_check_is_tried_here() -> None:
    assert {name for name in vars(checks) if name.startswith("check_")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_what_is_right_is_called_right_whatever_it_is_made_of(name: str) -> None:
    right = np.asarray(CASES[name][1])
    single = torch.tensor(right, dtype=torch.float32, requires_grad=True)
    for mine in (right, right.tolist(), single, right.astype(np.float32)):
        assert told(name, mine) == checks.RIGHT


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_written_is_said_so(name: str) -> None:
    assert told(name, ...) == told(name, ..., 0.3) == checks.UNWRITTEN


@pytest.mark.parametrize(("name", "part"), MISTAKES)
def test_a_typical_mistake_is_recognised_by_its_value(name: str, part: str) -> None:
    said = told(name, CASES[name][2][part])
    assert said.startswith("not yet: ") and part in said


@pytest.mark.parametrize("name", CASES)
def test_no_answer_raises_and_none_but_the_right_one_is_right(name: str) -> None:
    for mine in GARBAGE:
        assert told(name, mine, mine).startswith(("wrong", "not yet"))


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_answer_does_not_hear_the_right_one(name: str) -> None:
    _, right, wrongs = CASES[name]
    numbers = {f"{value:.2g}" for value in np.unique(np.round(right, 12)) if value not in (0, 1, 2)}
    for mine in (*wrongs.values(), np.asarray(right) + 0.37):
        said = told(name, mine, 0.123)
        assert not any(f" {number}" in said for number in numbers), said


def test_a_value_that_is_no_known_mistake() -> None:
    assert told("check_share", 0.9) == "not yet: too large; go through the formula term by term"
    assert told("check_share", 0.1) == "not yet: too small; go through the formula term by term"
    half = CASES["check_presence"][1].copy()
    half[1] = 0.7
    assert told("check_presence", half).startswith("not yet: 25% of the entries differ")
    assert told("check_noised", CLEAN[0]).startswith("wrong shape: 3x3 where 2x3x3 is wanted")
    assert told("check_share", [0.1, 0.2]) == "wrong shape: 2 where a single number is wanted"


def test_a_prediction_is_held_against_what_came_out() -> None:
    assert told("check_share", 4 / 15, 0.5) == "right; your prediction was 0.23 too high"
    assert told("check_iou", 0.8, 0.75) == "right; your prediction was 0.05 too low"
    assert told("check_noised", CASES["check_noised"][1], 0.5).endswith("0.1 too low")
    assert told("check_presence", CASES["check_presence"][1], 0.6).endswith("0.1 too high")
    assert told("check_guided", CASES["check_guided"][1], 0.1).endswith("0.02 too high")
    assert told("check_share", 4 / 15, "half") == told("check_share", 4 / 15, None) == "right"


def test_a_corrected_chance_stays_one() -> None:
    likely = np.array([0.6, 0.7])
    assert checks.check_holm(1.0, likely, 0) == checks.RIGHT == checks.check_holm(1.0, likely, 1)
    assert "cannot exceed 1" in checks.check_holm(1.2, likely, 0)


def test_masks_without_a_label_or_without_the_class_raise_nothing() -> None:
    nothing = np.full((2, 2), 255)
    assert checks.check_share(0.0, nothing, 1) == checks.RIGHT
    assert checks.check_iou(0.0, nothing, nothing, 1) == checks.RIGHT
    assert checks.check_loss(0.0, LOG_P[:, :2, :2], nothing) == checks.RIGHT
    assert checks.check_matrix_iou(0.0, np.zeros((2, 2), int), 1) == checks.RIGHT
    assert checks.check_class_mean(0.0, PHI, 0 * SOFT) == checks.RIGHT
    assert checks.check_guided(EPSILON, EPSILON, 0 * G, 0.5, 0.1) == checks.RIGHT
    assert checks.check_presence(0 * SHARE, 0 * SHARE, TAU) == checks.RIGHT


# --------------------------------------------------------------------- where the reader meets them
CHAPTERS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("0[0-9]_*.ipynb"))
SPOILT = {
    "lines for the reader": ("mine = ...", "ours = 1"),
    "nothing checks": ("print(checks.check_", "print(len(checks.check_"),
    "predicts nothing": ("  # your prediction", "  # a number"),
    "nobody asks": ("Your turn", "My turn"),
    "no hidden answer": ("<summary>Answer", "<summary>Hint"),
    "nothing to turn": ("widgets.", "gadgets."),
    "no link to the solutions": ("(solutions/", "(elsewhere/"),
}


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_chapter_has_its_lines_and_knobs(path: Path) -> None:
    assert list(reader(path, nbformat.read(path, as_version=4))) == []


@pytest.mark.parametrize("problem", SPOILT)
def test_a_chapter_that_lacks_one_of_them_is_found(problem: str) -> None:
    notebook = nbformat.read(CHAPTERS[0], as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace(*SPOILT[problem])
    assert any(problem in found for found in reader(CHAPTERS[0], notebook))


def test_a_live_widget_in_an_output_is_found() -> None:
    notebook = nbformat.read(CHAPTERS[0], as_version=4)
    shown = {"application/vnd.jupyter.widget-view+json": {}}
    output = {"output_type": "display_data", "data": shown, "metadata": {}}
    code_cells(notebook)[0].outputs.append(nbformat.from_dict(output))
    assert any("live widget" in found for found in reader(CHAPTERS[0], notebook))
