"""Counting and moments against their definitions, and the identities they must keep."""

from __future__ import annotations

import io
import sys
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import sparse
from torch import Tensor, nn

from d3s2.core import long_work
from d3s2.core.errors import D3S2Error
from d3s2.data import scenes
from d3s2.data.dataset import IGNORE, ClassInfo, SegmentationDataset
from d3s2.data.folder import write_classes
from d3s2.data.opening import open_dataset
from d3s2.data.scenes import scenes_classes
from d3s2.statistics import features
from d3s2.statistics.features import ClassMoments, feature_statistics, soft_masks
from d3s2.statistics.pixels import PixelCounts, class_table, co_occurrence, count_pixels

CLASSES = [ClassInfo(f"c{index}", (index, 0, 0)) for index in range(4)]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SegmentationDataset:
    """Seven 6x9 masks of 4 classes; class 3 never occurs; mask 2 is all ignore."""
    root, rng = tmp_path_factory.mktemp("small"), np.random.default_rng(1)
    write_classes(root / "classes.csv", CLASSES)
    for index in range(7):
        labels = rng.integers(0, 3, (6, 9)).astype(np.uint8)
        labels[rng.random((6, 9)) < 0.2] = IGNORE
        if index == 2:
            labels[:] = IGNORE
        if index == 4:
            labels[labels == 1] = 0
        for part, array in (
            ("images", rng.integers(0, 256, (6, 9, 3), dtype=np.uint8)),
            ("labels", labels),
        ):
            (root / "train" / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(root / "train" / part / f"{index}.png")
    return open_dataset("folder", root, "train")


def test_counts_equal_a_naive_loop(small: SegmentationDataset) -> None:
    counts = count_pixels(small)
    assert counts.ids == small.ids and counts.counts.dtype == np.int64
    for index in range(len(small)):
        labels = small.read_labels(index)
        assert counts.counts[[index]].toarray()[0].tolist() == [
            int((labels == c).sum()) for c in range(4)
        ]
        assert counts.valid[index] == (labels != IGNORE).sum()


def test_class_table_and_co_occurrence(small: SegmentationDataset) -> None:
    counts = count_pixels(small)
    table, pairs = class_table(counts, small.classes), co_occurrence(counts)
    assert sum(row.pixels for row in table) == counts.valid.sum()
    assert sum(row.pixel_share for row in table) == pytest.approx(1)
    assert table[3].warning and (table[3].pixels, table[3].pixel_share, table[3].images) == (
        0,
        0.0,
        0,
    )
    assert not table[0].warning and table[0].image_share == 6 / 7
    assert (pairs == pairs.T).all() and np.diag(pairs).tolist() == [row.images for row in table]
    masks = [small.read_labels(index) for index in range(7)]
    assert pairs[0, 1] == sum((m == 0).any() and (m == 1).any() for m in masks)


def test_shares_sum_to_one_and_never_divide_by_zero(small: SegmentationDataset) -> None:
    shares = count_pixels(small).shares().toarray()
    assert shares.sum(1) == pytest.approx([1, 1, 0, 1, 1, 1, 1])


def test_shards_concatenate_and_files_keep_everything(
    small: SegmentationDataset, tmp_path: Path
) -> None:
    whole = count_pixels(small)
    parts = PixelCounts.concatenate(
        [count_pixels(small.subset(range(3))), count_pixels(small.subset(range(3, 7)))]
    )
    whole.save(tmp_path / "a.npz")
    parts.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    loaded = PixelCounts.load(tmp_path / "a.npz")
    assert (loaded.counts != whole.counts).nnz == 0 and loaded.ids == whole.ids
    assert loaded.valid.tolist() == whole.valid.tolist() and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 half"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    for kind in (PixelCounts, ClassMoments):
        with pytest.raises(D3S2Error, match=r"x\.npz.*notebook 01"):
            kind.load(tmp_path / "x.npz")
        with pytest.raises(D3S2Error, match="notebook 01"):
            kind.load(tmp_path / "missing.npz")


# --------------------------------------------------------------------------------------- soft masks
@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99)
)
def test_soft_masks_are_area_averages(height: int, width: int, h: int, w: int, seed: int) -> None:
    """Against the definition: repeat every pixel h*w times, then average whole blocks."""
    labels = torch.from_numpy(
        np.random.default_rng(seed).choice([0, 1, 2, IGNORE], (2, height, width))
    )
    fine = labels.repeat_interleave(h, 1).repeat_interleave(w, 2)
    expected = torch.stack([(fine == c).double() for c in range(3)], 1)
    expected = expected.reshape(2, 3, h, height, w, width).mean((3, 5))
    got = soft_masks(labels, 3, (h, w))
    assert got.shape == (2, 3, h, w) and got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, atol=1e-6, rtol=0)
    area = torch.stack([(labels == c).double().mean() for c in range(3)])
    torch.testing.assert_close(got.double().mean((0, 2, 3)), area, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(16, 24), (8, 24), (4, 3), (2, 6), (1, 3)])
