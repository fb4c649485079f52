"""Prompts from a model folder as `fetch` leaves it: the files that are asked for, no others."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_diffusion import ROOM, save_tiny

from d3s2.core.errors import D3S2Error
from d3s2.models.hub import Source
from d3s2.models.stable_diffusion import DiffusionOptions, load_stable_diffusion

NAMES = ["sky", "road", "person", "wall-other-merged"]
COLORS = np.arange(12, dtype=np.uint8).reshape(4, 3)


def reduced(source: Source, folder: Path) -> str:
    """A copy of a model that holds what its patterns name and nothing else."""
    for pattern in source.patterns():
        found = list(Path(source.place).glob(pattern))
        assert found, pattern
        for path in found:
            target = folder / path.relative_to(source.place)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return str(folder)


@pytest.fixture
def fetched(tmp_path: Path) -> DiffusionOptions:
    options = DiffusionOptions(*save_tiny(tmp_path / "whole"), precision="float32")
    model, control = options.sources()
    folders = reduced(model, tmp_path / "model"), reduced(control, tmp_path / "control")
    return DiffusionOptions(*folders, precision="float32")


def test_a_model_of_the_fetched_files_alone_encodes_prompts(fetched: DiffusionOptions) -> None:
    model = load_stable_diffusion(fetched, NAMES, COLORS)
    layout = torch.zeros(1, 64, 64, dtype=torch.long)
    text = model.unet.prompts(torch.ones(1, 4), layout)
    assert text.shape[1] == ROOM


def test_the_room_is_the_text_encoders_whatever_the_tokenizer_says(
    fetched: DiffusionOptions,
) -> None:
    config = Path(fetched.model) / "tokenizer" / "tokenizer_config.json"
    config.write_text("{}")
    prompts = load_stable_diffusion(fetched, NAMES, COLORS).unet.prompts
    assert prompts.tokenizer.model_max_length > 10**6 and prompts.room == ROOM
    assert prompts.encode("a photo of sky").shape[0] == ROOM


def test_a_tokenizer_without_its_configuration_is_half_downloaded(
    fetched: DiffusionOptions,
) -> None:
    (Path(fetched.model) / "tokenizer" / "tokenizer_config.json").unlink()
    with pytest.raises(D3S2Error, match=r"lacks tokenizer_config\.json"):
        load_stable_diffusion(fetched, NAMES, COLORS)
