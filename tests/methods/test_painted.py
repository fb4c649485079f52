"""Painted methods: what each row shares with the others, and what tells it from a copy of D3S2."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from d3s2.core.errors import D3S2Error
from d3s2.data.folder import open_folder
from d3s2.guidance.painting import Painter, Recipe, synthesise
from d3s2.guidance.sampler import Guidance
from d3s2.methods.diver import PullBack
from d3s2.methods.painted import FromSet, Painted, greedy_masks
from d3s2.methods.photographs import Photographs, random_masks
from d3s2.methods.unidd import FilterAndRelabel, classes_alone
from d3s2.selection import Ranking

QUICK = Recipe(steps=5, group=3)
GUIDED = replace(QUICK, guidance=Guidance({"segmentation": 0.1, "feature": 0.1}))
RAW = replace(QUICK, guidance=Guidance({"segmentation": 100}, (0, 1), "raw", "full"))


def images(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "train/images").iterdir())}


def test_d3s2_is_chapter_03_to_the_byte(world, tmp_path):
    Painted("d3s2", "", GUIDED).write(world, tmp_path / "row")
    shared = world.shared
    painter = Painter(shared.networks.generator, shared.networks.proxy, shared.targets)
    chosen = greedy_masks(world).first(4)
    synthesise(painter, shared.train, chosen, tmp_path / "03", replace(GUIDED, seed=3))
    assert images(tmp_path / "row") == images(tmp_path / "03")
    card = json.loads((tmp_path / "row" / "card.json").read_text())
    assert card["recipe"]["method"] == "d3s2" and card["recipe"]["seed"] == 3


def fixed(*masks: int):
    return lambda world: Ranking(np.array(masks), np.full(len(masks), np.nan))


class NoiseOfPlace:
    """Noise that does not follow from the mask's id: so that two masks can share it."""

    def __call__(self, ids, seeds, shape):
        rng = torch.Generator().manual_seed(0)
        return lambda: torch.randn(1, *shape, generator=rng).expand(len(ids), *shape).contiguous()


def test_without_a_layout_the_mask_decides_by_its_classes_alone(world, monkeypatch):
    """Same noise and class set, unguided, two masks: equal bytes. D3S2's differ."""
    from d3s2.guidance.painting import generate

    shared = world.shared
    labels = torch.zeros(2, 64, 64, dtype=torch.long)
    labels[0, :20], labels[1, 40:] = 5, 5  # both have the classes 0 and 5
    plain = Painter(
        shared.networks.generator, shared.networks.proxy, shared.targets, noise=NoiseOfPlace()
    )
    told = replace(plain, condition=classes_alone)
    first, second = generate(told, labels, ["a", "b"], QUICK)
    assert torch.equal(first, second)
    first, second = generate(plain, labels, ["a", "b"], QUICK)
    assert not torch.equal(first, second)
    guided = generate(told, labels, ["a", "b"], RAW)
    assert not torch.equal(guided[0], guided[1])  # the loss knows the mask


def test_the_class_set_is_heard(world):
    from d3s2.guidance.painting import generate

    shared = world.shared
    labels = torch.zeros(2, 64, 64, dtype=torch.long)
    labels[1, :32] = 7
    painter = Painter(
        shared.networks.generator,
        shared.networks.proxy,
        shared.targets,
        noise=NoiseOfPlace(),
        condition=classes_alone,
    )
    first, second = generate(painter, labels, ["a", "b"], QUICK)
    assert not torch.equal(first, second)


def test_unidd_writes_the_proxys_labels_and_says_so(world, tmp_path):
    row = Painted(
        "unidd", "", RAW, condition=classes_alone, refine=FilterAndRelabel(2.0), relabels=True
    )
    assert row.uses == {"masks", "generator", "proxy", "teacher labels"}
    row.write(world, tmp_path)
    made = open_folder(tmp_path, "train")
    masks = {name: world.shared.train.read_labels(i) for i, name in enumerate(world.train.ids)}
    for index, name in enumerate(made.ids):
        record = json.loads((tmp_path / "records" / f"{name}.json").read_text())
        assert record["tries"] == 4
        assert record["relabelled_pixels"] == (made.read_labels(index) != masks[name]).sum() > 0
    card = json.loads((tmp_path / "card.json").read_text())
    assert {"confidence", "tries", "relabelled_pixels"} <= set(card["mean_quality"])


def test_diver_takes_masks_and_images_of_the_set_it_builds_on(world, scenes, tmp_path):
    first = Photographs("random", random_masks)
    first.write(world, tmp_path / "random")
    after = replace(world, sets={"random": tmp_path / "random"})
    recipe = replace(QUICK, steps=50, strength=0.8)
    row = Painted("diver", "", recipe, after="random", nudge=PullBack())
    assert row.uses == {"masks", "generator"}  # no photograph: the set's images
    row.write(after, tmp_path / "pulled")
    replace(row, nudge=PullBack(0.0)).write(after, tmp_path / "free")
    replace(row, nudge=None).write(after, tmp_path / "img2img")
    assert images(tmp_path / "free") == images(tmp_path / "img2img")
    assert images(tmp_path / "pulled") != images(tmp_path / "free")
    sets = {name: open_folder(tmp_path / name, "train") for name in ("random", "pulled", "free")}
    assert sets["pulled"].ids == sets["random"].ids

    def away(name: str) -> float:
        pairs = zip(*(range(4), range(4)), strict=True)
        return sum(
            np.abs(sets[name].read_image(a).astype(float) - sets["random"].read_image(b)).mean()
            for a, b in pairs
        )

    assert away("pulled") < away("free")


def test_images_of_an_earlier_set_come_in_the_order_of_the_masks(world, scenes, tmp_path):
    Photographs("fixed", fixed(5, 1, 8, 2)).write(world, tmp_path)
    found = FromSet(str(tmp_path))(scenes, [8, 1])
    expected = np.stack([scenes.read_image(8), scenes.read_image(1)])
    assert ((found.permute(0, 2, 3, 1).numpy() + 1) * 127.5).round().astype(np.uint8).tolist() == (
        expected.tolist()
    )


def test_a_set_of_several_images_a_mask_is_nothing_to_build_on(world, tmp_path):
    Painted("many", "", replace(QUICK, images_per_mask=2)).write(world, tmp_path / "many")
    row = Painted("diver", "", replace(QUICK, strength=0.8), after="many")
    with pytest.raises(D3S2Error, match=r"diver builds on 'many', whose image .*-0 is of no mask"):
        row.write(replace(world, sets={"many": tmp_path / "many"}), tmp_path / "diver")


def test_what_a_row_uses_follows_from_its_parts():
    plain = Painted("x", "", QUICK)
    assert plain.uses == {"masks", "generator"}
    assert replace(plain, recipe=GUIDED).uses == {"masks", "generator", "proxy"}
    began = replace(plain, recipe=replace(QUICK, strength=0.7))
    assert began.uses == {"masks", "generator", "images"}
    assert replace(began, after="y").uses == {"masks", "generator"}
    filtered = replace(plain, recipe=replace(QUICK, ignore_margin=1.25))
    assert "proxy" in filtered.uses
    assert replace(plain, also=frozenset({"images"})).uses == {"masks", "generator", "images"}


def test_a_pull_without_an_image_to_pull_to_is_refused(world, tmp_path):
    row = Painted("diver", "", QUICK, nudge=PullBack())
    with pytest.raises(D3S2Error, match="diver moves towards the images that its runs begin at"):
        row.write(world, tmp_path)
