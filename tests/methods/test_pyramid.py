"""Pyramid, views and optimisation of a set: identities, limits, and being broken off."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_scenes import small_scenes
from tiny_worlds import Tired, bare_world, tiny
from torch import Tensor
from torch.nn import functional as F

from d3s2.core.errors import D3S2Error
from d3s2.methods.augmentation import Views, draw_views, shown
from d3s2.methods.flow_matching import class_centres, flow_matching
from d3s2.methods.pyramid import Pyramid, colour_matrix, level_sizes, random_numbers
from d3s2.methods.set_optimisation import (
    CHECKPOINT,
    PyramidOptions,
    SetOptimisation,
    goal_of,
    optimise_set,
)
from d3s2.statistics.features import soft_masks

TESTS = Path(__file__).resolve().parents[1]
CHOSEN = (0, 2, 3)
QUICK = PyramidOptions(steps=12, travel=1.0, growth=0.1)
EVERY = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    return bare_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def unbroken(world: SimpleNamespace) -> Tensor:
    return optimise_set(world, CHOSEN, QUICK, progress=False)[0]


# ---------------------------------------------------------------------------------------- pyramid
@given(height=st.integers(1, 700), width=st.integers(1, 700))
def test_levels_double_from_one_pixel_to_the_images_size(height: int, width: int) -> None:
    sizes = level_sizes(height, width)
    assert sizes[0] == (1, 1) and sizes[-1] == (height, width)
    for coarse, fine in itertools.pairwise(sizes):
        for axis in (0, 1):
            assert coarse[axis] == -(-fine[axis] // 2)
    assert level_sizes(64, 64) == [(2**k, 2**k) for k in range(7)]


def test_new_levels_come_in_while_the_sum_keeps_its_size() -> None:
    pyramid = Pyramid(200, (4, 8), torch.eye(3), seed=3)
    first = pyramid.levels[0].detach().clone()
    assert first.shape == (200, 3, 1, 1) and abs(first.std() - 1) < 0.1
    for count, size in ((2, (1, 2)), (3, (2, 4)), (4, (4, 8))):
        pyramid.grow()
        assert len(pyramid.levels) == count and pyramid.levels[-1].shape == (200, 3, *size)
        assert all(level.is_leaf and level.requires_grad for level in pyramid.levels)
        torch.testing.assert_close(pyramid.levels[0], first / count)
        assert abs(count * pyramid.levels[-1].std() - 1) < 0.1
    with pytest.raises(D3S2Error, match="4 x 8 pixels has 4 levels"):
        pyramid.grow()
    again, other = (Pyramid(200, (4, 8), torch.eye(3), seed) for seed in (3, 4))
    assert torch.equal(again.levels[0], first) and not torch.equal(other.levels[0], first)


def test_images_are_the_released_sigmoid_of_the_mixed_sum() -> None:
    mix = torch.tensor([[1.0, 0.5, 0], [0, 1, 0], [0, 0, 0.2]])
    pyramid = Pyramid(5, (4, 4), mix, seed=0)
    pyramid.grow()
    coarse, fine = pyramid.levels
    total = coarse.expand(5, 3, 4, 4) + F.interpolate(fine, (4, 4), mode="bilinear")
    mixed = (mix @ total.flatten(2)).reshape(total.shape)
    torch.testing.assert_close(pyramid.images(), 2 * torch.sigmoid(2 * mixed) - 1)
    torch.testing.assert_close(pyramid.images(slice(1, 3)), pyramid.images()[1:3])


def test_colours_get_the_correlations_of_the_data(world: SimpleNamespace, tmp_path: Path) -> None:
    colours = colour_matrix(world.train).double()
    pixels = np.concatenate([world.train.read_image(i).reshape(-1, 3) for i in range(6)])
    expected = np.corrcoef(pixels.T)
    found = (colours @ colours.T).numpy()
    deviation = np.sqrt(np.diag(found))
    np.testing.assert_allclose(found / np.outer(deviation, deviation), expected, atol=1e-5)
    assert colours.norm(dim=0).max().item() == pytest.approx(1)
    torch.testing.assert_close(colours, colours.T)
    one = small_scenes(tmp_path, 1)
    Image.new("RGB", (64, 64), (9, 200, 3)).save(one.image_paths[0])
    assert torch.equal(colour_matrix(one), torch.eye(3))


def test_random_numbers_follow_from_what_they_are_for() -> None:
    first = [torch.rand(2, generator=random_numbers(0, "noise", 1, 2)) for _ in range(2)]
    assert torch.equal(*first)
    for other in ((1, "noise", 1, 2), (0, "views", 1, 2), (0, "noise", 12), (0, "noise", 2, 1)):
        assert not torch.equal(first[0], torch.rand(2, generator=random_numbers(*other)))


# ------------------------------------------------------------------------------------------- views
def through(theta: list[list[float]], noise: float = 0.0) -> tuple[Tensor, ...]:
    """(image, labels, seen, found): one random image and mask, and both through a view."""
    rng = torch.Generator().manual_seed(0)
    image = 2 * torch.rand(1, 3, 8, 8, generator=rng) - 1
    labels = torch.randint(0, 20, (1, 8, 8), generator=rng)
    labels[0, 2, 3] = 255
    views = Views(torch.tensor([theta]).float(), torch.tensor([noise]))
    return image, labels, *shown(image, labels, views, torch.randn(image.shape, generator=rng))


def test_the_whole_view_shows_the_image_and_its_mask() -> None:
    image, labels, seen, found = through([[1, 0, 0], [0, 1, 0]])
    torch.testing.assert_close(seen, image)
    assert torch.equal(found, labels) and found.dtype == torch.int64


def test_a_view_flips_and_crops_both_alike() -> None:
    image, labels, seen, found = through([[-1, 0, 0], [0, 1, 0]])
    torch.testing.assert_close(seen, image.flip(-1))
    assert torch.equal(found, labels.flip(-1))
    image, labels, seen, found = through([[0.5, 0, -0.5], [0, 0.5, 0.5]])  # left half, lower half
    doubled = labels[:, 4:, :4].repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert torch.equal(found, doubled)
    expected = F.interpolate(image, scale_factor=2, mode="bilinear")[..., 8:, :8]
    torch.testing.assert_close(seen[..., :-1, 1:], expected[..., :-1, 1:])  # grey is beside these


def test_beside_the_image_everything_is_ignored() -> None:
    image, labels, seen, found = through([[1, 0, 1], [0, 1, 0]])  # half an image to the right
    assert torch.equal(found[..., :4], labels[..., 4:]) and (found[..., 4:] == 255).all()
    torch.testing.assert_close(seen[..., :4], image[..., 4:])
    assert not seen[..., 4:].any()


def test_noise_is_added_to_the_image_alone() -> None:
    image, labels, seen, found = through([[1, 0, 0], [0, 1, 0]], noise=0.3)
    assert torch.equal(found, labels)
    assert (seen - image).std() == pytest.approx(0.3, rel=0.15)


def test_views_are_drawn_over_their_ranges() -> None:
    drawn = draw_views(4000, 0.36, 0.2, random_numbers(0))
    across, down = drawn.theta[:, 0, 0].abs(), drawn.theta[:, 1, 1]
    area = across * down
    assert 0.36 <= area.min() < 0.37 and 0.99 < area.max() <= 1
    ratio = across / down
    assert 0.75 <= ratio.min() < 0.76 and 1.32 < ratio.max() <= 4 / 3 + 1e-6
    assert ratio.log().mean().abs() < 0.01
    assert 0.47 < (drawn.theta[:, 0, 0] < 0).float().mean() < 0.53
    assert drawn.noise.unique().tolist() == pytest.approx([0.0, 0.4])
    assert 0.47 < (drawn.noise > 0).float().mean() < 0.53
    inside = across < 1
    edges = drawn.theta[:, 0, 2].abs() + across
    assert edges[inside].max() <= 1 + 1e-6 and edges[across < 0.7].max() > 0.99  # to the border
    assert edges[across < 0.7].min() < 0.72
    assert (~inside).any() and (drawn.theta[:, 0, 1] == 0).all()
    covers = across - drawn.theta[:, 0, 2].abs()
    assert covers[~inside].min() >= 1 - 1e-6  # all of the image's width


# ------------------------------------------------------------------------------------ optimisation
def gradients(work: SetOptimisation) -> list[Tensor]:
    for level in work.pyramid.levels:
        level.grad = None
    work._gradients()
    return [level.grad.clone() for level in work.pyramid.levels]


def begun(world: SimpleNamespace, options: PyramidOptions = QUICK) -> SetOptimisation:
    return SetOptimisation(goal_of(world, CHOSEN, options), options, world.seed)


def test_the_loss_falls_and_every_pixel_is_reached(world: SimpleNamespace) -> None:
    images, losses = optimise_set(world, CHOSEN, PyramidOptions(steps=40), progress=False)
    assert images.shape == (3, 3, 64, 64) and images.dtype == torch.float32
    assert -1 <= images.min() and images.max() <= 1
    assert len(losses) == 40 and np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])


def test_levels_begin_one_by_one_with_a_new_adam(world: SimpleNamespace) -> None:
    work = begun(world, PyramidOptions(steps=20, growth=0.1))
    counts = []
    for _ in range(16):
        work.advance()
        counts.append(len(work.pyramid.levels))
        ages = {int(state["step"]) for state in work.adam.state.values()}
        assert ages == {min((work.step - 1) % 2 + 1, 2) if counts[-1] < 7 else work.step - 12}
    assert counts == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 7, 7]
    assert work.adam.param_groups[0]["lr"] == pytest.approx(10 / 20)


def test_altering_one_image_changes_the_gradient_of_another(world: SimpleNamespace) -> None:
    work = begun(world)
    before = gradients(work)[0]
    with torch.no_grad():
        work.pyramid.levels[0][1] += 0.5
    assert not torch.allclose(before[0], gradients(work)[0][0], rtol=1e-3)


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_in_chunks_loss_and_gradient_are_the_same(world: SimpleNamespace, chunk: int) -> None:
    whole, parts = (begun(world, PyramidOptions(steps=12, chunk=size)) for size in (0, chunk))
    for work in (whole, parts):
        for _ in range(3):
            work.pyramid.grow()
    for one, other in zip(gradients(whole), gradients(parts), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * one.abs().max().item())
    assert parts._gradients() == pytest.approx(whole._gradients(), rel=1e-5)


def loss_of(work: SetOptimisation, images: Tensor, labels: Tensor) -> float:
    """The loss of these images and labels, by the definition."""
    features = work.goal.proxy(images).features
    found = [
        class_centres(features[n], soft_masks(labels, 20, features[n].shape[2:]))
        for n in work.goal.layers
    ]
    return flow_matching(found, work.goal.targets, work.goal.layers).item()


def test_without_augmentation_the_loss_is_that_of_the_plain_images(world: SimpleNamespace) -> None:
    work = begun(world, PyramidOptions(steps=12, augment=False, layers=("encoder3", "encoder1")))
    assert work.goal.layers == (2, 0)
    expected = loss_of(work, work.images(), work.goal.labels)
    assert work.advance() == pytest.approx(expected, rel=1e-5)
    assert begun(world).goal.layers == (1, 2)  # neither the finest nor the decoder
    assert torch.equal(work.pyramid.colours, colour_matrix(world.train))


def test_every_step_shows_images_and_masks_through_views_of_its_own(world: SimpleNamespace) -> None:
    work = begun(world, dataclasses.replace(QUICK, growth=1.0))  # one level throughout
    for step in range(4):
        views = draw_views(3, QUICK.smallest_crop, QUICK.noise, random_numbers(0, "views", step))
        noise = [
            torch.randn(3, 64, 64, generator=random_numbers(0, "noise", step, n)) for n in range(3)
        ]
        seen = shown(work.images(), work.goal.labels, views, torch.stack(noise))
        expected = loss_of(work, *seen)
        assert work.advance() == pytest.approx(expected, rel=1e-5)
    whole, part = (work._noise(rows, work.images()) for rows in (slice(0, 3), slice(1, 3)))
    assert torch.equal(part, whole[1:])


def test_a_set_follows_from_its_seed(world: SimpleNamespace, unbroken: Tensor) -> None:
    again = optimise_set(world, CHOSEN, QUICK, progress=False)[0]
    assert torch.equal(again, unbroken)
    other = SimpleNamespace(**vars(world) | {"seed": 1})
    assert not torch.equal(optimise_set(other, CHOSEN, QUICK, progress=False)[0], unbroken)


@pytest.mark.parametrize("after", [0, 3, 5, 9, 11])
def test_broken_off_it_goes_on_to_the_same_bytes(world, unbroken, tmp_path, after) -> None:
    tired = tiny(Tired)
    tired.left = after
    broken = SimpleNamespace(**vars(world) | {"proxy": tired})
    with pytest.raises(KeyboardInterrupt):
        optimise_set(broken, CHOSEN, QUICK, tmp_path, False, EVERY)
    tired.left = 12 - after // EVERY * EVERY  # what the last checkpoint has not
    images, losses = optimise_set(broken, CHOSEN, QUICK, tmp_path, False, EVERY)
    assert torch.equal(images, unbroken) and len(losses) == 12 and tired.left == 0
    finished = optimise_set(broken, CHOSEN, QUICK, tmp_path, False, EVERY)
    assert torch.equal(finished[0], unbroken) and finished[1] == losses


def test_a_checkpoint_of_something_else_or_damaged_is_not_gone_on_from(
    world: SimpleNamespace, unbroken: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / CHECKPOINT
    for masks, options in (((0, 2, 4), QUICK), (CHOSEN, dataclasses.replace(QUICK, noise=0.1))):
        others = optimise_set(world, masks, options, tmp_path, progress=False)[0]
        assert not torch.equal(others, unbroken)
        images = optimise_set(world, CHOSEN, QUICK, tmp_path, progress=False)[0]
        assert torch.equal(images, unbroken)
    for damage in (path.read_bytes()[:1000], b""):
        path.write_bytes(damage)
        images = optimise_set(world, CHOSEN, QUICK, tmp_path, progress=False)[0]
        assert torch.equal(images, unbroken)
    assert [other.name for other in tmp_path.iterdir()] == [CHECKPOINT]


SCRIPT = """
import sys, torch
from pathlib import Path
from tiny_worlds import bare_world
from d3s2.methods.set_optimisation import PyramidOptions, optimise_set
torch.set_num_threads(1)
folder = Path(sys.argv[1])
options = PyramidOptions(steps=60, travel=4.0)
images, _ = optimise_set(bare_world(folder), (0, 2, 3), options, folder, False, save_every=5)
torch.save(images, folder / "images.pt")
"""


@pytest.mark.processes
def test_killed_it_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    found = []
    for name in ("unbroken", "killed"):
        folder = tmp_path / name
        command = [sys.executable, "-c", SCRIPT, str(folder)]
        env = os.environ | {"PYTHONPATH": f"{TESTS.parent}:{TESTS}"}
        if name == "killed":
            process = subprocess.Popen(command, env=env)
            while not (folder / CHECKPOINT).is_file():
                assert process.poll() is None
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert not (folder / "images.pt").is_file()
        subprocess.run(command, env=env, check=True)
        found.append(torch.load(folder / "images.pt"))
    assert torch.equal(*found)


# -------------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"chunk": -1}, "chunk -1"),
        ({"travel": 0.0}, "travel is 0.0"),
        ({"travel": float("nan")}, "travel is nan"),
        ({"growth": 0.0}, "growth 0.0"),
        ({"growth": 1.1}, "growth 1.1"),
        ({"noise": -1.0}, "noise -1.0"),
        ({"smallest_crop": 0.0}, "smallest_crop is 0.0"),
        ({"smallest_crop": 1.5}, "smallest_crop is 1.5"),
    ],
)
def test_options_outside_their_range_are_one_sentence(values: dict, message: str) -> None:
    with pytest.raises(D3S2Error, match=message) as error:
        PyramidOptions(**values)
    assert "\n" not in str(error.value)


def test_goals_that_cannot_be_reached_are_one_sentence(
    world: SimpleNamespace, tmp_path: Path
) -> None:
    with pytest.raises(D3S2Error, match="no mask is chosen"):
        goal_of(world, (), QUICK)
    with pytest.raises(D3S2Error, match="no layer 'encoder9': choose from encoder1"):
        goal_of(world, CHOSEN, PyramidOptions(layers=("encoder9",)))
    train = small_scenes(tmp_path, 2)
    other = SimpleNamespace(**vars(world) | {"train": train})
    Image.new("L", (64, 64), 0).save(train.label_paths[0])  # nothing but sky
    with pytest.raises(D3S2Error, match="the 1 masks show fewer than two classes"):
        goal_of(other, [0], QUICK)
    for path in (train.image_paths[1], train.label_paths[1]):
        Image.open(path).resize((32, 48), Image.Resampling.NEAREST).save(path)
    with pytest.raises(D3S2Error, match=r"sizes \(48, 32\) and \(64, 64\)"):
        goal_of(other, [0, 1], QUICK)
    broken = tiny()
    with torch.no_grad():
        broken.encoder[2][0].weight.fill_(float("nan"))
    with pytest.raises(D3S2Error, match="the loss of step 1 is nan"):
        optimise_set(
            SimpleNamespace(**vars(world) | {"proxy": broken}), CHOSEN, QUICK, progress=False
        )