def test_shares_that_are_counted_have_the_bits_of_those_that_are_averaged(
    size: tuple[int, int],
) -> None:
    """Of cells with 1, 2, 32, 32 and 128 pixels: every sum of such shares is exact."""
    rng = np.random.default_rng(3)
    labels = torch.from_numpy(rng.choice([0, 1, 2, 3, IGNORE], (3, 16, 24)))
    one_hot = torch.stack([labels == c for c in range(4)], 1).float()
    rows = features._area_weights(16, size[0], torch.device("cpu"))
    columns = features._area_weights(24, size[1], torch.device("cpu"))
    got = soft_masks(labels, 4, size)
    assert got.is_contiguous() and torch.equal(got, rows @ (one_hot @ columns.T))


def test_averages_alone_know_cells_that_divide_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six pixels a cell, or cells across pixels: shares that are no powers of two are averaged."""
    counted = []
    monkeypatch.setattr(features, "_counted", lambda *given: counted.append(given))
    for size in ((2, 4), (3, 6), (4, 5)):
        soft_masks(torch.zeros(1, 4, 12, dtype=torch.long), 2, size)
    assert not counted


def test_soft_masks_leave_ignore_out_and_refuse_foreign_ids() -> None:
    labels = torch.tensor([[[0, IGNORE], [1, IGNORE]]])
    assert soft_masks(labels, 2, (1, 1)).flatten().tolist() == [0.25, 0.25]
    assert soft_masks(labels, 2, (2, 2)).sum(1).tolist() == [[[1, 0], [1, 0]]]
    with pytest.raises(D3S2Error, match="label id 7 is outside the 2 classes"):
        soft_masks(torch.full((1, 2, 2), 7), 2, (1, 1))
    with pytest.raises(D3S2Error, match=r"\[B, H, W\]"):
        soft_masks(torch.zeros(2, 2), 2, (1, 1))


# ------------------------------------------------------------------------------------------ moments
def draw(seed: int, batch: int = 3, classes: int = 3) -> tuple[list[Tensor], Tensor]:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (batch, 8, 8), generator=rng)
    labels[torch.rand((batch, 8, 8), generator=rng) < 0.2] = IGNORE
    return [
        torch.randn(batch, 4, 8, 8, generator=rng),
        50 + torch.randn(batch, 2, 4, 4, generator=rng),
    ], labels


def moments_of(features: list[Tensor], labels: Tensor, classes: int = 3) -> ClassMoments:
    moments = ClassMoments(classes, [feature.shape[1] for feature in features])
    moments.update(features, labels)
    return moments


def assert_same(a: ClassMoments, b: ClassMoments, tolerance: float = 1e-10) -> None:
    for name in ("n", "mean", "m2"):
        for left, right in zip(getattr(a, name), getattr(b, name), strict=True):
            torch.testing.assert_close(left, right, atol=tolerance, rtol=tolerance)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000))
def test_moments_equal_a_naive_loop(seed: int) -> None:
    features, labels = draw(seed)
    moments = moments_of(features, labels)
    for layer, feature in enumerate(features):
        masks = soft_masks(labels, 3, tuple(feature.shape[2:])).double()
        for c in range(3):
            n = masks[:, c].sum()
            for d in range(feature.shape[1]):
                mean = (masks[:, c] * feature[:, d].double()).sum() / n
                variance = (masks[:, c] * feature[:, d].double() ** 2).sum() / n - mean**2
                assert moments.n[layer][c] == pytest.approx(n.item())
                assert moments.mean[layer][c, d] == pytest.approx(mean.item(), abs=1e-10)
                assert moments.variance()[layer][c, d] == pytest.approx(variance.item(), abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_shards_merge_exactly(seed: int, cut: int) -> None:
    """Chan's update: two shards, in either order, give what one pass gives."""
    features, labels = draw(seed, batch=6)
    whole = moments_of(features, labels)
    left = moments_of([feature[:cut] for feature in features], labels[:cut])
    right = moments_of([feature[cut:] for feature in features], labels[cut:])
    other = moments_of([feature[cut:] for feature in features], labels[cut:])
    left_copy = moments_of([feature[:cut] for feature in features], labels[:cut])
    left.merge(right)
    other.merge(left_copy)
    assert_same(whole, left)
    assert_same(whole, other)


