"""The judge that ships beside the proxy: another network, which decides nothing."""

from __future__ import annotations

import shutil

import pytest
import torch
from small_scenes import small_scenes
from training_jobs import write_splits

from d3s2.core.errors import D3S2Error
from d3s2.core.places import EMBEDDED_WEIGHTS
from d3s2.guidance.quality import recognition
from d3s2.models import pretraining
from d3s2.models.load import JUDGE, load_proxy, weights_digest


def test_the_judge_is_another_network_that_knows_the_scenes_too(tmp_path):
    judge, proxy = (load_proxy(EMBEDDED_WEIGHTS / name) for name in (JUDGE, "proxy"))
    assert judge.config.channels != proxy.config.channels
    assert judge.config.num_classes == proxy.config.num_classes
    assert not any(weight.requires_grad for weight in judge.parameters())
    scenes = small_scenes(tmp_path, 12)
    found = [recognition(network, scenes) for network in (judge, proxy)]
    assert min(share.pixels for share in found) > 0.99
    assert min(share.class_mean for share in found) > 0.85


def test_what_is_made_with_the_weights_does_not_depend_on_the_judge(tmp_path):
    folder = tmp_path / "weights"
    shutil.copytree(EMBEDDED_WEIGHTS, folder)
    before = weights_digest(folder)
    assert before == weights_digest(EMBEDDED_WEIGHTS)
    shutil.rmtree(folder / JUDGE)
    assert weights_digest(folder) == before
    path = next((folder / "proxy").rglob("*.safetensors"))
    path.write_bytes(path.read_bytes() + b" ")
    assert weights_digest(folder) != before
    path.unlink()
    with pytest.raises(D3S2Error, match="holds 1 weight files"):
        weights_digest(folder)


def test_a_network_of_other_widths_is_trained_by_the_same_command(tmp_path):
    write_splits(tmp_path)
    words = f"proxy --data {tmp_path} --out {tmp_path / 'out'} --iterations 2 --channels 8 12"
    assert pretraining.main(words.split()) == 0
    made = load_proxy(tmp_path / "out")
    assert tuple(made.config.channels) == (8, 12) and made.dtype == torch.float32
