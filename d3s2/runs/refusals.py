"""What a run is refused for before its first notebook starts: better than minutes or hours later.

`parameters.check_together` says what values contradict each other; here is what they ask of the
machine, the models and the data.
"""

from __future__ import annotations

import warnings

from d3s2.core import machine
from d3s2.data.splits import count_splits
from d3s2.runs.network_choice import require_backbone
from d3s2.runs.parameters import Settings
from d3s2.runs.published import require
from d3s2.selection import budget_size


def refuse_early(settings: Settings) -> None:
    """Raise D3S2Error for a GPU, models or data that are not there, more images than there are, a
    budget that is no number of them, and a split of which no mask has a class.
    """
    require_backbone(settings)
    _require_models(settings)
    if settings.device == "cuda":
        machine.pick_device(settings.device)
        machine.require_gpus(settings.gpus)
    images, _ = count_splits(settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notebook 00 says it
        budget_size(settings.budget, images)


def _require_models(settings: Settings) -> None:
    if settings.generator == "embedded" and not settings.proxy_config:
        return
    from d3s2.runs.model_choice import choose_models  # imports PyTorch and diffusers: seconds

    for name, model in choose_models(settings).pretrained.items():
        if name == "proxy" or settings.model_files == "local":
            require(model.check())
