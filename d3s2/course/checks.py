"""Checks of the one line that a reader writes in a chapter: a value in, a sentence out.

Each check is given what the reader's line gave (`...` while it is not written), the line's inputs,
and, if they like, the number they had predicted. It knows the right value and those of the typical
mistakes, and says which one it sees. It never raises for a wrong answer and never says the right
one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import EllipsisType
from typing import Any

import numpy as np

IGNORE = 255
"""The label of pixels that belong to no class."""
UNWRITTEN = "not written yet: replace the dots after `mine =` by your line"
RIGHT = "right"
CLOSE = {"rtol": 1e-4, "atol": 1e-7}
"""Two values are the same that differ by no more than single precision makes of them."""


# ---------------------------------------------------------------------------- chapter 00, 01
def check_noised(mine: Any, clean: Any, epsilon: Any, a: float, guess: Any = ...) -> str:
    """x_t of chapter 00: sqrt(a) clean + sqrt(1 - a) epsilon; `guess` is of the image's factor."""
    clean, epsilon = _array(clean), _array(epsilon)
    wrongs = {
        "the two factors lack their square roots": a * clean + (1 - a) * epsilon,
        "the factors are swapped: at alpha_bar = 1 there must be no noise": (
            math.sqrt(1 - a) * clean + math.sqrt(a) * epsilon
        ),
        "the noise is added in full: it has a factor too": math.sqrt(a) * clean + epsilon,
        "the image is added in full: it has a factor too": clean + math.sqrt(1 - a) * epsilon,
        "the noise is subtracted: the formula adds it": (
            math.sqrt(a) * clean - math.sqrt(1 - a) * epsilon
        ),
        "that is the image alone: the noise is missing": math.sqrt(a) * clean,
    }
    right = math.sqrt(a) * clean + math.sqrt(1 - a) * epsilon
    return _judge(mine, right, wrongs, guess, math.sqrt(a))


def check_share(mine: Any, labels: Any, c: int, guess: Any = ...) -> str:
    """Share of class c among the labelled pixels of a mask of chapter 01."""
    labels = _array(labels)
    count, valid = float((labels == c).sum()), float((labels != IGNORE).sum())
    wrongs = {
        "that is divided by all pixels: those without a label do not count": count / labels.size,
        "that is a number of pixels: a share is divided by something": count,
        "that is the share of all other classes": 1 - count / max(valid, 1),
        "that is class against not class: divide by all labelled pixels": (
            count / max(valid - count, 1)
        ),
        "that is the share of the labelled pixels": valid / labels.size,
    }
    return _judge(mine, count / max(valid, 1), wrongs, guess)


def check_class_mean(mine: Any, phi: Any, m: Any, guess: Any = ...) -> str:
    """Mean of one feature channel over a class: phi[H, W] weighed by the soft mask m[H, W]."""
    phi, m = _array(phi), _array(m)
    area = max(float(m.sum()), 1e-12)
    inside = phi[m > 0]
    wrongs = {
        "that is divided by the number of cells: divide by the area of the class": (
            (m * phi).mean()
        ),
        "that is the mean over all cells: the soft mask is missing": phi.mean(),
        "that is a sum: it has to be divided by the area of the class": (m * phi).sum(),
        "every cell that the class touches counts alike there: weigh it by the mask": (
            inside.mean() if inside.size else math.nan
        ),
        "that is the area of the class: the feature is missing": area,
        "the mask is squared: it belongs once above and once below": (m * m * phi).sum() / area,
    }
    return _judge(mine, (m * phi).sum() / area, wrongs, guess)


# -------------------------------------------------------------------------------- chapter 02
def check_presence(mine: Any, share: Any, threshold: float, guess: Any = ...) -> str:
    """Presences of classes with these shares of a mask, float[C]: min(1, share / threshold);
    `guess` is of the smallest above 0.
    """
    share = _array(share)
    wrongs = {
        "it must not grow beyond 1: the minimum is missing": share / threshold,
        "the smaller of the two is wanted, not the larger": np.maximum(1.0, share / threshold),
        "that is all or nothing: below the threshold it is proportional": (
            (share >= threshold).astype(float)
        ),
        "the share is cut off at the threshold, but not divided by it": (
            np.minimum(share, threshold)
        ),
        "the threshold is multiplied: divide by it": np.minimum(1.0, share * threshold),
        "that is the share itself: the threshold is missing": share,
    }
    right = np.minimum(1.0, share / threshold)
    return _judge(mine, right, wrongs, guess, np.min(right[right > 0], initial=1.0))


