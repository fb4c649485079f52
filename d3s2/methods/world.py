"""What a method may use: the real data, its statistics, the networks that all methods share, a
budget and a seed.

A method says in `uses` what it takes, and gets that alone: a comparison whose columns say "no
photographs" must not be a matter of trust. What is dear is made once and kept in a folder beside
the distilled sets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from d3s2.core.code_version import code_version
from d3s2.core.errors import D3S2Error
from d3s2.core.files import digest, load_npz, write_npz
from d3s2.data.dataset import SegmentationDataset
from d3s2.guidance.losses import FeatureTargets
from d3s2.models.generator import LayoutGenerator
from d3s2.models.proxy import ProxySegmenter
from d3s2.selection import class_weights, presence
from d3s2.statistics.features import ClassMoments, feature_statistics
from d3s2.statistics.pixels import PixelCounts, count_pixels

USES = {
    "images": "the photographs",
    "masks": "their masks",
    "proxy": "the segmenter trained on both",
    "generator": "the generator trained on both",
    "teacher labels": "labels by that segmenter in the place of masks",
}
"""What a method can declare, and what it means."""


class Networks(NamedTuple):
    """The networks that all methods share, frozen; digest: of their weights and foreign code."""

    generator: LayoutGenerator
    proxy: ProxySegmenter
    digest: str


class SelectionRule(NamedTuple):
    """Chapter 02's parameters; see `selection`."""

    presence_threshold: float = 0.02
    beta: float = 0.5
    delta: float = 1.0


@dataclass
class Shared:
    """What all methods, budgets and seeds have in common, made on first use.

    train: the real training split; work: where sets and what is dear to compute are kept; load:
    opens the networks.
    """

    train: SegmentationDataset
    work: Path
    load: Callable[[], Networks]
    rule: SelectionRule = field(default_factory=SelectionRule)
    spent: float = 0.0
    """Seconds that went into what all methods share: no single one is billed for them."""

    @cached_property
    def networks(self) -> Networks:
        """Generator and proxy."""
        with self.unbilled():
            return self.load()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the data and the networks."""
        return digest([self.train.fingerprint(), self.networks.digest])

    @cached_property
    def counts(self) -> PixelCounts:
        """Chapter 01: pixels of each class in each mask."""
        with self.unbilled():
            return count_pixels(self.train, progress=False)

    @cached_property
    def presence(self) -> sparse.csr_array:
        """Chapter 02: csr float64[N, C], how present each class is in each mask."""
        return presence(self.counts, self.rule.presence_threshold)

    @cached_property
    def class_weights(self) -> np.ndarray:
        """Chapter 02: float64[C]."""
        return class_weights(self.counts.image_counts(), self.rule.beta)

    @cached_property
    def moments(self) -> ClassMoments:
        """Chapter 01: statistics of the proxy's features by class; kept on disk."""
        path = self.place("moments", "d3s2.statistics.features")
        if not path.is_file():
            with self.unbilled():
                feature_statistics(self.train, self.networks.proxy, progress=False).save(path)
        return ClassMoments.load(path)

    @cached_property
    def targets(self) -> FeatureTargets:
        """The same, as chapter 03's loss takes it."""
        return FeatureTargets.from_moments(self.moments, str(self.networks.proxy.device))

    def kept(self, name: str, module: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """An array that costs a pass over the data, made once; module: whose code makes it."""
        path = self.place(name, module)
        if not path.is_file():
            with self.unbilled():
                write_npz(path, values=make())
        return load_npz(path, ("values",))["values"]

    @contextmanager
    def unbilled(self) -> Iterator[None]:
        """The time inside is nobody's own; what is inside of something inside counts once."""
        before, began = self.spent, time.perf_counter()
        yield
        self.spent = before + time.perf_counter() - began

    def place(self, name: str, module: str) -> Path:
        """The file of something made of the data and the networks by this code."""
        made_from = digest([self.fingerprint, code_version(module)])
        return self.work / f"{name}-{made_from[:8]}.npz"


@dataclass(frozen=True)
class World:
    """What one distillation may use. budget: number of masks; seed: of its noise and its draws.

    declared: what its method says that it uses, of `USES`; everything, unless `seen_by` narrows it.
    sets: folders of the sets of other methods, by name, which one that builds on them needs.
    Reading what was not declared raises D3S2Error.
    """

    shared: Shared
    budget: int
    seed: int = 0
    declared: frozenset[str] = frozenset(USES)
    method: str = ""
    sets: Mapping[str, Path] = field(default_factory=dict)

    def seen_by(self, method: str, uses: frozenset[str]) -> World:
        """The same world, of which no more can be seen. Raises D3S2Error for an unknown use."""
        if unknown := sorted(uses - set(USES)):
            raise D3S2Error(
                f"{method} declares that it uses {unknown[0]!r}: choose of {', '.join(USES)}."
            )
        return replace(self, declared=uses, method=method)

    def _take(self, what: str) -> Shared:
        _require(what, self.declared, self.method)
        return self.shared

    @property
    def train(self) -> SegmentationDataset:
        """The training split; what was not declared of it cannot be read."""
        return _Declared(self.shared.train, self.declared, self.method)  # type: ignore[return-value]

    @property
    def counts(self) -> PixelCounts:
        """Pixels of each class in each mask."""
        return self._take("masks").counts

    @property
    def presence(self) -> sparse.csr_array:
        """csr float64[N, C]: how present each class is in each mask."""
        return self._take("masks").presence

    @property
    def class_weights(self) -> np.ndarray:
        """float64[C]: chapter 02's."""
        return self._take("masks").class_weights

    @property
    def moments(self) -> ClassMoments:
        """Statistics of the proxy's features on the photographs, by class."""
        return self._take("proxy").moments

    @property
    def targets(self) -> FeatureTargets:
        """The same, as the guidance loss takes it."""
        return self._take("proxy").targets

    @property
    def proxy(self) -> ProxySegmenter:
        """The segmenter trained on the training split."""
        return self._take("proxy").networks.proxy

    @property
    def generator(self) -> LayoutGenerator:
        """The generator trained on the training split."""
        return self._take("generator").networks.generator

    def kept(self, name: str, module: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """An array that a pass of the proxy over the photographs costs, made once for all methods;
        module: whose code makes it.
        """
        self._take("images")
        self._take("proxy")
        return self.shared.kept(name, module, make)

    def first_set(self, name: str) -> Path:
        """The folder of another method's set of the same budget and seed. Raises D3S2Error where
        it was not made before.
        """
        if name not in self.sets:
            raise D3S2Error(f"{self.method} builds on the set of {name!r}: distil that one first.")
        return self.sets[name]


def _require(what: str, declared: frozenset[str], method: str) -> None:
    """Raise D3S2Error unless a method declared that it uses this."""
    if what not in declared:
        raise D3S2Error(
            f"{method} takes {USES[what]} without saying so: add {what!r} to its `uses`."
        )


class _Declared:
    """The training split, or a part of it, as far as a method declared it."""

    def __init__(self, dataset: SegmentationDataset, declared: frozenset[str], method: str) -> None:
        self._dataset = dataset
        self._declared = declared
        self._method = method

    def __len__(self) -> int:
        return len(self._dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # while it is copied, or travels to a worker
            raise AttributeError(name)
        if name == "read_image":
            _require("images", self._declared, self._method)
        if name == "read_labels":
            _require("masks", self._declared, self._method)
        return getattr(self._dataset, name)

    def subset(self, indices: Any) -> _Declared:
        """Part of it, with the same bounds."""
        return _Declared(self._dataset.subset(indices), self._declared, self._method)
