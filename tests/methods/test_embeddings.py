"""Pooled features against plain means; batches, order and company change nothing that is kept."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from small_scenes import small_scenes
from torch import nn

from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import SegmentationDataset
from d3s2.data.tensors import read_images
from d3s2.methods.embeddings import (
    DIGITS,
    embeddings,
    encoder_layers,
    normalised,
    pooled_features,
)
from d3s2.models.proxy import ProxySegmenter


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SegmentationDataset:
    return small_scenes(tmp_path_factory.mktemp("scenes"), 11)


@pytest.fixture(scope="module")
def proxy() -> ProxySegmenter:
    torch.manual_seed(0)
    return ProxySegmenter(20, channels=(8, 16, 24)).eval().requires_grad_(False)


def some(dataset: SegmentationDataset, chosen: list[int]) -> SegmentationDataset:
    names = ("ids", "image_paths", "label_paths")
    parts = {name: tuple(getattr(dataset, name)[i] for i in chosen) for name in names}
    return replace(dataset, **parts)


def test_features_are_the_means_of_the_encoders_layers(
    scenes: SegmentationDataset, proxy: ProxySegmenter
) -> None:
    assert encoder_layers(proxy) == ("encoder1", "encoder2", "encoder3")
    found = pooled_features(scenes, proxy)
    features = proxy(read_images(scenes, range(11))).features[:3]
    expected = torch.cat([layer.double().mean((2, 3)) for layer in features], 1)
    assert found.shape == (11, 48) and found.dtype == np.float64
    assert found == pytest.approx(expected.numpy(), abs=1e-6)
    backwards = pooled_features(scenes, proxy, ["decoder", "encoder2"])
    assert backwards.shape == (11, 8 + 16)
    assert backwards[:, 8:] == pytest.approx(found[:, 8:24], abs=1e-6)


def test_embeddings_are_directions_of_the_deepest_layer(
    scenes: SegmentationDataset, proxy: ProxySegmenter
) -> None:
    found = embeddings(scenes, proxy)
    deepest = pooled_features(scenes, proxy, ["encoder3"])
    assert found == pytest.approx(deepest / np.linalg.norm(deepest, axis=1)[:, None], abs=1e-6)
    assert (found == found.round(DIGITS)).all()
    assert embeddings(scenes, proxy, "encoder1").shape == (11, 8)


def test_neither_batches_nor_order_change_an_embedding(
    scenes: SegmentationDataset, proxy: ProxySegmenter
) -> None:
    """By more than one in the last decimal that is kept."""
    whole = embeddings(scenes, proxy)
    most = 1.01 * 10.0**-DIGITS
    for size in (1, 2, 3, 4, 7):
        assert np.abs(embeddings(scenes, proxy, batch_size=size) - whole).max() <= most
    order = [7, 2, 10, 0]
    assert np.abs(embeddings(some(scenes, order), proxy) - whole[order]).max() <= most


def test_a_batch_has_no_more_images_than_memory_is_for(
    scenes: SegmentationDataset, proxy: ProxySegmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    handle = proxy.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    monkeypatch.setattr("d3s2.methods.embeddings.MOST_PIXELS", 5 * 64 * 64)
    pooled_features(scenes, proxy)
    handle.remove()
    assert sizes == [5, 5, 4]  # the last is one image, padded


class Full(nn.Module):
    """A proxy whose memory has room for four images."""

    layers = ("encoder1", "decoder")

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.calls = itertools.count()

    def forward(self, images: torch.Tensor):
        if len(images) > 4:
            raise torch.OutOfMemoryError
        next(self.calls)
        return ProxySegmenterAnswer([images * self.weight, images])


class ProxySegmenterAnswer:
    def __init__(self, features: list[torch.Tensor]) -> None:
        self.features = features


def test_what_is_too_much_for_memory_is_taken_in_halves(scenes: SegmentationDataset) -> None:
    found = pooled_features(scenes, Full(), out_of_memory="halve")
    assert found == pytest.approx(read_images(scenes, range(11)).double().mean((2, 3)).numpy())
    with pytest.raises(D3S2Error, match="a smaller image_size"):
        pooled_features(scenes, Full())


def test_a_row_of_zeros_stays_one() -> None:
    assert normalised(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist() == [[0.6, 0.8], [0.0, 0.0]]


def test_what_cannot_be_pooled_is_a_sentence(
    scenes: SegmentationDataset, proxy: ProxySegmenter
) -> None:
    with pytest.raises(D3S2Error, match="holds no image: there is nothing to pool"):
        pooled_features(some(scenes, []), proxy)
    with pytest.raises(D3S2Error, match="the proxy has encoder1, encoder2, encoder3, decoder"):
        pooled_features(scenes, proxy, ["encoder9"])
    with pytest.raises(D3S2Error, match="name some of them"):
        pooled_features(scenes, proxy, [])
