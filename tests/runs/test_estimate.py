"""The estimate: counts against closed forms, proportions, and that it says what it is."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from d3s2.core import machine
from d3s2.core.errors import D3S2Error
from d3s2.guidance.sampler import Guidance, first_step
from d3s2.models.stable_diffusion import DiffusionOptions
from d3s2.models.stand_ins import write_diffusion
from d3s2.runs import cli, config, estimate, refusals, speed
from d3s2.runs.estimate import Work
from d3s2.runs.parameters import Settings


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D3S2_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def ade20k(**names: object) -> Settings:
    return config.resolve({"profile": "ade20k", "device": "cpu"} | names, remember=False)


def test_operations_are_counted_as_multiplications_and_additions() -> None:
    conv = nn.Conv2d(3, 5, 3, padding=1, bias=False)
    assert speed.flops(lambda: conv(torch.zeros(2, 3, 8, 8))) == 2 * 2 * 5 * 3 * 9 * 8 * 8
    words = torch.zeros(2, 4, 16, 8)
    attention = nn.functional.scaled_dot_product_attention
    assert speed.flops(lambda: attention(words, words, words)) == 2 * 2 * 2 * 4 * 16 * 16 * 8


def test_a_guided_step_is_its_parts() -> None:
    parts = speed.Sampling(denoiser=10.0, decoder=3.0, proxy=1.0)
    plain = {"full": False, "checkpointing": False}
    assert parts.step(False, 2, **plain) == 20
    assert parts.step(True, 2, **plain) == 20 + 2 * 3 + 2 * 1
    assert parts.step(True, 1, full=True, checkpointing=True) == 10 + 3 * 3 + 2 + 2 * 10


def test_the_guided_share_decides_an_image() -> None:
    parts = speed.Sampling(denoiser=10.0, decoder=3.0, proxy=1.0)
    few = ade20k(steps=10, window_start=0.2, window_end=0.5, checkpointing=0, guide_every=1)
    assert estimate.image_flops(few, parts) == 10 * 20 + 3 * (2 * 3 + 2) + 3
    off = ade20k(steps=10, lambda_seg=0.0, lambda_feat=0.0, cfg_scale=1.0)
    assert estimate.image_flops(off, parts) == 10 * 10 + 3


def test_only_the_steps_that_are_run_and_guided_count() -> None:
    """Of ten, guided from the second to the fifth: as the sampler counts them."""
    parts = speed.Sampling(denoiser=10.0, decoder=3.0, proxy=1.0)
    given = {"steps": 10, "window_start": 0.2, "window_end": 0.5, "checkpointing": 0}
    for strength, every in itertools.product((1.0, 0.7, 0.6, 0.5, 0.001), (1, 2, 3, 4)):
        settings = ade20k(strength=strength, guide_every=every, **given)
        begin = first_step(10, strength)
        how = Guidance({"segmentation": 0.1}, (0.2, 0.5), every=every)
        steps = [index for index in range(begin, 10) if how.steers(index, 10)]
        guided = sum(how.asks(index, 10, begin) for index in steps)
        expected = (10 - begin) * 20 + guided * (2 * 3 + 2) + 3
        assert estimate.image_flops(settings, parts) == expected, (strength, every)


def test_the_size_of_the_set_is_said() -> None:
    assert Work(ade20k(images_per_mask=4)).painted == 808
    assert estimate._set_size(Work(ade20k())) == "202 images"
    several = estimate._set_size(Work(ade20k(images_per_mask=4)))
    assert several == "808 images (4 of each of 202 masks)"


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ({"images": 40, "recipe": {"strength": 1.0}}, " (40 images of 40 masks)"),
        ({"images": 80, "masks": 40, "recipe": {"strength": 1.0}}, " (80 images of 40 masks)"),
        (
            {"images": 2, "recipe": {"strength": 0.5}},
            " (2 images of 2 masks, begun at photographs: strength 0.5)",
        ),
        ({"images": 40}, ""),
        ([], ""),
        ({"images": 40, "recipe": {"strength": "all"}}, ""),
    ],
)
def test_the_last_lines_of_a_run_say_the_size_of_its_set(
    tmp_path: Path, card: object, words: str
) -> None:
    assert cli._set_size(tmp_path) == ""  # not finished, or another folder
    (tmp_path / "card.json").write_text(json.dumps(card))
    assert cli._set_size(tmp_path) == words


def test_what_is_not_there_yet_has_its_published_numbers() -> None:
    work = Work(ade20k())
    assert work.images == (20_210, 2_000) and work.painted == 202
    assert work.trainings == 12 and work.iterations == 120_000
    assert Work(ade20k(full_iterations=7)).iterations == 120_007
    disk = work.disk()
    assert disk["predictions"] == 12 * 2000 * 512 * 512
    assert 7e9 < disk["prepared data"] < 15e9


def test_the_models_own_configuration_is_counted(tmp_path: Path) -> None:
    model = DiffusionOptions(*write_diffusion(tmp_path)).sources()
    proxy = SimpleNamespace(
        encode_decode=lambda images, metas: nn.functional.conv2d(images, torch.zeros(1, 3, 1, 1))
    )
    small = speed.sampling_flops(model, proxy, (64, 64))
    large = speed.sampling_flops(model, proxy, (128, 64))
    assert small.proxy == 2 * 3 * 64 * 64 and large.proxy == 2 * small.proxy
    assert 1.9 < large.decoder / small.decoder < 2.2
    assert 1.5 < large.denoiser / small.denoiser < 2.5


def test_a_machine_that_is_too_small_is_refused_before_anything_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**9))
    monkeypatch.setattr(machine, "memory_mb", lambda: 2048)
    monkeypatch.setattr(machine, "pinned", lambda: {"torch": "0.1"})
    with pytest.raises(D3S2Error) as caught:
        refusals.refuse_early(ade20k())
    said = str(caught.value)
    assert "has 1 GB free and the run writes about 21 GB (estimated)" in said
    assert "has 2.1 GB of memory and the run takes about 5.6 GB (estimated)" in said
    assert f"torch is {metadata.version('torch')} but 0.1 is pinned" in said


def test_only_runs_of_hours_have_an_estimate() -> None:
    assert estimate.wants(ade20k())
    assert not estimate.wants(config.resolve({}, remember=False))


def test_it_says_that_it_is_one_and_adds_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def parts(work: Work, device: str) -> Iterator[tuple[str, float, str]]:
        yield "preparing", 3600.0, "so"
        yield "painting", 7200.0, "and so"

    monkeypatch.setattr(estimate, "hours", parts)
    said = list(estimate.lines(ade20k()))
    assert said[0].startswith("estimate, not a measurement")
    assert "7.1 GB" in said[1] and "data ade20k 1.0" in said[1]
    assert said[-1].split()[:3] == ["together", "3.0", "h"]


def test_preparing_is_measured_on_the_users_own_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "SECONDS", 0.1)
    found = speed.preparing(None, (64, 48))
    assert found.seconds > 0 and 64 * 48 < found.bytes < 4 * 64 * 48
    assert math.isfinite(speed.speed("float32", "cpu"))
