"""Distilled datasets on disk: real files, small untrained networks."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import pickle
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_scenes import small_scenes

import d3s2
from d3s2.core import long_work
from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.tensors import class_sets, read_images, read_masks, to_uint8
from d3s2.guidance.losses import FeatureTargets, LossOptions, guidance_losses, pixel_losses
from d3s2.guidance.painting import RECORD, Painter, Recipe, generate, image_seed, synthesise
from d3s2.guidance.quality import SCORES, class_mean_losses, ignore_doubtful, judge
from d3s2.guidance.sampler import Guidance, NoiseStream, finish, initial_noise, sample
from d3s2.models.generator import LayoutGenerator, LayoutUNet, noise_schedule, save_half
from d3s2.models.load import load_generator, load_proxy
from d3s2.models.pretraining import Schedule as Training
from d3s2.models.pretraining import main as prepare_main
from d3s2.models.pretraining import train_generator, train_proxy, warm_start
from d3s2.models.proxy import ProxySegmenter
from d3s2.statistics.features import ClassMoments, feature_statistics

RECIPE = Recipe(
    steps=4, guidance=Guidance({"segmentation": 0.1, "feature": 0.1}, window=(0, 1)), group=2
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> SegmentationDataset:
    return small_scenes(tmp_path_factory.mktemp("scenes"), 6)


@pytest.fixture(scope="module")
def painter(dataset) -> Painter:
    torch.manual_seed(0)
    generator = LayoutGenerator(
        LayoutUNet(20, channels=(32, 32), layers=1).eval().requires_grad_(False), noise_schedule()
    )
    proxy = ProxySegmenter(20, channels=(8, 16)).eval().requires_grad_(False)
    moments = feature_statistics(dataset, proxy, progress=False)
    return Painter(generator, proxy, FeatureTargets.from_moments(moments))


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()
    }


def test_distilled_folder_is_an_ordinary_dataset_with_a_record_per_image(
    dataset, painter, tmp_path
):
    done = []
    made = synthesise(
        painter, dataset, [4, 1, 5], tmp_path, RECIPE, progress=lambda *a: done.append(a)
    )
    assert done == [(2, 3), (3, 3)] and sorted(made.ids) == sorted(
        dataset.ids[i] for i in (4, 1, 5)
    )
    for k, name in enumerate(made.ids):
        np.testing.assert_array_equal(
            made.read_labels(k), dataset.read_labels(dataset.ids.index(name))
        )
        record = json.loads((tmp_path / "records" / f"{name}.json").read_text())
        assert record["noise_seed"] == image_seed(0, name) and 0 <= record["proxy_agreement"] <= 1
    card = json.loads((tmp_path / "card.json").read_text())
    assert (
        card["ids_in_order_of_selection"] == [dataset.ids[i] for i in (4, 1, 5)]
        and card["recipe"]["steps"] == 4
    )


def test_an_image_folder_of_it_has_a_row_for_each_image_with_its_mask(dataset, painter, tmp_path):
    """What Hugging Face's `datasets` documents: `metadata.jsonl` beside the images, whose columns
    `file_name` and `*_file_name` are paths from there; others than these are no rows.
    """
    made = synthesise(painter, dataset, [4, 1, 5], tmp_path, RECIPE)
    lines = (tmp_path / "train" / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [sorted(row) for row in rows] == [["file_name", "mask_file_name"]] * 3
    listed = [tmp_path / "train" / path for row in rows for path in row.values()]
    assert sorted(listed) == sorted((tmp_path / "train").rglob("*.png")) and len(listed) == 6
    for row in rows:
        index = made.ids.index(Path(row["file_name"]).stem)
        for column, pixels in (
            ("file_name", made.read_image(index)),
            ("mask_file_name", made.read_labels(index)),
        ):
            found = np.array(Image.open(tmp_path / "train" / row[column]))
            np.testing.assert_array_equal(found, pixels)


def test_a_broken_run_goes_on_to_the_same_bytes_and_keeps_what_is_there(dataset, painter, tmp_path):
    synthesise(painter, dataset, [0, 1, 2, 3, 4], tmp_path / "whole", RECIPE)
    synthesise(painter, dataset, [0, 1, 2, 3, 4], tmp_path / "broken", RECIPE)
    (tmp_path / "broken" / "card.json").unlink()
    (tmp_path / "broken" / "records" / f"{dataset.ids[3]}.json").unlink()
    (tmp_path / "broken" / "train" / "images" / f"{dataset.ids[3]}.png").write_bytes(b"half")
    kept = tmp_path / "broken" / "train" / "images" / f"{dataset.ids[0]}.png"
    before = kept.stat().st_mtime_ns
    synthesise(painter, dataset, [0, 1, 2, 3, 4], tmp_path / "broken", RECIPE)
    assert (
        tree(tmp_path / "broken") == tree(tmp_path / "whole") and kept.stat().st_mtime_ns == before
    )


@pytest.mark.parametrize("scope, resumed", [("image", [4, 5]), ("set", [2, 5])])
def test_progress_counts_what_was_there_before(dataset, quick, tmp_path, scope, resumed):
    """Blocks of the set scope are gone through in turn; of the image scope all is known at once."""
    recipe = replace(QUICK, losses=LossOptions(scope=scope, renew=2))
    said = []
    for lost in ((), (0, 4), ()):
        for rank in lost:
            (tmp_path / "records" / f"{dataset.ids[rank]}.json").unlink()
        done = []
        synthesise(quick, dataset, range(5), tmp_path, recipe, lambda *a, done=done: done.append(a))
        said.append(done)
    assert said == [[(2, 5), (4, 5), (5, 5)], [(done, 5) for done in resumed], []]


def test_another_seed_gives_other_images_of_the_same_masks(dataset, painter, tmp_path):
    first = synthesise(painter, dataset, [0], tmp_path / "a", RECIPE)
    second = synthesise(painter, dataset, [0], tmp_path / "b", Recipe(seed=1, steps=4, group=2))
    assert not np.array_equal(first.read_image(0), second.read_image(0))
    np.testing.assert_array_equal(first.read_labels(0), second.read_labels(0))


@pytest.mark.parametrize("name", ["segmentation", "feature"])
def test_the_gradient_of_an_image_does_not_depend_on_its_company(dataset, name):
    """In float32, through the whole proxy, at half-drowned images: a batch of one once got another
    gradient there.
    """
    proxy = load_proxy(Path(d3s2.__file__).parent / "weights" / "scenes" / "proxy")
    targets = FeatureTargets.from_moments(feature_statistics(dataset, proxy, progress=False))
    labels, images = (
        read_masks(dataset, range(3)),
        (0.5 * initial_noise([1, 2, 3], (3, 64, 64))).clamp(-1, 1),
    )

    def gradient(part: slice) -> torch.Tensor:
        leaf = images[part].clone().requires_grad_()
        return torch.autograd.grad(
            guidance_losses(proxy, labels[part], targets)(leaf)[name].sum(), leaf
        )[0]

    alone, together = torch.cat([gradient(slice(k, k + 1)) for k in range(3)]), gradient(slice(3))
    assert (alone - together).abs().max() < 1e-3 * together.abs().max()


def pictures(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(folder).items() if name.endswith(".png")}


@pytest.mark.parametrize(
    "recipe",
    [
        RECIPE,
        replace(
            RECIPE,
            guidance=replace(
                RECIPE.guidance, jacobian="full", eta=1.0, recurrence=2, window=(0, 0.5)
            ),
        ),
        replace(
            RECIPE,
            losses=LossOptions(balance=True, kappa=0.0, layers=("encoder2",)),
            candidates=2,
            ignore_margin=1.25,
        ),
    ],
    ids=["default", "stochastic", "options"],
)
def test_batch_size_order_and_shards_change_no_byte_of_an_image(dataset, painter, tmp_path, recipe):
    ways = (
        ("whole", 5, [[0, 1, 2, 3, 4]]),
        ("alone", 1, [[4, 2, 3, 1, 0]]),
        ("shards", 2, [[3, 0, 1], [4, 2]]),
    )
    for name, group, shards in ways:
        for shard in shards:
            synthesise(
                painter, dataset, shard, tmp_path / name, replace(recipe, group=group, steps=2)
            )
    assert len(pictures(tmp_path / "whole")) == 10
    assert (
        pictures(tmp_path / "whole")
        == pictures(tmp_path / "alone")
        == pictures(tmp_path / "shards")
    )


SET = replace(RECIPE, steps=2, losses=LossOptions(scope="set", renew=2))


def test_the_set_scope_remembers_and_goes_on_to_the_same_bytes_in_any_groups(
    dataset, painter, tmp_path
):
    synthesise(painter, dataset, [0, 1, 2, 3, 4], tmp_path / "whole", SET)
    synthesise(painter, dataset, [0, 1, 2, 3, 4], tmp_path / "alone", replace(SET, group=1))
    assert pictures(tmp_path / "whole") == pictures(tmp_path / "alone")
    broken = tmp_path / "broken"
    synthesise(
        painter, dataset, [0, 1, 2, 3], broken, SET
    )  # a run of five that ended early, in the middle of writing
    (broken / "card.json").unlink()
    (broken / "records" / f"{dataset.ids[3]}.json").unlink()
    (broken / "train" / "labels" / f"{dataset.ids[3]}.png").unlink()
    synthesise(painter, dataset, [0, 1, 2, 3, 4], broken, SET)
    assert tree(broken) == tree(tmp_path / "whole")
    synthesise(
        painter, dataset, [0, 1, 2, 3, 4], tmp_path / "image", replace(SET, losses=LossOptions())
    )
    same = [
        pictures(tmp_path / "image")[name] == data
        for name, data in pictures(tmp_path / "whole").items()
        if "images" in name
    ]
    assert same[:2] == [True, True] and not any(
        same[2:]
    )  # nothing to remember before the first renewal


def test_the_set_scope_knows_every_image_before_it_once(dataset, painter, tmp_path):
    given = []

    def watched(proxy, labels, targets, options, memory):
        given.append(memory)
        return guidance_losses(proxy, labels, targets, options, memory)

    made = synthesise(replace(painter, losses=watched), dataset, range(5), tmp_path, SET)
    first, *later = given  # one group a block
    assert first is None
    for memory, count in zip(later, (2, 4), strict=True):
        images = [made.ids.index(name) for name in dataset.ids[:count]]
        features = painter.proxy(read_images(made, images)).features
        expected = ClassMoments(20, [layer.shape[1] for layer in features])
        expected.update(features, read_masks(made, images))
        for layer, n in enumerate(expected.n):
            torch.testing.assert_close(memory.n[layer], n.float())
            torch.testing.assert_close(memory.mean[layer], expected.mean[layer].float())


def test_the_best_of_several_tries_is_kept_and_the_tries_are_those_of_fewer(
    dataset, painter, tmp_path
):
    for n in (1, 2, 3):
        synthesise(
            painter, dataset, [0, 1, 2], tmp_path / str(n), replace(RECIPE, steps=2, candidates=n)
        )
    for name in (dataset.ids[i] for i in (0, 1, 2)):
        one, two, three = (
            json.loads((tmp_path / str(n) / "records" / f"{name}.json").read_text())
            for n in (1, 2, 3)
        )
        assert three["scores"][:2] == two["scores"] and two["scores"][0] == one["segmentation_loss"]
        assert (
            three["segmentation_loss"]
            == min(three["scores"])
            == three["scores"][three["candidate"]]
        )
        assert (
            three["noise_seed"] == image_seed(0, name, three["candidate"])
            and "candidate" not in one
        )


def test_the_filter_writes_the_labels_it_says(dataset, painter, tmp_path):
    made = synthesise(painter, dataset, [0, 1, 2], tmp_path, replace(RECIPE, ignore_margin=1.0))
    proxy = painter.proxy
    means = class_mean_losses(proxy, dataset)
    labels = read_masks(dataset, [dataset.ids.index(name) for name in made.ids])
    expected = ignore_doubtful(
        pixel_losses(proxy(read_images(made, range(3))).logits, labels), labels, means, 1.0
    )
    assert torch.equal(read_masks(made, range(3)), expected) and (expected == 255).any()
    records = [json.loads((tmp_path / "records" / f"{name}.json").read_text()) for name in made.ids]
    assert [r["ignored_pixels"] for r in records] == (
        (expected == 255).sum((1, 2)) - (labels == 255).sum((1, 2))
    ).tolist()
    for record in records:
        right = sum(right for right, _ in record["class_pixels"].values())
        assert right / 64**2 == pytest.approx(record["proxy_agreement"], abs=1e-6)


# -------------------------------------------------------------------------- what is handed in
def redness(proxy, labels, targets, options, memory):
    """A loss of another method: no proxy, the mean of the red channel."""

    def losses(images):
        return {"red": images[:, 0].flatten(1).mean(1)}

    return losses


def by_redness(proxy, targets, images, labels):
    """A judge of another method."""
    return {"red": [float(value) for value in images[:, 0].flatten(1).mean(1)]}


@dataclass(frozen=True)
class ConstantNoise:
    """Start noise of another method, which knows the masks by name."""

    level: dict[str, float]

    def __call__(self, ids, seeds, shape):
        batch = torch.stack([torch.full(shape, self.level[name]) for name in ids])
        return lambda: batch


def records(folder: Path, ids) -> list[dict]:
    return [json.loads((folder / "records" / f"{name}.json").read_text()) for name in ids]


def test_a_loss_that_is_handed_in_steers_and_nothing_else_does(dataset, painter, tmp_path):
    red = replace(painter, losses=redness)
    made = {}
    for scale in (0.5, -0.5):
        recipe = replace(RECIPE, guidance=Guidance({"red": scale}, window=(0, 1)))
        made[scale] = synthesise(red, dataset, [0, 1], tmp_path / str(scale), recipe)
    for k in range(2):
        less = made[0.5].read_image(k)[..., 0].mean()
        more = made[-0.5].read_image(k)[..., 0].mean()
        assert more > less + 5
    with pytest.raises(D3S2Error, match=r"'segmentation', but the losses are \['red'\]"):
        synthesise(red, dataset, [0], tmp_path / "other", RECIPE)


def test_the_numbers_of_a_judge_that_is_handed_in_land_in_records_and_card(
    dataset, painter, tmp_path
):
    made = synthesise(replace(painter, judge=by_redness), dataset, [4, 1, 5], tmp_path, RECIPE)
    red = [float(read_images(made, [k])[:, 0].mean()) for k in range(3)]
    found = records(tmp_path, made.ids)
    assert [record["red"] for record in found] == pytest.approx(red, abs=1e-5)
    assert set(found[0]) == {*RECORD, "red"}
    card = json.loads((tmp_path / "card.json").read_text())
    assert list(card["mean_quality"]) == ["red"]
    assert card["mean_quality"]["red"] == pytest.approx(np.mean(red), abs=1e-5)


def test_the_best_of_several_tries_is_that_of_the_judge_handed_in(dataset, painter, tmp_path):
    def stubborn(proxy, targets, images, labels):
        asked.append(1)
        return {"segmentation_loss": [1.0 / len(asked)] * len(images)}

    asked = []
    recipe = replace(RECIPE, candidates=3, steps=2)
    made = synthesise(replace(painter, judge=stubborn), dataset, [0, 1], tmp_path / "last", recipe)
    assert [record["candidate"] for record in records(tmp_path / "last", made.ids)] == [2, 2]
    with pytest.raises(D3S2Error, match="the judge gives segmentation_loss"):
        synthesise(
            replace(painter, judge=stubborn),
            dataset,
            [0],
            tmp_path / "other",
            replace(recipe, score="feature_loss"),
        )


def test_a_judge_without_a_score_will_do_where_nothing_is_chosen(dataset, painter, tmp_path):
    def silent(proxy, targets, images, labels):
        return {}

    made = synthesise(replace(painter, judge=silent), dataset, [0], tmp_path, RECIPE)
    assert set(records(tmp_path, made.ids)[0]) == set(RECORD)
    assert json.loads((tmp_path / "card.json").read_text())["mean_quality"] == {}


def test_start_noise_that_is_handed_in_is_what_images_start_from(dataset, painter):
    labels = read_masks(dataset, [0, 0])
    first = dataset.ids[0]
    unguided = Recipe(steps=4)

    def paint(levels):
        start = replace(painter, noise=ConstantNoise(levels))
        return generate(start, labels, list(levels), unguided)

    one = paint({first: 0.3, "other": -0.3})
    assert (one[0] - one[1]).abs().max() > 0.01
    torch.testing.assert_close(paint({first: 0.3, "other": 0.3})[1], one[0])
    assert not torch.equal(generate(painter, labels[:1], [first], unguided)[0], one[0])


def test_a_painter_with_parts_of_another_method_travels_by_pickle(dataset, painter):
    noise = ConstantNoise({dataset.ids[0]: 0.3})
    for before in (
        painter,
        replace(painter, losses=redness, judge=by_redness, noise=noise),
    ):
        after = pickle.loads(pickle.dumps(before))  # noqa: S301 - our own bytes
        assert (after.losses, after.judge, after.noise) == (
            before.losses,
            before.judge,
            before.noise,
        )
        labels = read_masks(dataset, [0])
        images = [
            generate(who, labels, dataset.ids[:1], Recipe(steps=2)) for who in (before, after)
        ]
        assert torch.equal(*images)


RENEW = "renew is {} and kappa {}: renew counts from 1, kappa is 0 or more."
COUNTS = (
    "candidates is {}, group {} and ignore_margin {}: the first two count from 1, the last is 0 or "
    "more."
)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: LossOptions(scope="world"), "scope is 'world': use 'image' or 'set'."),
        (lambda: LossOptions(renew=0), RENEW.format(0, 1.0)),
        (lambda: LossOptions(kappa=-0.5), RENEW.format(8, -0.5)),
        (lambda: LossOptions(kappa=math.nan), RENEW.format(8, "nan")),
        (lambda: Recipe(score="beauty"), f"score is 'beauty': choose {', '.join(SCORES)}."),
        (lambda: Recipe(candidates=0), COUNTS.format(0, 8, 0.0)),
        (lambda: Recipe(group=0), COUNTS.format(1, 0, 0.0)),
        (lambda: Recipe(ignore_margin=-0.5), COUNTS.format(1, 8, -0.5)),
        (lambda: Recipe(ignore_margin=math.nan), COUNTS.format(1, 8, "nan")),
    ],
)
def test_bad_recipes_are_named(make, message):
    with pytest.raises(D3S2Error) as caught:
        make()
    assert str(caught.value) == message


def test_what_is_just_allowed_is_allowed():
    options = LossOptions(kappa=0.0, renew=1, scope="set")
    for score in SCORES:
        recipe = Recipe(score=score, candidates=1, group=1, ignore_margin=0.0, losses=options)
        assert recipe.score == score


def test_a_layer_that_the_proxy_lacks_is_named(dataset, painter):
    labels = read_masks(dataset, [0])
    for layers in (("encoder9",), ("nowhere", "encoder1", "encoder9")):
        with pytest.raises(D3S2Error) as caught:
            guidance_losses(painter.proxy, labels, painter.targets, LossOptions(layers=layers))
        assert str(caught.value) == (
            "The proxy has no layer 'encoder9': choose from encoder1, encoder2, decoder."
        )


def test_bad_selections_and_a_foreign_generator_are_refused(dataset, painter, tmp_path):
    for indices, words in (([], "0 masks selected, 0"), ([1, 2, 1], "3 masks selected, 2")):
        with pytest.raises(D3S2Error) as caught:
            synthesise(painter, dataset, indices, tmp_path, RECIPE)
        assert str(caught.value) == (
            f"{words} of them different: the selection must hold each mask once and at least one."
        )
    foreign = LayoutGenerator(LayoutUNet(7, channels=(32, 32), layers=1), noise_schedule())
    with pytest.raises(D3S2Error) as caught:
        synthesise(replace(painter, generator=foreign), dataset, [0], tmp_path, RECIPE)
    assert str(caught.value) == (
        f"The generator knows 7 classes, {dataset.name} has 20: train a generator for this dataset "
        "with `python -m d3s2.models.pretraining`."
    )
    assert not tree(tmp_path)


def test_pixels_round_trip():
    levels = torch.arange(256).float().reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    assert np.array_equal(to_uint8(levels / 127.5 - 1)[0, ..., 0], np.arange(256).reshape(16, 16))


def test_class_sets_name_exactly_the_classes_present():
    labels = torch.tensor([[[0, 2], [2, 255]], [[255, 255], [255, 255]]])
    assert class_sets(labels, 4).tolist() == [[1, 0, 1, 0], [0, 0, 0, 0]]


def test_a_dropped_condition_hides_the_layout(painter):
    unet, x = painter.generator.unet, torch.randn(2, 3, 64, 64)
    a, b = torch.zeros(2, 64, 64, dtype=torch.int64), torch.ones(2, 64, 64, dtype=torch.int64)
    t = torch.tensor(500)
    assert not torch.allclose(unet(x, t, a, None), unet(x, t, b, None))
    dropped = torch.full_like(a, -1)
    torch.testing.assert_close(unet(x, t, dropped, None), unet(x, t, None, None))
    assert not torch.allclose(unet(x, t, None, class_sets(a, 20)), unet(x, t, None, None))


def test_training_resumes_to_the_same_weights_and_saves_what_it_loads(dataset, tmp_path):
    recipe = Training(4, batch_size=2, save_every=2, log_every=1)
    whole = train_proxy(dataset, tmp_path / "whole", recipe, lambda line: None)

    def cut(line):
        if line.startswith("iteration 3/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_proxy(dataset, tmp_path / "cut", recipe, cut)
    assert torch.load(tmp_path / "cut" / "checkpoint.pt", weights_only=True)["step"] == 2
    said = []
    again = train_proxy(dataset, tmp_path / "cut", recipe, said.append)
    assert said[0] == "going on at iteration 2" and len(said) == 3
    for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)
    loaded, images = load_proxy(tmp_path / "whole"), torch.rand(1, 3, 64, 64) * 2 - 1
    torch.testing.assert_close(
        loaded(images).logits, whole.eval()(images).logits, atol=2e-2, rtol=2e-2
    )  # stored in fp16


def test_generator_trains_saves_and_loads(dataset, tmp_path):
    generator = train_generator(
        dataset, tmp_path, Training(2, batch_size=2), lambda line: None, channels=(32, 32), layers=1
    )
    loaded = load_generator(tmp_path)
    assert (
        loaded.unet.dtype == torch.float32
        and loaded.scheduler.config.prediction_type == "v_prediction"
    )
    for a, b in zip(generator.unet.parameters(), loaded.unet.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-3)


def test_a_warm_start_copies_all_that_does_not_depend_on_the_classes():
    source, model = ProxySegmenter(20), ProxySegmenter(11)
    untouched = model.state_dict()["head.weight"].clone()
    left = warm_start(model, source.state_dict())
    assert left == ["head.bias", "head.weight"] and torch.equal(model.head.weight, untouched)
    for name, value in source.state_dict().items():
        assert name in left or torch.equal(model.state_dict()[name], value)


@pytest.mark.parametrize("load", [load_generator, load_proxy])
def test_missing_weights_say_how_to_get_them(load, tmp_path):
    with pytest.raises(D3S2Error, match=r"d3s2.models.pretraining"):
        load(tmp_path)


def test_saving_in_half_precision_leaves_the_model_alone(tmp_path):
    proxy = ProxySegmenter(3, channels=(8, 8))
    before = [p.clone() for p in proxy.parameters()]
    save_half(proxy, tmp_path)
    assert all(
        torch.equal(a, b) and b.dtype == torch.float32
        for a, b in zip(before, proxy.parameters(), strict=True)
    )


class Greedy(torch.nn.Module):
    """A network for which there is memory for so many images at once, and no more, as PyTorch says
    it.
    """

    def __init__(self, unet: torch.nn.Module, most: int):
        super().__init__()
        self.inner, self.most, self.config = unet, most, unet.config

    def forward(self, images: torch.Tensor, *rest: object, **named: object) -> object:
        if len(images) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inner(images, *rest, **named)


def greedy(painter: Painter, most: int) -> Painter:
    generator = painter.generator
    return replace(
        painter, generator=LayoutGenerator(Greedy(generator.unet, most), generator.scheduler)
    )


def test_out_of_memory_says_what_to_lower(dataset, painter, tmp_path):
    said = {
        "stop": "2 images at once: lower sampling_batch or set out_of_memory=halve, then take",
        "halve": "a single image: take",
    }
    for choice, words in said.items():
        with pytest.raises(D3S2Error) as caught:
            synthesise(greedy(painter, 0), dataset, [0, 1], tmp_path, RECIPE, out_of_memory=choice)
        assert str(caught.value) == (
            f"The GPU's memory is too small for {words} vae_memory=tiling or jacobian=detach. "
            "What is finished is kept."
        )


def test_halved_groups_make_the_same_files(dataset, painter, tmp_path):
    recipe = replace(RECIPE, group=5)
    synthesise(painter, dataset, range(5), tmp_path / "whole", recipe)
    small = greedy(painter, 4)  # two and three are padded to four
    synthesise(small, dataset, range(5), tmp_path / "halved", recipe, out_of_memory="halve")
    files = sorted(
        path.relative_to(tmp_path / "whole")
        for path in (tmp_path / "whole").rglob("*")
        if path.is_file()
    )
    assert len(files) == 3 * 5 + 3
    for file in files:
        assert (tmp_path / "halved" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_the_training_command_says_what_is_wrong_in_a_sentence(tmp_path, capsys):
    assert (
        prepare_main(
            [
                "proxy",
                "--data",
                str(tmp_path / "none"),
                "--out",
                str(tmp_path / "out"),
                "--iterations",
                "1",
            ]
        )
        == 2
    )
    said = capsys.readouterr().err
    assert said.startswith("d3s2: ") and "none" in said and "Traceback" not in said


# ------------------------------------------------------------- seeds, options and the order on disk
class Toy(torch.nn.Module):
    """A network of a few operations, for tests of what is around it: v follows image, layout and
    class set.
    """

    dtype = torch.float32

    @dataclass(frozen=True)
    class Config:
        num_classes: int = 20

    config = Config()

    def forward(self, x, t, layout, classes):
        picture = 0.0 if layout is None else 0.02 * layout[:, None].clamp(max=20)
        hint = 0.0 if classes is None else (0.01 * classes.cumsum(1)).mean(1)[:, None, None, None]
        return 0.5 * x.roll(1, -1) - picture - hint


@pytest.fixture
def quick(painter) -> Painter:
    """A painter whose images take no time."""
    return replace(painter, generator=LayoutGenerator(Toy(), noise_schedule()))


QUICK = Recipe(steps=2, group=2)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    name=st.text("abc/_-0123", min_size=1, max_size=8),
    candidate=st.integers(0, 9),
)
def test_an_images_seed_is_the_hash_of_all_three_that_it_follows_from(seed, name, candidate):
    text = f"{seed}:{name}" if candidate == 0 else f"{seed}:{name}:{candidate}"
    number = int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) // 2
    assert image_seed(seed, name, candidate) == number < 2**63
    others = [
        image_seed(seed + 1, name, candidate),
        image_seed(seed, name + "a", candidate),
        image_seed(seed, name, candidate + 1),
    ]
    assert number not in others and len(set(others)) == 3


def test_seeds_of_images_are_these_and_stay_so():
    """From `printf 0:a | sha256sum` and so on: half of the first 16 digits."""
    known = [(0, "a", 0), (1, "a", 0), (0, "b", 0), (0, "a", 1)]
    assert [f"{image_seed(*key):x}" for key in known] == [
        "4ef9e2fd5c77c7f3",
        "20b17eee9cd1f211",
        "7010c97ec09f9c7e",
        "20ec23c2997e7130",
    ]


def test_every_mask_try_and_run_starts_from_noise_of_its_own(dataset, quick):
    """The same mask under several names, so that nothing but the noise can tell images apart."""
    labels = read_masks(dataset, [0, 0, 0])
    images = [
        image
        for seed, candidate in ((0, 0), (1, 0), (0, 1))
        for image in generate(quick, labels, ["a", "b", "c"], replace(QUICK, seed=seed), candidate)
    ]
    for one, other in itertools.combinations(images, 2):
        assert (one - other).abs().mean() > 0.1
    again = generate(quick, labels[:1], ["b"], QUICK)
    assert torch.equal(again[0], images[1])


def test_images_are_made_where_the_masks_lie(dataset, quick):
    """The device that only knows shapes: whatever stayed behind could not be computed with."""
    labels = read_masks(dataset, [0, 1]).to("meta")
    images = generate(quick, labels, ["a", "b"], QUICK)
    assert (images.device.type, images.shape) == ("meta", (2, 3, 64, 64))


@pytest.mark.parametrize("eta", [0.0, 0.5])
@pytest.mark.parametrize("candidates", [1, 3])
def test_an_image_can_be_made_again_from_the_seed_in_its_record(
    dataset, quick, tmp_path, candidates, eta
):
    guidance = Guidance(eta=eta, cfg_scale=1.5)
    recipe = replace(QUICK, candidates=candidates, seed=7, guidance=guidance)
    made = synthesise(quick, dataset, range(4), tmp_path, recipe)
    found = records(tmp_path, made.ids)
    assert len({record["noise_seed"] for record in found}) == 4
    assert candidates == 1 or len({record["candidate"] for record in found}) > 1
    noise = NoiseStream([record["noise_seed"] for record in found], (3, 64, 64))
    layout = read_masks(dataset, [dataset.ids.index(name) for name in made.ids])
    classes = class_sets(layout, 20)
    steps = sample(quick.generator, noise(), layout, classes, 2, guidance, fresh=noise)
    for k, pixels in enumerate(to_uint8(finish(steps).image)):
        np.testing.assert_array_equal(made.read_image(k), pixels)


def test_the_recipes_options_and_the_mask_reach_the_losses(dataset, quick, tmp_path):
    given_options, given_labels = [], []

    def watched(proxy, labels, targets, options, memory):
        given_options.append(options)
        given_labels.append(labels)
        assert proxy is quick.proxy and targets is quick.targets
        return guidance_losses(proxy, labels, targets, options, memory)

    options = LossOptions(balance=True, kappa=0.5, layers=("decoder",))
    recipe = replace(QUICK, losses=options)
    synthesise(replace(quick, losses=watched), dataset, [3, 1], tmp_path, recipe)
    assert given_options == [options]
    assert torch.equal(given_labels[0][:2], read_masks(dataset, [3, 1]))


@pytest.mark.parametrize(
    "other",
    [LossOptions(balance=True), LossOptions(kappa=0.0), LossOptions(layers=("encoder1",))],
    ids=["balance", "kappa", "layers"],
)
def test_every_option_of_the_losses_changes_the_image(dataset, quick, other):
    labels = read_masks(dataset, [0, 1])
    steered = replace(QUICK, guidance=RECIPE.guidance)
    plain, changed = (
        generate(quick, labels, dataset.ids[:2], replace(steered, losses=options))
        for options in (LossOptions(), other)
    )
    assert (plain - changed).abs().max() > 1e-3


# ------------------------------------------------------------------------ what is no image at all
@dataclass(frozen=True)
class Spoilt:
    """Start noise with one value in the noise of the masks of these names."""

    value: float
    names: tuple[str, ...]

    def __call__(self, ids, seeds, shape):
        batch = initial_noise(seeds, shape)
        for k, name in enumerate(ids):
            if name in self.names:
                batch[k, 1, 2, 3] = self.value
        return lambda: batch


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_image_that_is_not_finite_is_refused_by_its_masks_name_and_not_written(
    dataset, quick, tmp_path, value
):
    """One pixel that is no number is enough; it once came out black, without a word."""
    names = [dataset.ids[i] for i in (2, 0, 4, 1)]
    # what the sampler clamps is finite again, except NaN
    loose = replace(quick, generator=Unbounded(Toy(), noise_schedule()))
    with pytest.raises(D3S2Error) as caught:
        spoilt = replace(loose, noise=Spoilt(value, (names[3],)))
        synthesise(spoilt, dataset, [2, 0, 4, 1], tmp_path, QUICK)
    assert str(caught.value) == (
        f"The image of mask {names[3]} is not finite and is not written: lower the guidance "
        "scales, or give the networks more precision."
    )
    made = [f"train/images/{name}.png" for name in sorted(names[:2])]
    assert sorted(pictures(tmp_path)) == [
        *made,
        *(path.replace("images", "labels") for path in made),
    ]
    whole = synthesise(loose, dataset, [2, 0, 4, 1], tmp_path, QUICK)
    assert len(whole) == 4


class Unbounded(LayoutGenerator):
    """One whose images the sampler leaves as they are."""

    bounded = False


@dataclass
class Saying:
    """A judge whose answers to each try are given."""

    answers: list[list[float]]
    asked: int = 0

    def __call__(self, proxy, targets, images, labels):
        self.asked += 1
        return {"proxy_agreement": self.answers[self.asked - 1]}


def test_a_try_without_a_score_never_wins_and_is_null_in_the_record(dataset, quick, tmp_path):
    recipe = replace(QUICK, candidates=3, score="proxy_agreement")
    said = [[math.nan, 0.5], [0.25, -math.inf], [0.125, math.nan]]
    synthesise(replace(quick, judge=Saying(said)), dataset, [0, 1], tmp_path, recipe)
    found = records(tmp_path, dataset.ids[:2])
    assert [record["candidate"] for record in found] == [1, 0]
    assert [record["proxy_agreement"] for record in found] == [0.25, 0.5]
    assert [record["scores"] for record in found] == [[None, 0.25, 0.125], [0.5, None, None]]


@pytest.mark.parametrize(
    "candidates, said, words",
    [
        (1, [[0.5, math.nan]], "proxy_agreement of the image of mask {} is nan"),
        (1, [[0.5, math.inf]], "proxy_agreement of the image of mask {} is inf"),
        (2, [[0.5, math.nan]] * 2, "proxy_agreement of image 1 of the batch is NaN in all 2 tries"),
    ],
)
def test_an_image_without_a_verdict_is_not_written(
    dataset, quick, tmp_path, candidates, said, words
):
    recipe = replace(QUICK, candidates=candidates, score="proxy_agreement")
    with pytest.raises(D3S2Error, match=words.format(dataset.ids[1])):
        synthesise(replace(quick, judge=Saying(said)), dataset, [0, 1], tmp_path, recipe)
    assert not pictures(tmp_path)


class Stop(BaseException):
    """A run that is killed."""


def test_wherever_a_run_is_killed_a_record_vouches_for_whole_files_and_it_goes_on_the_same(
    dataset, quick, tmp_path, monkeypatch
):
    """Before each of its writes in turn: what has a record has its image and its mask, and the next
    run ends with the bytes of an unbroken one.
    """
    quick, recipe = replace(quick, judge=by_redness), replace(QUICK, group=1)
    synthesise(quick, dataset, [0, 1], tmp_path / "whole", recipe)
    whole, real, total = tree(tmp_path / "whole"), os.replace, [0]

    def counted(source, target):
        if total[0] == 0:
            raise Stop
        total[0] -= 1
        real(source, target)

    monkeypatch.setattr(os, "replace", counted)
    for writes in range(len(whole)):
        folder = tmp_path / str(writes)
        total[0] = writes
        with pytest.raises(Stop):
            synthesise(quick, dataset, [0, 1], folder, recipe)
        left = tree(folder)
        assert len(left) == writes and left.items() <= whole.items()  # nothing half, all by rename
        for name in dataset.ids[:2]:
            if f"records/{name}.json" in left:
                assert f"train/images/{name}.png" in left and f"train/labels/{name}.png" in left
        assert "card.json" not in left
        total[0] = 99
        synthesise(quick, dataset, [0, 1], folder, recipe)
        assert tree(folder) == whole


def test_what_is_written_is_in_its_order_on_the_disk(dataset, quick, tmp_path, monkeypatch):
    """Image and mask are synced and named before the record that vouches for them."""
    order, real = [], os.replace
    monkeypatch.setattr(
        os, "replace", lambda a, b: (order.append(str(Path(b).relative_to(tmp_path))), real(a, b))
    )
    synced, sync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: (synced.append(len(order)), sync(number)))
    synthesise(quick, dataset, [2, 0], tmp_path, QUICK)
    names = [dataset.ids[i] for i in (2, 0)]
    expected = [
        path
        for name in names
        for path in (f"train/images/{name}.png", f"train/labels/{name}.png", f"records/{name}.json")
    ]
    assert order == ["classes.csv", *expected, "train/metadata.jsonl", "card.json"]
    assert synced == list(range(len(order)))  # each of them before its name


def test_what_a_mask_ignores_itself_is_counted_for_no_image(dataset, quick, tmp_path):
    """Masks with 0, 1, 2, ... rows of 255 in one batch: each image's count is its own."""
    paths = []
    for index, path in enumerate(dataset.label_paths):
        labels = dataset.read_labels(index)
        labels[:index] = 255
        paths.append(tmp_path / path.name)
        Image.fromarray(labels).save(paths[-1])
    void = replace(dataset, label_paths=tuple(paths))
    for margin in (0.0, 1.0):
        folder = tmp_path / str(margin)
        made = synthesise(quick, void, [3, 0, 5], folder, replace(QUICK, ignore_margin=margin))
        lost = [record["ignored_pixels"] for record in records(folder, made.ids)]
        ignored = (read_masks(made, range(3)) == 255).sum((1, 2)) - 64 * torch.tensor([0, 3, 5])
        assert lost == ignored.tolist() and (sum(lost) > 0) is (margin > 0)


