"""Several images of each mask: whose noise each has, what it is called, and what is said of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_scenes import small_scenes

from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import SegmentationDataset
from d3s2.guidance.losses import FeatureTargets, LossOptions
from d3s2.guidance.painting import COPY, COPY_SEEDS, RECORD, Painter, Recipe, image_seed, synthesise
from d3s2.guidance.quality import SCORES
from d3s2.guidance.sampler import Guidance
from d3s2.models.generator import LayoutGenerator, noise_schedule
from d3s2.models.proxy import ProxySegmenter
from d3s2.statistics.features import feature_statistics

MASKS = [3, 0, 2]
RECIPE = Recipe(
    steps=2, seed=4, guidance=Guidance({"segmentation": 0.1, "feature": 0.1}, (0, 1)), group=2
)


class Toy(torch.nn.Module):
    """A network of a few operations, whose v follows image, layout and class set."""

    config = SimpleNamespace(num_classes=20)

    def forward(self, x, t, layout, classes):
        hint = (0.01 * classes.cumsum(1)).mean(1)[:, None, None, None]
        return 0.5 * x.roll(1, -1) - 0.02 * layout[:, None].clamp(max=20) - hint


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> SegmentationDataset:
    return small_scenes(tmp_path_factory.mktemp("scenes"), 4)


@pytest.fixture(scope="module")
def painter(dataset) -> Painter:
    torch.manual_seed(0)
    proxy = ProxySegmenter(20, channels=(8, 16)).eval().requires_grad_(False)
    targets = FeatureTargets.from_moments(feature_statistics(dataset, proxy, progress=False))
    return Painter(LayoutGenerator(Toy(), noise_schedule()), proxy, targets)


def pictures(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.png"))
    }


def test_the_kth_image_is_that_of_one_image_a_mask_with_a_seed_a_thousand_k_on(
    dataset, painter, tmp_path
):
    several = replace(RECIPE, images_per_mask=3)
    made = synthesise(painter, dataset, MASKS, tmp_path / "several", several)
    singles = [tmp_path / str(copy) for copy in range(3)]
    for copy, folder in enumerate(singles):
        synthesise(painter, dataset, MASKS, folder, replace(RECIPE, seed=4 + 1000 * copy))
    expected = {
        name.replace(".png", f"-{copy}.png"): content
        for copy, folder in enumerate(singles)
        for name, content in pictures(folder).items()
    }
    assert pictures(tmp_path / "several") == expected
    assert len(made) == 9 and len(set(made.ids)) == 9
    assert len({made.read_image(k).tobytes() for k in range(9)}) == 9


def test_records_and_card_lead_back_to_the_mask(dataset, painter, tmp_path):
    recipe = replace(RECIPE, images_per_mask=2)
    made = synthesise(painter, dataset, MASKS, tmp_path, recipe)
    masks = [dataset.ids[index] for index in MASKS]
    order = [f"{name}-{copy}" for copy in (0, 1) for name in masks]
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["ids_in_order_of_selection"] == order and sorted(order) == list(made.ids)
    assert (card["images"], card["masks"], card["of"]) == (6, 3, 4)
    assert card["recipe"]["images_per_mask"] == 2 and list(card["mean_quality"]) == sorted(SCORES)
    for place, name in enumerate(order):
        record = json.loads((tmp_path / "records" / f"{name}.json").read_text())
        assert set(record) == {*RECORD, *COPY, *SCORES}
        mask, copy = name.rsplit("-", 1)
        assert (record["id"], record["mask"], record["copy"]) == (name, mask, int(copy))
        assert record["rank"] == place % 3
        assert record["noise_seed"] == image_seed(4 + COPY_SEEDS * int(copy), mask)
        labels = made.read_labels(made.ids.index(name))
        np.testing.assert_array_equal(labels, dataset.read_labels(dataset.ids.index(mask)))


@pytest.mark.parametrize("scope", ["image", "set"])
def test_groups_and_breaks_change_no_byte(dataset, painter, tmp_path, scope):
    options = LossOptions(scope=scope, renew=2)
    recipe = replace(RECIPE, images_per_mask=2, losses=options, strength=0.5)
    said = []
    folder = tmp_path / "whole"
    synthesise(painter, dataset, MASKS, folder, recipe, lambda *done: said.append(done))
    assert said == [(2, 6), (3, 6), (5, 6), (6, 6)]  # a group holds images of one copy
    whole = pictures(folder)
    for group in (1, 6):
        other = replace(recipe, group=group)
        synthesise(painter, dataset, MASKS, tmp_path / str(group), other)
        assert pictures(tmp_path / str(group)) == whole
    for name in (f"{dataset.ids[0]}-1", f"{dataset.ids[2]}-0"):
        (folder / "records" / f"{name}.json").unlink()
        (folder / "train" / "images" / f"{name}.png").write_bytes(b"half")
    synthesise(painter, dataset, MASKS, folder, recipe)
    assert pictures(folder) == whole


def test_in_the_set_scope_a_second_image_knows_all_first_ones(dataset, painter, tmp_path):
    known = []

    def watched(proxy, labels, targets, options, memory):
        known.append(0 if memory is None else float(memory.n[0].sum()))
        return painter.losses(proxy, labels, targets, options, memory)

    recipe = replace(RECIPE, images_per_mask=2, losses=LossOptions(scope="set", renew=2))
    synthesise(replace(painter, losses=watched), dataset, MASKS, tmp_path, recipe)
    each = known[1] / 2
    assert known == pytest.approx([0, 2 * each, 3 * each, 5 * each]) and each > 0


def test_names_that_end_like_a_copy_stay_apart(dataset, painter, tmp_path):
    alike = replace(dataset, ids=("a", "a-0", "a-1", "b"))
    made = synthesise(painter, alike, [0, 1, 2], tmp_path, replace(RECIPE, images_per_mask=2))
    assert made.ids == ("a-0", "a-0-0", "a-0-1", "a-1", "a-1-0", "a-1-1")


def test_less_than_one_image_a_mask_is_a_sentence():
    with pytest.raises(D3S2Error) as caught:
        Recipe(images_per_mask=0)
    assert str(caught.value) == "images_per_mask is 0: it counts from 1."