def check_gain(mine: Any, a_i: Any, a_S: Any, weights: Any, delta: float, guess: Any = ...) -> str:
    """Gain of a mask with presences a_i over a selection with a_S: sum w log(1 + a_i/(delta+a_S)).

    a_i, a_S, weights: float[C].
    """
    a_i, a_S, weights = _array(a_i), _array(a_S), _array(weights)
    ratio = a_i / (delta + a_S)
    gain = float(weights @ np.log1p(ratio))
    wrongs = {
        "the logarithm is missing: that is the approximation for small presences": weights @ ratio,
        "the weights of the classes are missing": np.log1p(ratio).sum(),
        "that is the gain over an empty selection: a_S is missing": (
            weights @ np.log1p(a_i / delta)
        ),
        "delta is missing beside a_S": weights @ np.log1p(a_i / np.where(a_S > 0, a_S, np.inf)),
        "that is the value of the selection with the mask, not what the mask adds": (
            weights @ np.log1p((a_S + a_i) / delta)
        ),
        "that is the value of the selection without the mask": weights @ np.log1p(a_S / delta),
        "1 + is missing in the logarithm": _silent_log(weights, ratio),
        "the mean over the classes is taken: the gain is their sum": gain / len(weights),
    }
    return _judge(mine, gain, wrongs, guess)


# -------------------------------------------------------------------------------- chapter 03
def check_loss(mine: Any, log_p: Any, labels: Any, guess: Any = ...) -> str:
    """Segmentation consistency of one image: the mean of -log p of the true class, over the
    labelled pixels. log_p: float[C, H, W]; labels: int[H, W].
    """
    log_p, labels = _array(log_p), _array(labels).astype(int)
    valid = labels != IGNORE
    true = np.take_along_axis(log_p, np.where(valid, labels, 0)[None], axis=0)[0]
    total, pixels = -float(true[valid].sum()), max(int(valid.sum()), 1)
    wrongs = {
        "that is a sum: the loss is a mean over the labelled pixels": total,
        "that is divided by all pixels: those without a label do not count": total / labels.size,
        "that is the mean of p: the logarithm and its sign are missing": (
            np.exp(true[valid]).sum() / pixels
        ),
        "that is 1 - p: the loss takes the logarithm": 1 - np.exp(true[valid]).sum() / pixels,
        "that is the mean over all classes: only the true class of a pixel counts": (
            -log_p[:, valid].mean() if valid.any() else 0.0
        ),
        "that is the surest class of each pixel: the true one is asked for": (
            -log_p.max(axis=0)[valid].sum() / pixels
        ),
    }
    return _judge(mine, total / pixels, wrongs, guess)


def check_guided(mine: Any, eps: Any, g: Any, a: float, strength: float, guess: Any = ...) -> str:
    """The guided noise of one image: eps + sqrt(1 - a) |eps| strength g / |g|; `guess` is of the
    length of what is added, as a share of |eps|.
    """
    eps, g = _array(eps), _array(g)
    length, pull = np.linalg.norm(eps), g / max(float(np.linalg.norm(g)), 1e-12)
    added = math.sqrt(1 - a) * length * strength * pull
    wrongs = {
        "the sign is wrong: that climbs the loss": eps - added,
        "the gradient is not divided by its length": (
            eps + math.sqrt(1 - a) * length * strength * g
        ),
        "the length of eps is missing: the strength is a share of it": eps + added / length,
        "sqrt(1 - a) is missing": eps + length * strength * pull,
        "1 - a lacks its square root": eps + (1 - a) * length * strength * pull,
        "that has sqrt(a) in the place of sqrt(1 - a)": (
            eps + math.sqrt(a) * length * strength * pull
        ),
        "that is the raw rule of section 5: no length is set": (
            eps + math.sqrt(1 - a) * strength * g
        ),
        "that is only what is added: eps itself is missing": added,
    }
    share = np.linalg.norm(added) / max(float(length), 1e-12)
    return _judge(mine, eps + added, wrongs, guess, share)