def test_pixels_of_a_class_may_change_places() -> None:
    features, labels = draw(3)
    feature, shuffled = features[0], features[0].clone()
    for c in range(3):
        place = (labels == c).nonzero()
        order = place[torch.randperm(len(place), generator=torch.Generator().manual_seed(c))]
        shuffled[place[:, 0], :, place[:, 1], place[:, 2]] = feature[
            order[:, 0], :, order[:, 1], order[:, 2]
        ]
    assert not torch.equal(feature, shuffled)
    assert_same(moments_of([feature], labels), moments_of([shuffled], labels))


def test_ignored_pixels_do_not_matter() -> None:
    features, labels = draw(4)
    changed = features[0].clone()
    changed.permute(0, 2, 3, 1)[labels == IGNORE] = 1e6
    assert_same(moments_of([features[0]], labels), moments_of([changed], labels))


def test_class_names_do_not_matter() -> None:
    features, labels = draw(5)
    renamed = torch.where(labels == IGNORE, labels, (labels + 1) % 3)
    plain, rolled = moments_of(features, labels), moments_of(features, renamed)
    for layer in range(2):
        torch.testing.assert_close(plain.mean[layer].roll(1, 0), rolled.mean[layer])
        torch.testing.assert_close(plain.m2[layer].roll(1, 0), rolled.m2[layer])


def test_constant_features_have_no_variance() -> None:
    _, labels = draw(6)
    moments = moments_of([torch.full((3, 4, 8, 8), 0.1), torch.full((3, 2, 4, 4), -1e6)], labels)
    for layer, value in ((0, 0.1), (1, -1e6)):
        assert (moments.variance()[layer] == 0).all() and (
            moments.global_variance()[layer] == 0
        ).all()
        torch.testing.assert_close(
            moments.mean[layer], torch.full_like(moments.mean[layer], value), rtol=1e-7, atol=0
        )


def test_a_class_that_never_occurs_holds_zeros() -> None:
    features, labels = draw(7)
    moments = moments_of(features, labels, classes=5)
    assert moments.n[0][3:].tolist() == [0, 0] and (moments.mean[0][3:] == 0).all()
    assert all(torch.isfinite(variance).all() for variance in moments.variance())
    empty = moments_of(features, torch.full_like(labels, IGNORE))
    assert torch.isfinite(empty.global_variance()[0]).all() and empty.n[0].sum() == 0


