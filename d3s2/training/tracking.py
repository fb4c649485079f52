"""What follows trainings besides their own logs: trackers that mmengine knows, chosen by a name.

They see what mmengine logs: losses and learning rate every 50 iterations, and the scores of the
evaluation. They decide nothing: no key covers them, and with "none" nothing changes.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

PROJECT = "d3s2"
"""What the trainings are filed under, where a tracker has projects or experiments."""
PACKAGES = {"none": "", "tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""Each tracker's package, as pip names it and as Python imports it."""


def missing_tracker(tracking: str) -> str:
    """A sentence when the tracker's library is not installed, else ""."""
    package = PACKAGES[tracking]
    if not package or importlib.util.find_spec(package) is not None:
        return ""
    return (
        f"tracking is {tracking!r}, but the library {package} is not installed: pip install "
        f"{package}, or take tracking=none."
    )


def backends(tracking: str, name: str) -> list[dict[str, Any]]:
    """mmengine's visualization backends: its own log files and, if one is chosen, the tracker.

    name: of the training. wandb sends what it sees to its server unless WANDB_MODE says otherwise;
    the other two write into the training's logs, but for mlflow where MLFLOW_TRACKING_URI says.
    """
    more = {
        "none": [],
        "tensorboard": [{"type": "TensorboardVisBackend"}],
        "wandb": [
            {"type": "WandbVisBackend", "init_kwargs": {"project": PROJECT, "name": name}},
        ],
        "mlflow": [
            {
                "type": "MLflowVisBackend",
                "exp_name": PROJECT,
                "run_name": name,
                "tracking_uri": os.environ.get("MLFLOW_TRACKING_URI"),
                "tracked_config_keys": ["train_cfg", "randomness"],  # it takes short values alone
            }
        ],
    }
    return [{"type": "LocalVisBackend"}, *more[tracking]]
