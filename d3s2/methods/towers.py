"""Images and captions in one space, where EDITS needs a vision-language model and none is embedded.

Two towers, one of images and one of texts, made by ridge CCA (Hotelling 1936) of pooled features
and of the words of captions; then EDITS' global semantic query, which joins every image with what
the texts say of it. With the template's captions this teaches nothing beyond the labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import softmax

from d3s2.core.errors import D3S2Error
from d3s2.core.parallel import chunks
from d3s2.methods.captions import units
from d3s2.methods.embeddings import normalised

ROWS = 1024
"""Images whose weights over all texts are computed at once."""
MOST_UNITS = 1000
"""Of the words and phrases of all captions, the most frequent so many are looked at."""


def multi_hot(texts: Sequence[str]) -> np.ndarray:
    """float64[N, U]: which of the captions' `units` each has; at most `MOST_UNITS`, by frequency.

    Raises D3S2Error where no caption has a word.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(analyzer=units, max_features=MOST_UNITS)
    try:
        return vectorizer.fit_transform(texts).toarray().astype(np.float64)
    except ValueError as error:  # an empty vocabulary
        raise D3S2Error(
            f"None of the {len(texts)} captions has a word in it: look at the captioner."
        ) from error


def two_towers(
    images: np.ndarray, texts: np.ndarray, ridge: float = 0.01, width: int = 32
) -> tuple[np.ndarray, np.ndarray]:
    """(v, t), both float64[N, width] with rows of length 1: images and texts in one space.

    Ridge CCA, in place of a vision-language model: the directions a and b in which images
    float[N, D] and texts float[N, U] go together best, corr(Va, Tb), one pair after the other. To
    both covariances `ridge` times their mean variance is added on the diagonal. A width above the
    smaller of D and U is cut to that. Raises D3S2Error for tables of unequal length, numbers that
    are not finite, a ridge that is not above 0, a width below 1, and images or texts that are all
    alike.
    """
    if len(images) != len(texts) or width < 1 or not ridge > 0:
        raise D3S2Error(
            f"{len(images)} images, {len(texts)} texts, width {width} and ridge {ridge}: give as "
            "many texts as images, a width from 1 and a ridge above 0."
        )
    v = _centred(images, "images")
    t = _centred(texts, "texts")
    whiten_v = _whitening(v, ridge)
    whiten_t = _whitening(t, ridge)
    left, _, right = np.linalg.svd(whiten_v @ (v.T @ t) @ whiten_t, full_matrices=False)
    signs = np.sign(left[np.abs(left).argmax(axis=0), np.arange(left.shape[1])])
    a = whiten_v @ (left * signs)[:, :width]
    b = whiten_t @ (right.T * signs)[:, :width]
    return normalised(v @ a), normalised(t @ b)


def _centred(table: np.ndarray, what: str) -> np.ndarray:
    """The table without its mean. Raises D3S2Error where nothing is left to look at."""
    table = np.asarray(table, dtype=np.float64)
    if not np.isfinite(table).all():
        raise D3S2Error(f"The {what} have numbers that are not finite: look at what made them.")
    centred = table - table.mean(axis=0)
    if not (np.ptp(table, axis=0) > 0).any():
        raise D3S2Error(
            f"All {len(table)} {what} are alike: there is no direction in which they differ."
        )
    return centred


def _whitening(table: np.ndarray, ridge: float) -> np.ndarray:
    """float64[D, D]: (X^T X + ridge * mean variance * 1)^(-1/2), of a centred table."""
    covariance = table.T @ table
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, 0.0) + ridge * values.mean()
    return (vectors / np.sqrt(values)) @ vectors.T


def semantic_query(v: np.ndarray, t: np.ndarray, tau: float = 0.01) -> np.ndarray:
    """float64[N, D]: t~_i = sum_j softmax_j(<v_i, t_j> / tau) t_j, what texts say of each image.

    v: float64[N, D]; t: float64[M, D]. Towards tau = 0 it is the nearest text (of equally near ones
    their mean), at tau = inf the mean of all. The public code computes lengths and does not use
    them, so that its products are not of unit vectors; ours are, if `two_towers` made them. Raises
    D3S2Error for a tau that is not above 0 and where there is no text.
    """
    if not tau > 0 or not len(t):
        raise D3S2Error(
            f"tau is {tau} and there are {len(t)} texts: give a tau above 0 (EDITS: 0.01) and at "
            "least one text."
        )
    rows = [v[block.start : block.stop] for block in chunks(len(v), ROWS)]
    return np.concatenate([softmax(block @ t.T / tau, axis=1) @ t for block in rows])


def fused(v: np.ndarray, t: np.ndarray, tau: float = 0.01) -> np.ndarray:
    """float64[N, 2 D]: f_i = [v_i; t~_i], by which the images are clustered."""
    return np.concatenate([v, semantic_query(v, t, tau)], axis=1)