def test_one_class_is_the_global_mean_and_variance() -> None:
    features, labels = draw(8)
    moments = moments_of(features[:1], torch.zeros_like(labels), classes=1)
    flat = features[0].double().permute(1, 0, 2, 3).flatten(1)
    torch.testing.assert_close(moments.mean[0][0], flat.mean(1))
    torch.testing.assert_close(moments.variance()[0][0], flat.var(1, unbiased=False))
    torch.testing.assert_close(moments.global_variance()[0], flat.var(1, unbiased=False))


def test_global_variance_is_that_of_all_valid_pixels() -> None:
    features, labels = draw(9)
    flat = features[0].double().permute(0, 2, 3, 1)[labels != IGNORE]
    moments = moments_of(features, labels)
    torch.testing.assert_close(moments.global_mean()[0], flat.mean(0))
    torch.testing.assert_close(moments.global_variance()[0], flat.var(0, unbiased=False))


def test_moments_survive_the_disk_and_refuse_strangers(tmp_path: Path) -> None:
    features, labels = draw(10)
    moments = moments_of(features, labels)
    moments.save(tmp_path / "m.npz")
    loaded = ClassMoments.load(tmp_path / "m.npz")
    assert_same(moments, loaded, tolerance=0)
    assert loaded.layers == moments.layers and loaded.channels == (4, 2)
    with pytest.raises(D3S2Error, match="cannot merge"):
        moments.merge(ClassMoments(3, [4]))
    with pytest.raises(D3S2Error, match="channels"):
        moments.update(features[:1], labels)


# -------------------------------------------------------------------------- the pass over a dataset
class Features(NamedTuple):
    """What a proxy returns, as far as statistics care."""

    features: list[Tensor]


class TinyProxy(nn.Module):
    """Two layers of a random convolutional network."""

    layers = ("first", "second")

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 2, 2)

    def forward(self, images: Tensor) -> Features:
        first = self.first(images)
        return Features([first, self.second(first.relu())])


def test_feature_statistics_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    scenes.write_split(tmp_path, "train", 7)
    write_classes(tmp_path / "classes.csv", scenes_classes())
    data, proxy = open_dataset("folder", tmp_path, "train"), TinyProxy()
    one, many = (feature_statistics(data, proxy, batch_size=size) for size in (1, 4))
    assert one.layers == ("first", "second") and one.channels == (4, 6)
    assert_same(one, many, tolerance=1e-6)  # float32 convolutions round differently per batch size
    counts = count_pixels(data).pixel_counts()
    assert one.n[0].tolist() == counts.tolist()
    torch.testing.assert_close(
        one.n[1] * 4, torch.from_numpy(counts).double(), atol=1e-3, rtol=1e-6
    )
    with pytest.raises(D3S2Error, match="holds no image"):
        feature_statistics(data.subset([]), proxy)


class Watched(TinyProxy):
    """Notes how many images it sees at once."""

    def forward(self, images: Tensor) -> Features:
        self.seen = [*getattr(self, "seen", []), len(images)]
        return super().forward(images[..., ::16, ::16])


def test_large_images_are_taken_a_few_at_a_time(tmp_path: Path) -> None:
    """32 of 512 x 512 and 150 classes took eight gigabytes (`tests/studies/test_memory.py`)."""
    scenes.write_split(tmp_path, "train", 5)
    write_classes(tmp_path / "classes.csv", scenes_classes())
    for side, batches in ((64, [4, 1]), (512, [2, 2, 1])):
        proxy = Watched()
        data = open_dataset("folder", tmp_path, "train", (side, side))
        feature_statistics(data, proxy, batch_size=4, progress=False)
        assert proxy.seen == batches


