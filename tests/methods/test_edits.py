"""The choice of EDITS: clusters and medoids by brute force, groups and quotas, its hooks, and what
captions do to it.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse
from sklearn.neighbors import LocalOutlierFactor
from small_scenes import small_scenes

from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import SegmentationDataset
from d3s2.methods import edits
from d3s2.methods.captions import TemplateCaptioner, mentions, tokens
from d3s2.methods.edits import Cluster, Edits, Prototype, groups, inliers, prototypes
from d3s2.methods.towers import fused, multi_hot, two_towers
from d3s2.models.proxy import ProxySegmenter
from d3s2.statistics.pixels import PixelCounts, count_pixels

SEEDS = st.integers(0, 100_000)


def counts_of(dense: Sequence[Sequence[int]]) -> PixelCounts:
    table = np.asarray(dense, dtype=np.int64)
    names = tuple(f"{number:05d}" for number in range(len(table)))
    return PixelCounts(sparse.csr_array(table), table.sum(1), names)


def heaps(seed: int, sizes: Sequence[int] = (8, 12, 5)) -> np.ndarray:
    """Well separated heaps of points, of these sizes, one after the other."""
    rng = np.random.default_rng(seed)
    centres = 20 * np.eye(len(sizes))
    return np.concatenate(
        [
            centre + rng.normal(size=(size, len(sizes)))
            for centre, size in zip(centres, sizes, strict=True)
        ]
    )


# ----------------------------------------------------------------------------- clusters and medoids
@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_one_cluster_has_the_medoid_of_all(seed: int) -> None:
    """By brute force: the smallest sum of squared distances to the others."""
    points = np.random.default_rng(seed).normal(size=(14, 3))
    (found,) = prototypes(points, 1)
    squares = ((points[:, None] - points) ** 2).sum((1, 2))
    assert found.medoid == squares.argmin() and found.size == 14
    assert found.near.tolist() == np.argsort(squares)[:5].tolist()


def test_clusters_are_the_heaps_the_largest_first() -> None:
    points = heaps(0)
    found = prototypes(points, 3, near=6)
    assert [cluster.size for cluster in found] == [12, 8, 5]
    starts = {12: 8, 8: 0, 5: 20}
    for cluster in found:
        heap = range(starts[cluster.size], starts[cluster.size] + cluster.size)
        (alone,) = prototypes(points[heap.start : heap.stop], 1, near=6)
        assert (alone.near + heap.start).tolist() == cluster.near.tolist()
        assert cluster.near[0] == cluster.medoid and len(cluster.near) == min(6, cluster.size)
    again = prototypes(points, 3, near=6)
    assert [c.near.tolist() for c in again] == [c.near.tolist() for c in found]


def test_as_many_clusters_as_points_are_the_points() -> None:
    points = heaps(1, (2, 2))
    found = prototypes(points, 4)
    assert [cluster.medoid for cluster in found] == [0, 1, 2, 3]
    assert all(cluster.near.tolist() == [cluster.medoid] for cluster in found)


def test_equal_points_are_one_cluster_and_its_medoid_the_first() -> None:
    same = np.ones((6, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of fewer points than clusters
        (found,) = prototypes(same, 3)
        two = prototypes(np.array([[0.0], [1.0], [1.0], [0.0], [0.0]]), 4)
    assert found.medoid == 0 and found.near.tolist() == [0, 1, 2, 3, 4]
    assert [cluster.medoid for cluster in two] == [0, 1]


def test_no_contamination_keeps_all_and_some_leaves_out_the_farthest() -> None:
    points = np.concatenate([np.random.default_rng(2).normal(size=(29, 2)), [[40.0, 40.0]]])
    assert inliers(points).tolist() == inliers(points, 0.0).tolist() == list(range(30))
    assert inliers(points, 0.03).tolist() == list(range(29))
    assert len(inliers(points, 0.5)) == 15
    assert inliers(points[:2], 0.5).tolist() == [0, 1]
    ten = LocalOutlierFactor(10, contamination=0.2).fit_predict(points)
    two = LocalOutlierFactor(2, contamination=0.2).fit_predict(points)
    assert (inliers(points, 0.2).tolist() == np.flatnonzero(ten > 0).tolist()) and (
        ten != two
    ).any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of fewer points than neighbours
        assert len(inliers(points[:5], 0.2)) == 4


# --------------------------------------------------------------------------------------- the groups
def test_groups_are_the_classes_the_rarest_first() -> None:
    counts = counts_of([[98, 2, 0, 0], [99, 1, 0, 0], [60, 20, 20, 0], [50, 25, 25, 0]])
    found = groups(counts, 3)
    assert [group.train_id for group in found] == [2, 1, 0]  # class 3 occurs nowhere
    assert [group.members.tolist() for group in found] == [[2, 3], [0, 2, 3], [0, 1, 2, 3]]
    assert [group.quota for group in found] == [1, 1, 1]
    assert [group.quota for group in groups(counts, 4)] == [2, 1, 1]
    assert [group.quota for group in groups(counts, 2)] == [1, 1, 0]
    assert groups(counts, 3, 0.2)[1].members.tolist() == [2, 3]


def test_thin_things_are_taken_wherever_they_are() -> None:
    """Where fewer than its quota have enough of a class, those with any of it."""
    counts = counts_of([[99, 1], [99, 1], [95, 5], [100, 0]])
    assert {group.train_id: group.members.tolist() for group in groups(counts, 2)} == {
        1: [2],
        0: [0, 1, 2, 3],
    }
    assert {group.train_id: group.members.tolist() for group in groups(counts, 4)} == {
        1: [0, 1, 2],
        0: [0, 1, 2, 3],
    }


# --------------------------------------------------------------------------------------- the choice
@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SegmentationDataset:
    return small_scenes(tmp_path_factory.mktemp("scenes"), 60)


@pytest.fixture(scope="module")
def world(scenes: SegmentationDataset) -> SimpleNamespace:
    torch.manual_seed(0)
    proxy = ProxySegmenter(20, channels=(8, 16)).eval().requires_grad_(False)
    counts = count_pixels(scenes)
    return SimpleNamespace(train=scenes, counts=counts, proxy=proxy, budget=24, seed=0)


@pytest.fixture(scope="module")
def chosen(world: SimpleNamespace) -> list[Prototype]:
    return Edits().choose(world)


def test_a_selection_has_the_budgets_size_holds_nobody_twice_and_is_the_same_again(
    world: SimpleNamespace, chosen: list[Prototype]
) -> None:
    picked = Edits().select(world)
    assert picked.dtype == np.int64 and picked.tolist() == [found.index for found in chosen]
    assert len(set(picked.tolist())) == 24
    for budget in (1, 3, 60):
        few = Edits().select(SimpleNamespace(**(vars(world) | {"budget": budget})))
        assert len(set(few.tolist())) == budget


def test_a_prototype_is_in_its_group_with_those_near_it(
    world: SimpleNamespace, chosen: list[Prototype]
) -> None:
    of = {group.train_id: group for group in groups(world.counts, 24)}
    captioner = TemplateCaptioner([info.name for info in world.train.classes])
    before: set[int] = set()
    for found in chosen:
        members = of[found.group].members if found.group >= 0 else np.arange(60)
        assert found.near[0] == found.index and set(found.near) <= set(members.tolist())
        assert not before & set(found.near.tolist())
        told = [captioner(None, world.train.read_labels(index)) for index in found.near]
        assert list(found.captions) == told
        before.add(found.index)
    order = list(dict.fromkeys(found.group for found in chosen))
    assert [g for g in order if g >= 0] == [g for g in of if g in order]


def test_what_a_group_lacks_is_taken_from_the_next_and_at_last_from_all() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(10, 3))
    texts = [f"word{number % 4}, thing{number}" for number in range(10)]
    counts = counts_of([[1, 9]] * 2 + [[0, 10]] * 8)
    found = Edits().choose_among(images, texts, counts, 8)
    assert [p.group for p in found] == [0, 0, 1, 1, 1, 1, 1, 1]
    short = counts_of([[1, 9]] * 2 + [[0, 0]] * 8)
    found = Edits().choose_among(images, texts, short, 5)
    assert [p.group for p in found] == [0, 0, -1, -1, -1]
    same = Edits(width=1).choose_among(images, texts, short, 10)
    assert sorted(p.index for p in same) == list(range(10))


def test_what_is_left_out_as_an_outlier_is_in_no_cluster() -> None:
    rng = np.random.default_rng(5)
    images = rng.normal(size=(40, 3))
    texts = [f"word{number}, thing{number}" for number in rng.integers(0, 6, 40)]
    method = Edits(contamination=0.4, near=40)
    v, t = two_towers(images, multi_hot(texts))
    kept = inliers(fused(v, t), 0.4)
    assert len(kept) == 24
    found = method.choose_among(images, texts, counts_of([[1]] * 40), 3)
    assert sorted(np.concatenate([p.near for p in found]).tolist()) == kept.tolist()


def test_shuffled_captions_change_the_selection(
    world: SimpleNamespace, chosen: list[Prototype]
) -> None:
    """Of the same images and masks: the order of D3S2's masks could not change."""
    method = Edits()
    texts = method.captions(world.train)
    shuffled = [texts[number] for number in np.random.default_rng(1).permutation(60)]
    features = np.random.default_rng(2).normal(size=(60, 12))
    one = method.choose_among(features, texts, world.counts, 24)
    other = method.choose_among(features, shuffled, world.counts, 24)
    assert {found.index for found in one} != {found.index for found in other}


