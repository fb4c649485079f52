"""mmsegmentation and mmdetection, imported so that they work without a compiler and say nothing.

Importing this module takes some seconds. All of d3s2 that needs their registries or files takes
them from here.
"""

from __future__ import annotations

import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

from d3s2.models import mmcv_ops

mmcv_ops.install()

# The first import of mmseg prints that an optional package is missing.
with redirect_stdout(StringIO()):
    import mmdet.models  # noqa: F401  (registers the parts of Mask2Former)
    import mmseg
    import mmseg.models
    from mmseg.datasets import BaseSegDataset
    from mmseg.evaluation import IoUMetric
    from mmseg.models.decode_heads import Mask2FormerHead
    from mmseg.registry import DATASETS, HOOKS, LOOPS, METRICS, MODELS

__all__ = [
    "CONFIGS",
    "DATASETS",
    "HOOKS",
    "LOOPS",
    "METRICS",
    "MODELS",
    "BaseSegDataset",
    "IoUMetric",
    "Mask2FormerHead",
]

mmcv_ops.speed_up()
# Calls of mmdet's and mmseg's own, which nobody here can mend.
for words in ("torch.meshgrid", "Default ``avg_non_ignore``"):
    warnings.filterwarnings("ignore", message=words)

CONFIGS = Path(mmseg.__file__).parent / ".mim" / "configs"
"""The folder of the configurations that mmsegmentation ships."""
