"""Weights of other people, read as weights: a pickle could do anything when it is opened."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from d3s2.core.errors import D3S2Error


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The weights of a .safetensors or .pth file. Raises D3S2Error for a missing, damaged or too
    talkative one.
    """
    path = Path(path)
    if not path.is_file():
        raise D3S2Error(f"There is no checkpoint {path}: fetch it, or name another.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise D3S2Error(
            f"The checkpoint {path} cannot be read safely ({reason}): it is damaged, or a pickle "
            "that holds more than weights, such as a trainer's log. Fetch it again, or save its "
            "state_dict as safetensors where you trust it."
        ) from error
    weights = found.get("state_dict", found.get("model", found))
    is_state = isinstance(weights, dict) and all(isinstance(v, Tensor) for v in weights.values())
    if not is_state:
        raise D3S2Error(
            f"The checkpoint {path} holds no state_dict: name one that mmsegmentation wrote."
        )
    return weights