# ---------------------------------------------------------------------------- chapter 00, 04
def check_iou(mine: Any, truth: Any, called: Any, c: int, guess: Any = ...) -> str:
    """Intersection over union of class c between two masks, over the labelled pixels, 0 to 1."""
    truth, called = _array(truth), _array(called)
    valid = truth != IGNORE
    is_c, called_c = valid & (truth == c), valid & (called == c)
    both, either = float((is_c & called_c).sum()), float((is_c | called_c).sum())
    everywhere = float(((truth == c) | (called == c)).sum())
    wrongs = _wrong_ious(both, float(is_c.sum()), float(called_c.sum()), either) | {
        "pixels without a label are in the union: take them out first": (both / max(everywhere, 1)),
        "that is the share of all correct pixels": float(
            ((truth == called) & valid).sum() / max(valid.sum(), 1)
        ),
    }
    return _judge(mine, both / max(either, 1), wrongs, guess)


def check_matrix_iou(mine: Any, matrix: Any, c: int, guess: Any = ...) -> str:
    """IoU of class c from a confusion matrix int[C, C], rows the truth; 0 to 1."""
    matrix = _array(matrix)
    both, is_c, called_c = float(matrix[c, c]), float(matrix[c].sum()), float(matrix[:, c].sum())
    either = is_c + called_c - both
    wrongs = _wrong_ious(both, is_c, called_c, either) | {
        "that is the share of all correct pixels": np.trace(matrix) / max(matrix.sum(), 1),
        "that is divided by all pixels of the split": both / max(matrix.sum(), 1),
    }
    return _judge(mine, both / max(either, 1), wrongs, guess)


def check_dice(mine: Any, inside: Any, mask: Any, guess: Any = ...) -> str:
    """Dice loss with Mask2Former's + 1: 1 - (2 overlap + 1) / (both areas + 1)."""
    inside, mask = _array(inside), _array(mask)
    overlap, areas = float((inside * mask).sum()), float(inside.sum() + mask.sum())
    wrongs = {
        "that is how alike they are: a loss falls as they come together": (
            (2 * overlap + 1) / (areas + 1)
        ),
        "the 2 before the overlap is missing": 1 - (overlap + 1) / (areas + 1),
        "both + 1 are missing": 1 - 2 * overlap / max(areas, 1e-12),
        "the + 1 above is missing": 1 - 2 * overlap / (areas + 1),
        "the + 1 below is missing": 1 - (2 * overlap + 1) / max(areas, 1e-12),
        "that has the union below: the sum of both areas is asked for": (
            1 - (2 * overlap + 1) / (areas - overlap + 1)
        ),
    }
    return _judge(mine, 1 - (2 * overlap + 1) / (areas + 1), wrongs, guess)


# -------------------------------------------------------------------------------- chapter 05
def check_radius(mine: Any, distances: Any, guess: Any = ...) -> str:
    """Radius of a selection: how far the worst image is from its nearest chosen one.

    distances: float[N, k], of N images from the k that are chosen.
    """
    distances = _array(distances)
    wrongs = {
        "that is the largest of all distances: an image counts by its nearest chosen one": (
            distances.max()
        ),
        "that is the smallest of all distances: a chosen image is 0 from itself": distances.min(),
        "that is how far the average image is: the radius is the worst one's": (
            distances.min(axis=1).mean()
        ),
        "the axes are swapped: the nearest is sought among the chosen": (
            distances.min(axis=0).max()
        ),
        "that is the best image's farthest chosen one: first the minimum, then the maximum": (
            distances.max(axis=1).min()
        ),
    }
    return _judge(mine, distances.min(axis=1).max(), wrongs, guess)


