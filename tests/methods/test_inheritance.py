"""Ridge regression, the head of all data, and the projector that hands it on: closed forms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import ClassInfo, SegmentationDataset
from d3s2.data.folder import open_folder, write_classes
from d3s2.data.tensors import read_images
from d3s2.methods.inheritance import (
    Backbone,
    LinearMap,
    LinearSegmenter,
    RidgeSums,
    fit_head,
    fit_projector,
    segmenter_confusion,
)
from d3s2.models.proxy import ProxyOutput
from d3s2.training.evaluation import confusion, mean_iou

COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
SOME = st.integers(0, 10_000)


class Colours(nn.Module):
    """A network whose only layer is the image, mixed by a matrix float[D, 3]."""

    layers = ("colours",)

    def __init__(self, mix: Tensor | None = None, shift: float = 0.0) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.eye(3) if mix is None else mix, requires_grad=False)
        self.shift = shift

    def forward(self, images: Tensor) -> ProxyOutput:
        found = torch.einsum("dc,bchw->bdhw", self.mix, images) + self.shift
        return ProxyOutput(found[:, :1], [found])


class Halves(nn.Module):
    """Two layers of one and two channels, the second on a grid half as fine."""

    layers = ("fine", "coarse")

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1), requires_grad=False)

    def forward(self, images: Tensor) -> ProxyOutput:
        coarse = torch.nn.functional.avg_pool2d(images[:, 1:], 2)
        return ProxyOutput(images, [images[:, :1], coarse])


def write_data(folder: Path, masks: list[np.ndarray], images: list[np.ndarray]) -> None:
    for number, (mask, image) in enumerate(zip(masks, images, strict=True)):
        for part, pixels in (("labels", mask), ("images", image)):
            path = folder / "train" / part / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    classes = [ClassInfo(f"c{number}", colour) for number, colour in enumerate(COLOURS)]
    write_classes(folder / "classes.csv", classes)


def coloured(folder: Path, count: int = 3) -> SegmentationDataset:
    """Random masks of three classes, some of it ignored, in the colours of the classes."""
    rng = np.random.default_rng(0)
    masks = [rng.integers(0, 3, (8, 8)).astype(np.uint8) for _ in range(count)]
    images = [np.array(COLOURS, np.uint8)[mask] for mask in masks]
    for mask in masks:
        mask[0, :3] = 255
    write_data(folder, masks, images)
    return open_folder(folder, "train")


def areas(dataset: SegmentationDataset) -> np.ndarray:
    labels = np.stack([dataset.read_labels(index) for index in range(len(dataset))])
    return np.bincount(labels.ravel(), minlength=256)[: dataset.num_classes]


# ------------------------------------------------------------------------------- ridge regression
def rows(seed: int, count: int = 40) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    psi = torch.randn(count, 6, generator=rng, dtype=torch.float64)
    return psi, torch.randn(count, 4, generator=rng, dtype=torch.float64)


@given(seed=SOME, ridge=st.floats(1e-6, 10))
@settings(max_examples=20, deadline=None)
def test_the_map_is_the_closed_form_with_a_free_bias(seed: int, ridge: float) -> None:
    psi, phi = rows(seed)
    sums = RidgeSums(6, 4)
    sums.add(psi, phi)
    found = sums.solve(ridge)
    middle, target = psi - psi.mean(0), phi - phi.mean(0)  # a free bias is a regression about means
    penalty = ridge * psi.square().sum(0).mean() * torch.eye(6, dtype=torch.float64)
    expected = torch.linalg.inv(middle.T @ middle + penalty) @ middle.T @ target
    torch.testing.assert_close(found.weight, expected.T)
    torch.testing.assert_close(found.bias, phi.mean(0) - psi.mean(0) @ expected)


@given(seed=SOME)
@settings(max_examples=10, deadline=None)
def test_the_projector_recovers_an_exact_map(seed: int) -> None:
    phi, _ = rows(seed)
    mix = torch.linalg.qr(rows(seed + 1, 6)[0])[0] * 3
    psi = phi @ mix + 7
    sums = RidgeSums(6, 6)
    sums.add(psi, phi)
    found = sums.solve(0.0)
    torch.testing.assert_close(found.weight, torch.linalg.inv(mix).T)
    torch.testing.assert_close(psi @ found.weight.T + found.bias, phi)


@given(seed=SOME, cut=st.integers(1, 39))
@settings(max_examples=10, deadline=None)
def test_sums_of_shards_are_those_of_the_whole_and_weights_are_repetitions(seed, cut) -> None:
    psi, phi = rows(seed)
    whole, one, other, weighted, repeated = (RidgeSums(6, 4) for _ in range(5))
    whole.add(psi, phi)
    one.add(psi[:cut], phi[:cut])
    other.add(psi[cut:], phi[cut:])
    one.merge(other)
    torch.testing.assert_close(one.solve().weight, whole.solve().weight)
    counts = torch.arange(40) % 3
    weighted.add(psi, phi, counts)
    repeated.add(psi.repeat_interleave(counts, 0), phi.repeat_interleave(counts, 0))
    torch.testing.assert_close(weighted.gram, repeated.gram)
    torch.testing.assert_close(weighted.solve().bias, repeated.solve().bias)


def test_a_map_is_a_convolution_of_single_cells() -> None:
    weight, features = torch.arange(6.0).reshape(2, 3), torch.rand(1, 3, 4, 5)
    found = LinearMap(weight.double(), torch.tensor([1.0, -1.0]).double())(features)
    expected = torch.einsum("oi,bihw->bohw", weight, features)
    torch.testing.assert_close(found, expected + torch.tensor([1.0, -1.0])[:, None, None])


# --------------------------------------------------------------------------------- dense features
def test_layers_stand_side_by_side_on_the_finest_grid() -> None:
    images = torch.rand(2, 3, 8, 6)
    found = Backbone(Halves()).features(images)
    assert found.shape == (2, 3, 8, 6) and torch.equal(found[:, :1], images[:, :1])
    coarse = torch.nn.functional.avg_pool2d(images[:, 1:], 2)
    torch.testing.assert_close(
        found[:, 1:], torch.nn.functional.interpolate(coarse, (8, 6), mode="bilinear")
    )
    only = Backbone(Halves(), ("coarse",))
    assert torch.equal(only.features(images), coarse)
    smaller = Backbone(Halves(), ("fine",)).features(images, (4, 3))
    assert smaller.shape == (2, 1, 4, 3)
    assert smaller.mean() == pytest.approx(images[:, :1].mean().item(), abs=0.02)


# ------------------------------------------------------------------------------ head and projector
def test_a_head_learns_what_is_linear(tmp_path: Path) -> None:
    data = coloured(tmp_path)
    backbone = Backbone(Colours())
    head = fit_head(data, backbone, areas(data), ridge=1e-9, progress=False)
    matrix = segmenter_confusion(LinearSegmenter(backbone, (head,)), data)
    assert mean_iou(matrix) == 100 and matrix.sum() == areas(data).sum()
    # its scores are the masks themselves
    scores = head(backbone.features(torch.tensor([[[[1.0]], [[-1.0]], [[-1.0]]]])))
    torch.testing.assert_close(scores.flatten(), torch.tensor([1.0, 0.0, 0.0]), atol=1e-4, rtol=0)


def test_what_is_ignored_teaches_nothing(tmp_path: Path) -> None:
    data = coloured(tmp_path / "a")
    images = [data.read_image(index) for index in range(3)]
    before = fit_head(data, Backbone(Colours()), areas(data), progress=False)
    for index, image in enumerate(images):
        image[data.read_labels(index) == 255] = 77
    write_data(tmp_path / "b", [data.read_labels(index) for index in range(3)], images)
    other = open_folder(tmp_path / "b", "train")
    after = fit_head(other, Backbone(Colours()), areas(data), progress=False)
    torch.testing.assert_close(after.weight, before.weight)


def test_balance_lets_a_rare_class_win_where_it_is_denser(tmp_path: Path) -> None:
    """White are 30 of 90 pixels of class 0 and all 10 of class 1: by number it is 0, by share 1."""
    mask = np.repeat([0, 1], [90, 10]).astype(np.uint8).reshape(10, 10)
    white = (np.arange(100) < 30) | (np.arange(100) >= 90)
    image = np.where(white.reshape(10, 10, 1), 255, 0).astype(np.uint8).repeat(3, 2)
    write_data(tmp_path, [mask], [image])
    data = open_folder(tmp_path, "train")
    for balance, winner in ((0.0, 0), (1.0, 1)):
        head = fit_head(data, Backbone(Colours()), areas(data), balance, 1e-6, progress=False)
        assert head(torch.ones(1, 3, 1, 1)).argmax() == winner
        assert head(-torch.ones(1, 3, 1, 1)).argmax() == 0


def test_a_head_is_inherited_by_a_network_of_mixed_features(tmp_path: Path) -> None:
    """Psi = A Phi: through the projector the other network answers as the first one."""
    data = coloured(tmp_path)
    mix = torch.tensor([[1.0, 2, 0], [0, 1, 3], [1, 0, 1], [2, 2, 2]])
    teacher, student = Backbone(Colours()), Backbone(Colours(mix, shift=5.0))
    head = fit_head(data, teacher, areas(data), progress=False)
    projector = fit_projector(data, student, teacher, ridge=1e-10, progress=False)
    images = read_images(data, range(3))
    own, inherited = (
        LinearSegmenter(teacher, (head,)),
        LinearSegmenter(student, (projector, head)),
    )
    torch.testing.assert_close(inherited(images), own(images), atol=1e-4, rtol=0)
    wrong = LinearSegmenter(Backbone(Colours(torch.eye(3).flip(0))), (head,))
    assert mean_iou(segmenter_confusion(wrong, data)) < 60
    assert mean_iou(segmenter_confusion(inherited, data)) == 100


def test_the_projector_reads_no_mask(tmp_path: Path) -> None:
    data = coloured(tmp_path)
    pair = Backbone(Colours(torch.randn(4, 3))), Backbone(Colours())
    before = fit_projector(data, *pair, progress=False)
    for path in data.label_paths:
        path.unlink()
    assert torch.equal(fit_projector(data, *pair, progress=False).weight, before.weight)


def test_answers_are_counted_at_the_size_of_the_masks(tmp_path: Path) -> None:
    data = coloured(tmp_path)
    backbone = Backbone(Halves(), ("coarse",))
    segmenter = LinearSegmenter(backbone, (LinearMap(torch.randn(3, 2), torch.randn(3)),))
    matrix = segmenter_confusion(segmenter, data)
    expected = np.zeros((3, 3), np.int64)
    for index in range(3):
        scores = segmenter(read_images(data, [index]))
        assert scores.shape == (1, 3, 8, 8)
        expected += confusion(scores.argmax(1)[0].numpy(), data.read_labels(index), 3)
    np.testing.assert_array_equal(matrix, expected)


# -------------------------------------------------------------------------------------- bad input
def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    data = coloured(tmp_path)
    few, backbone = RidgeSums(6, 4), Backbone(Colours())
    psi, phi = rows(0, 3)
    few.add(psi, phi)
    for wrong, message in (
        (lambda: few.solve(0.0), "3 cells|do not fix a map of 6 features with ridge 0.0"),
        (lambda: few.solve(-1.0), "ridge is -1.0"),
        (lambda: few.merge(RidgeSums(5, 4)), r"sums of \(6, 4\) cannot be merged into .*\(7, 4\)"),
        (lambda: fit_head(data, backbone, areas(data)[:2]), "areas are of 2 classes, .* has 3"),
        (lambda: fit_head(data.subset([]), backbone, areas(data)), "holds no image: a head"),
        (lambda: fit_projector(data.subset([]), backbone, backbone), "a projector needs one"),
        (lambda: Backbone(Colours(), ("x",)).features(torch.ones(1, 3, 8, 8)), "no layer 'x'"),
    ):
        with pytest.raises(D3S2Error, match=message) as error:
            wrong()
        assert "\n" not in str(error.value)
    assert few.solve().weight.isfinite().all()
