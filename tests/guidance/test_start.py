"""Runs that begin at an image: where they begin, where they end, and that strength 1 is none."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_scenes import small_scenes
from tiny_diffusion import save_tiny, save_tiny_flow

from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.tensors import class_sets, read_images, read_masks
from d3s2.guidance.losses import FeatureTargets
from d3s2.guidance.painting import BEGUN, RECORD, Painter, Recipe, generate, synthesise
from d3s2.guidance.quality import SCORES
from d3s2.guidance.sampler import (
    Guidance,
    NoiseStream,
    Start,
    finish,
    first_step,
    initial_noise,
    sample,
)
from d3s2.models import flow
from d3s2.models.diffusion_parts import DiffusionOptions
from d3s2.models.generator import LayoutGenerator, noise_schedule
from d3s2.models.proxy import ProxySegmenter
from d3s2.models.stable_diffusion import load_stable_diffusion
from d3s2.statistics.features import feature_statistics

SCHEDULE = noise_schedule()
ALPHA = SCHEDULE.alphas_cumprod.tolist()
BOTH = Guidance({"segmentation": 0.1, "feature": 0.1}, window=(0, 1))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> SegmentationDataset:
    return small_scenes(tmp_path_factory.mktemp("scenes"), 4)


@pytest.fixture(scope="module")
def painter(dataset) -> Painter:
    torch.manual_seed(0)
    proxy = ProxySegmenter(20, channels=(8, 16)).eval().requires_grad_(False)
    targets = FeatureTargets.from_moments(feature_statistics(dataset, proxy, progress=False))
    return Painter(LayoutGenerator(Toy(), SCHEDULE), proxy, targets)


class Toy(torch.nn.Module):
    """A network of a few operations, whose v follows image, layout and class set."""

    config = SimpleNamespace(num_classes=20)

    def forward(self, x, t, layout, classes):
        hint = 0.0 if classes is None else (0.01 * classes.cumsum(1)).mean(1)[:, None, None, None]
        picture = 0.0 if layout is None else 0.02 * layout[:, None].clamp(max=20)
        return 0.5 * x.roll(1, -1) - picture - hint


class Unbounded(LayoutGenerator):
    """One whose images the sampler leaves as they are."""

    bounded = False


def knows_normal_images(mean: float, spread: float) -> LayoutGenerator:
    """The best network for images of independent normal pixels, whose prediction is a line."""

    def unet(x, t, layout, classes):
        a = ALPHA[int(t)]
        clean = mean + math.sqrt(a) * spread**2 / (a * spread**2 + 1 - a) * (
            x - math.sqrt(a) * mean
        )
        return (math.sqrt(a) * x - clean) / math.sqrt(1 - a)

    return Unbounded(unet, SCHEDULE)


# ------------------------------------------------------------------------------- where a run begins
@pytest.mark.parametrize(
    ("steps", "strength", "first"),
    [
        (50, 1, 0),
        (50, 0.7, 15),
        (50, 0.99, 0),
        (50, 0.001, 49),
        (10, 0.29, 7),
        (100, 0.29, 71),
        (1, 0.001, 0),
        (1, 1.0, 0),
        (1000, 0.001, 999),
    ],
)
def test_a_strength_is_the_share_of_the_steps_that_is_run(steps, strength, first):
    assert first_step(steps, strength) == first


@pytest.mark.parametrize("index", [0, 4, 9])
def test_a_run_begins_at_the_level_of_its_first_step(index):
    """Many draws around one image: mean sqrt(a) x0, variance 1 - a, as its timestep says."""
    seen = []

    def unet(x, t, layout, classes):
        seen.append((int(t), x))
        return torch.zeros_like(x)

    clean = torch.full((8, 3, 64, 64), 0.6, dtype=torch.float64)
    noise = initial_noise(range(8), (3, 64, 64)).double()
    steps = list(
        sample(Unbounded(unet, SCHEDULE), noise, None, None, steps=10, start=Start(clean, index))
    )
    assert [step.index for step in steps] == list(range(index, 10))
    assert [t for t, _ in seen] == [900 - 100 * at for at in range(index, 10)]
    a = ALPHA[900 - 100 * index]
    x = seen[0][1]
    error = math.sqrt((1 - a) / x.numel())
    assert x.mean().item() == pytest.approx(0.6 * math.sqrt(a), abs=5 * error)
    assert x.var().item() == pytest.approx(1 - a, rel=5 * math.sqrt(2 / x.numel()))
    torch.testing.assert_close(x, math.sqrt(a) * clean + math.sqrt(1 - a) * noise)


def test_normal_images_go_the_closed_form_and_keep_their_distribution():
    """Begun at images of the right distribution, a run of the best network ends at images of the
    right distribution, that remember where they began as the level says.
    """
    mean, spread, steps, first = 0.2, 0.5, 100, 40
    draws = NoiseStream(range(8), (3, 64, 64))
    begun, noise = mean + spread * draws().double(), draws().double()
    generator = knows_normal_images(mean, spread)
    x = finish(sample(generator, noise, None, None, steps, start=Start(begun, first))).x
    levels = generator.schedule.steps(steps)[first:]
    a = levels[0].a_t
    expected = math.sqrt(a) * (begun - mean) + math.sqrt(1 - a) * noise
    for at in levels:  # DDIM is linear in how far x lies from its mean
        gain = math.sqrt(at.a_next * at.a_t) * spread**2 + math.sqrt((1 - at.a_next) * (1 - at.a_t))
        expected = gain / (at.a_t * spread**2 + 1 - at.a_t) * expected
    torch.testing.assert_close(x, mean + expected, rtol=1e-6, atol=1e-8)
    assert x.mean().item() == pytest.approx(mean, abs=0.01)
    assert x.std().item() == pytest.approx(spread, rel=0.02)
    remembered = torch.corrcoef(torch.stack([begun.flatten(), x.flatten()]))[0, 1].item()
    kept = math.sqrt(a) * spread / math.sqrt(a * spread**2 + 1 - a)
    assert remembered == pytest.approx(kept, abs=0.01) and 0.2 < kept < 0.9


def test_the_less_strength_the_closer_to_the_photograph(dataset, painter):
    photographs, labels = read_images(dataset, range(4)), read_masks(dataset, range(4))
    far = []
    for strength in (0.001, 0.1, 0.3, 1.0):
        recipe = Recipe(steps=50, strength=strength)
        images = generate(painter, labels, dataset.ids, recipe, begin=photographs)
        far.append((images - photographs).abs().mean().item())
    assert far[0] < 0.01 and far == sorted(far) and far[-1] > 20 * far[0]


# ------------------------------------------------------------------------------ strength 1 is none
@pytest.mark.parametrize("more", [{}, {"eta": 1.0, "recurrence": 2, "cfg_scale": 2.0}])
def test_strength_one_is_a_run_from_pure_noise_bit_for_bit(dataset, painter, more):
    recipe = Recipe(steps=5, guidance=replace(BOTH, **more))
    labels = read_masks(dataset, range(4))
    plain = generate(painter, labels, dataset.ids, recipe)
    at_one = replace(recipe, strength=1.0)
    begin = read_images(dataset, range(4))
    assert torch.equal(generate(painter, labels, dataset.ids, at_one, begin=begin), plain)
    almost = generate(painter, labels, dataset.ids, replace(recipe, strength=0.999), begin=begin)
    assert not torch.equal(almost, plain)  # all steps, but the photograph is in the noise


# ------------------------------------------------------------------------------ guidance on its way
def red(images):
    return {"red": images[:, 0].flatten(1).mean(1)}


def test_the_window_is_that_of_all_steps_and_the_first_guided_one_asks():
    def unet(x, t, layout, classes):
        return 0.1 * x

    start = Start(torch.zeros(4, 3, 8, 8), 4)
    guidance = Guidance({"red": 0.1}, window=(0.2, 0.8), every=3)
    noise = initial_noise(range(4), (3, 8, 8))
    run = list(
        sample(LayoutGenerator(unet, SCHEDULE), noise, None, None, 10, guidance, red, start=start)
    )
    assert [step.index for step in run if step.gradient is not None] == [4, 5, 6, 7]
    assert [step.index for step in run if step.losses] == [4, 7]
    late = replace(guidance, window=(0.6, 0.8))
    run = list(
        sample(LayoutGenerator(unet, SCHEDULE), noise, None, None, 10, late, red, start=start)
    )
    assert [step.index for step in run if step.losses] == [6]


# -------------------------------------------------------------------------------------- on the disk
def pictures(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("train/images/*.png"))}


def test_batches_shards_and_resumed_paintings_give_the_same_bytes(dataset, painter, tmp_path):
    recipe = Recipe(steps=4, guidance=replace(BOTH, eta=0.5), strength=0.5, candidates=2)
    made = synthesise(painter, dataset, [3, 0, 2], tmp_path / "whole", recipe)
    whole = pictures(tmp_path / "whole")
    for group, shards in ((1, [[3, 0, 2]]), (2, [[2], [0, 3]])):
        for shard in shards:
            synthesise(painter, dataset, shard, tmp_path / str(group), replace(recipe, group=group))
        assert pictures(tmp_path / str(group)) == whole
    (tmp_path / "whole" / "records" / f"{dataset.ids[0]}.json").unlink()
    (tmp_path / "whole" / "train" / "images" / f"{dataset.ids[0]}.png").unlink()
    synthesise(painter, dataset, [3, 0, 2], tmp_path / "whole", recipe)
    assert pictures(tmp_path / "whole") == whole
    pure = synthesise(painter, dataset, [3, 0, 2], tmp_path / "pure", replace(recipe, strength=1))
    for k in range(3):
        assert not np.array_equal(pure.read_image(k), made.read_image(k))


def test_each_image_begins_at_its_own_masks_photograph(dataset, painter, tmp_path):
    recipe = Recipe(steps=50, strength=0.001, group=2)
    made = synthesise(painter, dataset, [3, 0, 2], tmp_path, recipe)
    card = json.loads((tmp_path / "card.json").read_text())
    assert card["recipe"]["strength"] == 0.001 and list(card["mean_quality"]) == sorted(SCORES)
    for k, name in enumerate(made.ids):
        record = json.loads((tmp_path / "records" / f"{name}.json").read_text())
        assert set(record) == {*RECORD, *BEGUN, *SCORES} and record["strength"] == 0.001
        photograph = dataset.read_image(dataset.ids.index(name))
        gap = np.abs(made.read_image(k).astype(int) - photograph)
        assert gap.mean() < 2


def grey(dataset, indices, device):
    """What another method would begin at."""
    return torch.zeros(len(indices), 3, 64, 64, device=device)


def test_images_to_begin_at_can_be_handed_in(dataset, painter, tmp_path):
    other = replace(painter, beginnings=grey)
    made = synthesise(other, dataset, [1], tmp_path, Recipe(steps=50, strength=0.001))
    assert np.abs(made.read_image(0).astype(int) - 128).mean() < 2


# -------------------------------------------------------------------------------- latents and flows
@pytest.fixture(scope="module", params=["diffusion", "flow"])
def latent(request, tmp_path_factory):
    """A tiny latent model of either kind, for the classes of scenes."""
    folder = tmp_path_factory.mktemp(request.param)
    save, load = {
        "diffusion": (save_tiny, load_stable_diffusion),
        "flow": (save_tiny_flow, flow.load),
    }[request.param]
    options = DiffusionOptions(*save(folder), precision="float32")
    colors = np.arange(60, dtype=np.uint8).reshape(20, 3)
    return load(options, [f"class {number}" for number in range(20)], colors)


def test_latents_are_the_encoders_mean_scaled_as_the_model_knows_them(latent, dataset):
    images = read_images(dataset, range(2))[..., ::4, ::4]
    z = latent.encode(images)
    assert z.shape == (2, *latent.noise_shape(16, 16)) and z.dtype == torch.float32
    config = latent.vae.config
    mean = latent.vae.encode(images).latent_dist.mean
    shift = config.shift_factor or 0.0
    torch.testing.assert_close(z, (mean - shift) * config.scaling_factor)
    torch.testing.assert_close(latent.encode(images), z)  # no draw
    torch.testing.assert_close(latent.decode(z), latent.vae.decode(mean).sample)


def test_encoding_is_as_exact_as_the_finished_image(latent, dataset):
    images = read_images(dataset, range(2))[..., ::4, ::4]
    exact = replace(latent, vae=None, exact=latent.vae)  # where there is one, it alone is asked
    assert torch.equal(exact.encode(images), latent.encode(images))


def test_a_latent_run_begins_and_ends_at_the_encoded_photograph(latent, dataset, painter):
    images = read_images(dataset, range(2))[..., ::4, ::4]
    layout = read_masks(dataset, range(2))[..., ::4, ::4]
    z, noise = latent.encode(images), initial_noise([1, 2], latent.noise_shape(16, 16))
    told = (layout, class_sets(layout, 20))
    levels = latent.schedule.steps(4)
    (last,) = sample(latent, noise, *told, 4, start=Start(z, 3))
    a = levels[3].a_t
    x = math.sqrt(a) * z + math.sqrt(1 - a) * noise
    v = latent.unet(x, torch.tensor(levels[3].t), *told)
    clean = math.sqrt(a) * x - math.sqrt(1 - a) * v
    torch.testing.assert_close(last.clean, clean, rtol=1e-4, atol=1e-5)
    whole = replace(painter, generator=latent)
    recipe = Recipe(steps=4, guidance=replace(BOTH, window=(0.5, 1)), strength=0.75)
    once, twice = (generate(whole, layout, dataset.ids[:2], recipe, begin=images) for _ in "ab")
    assert torch.equal(once, twice) and once.shape == images.shape
    other = generate(whole, layout, dataset.ids[:2], recipe, begin=-images)
    assert not torch.equal(once, other)


def test_a_flow_begun_at_its_first_step_is_pure_noise(dataset, tmp_path):
    """There alone nothing of an image is left: alpha_bar is 0."""
    options = DiffusionOptions(*save_tiny_flow(tmp_path), precision="float32")
    model = flow.load(options, ["a", "b"], np.zeros((2, 3), np.uint8))
    noise, z = initial_noise([1], model.noise_shape(16, 16)), torch.ones(1, 4, 8, 8)
    layout = torch.zeros(1, 16, 16, dtype=torch.long)
    told = (layout, class_sets(layout, 2))
    one, other = (
        finish(sample(model, noise, *told, 4, start=start)).x for start in (None, Start(z, 0))
    )
    assert torch.equal(one, other)


# ------------------------------------------------------------------------------------ what is amiss
@pytest.mark.parametrize("index", [-1, 10])
def test_a_start_at_no_step_is_a_sentence(index):
    noise = initial_noise([1], (3, 8, 8))
    with pytest.raises(D3S2Error) as caught:
        next(
            sample(
                LayoutGenerator(None, SCHEDULE), noise, None, None, 10, start=Start(noise, index)
            )
        )
    assert str(caught.value) == f"The run begins at step {index}, but its steps are 0 to 9."


@pytest.mark.parametrize("strength", [0.0, -0.1, 1.01, math.nan, math.inf])
def test_a_strength_outside_of_its_range_is_named(strength):
    with pytest.raises(D3S2Error) as caught:
        Recipe(strength=strength)
    assert str(caught.value) == (
        f"strength is {strength}: give a share of the steps above 0, up to 1 = from pure noise."
    )


class Blind(LayoutGenerator):
    """Its latents are half as large, and it does not say how they are made."""

    def noise_shape(self, height, width):
        return 4, height // 2, width // 2


class Wordless:
    """A generator with no such method at all."""

    padded = False
    num_classes = 20

    def noise_shape(self, height, width):
        return 3, height, width


def test_what_cannot_begin_at_an_image_is_a_sentence(dataset, painter):
    labels, begin = read_masks(dataset, [0]), read_images(dataset, [0])
    recipe = Recipe(steps=4, strength=0.5)
    with pytest.raises(D3S2Error) as caught:
        generate(painter, labels, dataset.ids[:1], recipe)
    assert str(caught.value) == (
        "strength is 0.5, but there are no images to begin at: give `begin`."
    )
    blind = Blind(painter.generator.unet, SCHEDULE)
    for generator, name, shape in (
        (blind, "Blind", "4x32x32"),
        (Wordless(), "Wordless", "3x64x64"),
    ):
        with pytest.raises(D3S2Error) as caught:
            generate(
                replace(painter, generator=generator), labels, dataset.ids[:1], recipe, begin=begin
            )
        assert str(caught.value) == (
            "strength is 0.5, but the generator does not say what it makes of an image: give "
            f"{name} a method `encode` that answers {shape} numbers an image, or take strength 1."
        )