def check_holm(mine: Any, p: Any, k: int, guess: Any = ...) -> str:
    """Holm's corrected value of p[k], the p-values of a family in ascending order; k from 0."""
    p = _array(p)
    m = len(p)
    steps = np.array([(m - j) * p[j] for j in range(k + 1)])
    wrongs = {
        "that is the p-value as if it stood alone: it is not corrected": p[k],
        "that is Bonferroni's, which multiplies all by m: Holm's factor falls with the place": (
            min(1.0, m * p[k])
        ),
        "none may be smaller than the one before it: take the largest up to k": (
            min(1.0, steps[-1])
        ),
        "it is a chance: it cannot exceed 1": steps.max(),
        "the factor is one too small: the smallest of m is multiplied by m": (
            min(1.0, max((m - j - 1) * p[j] for j in range(k + 1)))
        ),
        "that divides: a corrected value is larger than the one before": p[k] / (m - k),
        "that is the largest of the whole family: only those up to k count": (
            min(1.0, max((m - j) * p[j] for j in range(m)))
        ),
    }
    return _judge(mine, min(1.0, steps.max()), wrongs, guess)


def _wrong_ious(both: float, is_c: float, called_c: float, either: float) -> dict[str, Any]:
    return {
        "that is divided by the pixels that are the class: those called it wrongly count too": (
            both / max(is_c, 1)
        ),
        "that is divided by the pixels called the class: those that were missed count too": (
            both / max(called_c, 1)
        ),
        "the intersection is counted twice below: the union holds it once": (
            both / max(is_c + called_c, 1)
        ),
        "that is Dice: twice the intersection over both areas": 2 * both / max(is_c + called_c, 1),
        "that is the number of pixels in both: divide by the union": both,
        "that is the union: divide the intersection by it": either,
    }


# ------------------------------------------------------------------------------ the sentence
def _judge(
    mine: Any, right: Any, wrongs: Mapping[str, Any], guess: Any, predicted: Any = None
) -> str:
    """What is to be said of a reader's value; `predicted`: what the guess was of, else the value's
    mean.
    """
    if isinstance(mine, EllipsisType):
        return UNWRITTEN
    right, value = _array(right), _numbers(mine)
    if value is None:
        return f"wrong kind: numbers are wanted, this is of type {type(mine).__name__}"
    if value.size == 1:
        value = value.reshape(()) if right.ndim == 0 else value
    if value.shape != right.shape:
        return f"wrong shape: {_shape(value)} where {_shape(right)} is wanted"
    if not np.isfinite(value).all():
        return "wrong: it holds values that are not finite; is there a division by 0 or a log of 0?"
    if np.allclose(value, right, **CLOSE):
        return RIGHT + _surprise(guess, right.mean() if predicted is None else predicted)
    for sentence, wrong in wrongs.items():
        if np.allclose(value, wrong, **CLOSE):
            return f"not yet: {sentence}"
    return f"not yet: {_general(value, right)}"


def _general(value: np.ndarray, right: np.ndarray) -> str:
    """What can be said of a value that is no known mistake."""
    if np.allclose(value, -right, **CLOSE):
        return "the size is right, the sign is not"
    if np.allclose(value, 100 * right, **CLOSE):
        return "that is in percent: leave the factor 100 away"
    if right.ndim:
        off = np.abs(value - right) > CLOSE["atol"] + CLOSE["rtol"] * np.abs(right)
        return f"{off.mean():.0%} of the entries differ; go through the formula term by term"
    side = "large" if value > right else "small"
    return f"too {side}; go through the formula term by term"


def _surprise(guess: Any, found: Any) -> str:
    """How far a prediction was off; nothing where none was made. The answer is known by now."""
    number = _numbers(guess)
    if number is None or number.size != 1 or not np.isfinite(number).all():
        return ""
    off = float(number.reshape(())) - float(found)
    return f"; your prediction was {abs(off):.2g} too {'high' if off > 0 else 'low'}"


def _numbers(value: Any) -> np.ndarray | None:
    """A value as float64 numbers; None where it is no numbers."""
    try:
        return _array(value)
    except Exception:  # noqa: BLE001 - whatever a reader has written is no reason to stop a notebook
        return None


def _array(value: Any) -> np.ndarray:
    """Numbers, arrays and tensors, on whatever device and with or without a gradient."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    return np.asarray(value).astype(np.float64, casting="same_kind")


def _shape(value: np.ndarray) -> str:
    return "x".join(map(str, value.shape)) if value.ndim else "a single number"


def _silent_log(weights: np.ndarray, ratio: np.ndarray) -> float:
    """The sum of weights x logarithms over the ratios that have one."""
    some = ratio > 0
    return float(weights[some] @ np.log(ratio[some]))
