"""Chapter 05, EDITS for segmentation: clusters of images and texts together, and a real mask from
the middle of each.

EDITS distills a classification set: per class it joins every image's embedding v_i with what the
class's captions say of it,

    A = softmax_j(<v_i, t_j> / tau),    t~_i = sum_j A_ij t_j,    f_i = [v_i; t~_i],

clusters the f_i by k-means, and lets Stable Diffusion repaint each cluster's prototype. Its paper's
text is not known to us beyond the abstract; the steps and tau = 0.01, n_init = 10, seed 42, five
near members and the outlier factor's ten neighbours are those of its public code. Ours, because a
segmentation set has no class per image and no vision-language model is embedded:

- groups, which overlap, stand for classes: the images with at least 2 % of class c, or with any of
  it where too few have so much. The rarest group chooses first, and no image is chosen twice;
- the prototype is a medoid, one real image, since the mean of five latents has no mask;
- `two_towers` makes the space that images and texts share, by ridge CCA of pooled features and
  captions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import SegmentationDataset
from d3s2.methods.captions import (
    Captioner,
    TemplateCaptioner,
    captions,
    fitting_names,
    regions,
    said,
    with_names,
)
from d3s2.methods.embeddings import pooled_features
from d3s2.methods.towers import fused, multi_hot, two_towers
from d3s2.models.prompts import NOTHING
from d3s2.statistics.pixels import PixelCounts

Summary = Callable[[str, Sequence[str]], str]
"""(name of the group's class, captions of a prototype's near members, the medoid's first) to one
text: where EDITS asks a large language model.
"""
KMEANS_SEED = 42
"""Of the public code; a run's seed is added."""


# ----------------------------------------------------------------------------- clusters and medoids
def inliers(points: np.ndarray, contamination: float = 0.0, neighbors: int = 10) -> np.ndarray:
    """int64[M]: the positions that the local outlier factor keeps, in order; 0 keeps all.

    contamination: share to be left out, up to 0.5. The public code's own value is 0.1, that of its
    script 0. Fewer than three points are all kept. Raises D3S2Error for a share out of range.
    """
    if not 0 <= contamination <= 0.5:
        raise D3S2Error(f"contamination is {contamination}: give a share from 0 (none) to 0.5.")
    if contamination == 0 or len(points) < 3:
        return np.arange(len(points))
    from sklearn.neighbors import LocalOutlierFactor

    near = min(neighbors, len(points) - 1)
    factor = LocalOutlierFactor(n_neighbors=near, contamination=contamination)
    return np.flatnonzero(factor.fit_predict(points) == 1)


class Cluster(NamedTuple):
    """medoid: the member nearest to the middle; near: int64[up to `near`], those nearest, the
    medoid first; size: of the cluster.
    """

    medoid: int
    near: np.ndarray
    size: int


def prototypes(f: np.ndarray, k: int, near: int = 5, seed: int = KMEANS_SEED) -> list[Cluster]:
    """k clusters of points float64[N, D] by k-means, the largest first, of equal ones that with the
    lower medoid; where fewer than k points differ, as many as differ.

    The member nearest to the mean of a cluster has the smallest sum of squared distances to all
    members: it is the medoid. Of equally near ones the lowest comes first. Raises D3S2Error for
    counts below 1, more clusters than points and numbers that are not finite.
    """
    if not 1 <= k <= len(f) or near < 1 or not np.isfinite(f).all():
        raise D3S2Error(
            f"{k} clusters of {len(f)} points and {near} near members are asked: give 1 to "
            f"{len(f)} clusters, near from 1, and finite points."
        )
    from sklearn.cluster import KMeans

    different = len(np.unique(f, axis=0))
    means = KMeans(min(k, different), n_init=10, random_state=seed).fit(f)
    found = [
        _cluster(f, np.flatnonzero(means.labels_ == label), near)
        for label in np.unique(means.labels_)
    ]
    return sorted(found, key=lambda cluster: (-cluster.size, cluster.medoid))


def _cluster(f: np.ndarray, members: np.ndarray, near: int) -> Cluster:
    """The members at these positions, by their distance from their mean."""
    away = f[members] - f[members].mean(axis=0)
    distances = np.einsum("nd,nd->n", away, away)
    nearest = members[np.argsort(distances, kind="stable")[:near]]
    return Cluster(int(nearest[0]), nearest, len(members))


# --------------------------------------------------------------------------------------- the groups
class Group(NamedTuple):
    """The images int64[M] that hold enough of a class, and how many of them are wanted."""

    train_id: int
    members: np.ndarray
    quota: int


def groups(counts: PixelCounts, budget: int, share: float = 0.02) -> list[Group]:
    """One group a class that occurs, the rarest first, of equal ones the lower id: the images with
    at least `share` of their valid pixels in it; for thin things, of which fewer images than its
    quota have so much, all images that have any of it.

    quota: the budget evenly, what is left over one each for the rarest. Raises D3S2Error for a
    share out of (0, 1], a budget of less than 1 or more than there are masks, and where no class
    occurs.
    """
    if not 0 < share <= 1 or not 1 <= budget <= len(counts):
        raise D3S2Error(
            f"share is {share} and budget {budget}: give a share above 0 up to 1, and 1 to "
            f"{len(counts)} masks."
        )
    present = np.flatnonzero(counts.pixel_counts()).tolist()
    if not present:
        raise D3S2Error("no class occurs in any mask: there is no group; check the label files.")
    each, more = divmod(budget, len(present))
    columns = counts.shares().tocsc()
    found = []
    for train_id in present:
        column = slice(columns.indptr[train_id], columns.indptr[train_id + 1])
        having = columns.indices[column].astype(np.int64)
        enough = having[columns.data[column] >= share]
        members = enough if len(enough) >= max(1, each) else having
        found.append(Group(train_id, np.sort(members), 0))
    found.sort(key=lambda group: (len(group.members), group.train_id))
    return [group._replace(quota=each + (place < more)) for place, group in enumerate(found)]


class Prototype(NamedTuple):
    """A chosen image, and what it stands for.

    index: number of the medoid, whose mask is the label; near: int64[up to `Edits.near`], it and
    its nearest; group: the class of its group, -1 for one that was filled up from all images;
    captions: of the near, the medoid's first.
    """

    index: int
    near: np.ndarray
    group: int
    captions: tuple[str, ...]


@dataclass(frozen=True)
class Edits:
    """The method's choice of masks, and the texts that go with them.

    Args:
        captioner: None = the template, which knows no more than the mask.
        summary: None = the medoid's own caption (see `text`).
        ridge, width: of `two_towers`; tau: of `semantic_query`; contamination: of `inliers`.
        near: members of a cluster whose captions make its text.
        share: of an image that a class must have for the image to be in its group (see `groups`).
    """

    captioner: Captioner | None = None
    summary: Summary | None = None
    ridge: float = 0.01
    width: int = 32
    tau: float = 0.01
    contamination: float = 0.0
    near: int = 5
    share: float = 0.02

    def select(self, world: Any) -> np.ndarray:
        """int64[k]: the medoids, of which the masks are the labels.

        world: what has `train`, `counts`, `proxy`, `budget` and `seed`.
        """
        return np.array([found.index for found in self.choose(world)], dtype=np.int64)

    def choose(self, world: Any) -> list[Prototype]:
        """The prototypes in the order in which they were chosen. Raises D3S2Error as the steps."""
        texts = self.captions(world.train)
        images = pooled_features(world.train, world.proxy)
        return self.choose_among(images, texts, world.counts, world.budget, world.seed)

    def captions(
        self, train: SegmentationDataset, indices: Sequence[int] | None = None
    ) -> list[str]:
        """One caption an image (None = of all)."""
        names = [info.name for info in train.classes]
        return captions(train, self.captioner or TemplateCaptioner(names), indices)

    def choose_among(
        self,
        images: np.ndarray,
        texts: Sequence[str],
        counts: PixelCounts,
        budget: int,
        seed: int = 0,
    ) -> list[Prototype]:
        """The same for pooled features float64[N, D] and captions that are there already."""
        v, t = two_towers(images, multi_hot(texts), self.ridge, self.width)
        free = np.ones(len(v), dtype=bool)
        found: list[Prototype] = []

        def add(group: Group, wanted: int) -> int:
            """How many of those wanted of a group there are not."""
            members = group.members[free[group.members]]
            chosen = self._of_group(v, t, members, wanted, seed)
            for index, near in chosen:
                told = tuple(texts[place] for place in near)
                found.append(Prototype(index, near, group.train_id, told))
                free[index] = False
            return wanted - len(chosen)

        missing = 0
        for group in groups(counts, budget, self.share):
            missing = add(group, group.quota + missing)
        while missing:
            missing = add(Group(-1, np.arange(len(v)), 0), missing)
        return found

    def _of_group(
        self, v: np.ndarray, t: np.ndarray, members: np.ndarray, wanted: int, seed: int
    ) -> list[tuple[int, np.ndarray]]:
        """(medoid, near members) of up to `wanted` clusters of the images at these positions."""
        if not wanted or not len(members):
            return []
        f = fused(v[members], t[members], self.tau)
        kept = inliers(f, self.contamination)
        members = members[kept]
        count = min(wanted, len(members))
        clusters = prototypes(f[kept], count, self.near, KMEANS_SEED + seed)
        return [(int(members[cluster.medoid]), members[cluster.near]) for cluster in clusters]

    def text(self, train: SegmentationDataset, prototype: Prototype) -> str:
        """The prompt of a prototype: what `summary` makes of its captions, without one the medoid's
        own. It names the group's class and the classes of the medoid's mask, the largest first, as
        many as there is room for.

        Raises D3S2Error for a summary that fails or gives no text.
        """
        present = [region.train_id for region in regions(train.read_labels(prototype.index))]
        present.sort(key=lambda train_id: train_id != prototype.group)  # the group's comes first
        names = [train.classes[train_id].name for train_id in present]
        return with_names(self._summarised(train, prototype), fitting_names(names))

    def _summarised(self, train: SegmentationDataset, prototype: Prototype) -> str:
        """The text without care for names."""
        if self.summary is None:
            return prototype.captions[0]
        name = train.classes[prototype.group].name if prototype.group >= 0 else NOTHING
        asked = f"The summary of the captions around image {train.ids[prototype.index]}"
        return said(asked, self.summary, name, prototype.captions)
