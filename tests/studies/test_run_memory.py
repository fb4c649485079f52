"""What a run's stages take: sums that are known, and that more never takes less."""

from __future__ import annotations

import pytest
import torch

from d3s2.studies import memory, run_memory
from d3s2.studies.run_memory import GIB, RESERVE, Need, counted, table

NARROW = {
    "sample_size": 8,
    "cross_attention_dim": 768,
    "block_out_channels": (32, 64, 64, 64),
    "attention_head_dim": 8,
}


def test_a_stage_is_its_weights_and_what_is_alive_at_once():
    stage = counted("one", "none", 3 * GIB, lambda: torch.zeros(1024).add(1))
    assert (stage.weights, stage.peak) == (3, 3 + 2 * 4096 / GIB)


def test_a_batch_takes_its_images_times_and_weights_four_times(monkeypatch):
    monkeypatch.setattr(run_memory, "step_bytes", lambda precision, size: (2 * GIB, 3 * GIB))
    monkeypatch.setattr(run_memory, "judging_bytes", lambda size: (2 * GIB, 3 * GIB))
    assert [stage.peak for stage in run_memory.training("float32", 512, (1, 8))] == [11, 32]
    assert [stage.peak for stage in run_memory.judging(512)] == [14, 6]


def test_the_table_says_what_fits_a_card_and_leaves_room():
    stages = [Need("step", f"{peak}", 1.0, peak) for peak in (16 - RESERVE, 16.0, 30.0)]
    rows = [line.split(" | ")[3:] for line in table(stages).splitlines()[2:]]
    assert rows == [
        ["14.00", "fits", "fits |"],
        ["16.00", "too large", "fits |"],
        ["30.00", "too large", "too large |"],
    ]


@pytest.mark.processes
def test_guidance_takes_more_than_none_and_the_gradient_through_the_denoiser_most(monkeypatch):
    monkeypatch.setattr(memory, "UNET", NARROW)
    monkeypatch.setattr(memory, "CONTROLNET", {name: NARROW[name] for name in memory.CONTROLNET})
    monkeypatch.setattr(memory, "VAE", memory.VAE | {"block_out_channels": (32, 32, 32, 32)})
    text, plain, detach, full, final = run_memory.painting("bfloat16", 64, 1)
    assert plain.peak < detach.peak and plain.peak < full.peak
    assert text.weights == plain.weights == full.weights < final.weights < final.peak
    names = [stage.name for stage in (text, plain, detach, full, final)]
    assert names == [
        "text encoding", "step, unguided", "step, guided", "step, guided", "final decoding",
    ]  # fmt: skip


@pytest.mark.processes  # seconds
def test_a_real_step_of_swin_s_holds_its_gradients():
    weights, trained = run_memory.step_bytes("float32", 64)
    assert trained > weights > 68e6 * 4
    assert 0 < run_memory.judging_bytes(64)[1] < trained
