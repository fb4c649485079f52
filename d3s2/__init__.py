"""d3s2: dataset distillation for semantic segmentation, taught and run in notebooks."""

__version__ = "0.1.0"