def test_how_far_the_painting_is_is_noted_with_the_number_of_images(
    dataset, quick, tmp_path, monkeypatch
):
    monkeypatch.setenv(long_work.FILE, str(tmp_path / "progress"))
    noted = []
    recipe = replace(QUICK, images_per_mask=2)
    synthesise(
        quick,
        dataset,
        [4, 1, 5],
        tmp_path / "made",
        recipe,
        progress=lambda *_: noted.append(long_work.noted(tmp_path / "progress")),
    )
    assert noted and {(state.label, state.total) for state in noted} == {("painting", 6)}


@pytest.mark.parametrize("candidates", [1, 2])
def test_record_and_card_say_this_and_no_more(dataset, quick, tmp_path, candidates):
    """All of both, counted again from the files with numpy."""
    chosen = [4, 1, 5]
    recipe = replace(QUICK, ignore_margin=1.0, seed=3, candidates=candidates, method="mine")
    made = synthesise(quick, dataset, chosen, tmp_path, recipe)
    names = [dataset.ids[i] for i in chosen]
    found = records(tmp_path, names)
    seen = np.zeros((20, 2), dtype=int)
    ignored = 0
    for rank, (name, record) in enumerate(zip(names, found, strict=True)):
        image, labels = (read(made, [made.ids.index(name)]) for read in (read_images, read_masks))
        mask = dataset.read_labels(chosen[rank])
        said = quick.proxy(image).logits.argmax(1)[0].numpy()
        classes = [int(c) for c in np.unique(mask) if c != 255]
        cells = {c: [int((said == mask)[mask == c].sum()), int((mask == c).sum())] for c in classes}
        lost = int((labels[0].numpy() == 255).sum() - (mask == 255).sum())
        candidate = record.get("candidate", 0)
        verdict = judge(quick.proxy, quick.targets, image, torch.from_numpy(mask[None]).long())
        expected = {name: value for name, (value,) in verdict.items()} | {
            "id": name,
            "rank": rank,
            "noise_seed": image_seed(3, name, candidate),
            "method": "mine",
            "class_pixels": {str(c): pair for c, pair in cells.items()},
            "ignored_pixels": lost,
        }
        if candidates > 1:
            expected |= {"candidate": candidate, "scores": record["scores"]}
            assert record["scores"][candidate] == record["segmentation_loss"]
            assert len(record["scores"]) == candidates
        assert record == expected
        ignored += lost
        for c, pair in cells.items():
            seen[c] += pair
    assert ignored > 0
    assert json.loads((tmp_path / "card.json").read_text()) == {
        "name": f"{dataset.name}-mine",
        "source": f"{dataset.name}/train",
        "images": 3,
        "of": 6,
        "recipe": json.loads(json.dumps(asdict(recipe))),
        "ids_in_order_of_selection": names,
        "mean_quality": {
            score: round(float(np.mean([record[score] for record in found])), 6) for score in SCORES
        },
        "class_agreement": [
            round(int(right) / int(all_), 6) if all_ else None for right, all_ in seen
        ],
        "ignored_pixels": ignored,
    }
    losses = json.loads((tmp_path / "class_losses.json").read_text())
    real = class_mean_losses(quick.proxy, dataset).tolist()
    assert losses == [value if math.isfinite(value) else None for value in real]
    assert made.num_classes == 20 and made.classes == dataset.classes