class Small(TinyProxy):
    """A GPU that takes two images."""

    def forward(self, images: Tensor) -> Features:
        if len(images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(images)


def test_a_batch_too_large_for_the_memory_is_taken_in_halves(tmp_path: Path) -> None:
    scenes.write_split(tmp_path, "train", 7)
    write_classes(tmp_path / "classes.csv", scenes_classes())
    data = open_dataset("folder", tmp_path, "train")
    with pytest.raises(D3S2Error, match="7 images at once: set out_of_memory=halve"):
        feature_statistics(data, Small(), progress=False)
    halved = feature_statistics(data, Small(), progress=False, out_of_memory="halve")
    assert_same(halved, feature_statistics(data, TinyProxy(), progress=False), tolerance=1e-6)
    plain, asked = (
        feature_statistics(data, TinyProxy(), progress=False, out_of_memory=how)
        for how in ("stop", "halve")
    )
    for first, second in zip(plain.mean + plain.m2, asked.mean + asked.m2, strict=True):
        assert torch.equal(first, second)


def test_labels_may_lie_on_another_device_than_the_features(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in a notebook on a GPU: `meta` stands for one here."""
    asked = []

    def note(labels: torch.Tensor, *_: object) -> None:
        asked.append(labels.device.type)
        raise InterruptedError

    monkeypatch.setattr(features, "soft_masks", note)
    with pytest.raises(InterruptedError):
        ClassMoments(3, [5]).update(
            [torch.empty(2, 5, 4, 4, device="meta")], torch.zeros(2, 8, 8, dtype=torch.long)
        )
    assert asked == ["meta"]


# ------------------------------------------------------------------------ oblong images and layers
@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10_000),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
)
def test_moments_of_oblong_features_are_those_of_the_cells_under_each_class(
    seed: int, mask: tuple[int, int], cells: tuple[int, int]
) -> None:
    """Against the definition, written out over rows and columns: height never stands for width."""
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 1, IGNORE], (2, *mask))
    feature = torch.from_numpy(rng.normal(size=(2, 3, *cells)))
    moments = moments_of([feature], torch.from_numpy(labels), 2)
    fine = labels.repeat(cells[0], 1).repeat(cells[1], 2)
    for c in range(2):
        weight = np.zeros((2, *cells))
        for y in range(cells[0]):
            for x in range(cells[1]):
                rows = slice(y * mask[0], (y + 1) * mask[0])
                columns = slice(x * mask[1], (x + 1) * mask[1])
                weight[:, y, x] = (fine[:, rows, columns] == c).mean((1, 2))
        n = weight.sum()
        assert moments.n[0][c].item() == pytest.approx(n, abs=1e-5)
        if n == 0:
            continue
        mean = (weight[:, None] * feature.numpy()).sum((0, 2, 3)) / n
        gap = (feature.numpy() - mean[:, None, None]) ** 2
        variance = (weight[:, None] * gap).sum((0, 2, 3)) / n
        assert moments.mean[0][c].numpy() == pytest.approx(mean, abs=1e-5)
        assert moments.variance()[0][c].numpy() == pytest.approx(variance, abs=1e-5)


class Pixels(nn.Module):
    """A proxy whose first layer is the image itself, and whose second one where a pixel stands."""

    layers = ("colour", "place")

    def __init__(self) -> None:
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Features:
        height, width = images.shape[2:]
        grid = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        place = torch.stack(grid).float()[None].expand(len(images), -1, -1, -1)
        return Features([images, place])


def test_statistics_of_a_data_set_are_those_of_its_pixels(small: SegmentationDataset) -> None:
    """Colours as they lie on disk, from -1 to 1; rows and columns under the class that is there."""
    moments = feature_statistics(small, Pixels(), batch_size=3, progress=False)
    colours = np.stack([small.read_image(k) for k in range(7)]) / 127.5 - 1
    labels = np.stack([small.read_labels(k) for k in range(7)])
    rows, columns = np.indices((6, 9))
    for c in range(3):
        inside = labels == c
        assert moments.n[0][c] == inside.sum()
        assert moments.mean[0][c].numpy() == pytest.approx(colours[inside].mean(0), abs=1e-6)
        assert moments.variance()[0][c].numpy() == pytest.approx(colours[inside].var(0), abs=1e-6)
        place = np.stack([np.broadcast_to(axis, labels.shape)[inside] for axis in (rows, columns)])
        assert moments.mean[1][c].numpy() == pytest.approx(place.mean(1), abs=1e-6)
        assert moments.variance()[1][c].numpy() == pytest.approx(place.var(1), abs=1e-5)
    every = colours[labels != IGNORE]
    assert moments.global_mean()[0].numpy() == pytest.approx(every.mean(0), abs=1e-6)
    assert moments.global_variance()[0].numpy() == pytest.approx(every.var(0), abs=1e-6)


def test_the_class_table_cell_by_cell() -> None:
    """A hand-made split: two images, three classes, one of them nowhere."""
    counts = PixelCounts(
        sparse.csr_array(np.array([[6, 0, 0], [1, 3, 0]])), np.array([6, 4]), ("a", "b")
    )
    assert [tuple(row) for row in class_table(counts, CLASSES[:3])] == [
        (0, "c0", 7, 0.7, 2, 1.0, ""),
        (1, "c1", 3, 0.3, 1, 0.5, ""),
        (2, "c2", 0, 0.0, 0, 0.0, "no pixel in this split"),
    ]
    assert co_occurrence(counts).tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
    np.testing.assert_allclose(counts.shares().toarray(), [[1, 0, 0], [0.25, 0.75, 0]])


# ------------------------------------------------------------------------------- edges and types
@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 400), st.data())
def test_a_pixels_share_of_each_cell_is_exact(width: int, cells: int, data: st.DataObject) -> None:
    """In rational numbers, also where an image is thousands of pixels wide."""
    pixel = data.draw(st.integers(0, width - 1))
    labels = torch.zeros(1, 1, width, dtype=torch.uint8)
    labels[0, 0, pixel] = 1
    size, expected = Fraction(width, cells), []
    for cell in range(cells):
        overlap = min(size * (cell + 1), pixel + 1) - max(size * cell, pixel)
        expected.append(float(max(overlap, Fraction(0)) / size))
    got = soft_masks(labels, 2, (1, cells))[0, 1, 0]
    assert got.numpy() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("wrong", [2, 3, 254, -1])
def test_a_single_pixel_of_a_foreign_id_is_named(wrong: int) -> None:
    labels = torch.tensor([[[0, 1, IGNORE], [0, wrong, 1]]])
    with pytest.raises(D3S2Error) as raised:
        soft_masks(labels, 2, (1, 1))
    assert str(raised.value) == (
        f"label id {wrong} is outside the 2 classes: map it to one, or to 255."
    )


def test_statistics_begin_empty_in_double_precision_and_add_nothing() -> None:
    features, labels = draw(11)
    empty, moments = ClassMoments(3, [4, 2]), moments_of(features, labels)
    for layer, width in enumerate((4, 2)):
        for part, shape in ((empty.n, (3,)), (empty.mean, (3, width)), (empty.m2, (3, width))):
            assert part[layer].shape == shape and part[layer].dtype == torch.float64
    for whole in (empty.variance(), empty.global_variance(), empty.global_mean()):
        assert all((values == 0).all() for values in whole)
    moments.merge(empty)
    assert_same(moments, moments_of(features, labels), tolerance=0)
    empty.merge(moments)
    assert_same(moments, empty, tolerance=1e-15)


def test_less_than_a_cell_of_area_has_its_mean_and_variance() -> None:
    """One labelled pixel in each of two images, whose features are one cell: 1/64 of it each."""
    labels = torch.full((2, 8, 8), IGNORE)
    labels[:, 2, 5] = 1
    values = torch.tensor([[3.0, -2.0], [5.0, 2.0]])
    moments = moments_of([values[:, :, None, None]], labels, 2)
    assert moments.n[0].tolist() == [0, 2 / 64]
    for mean in (moments.mean[0][1], moments.global_mean()[0]):
        assert mean.tolist() == [4, 0]
    for variance in (moments.variance()[0][1], moments.global_variance()[0]):
        assert variance.tolist() == [1, 4]


def test_names_of_layers_survive_the_disk(tmp_path: Path) -> None:
    ClassMoments(2, [3, 1], ("stem", "head")).save(tmp_path / "m.npz")
    assert ClassMoments.load(tmp_path / "m.npz").layers == ("stem", "head")


def test_statistics_of_another_proxy_or_other_classes_are_not_merged() -> None:
    for classes, channels in ((2, [4]), (3, [5]), (3, [4, 4])):
        with pytest.raises(D3S2Error) as raised:
            ClassMoments(3, [4]).merge(ClassMoments(classes, channels))
        assert str(raised.value) == (
            f"cannot merge statistics of {classes} classes x {tuple(channels)} channels into "
            "3 x (4,): compute both with the same proxy and classes."
        )


class Counting(Pixels):
    """A proxy without names for its layers, which notes how many images it is given at once."""

    layers = property()  # asking for it is an AttributeError, as if it were not there

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def forward(self, images: Tensor) -> Features:
        self.sizes.append(len(images))
        return super().forward(images)


class Terminal(io.StringIO):
    """What is written to a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_batch_is_of_32_images_a_shard_of_64_and_the_bar_counts_them(
    small: SegmentationDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_work, "FLASH", 0)
    data, proxy = small.subset([0] * 66), Counting()
    passes = {
        "feature statistics": (3, lambda **more: feature_statistics(data, proxy, **more)),
        "counting pixels": (2, lambda **more: count_pixels(data, **more)),
    }
    for label, (total, run) in passes.items():
        for more, drawn in (({}, True), ({"progress": False}, False)):
            monkeypatch.setattr(sys, "stderr", Terminal())
            found = run(**more)
            written = sys.stderr.getvalue()
            assert (f"\r{label}:   0%|" in written and f"| 0/{total} [" in written) == drawn
            assert drawn or not written
    assert proxy.sizes == 2 * [32, 32, 2] and len(found) == 66
    assert feature_statistics(small, proxy, progress=False).layers == ("layer0", "layer1")


def test_shares_and_tables_of_a_single_pixel() -> None:
    one = PixelCounts(sparse.csr_array(np.array([[1, 0]])), np.array([1]), ("a",))
    assert one.shares().toarray().tolist() == [[1, 0]]
    (row, _) = class_table(one, CLASSES[:2])
    assert (row.pixel_share, row.image_share) == (1, 1)
    with pytest.raises(ValueError, match="zip"):
        class_table(one, CLASSES[:3])


def test_what_is_counted_are_integers_of_64_bits_here_and_on_disk(
    small: SegmentationDataset, tmp_path: Path
) -> None:
    counts = count_pixels(small)
    for array in (
        counts.counts,
        counts.valid,
        counts.image_counts(),
        counts.pixel_counts(),
        co_occurrence(counts),
    ):
        assert array.dtype == np.int64
    assert counts.counts.format == "csr" and counts.shares().dtype == np.float64
    counts.save(tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz") as stored:
        kinds = {name: stored[name].dtype for name in stored.files}
    assert kinds.pop("ids") == np.dtype("<U1")
    assert set(kinds) == {"data", "indices", "indptr", "valid", "shape"}
    assert set(kinds.values()) == {np.dtype(np.int64)}


def test_a_data_set_without_images_has_no_pixels(small: SegmentationDataset) -> None:
    counts = count_pixels(small.subset([]))
    assert counts.counts.shape == (0, small.num_classes) and counts.ids == ()
    assert counts.counts.dtype == np.int64
    assert counts.valid.shape == (0,) and counts.valid.dtype == np.int64
    assert counts.pixel_counts().tolist() == [0] * small.num_classes
