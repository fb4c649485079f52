"""What a run is refused for before its first notebook starts: better than minutes or hours later.

`parameters.check_together` says what values contradict each other; here is what they ask of the
machine, the models and the data.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from d3s2.core import machine
from d3s2.core.errors import D3S2Error
from d3s2.core.files import read_json
from d3s2.data.pairing import parse_size
from d3s2.data.splits import count_splits
from d3s2.runs import estimate
from d3s2.runs.network_choice import missing_backbone, refused_precision
from d3s2.runs.parameters import Settings
from d3s2.selection import budget_size
from d3s2.training.tracking import missing_tracker

OURS = 8
"""Sides must be multiples of this for the small networks trained here (a test compares)."""


def refuse_early(settings: Settings) -> None:
    """Raise D3S2Error that names, all at once, what this run would stop for later: a tracker's
    library, a GPU, data, models and weights that are not there, a size that the networks do not
    take, more images than there are, a budget that is no number of them, and a split of which no
    mask has a class; of a run with pretrained models also too little memory or disk, and libraries
    of other versions.
    """
    reasons = [*_machine(settings), *_data(settings), *_models(settings)]
    if estimate.wants(settings):
        reasons += estimate.shortages(settings)
    if len(reasons) == 1:
        raise D3S2Error(reasons[0])
    if reasons:
        listed = "".join(f"\n- {reason}" for reason in reasons)
        raise D3S2Error(f"Nothing was started, since this run would stop for:{listed}")


def _machine(settings: Settings) -> Iterator[str]:
    if sentence := missing_tracker(settings.tracking):
        yield sentence
    if settings.device != "cuda":
        return
    try:
        machine.pick_device(settings.device)
        machine.require_gpus(settings.gpus)
    except D3S2Error as error:
        yield str(error)


def _data(settings: Settings) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the notebooks say it
            images, _ = count_splits(settings)
            budget_size(settings.budget, images)
    except D3S2Error as error:
        yield str(error)


def _models(settings: Settings) -> Iterator[str]:
    pretrained = {}
    if settings.generator != "embedded" or settings.proxy_config:
        from d3s2.runs.model_choice import choose_models  # imports PyTorch and diffusers: seconds

        pretrained = choose_models(settings).pretrained
    missing = []
    for name, model in pretrained.items():
        if name == "proxy" or settings.model_files == "local":
            missing += model.check()
    yield from missing
    if sentence := missing_backbone(settings):
        yield sentence
    if sentence := refused_precision(settings):
        yield sentence
    if not missing:
        yield from _size(settings, _multiple(settings, pretrained))


def _multiple(settings: Settings, pretrained: dict[str, Any]) -> int:
    """The number that both sides of an image must be multiples of; 1 where it is not known yet."""
    ours = OURS if len(pretrained) < 2 else 1
    if "generator" not in pretrained or settings.model_files != "local":
        return ours
    files = pretrained["generator"].files()
    configs = [path for path in files if path.name == "config.json"]
    wanted = [path for path in configs if path.parent.name in ("vae", "unet")]
    halvings = [len(read_json(path)["block_out_channels"]) - 1 for path in wanted]
    return max(ours, 2 ** sum(halvings))


def _size(settings: Settings, multiple: int) -> Iterator[str]:
    height, width = parse_size(settings.image_size)
    if height % multiple or width % multiple:
        fitting = [max(1, side // multiple) * multiple for side in (height, width)]
        yield (
            f"image_size is {settings.image_size!r} but the networks take multiples of {multiple}: "
            f"for example {fitting[0]}x{fitting[1]}."
        )