@pytest.mark.parametrize(
    "changed",
    [
        {"tau": 10.0},
        {"ridge": 10.0},
        {"width": 2},
        {"share": 0.2},
        {"contamination": 0.3},
    ],
)
def test_every_setting_of_the_choice_has_a_say(
    world: SimpleNamespace, chosen: list[Prototype], changed: dict[str, float]
) -> None:
    other = Edits(**changed).choose(world)
    assert [found.index for found in other] != [found.index for found in chosen]


def test_the_seed_is_added_to_the_public_codes(
    world: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds = []

    def noted(f: np.ndarray, k: int, near: int, seed: int) -> list[Cluster]:
        seeds.append(seed)
        return prototypes(f, k, near, seed)

    monkeypatch.setattr(edits, "prototypes", noted)
    for seed in (0, 3):
        Edits().select(SimpleNamespace(**(vars(world) | {"budget": 1, "seed": seed})))
    assert seeds == [42, 45]


def test_so_many_near_members_are_kept(world: SimpleNamespace, chosen: list[Prototype]) -> None:
    few = Edits(near=2).choose(world)
    assert [found.near.tolist() for found in few] == [found.near[:2].tolist() for found in chosen]


# --------------------------------------------------------------------------------------- its hooks
def test_a_prompt_names_the_groups_class_and_those_of_the_mask(
    world: SimpleNamespace, chosen: list[Prototype]
) -> None:
    for found in chosen:
        text = Edits().text(world.train, found)
        assert text == found.captions[0] and tokens(text) <= 77
        for train_id in np.unique(world.train.read_labels(found.index)):
            assert mentions(text, world.train.classes[train_id].name)


def count_all(name: str, captions: Sequence[str]) -> str:
    return f"{len(captions)} views of {name} with {captions[0].split()[3]} things"


def test_a_language_model_of_the_users_gets_the_class_and_the_captions(
    world: SimpleNamespace, chosen: list[Prototype]
) -> None:
    method = Edits(summary=count_all)
    largest = max(chosen, key=lambda prototype: len(prototype.captions))
    assert len(largest.captions) == 5
    found = largest._replace(captions=largest.captions[:3])
    name = world.train.classes[found.group].name
    text = method.text(world.train, found)
    assert text.startswith(f"3 views of {name} with {found.captions[0].split()[3]} things")
    for train_id in np.unique(world.train.read_labels(found.index)):
        assert mentions(text, world.train.classes[train_id].name)
    filled_up = method.text(world.train, found._replace(group=-1))
    assert filled_up.startswith("3 views of a scene with")


def test_where_not_all_names_fit_the_groups_class_is_named_all_the_same() -> None:
    classes = [SimpleNamespace(name=f"long{letter}" * 6) for letter in "abcdefghijkl"]
    labels = np.repeat(np.arange(12, dtype=np.uint8), range(24, 0, -2))[None]
    train = SimpleNamespace(classes=classes, read_labels=lambda index: labels)
    found = Prototype(0, np.array([0]), 11, ("a view",))
    text = Edits().text(train, found)
    told = [mentions(text, info.name) for info in classes]
    assert told[11] and told[:4] == [True] * 4 and not all(told) and tokens(text) <= 77


def test_a_captioner_of_the_users_is_asked_once_an_image(world: SimpleNamespace) -> None:
    asked = []

    def captioner(image: np.ndarray, labels: np.ndarray) -> str:
        asked.append(image.mean())
        return f"light {int(image.mean()) // 8}"

    found = Edits(captioner).choose(SimpleNamespace(**(vars(world) | {"budget": 2})))
    assert len(asked) == 60
    assert all(text.startswith("light") for text in found[0].captions)
    text = Edits(captioner).text(world.train, found[0])
    assert text.startswith("light") and mentions(text, world.train.classes[found[0].group].name)


def broken(name: str, captions: Sequence[str]) -> str:
    raise ConnectionError("no answer")


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: prototypes(np.ones((3, 2)), 4), "4 clusters of 3 points and 5 near members"),
        (lambda: prototypes(np.ones((3, 2)), 0), "give 1 to 3 clusters"),
        (lambda: prototypes(np.ones((3, 2)), 1, near=0), "near from 1"),
        (lambda: prototypes(np.full((3, 2), np.nan), 1), "finite points"),
        (lambda: inliers(np.ones((3, 2)), 0.6), "contamination is 0.6: give a share from 0"),
        (lambda: groups(counts_of([[1, 1]]), 1, 0.0), "share is 0.0 and budget 1"),
        (lambda: groups(counts_of([[1, 1]]), 2), "budget 2: give a share above 0 up to 1, and 1"),
        (lambda: groups(counts_of([[0, 0]]), 1), "no class occurs in any mask"),
    ],
)
def test_what_cannot_be_chosen_is_a_sentence(call: Callable[[], object], words: str) -> None:
    with pytest.raises(D3S2Error, match=words):
        call()


def test_a_summary_that_fails_is_a_sentence(
    world: SimpleNamespace, chosen: list[Prototype]
) -> None:
    place = world.train.ids[chosen[0].index]
    with pytest.raises(D3S2Error) as raised:
        Edits(summary=broken).text(world.train, chosen[0])
    assert str(raised.value).startswith(
        f"The summary of the captions around image {place} failed (ConnectionError: no answer)"
    )
    with pytest.raises(D3S2Error, match="gave None: it must give a text"):
        Edits(summary=lambda name, captions: None).text(world.train, chosen[0])


def test_the_method_is_a_value(world: SimpleNamespace) -> None:
    assert Edits() == Edits(tau=0.01, ridge=0.01, width=32, contamination=0.0, near=5, share=0.02)
    assert replace(Edits(), tau=1.0) != Edits()
