"""How the images of a training are read and judged: squeezed, or as published figures are.

`squeezed`: every image at the size that the run prepared, width and height brought there each on
its own, and mIoU at that size. `published`: what mmsegmentation ships for Mask2Former on ADE20K,
and for evaluation on COCO-Stuff and VOC alike (`_base_/datasets`): the original files at their own
size and aspect; to train, the shipped random scales and crops; to judge, the whole image with a
short side of 512 (and a long one of 2,048 at most), its answer brought back to the mask's own size.
Sizes go with the job's: 512 stands for its shorter side. Distilled images have no original: they
are read as they were made.

What stays ours: Pillow decodes the files, not OpenCV; a crop that is too small is filled up with
the mean colour rounded to bytes; the length of the training, and its rate scaled to the batch (see
`swin`). COCO-Stuff has no shipped Mask2Former: it takes the scales and crops of ADE20K's.
"""

from __future__ import annotations

from typing import Any

from d3s2.data.dataset import IGNORE
from d3s2.training.job import TrainingJob

LONGEST = 4
"""A resized image is at most so many times as long as the job's side: 2,048 for 512."""
DIVISOR = 32
"""Whole images are filled up to multiples of this, as shipped."""
_LOADING = ("LoadImageFromFile", "LoadAnnotations")


def adapt(config: Any, job: TrainingJob) -> None:
    """Let both loaders of a configuration read the originals as published figures are made."""
    train = config.train_dataloader["dataset"]
    train.update(size=None, layout=job.train_format, pipeline=augmentation(config, job))
    whole = [resized_whole(job.size), {"type": "PackSegInputs"}]
    config.val_dataloader["dataset"].update(size=None, layout=job.val_format, pipeline=whole)
    config.val_dataloader["batch_size"] = 1  # every image has a size of its own
    config.model.data_preprocessor.test_cfg = {"size_divisor": DIVISOR}


def resized_whole(size: tuple[int, int]) -> dict[str, Any]:
    """The shipped step that brings a whole image to the network's scale, for jobs of this size."""
    short = min(size)
    return {"type": "Resize", "scale": (LONGEST * short, short), "keep_ratio": True}


def augmentation(config: Any, job: TrainingJob) -> list[dict[str, Any]]:
    """The shipped augmentation at the job's size; reading, and leaving out label 0, is done by the
    data set.
    """
    pipeline = [dict(step) for step in config.train_pipeline if step["type"] not in _LOADING]
    for step in pipeline:
        if step["type"] == "RandomCrop":
            step["crop_size"] = tuple(job.size)
        if step["type"] == "RandomChoiceResize":
            step["scales"] = [int(min(job.size) * share * 0.1) for share in range(5, 21)]
            step["max_size"] = LONGEST * max(job.size)
    # Smaller images are filled up here, not by the preprocessor as in the shipped file, with what
    # it would fill in: the mean colour, BGR. So all views have one size, which notebook 04 shows.
    mean = tuple(round(value) for value in reversed(config.model.data_preprocessor.mean))
    fill = {"img": mean, "seg": IGNORE}
    pipeline.insert(-1, {"type": "Pad", "size": tuple(reversed(job.size)), "pad_val": fill})
    return pipeline
