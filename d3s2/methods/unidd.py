"""UniDD (Qi et al., CVPR 2025) for segmentation: a text-to-image model, steered by the task alone.

The generator is told no layout; where things are comes from the gradient of the proxy's
cross-entropy against the mask, at every step and through the whole network,

    eps_hat = eps + lambda sqrt(1 - a_t) d L / d x_t        (mode "raw", jacobian "full"),

and in the end from the proxy itself, which labels the image anew. The rule, the score's threshold
(0.75), relabelling and 250 steps are the paper's; its lambda for segmentation is not stated (100 is
its best for classification). Ours: the set of the mask's classes stands for the prompt, whose
wording is not published; the loss is that of the mask; 50 steps, since more refine and do not
strengthen; what happens to an image that fails (see `refinement`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from d3s2.core.errors import D3S2Error
from d3s2.data.tensors import class_sets, pad_batch, to_float
from d3s2.guidance.painting import Draw, Refined
from d3s2.methods.refinement import REDRAWS, confidence, filter_and_redraw, relabel
from d3s2.models.proxy import ProxySegmenter

TAU = 0.75
"""The paper's, for segmentation."""
LAMBDA = 100.0
"""The paper's best for classification; 400 is Universal Guidance's for segmentation."""


def classes_alone(labels: Tensor, num_classes: int) -> tuple[None, Tensor]:
    """The generator is told which classes there are and not where."""
    return None, class_sets(labels, num_classes)


def nothing(labels: Tensor, num_classes: int) -> tuple[None, None]:
    """The generator is told nothing."""
    return None, None


@dataclass(frozen=True)
class FilterAndRelabel:
    """Images of which the proxy is sure, labelled by it (see `painting.Refine`).

    Args:
        tau: least confidence; redraws: new noises for an image below it; floor: pixels less sure
            than that become 255.
    Raises:
        D3S2Error: for numbers outside of their ranges.
    """

    tau: float = TAU
    redraws: int = REDRAWS
    floor: float = 0.0

    def __post_init__(self) -> None:
        if not self.tau >= 0 or self.redraws < 0 or not 0 <= self.floor <= 1:
            raise D3S2Error(
                f"tau is {self.tau}, redraws {self.redraws} and floor {self.floor}: the first two "
                "are 0 or more, the last is a probability."
            )

    def __call__(self, proxy: ProxySegmenter, labels: Tensor, draw: Draw) -> Refined:
        """The first image of each mask that passes, else its best; its labels are the proxy's.

        The records say `confidence`, `tries` and `relabelled_pixels`, those whose label is another
        than the mask's.
        """
        device = str(labels.device)

        def asked(
            places: Sequence[int], candidate: int
        ) -> list[tuple[tuple[np.ndarray, Tensor], float]]:
            pixels = draw(candidate, places)
            with torch.no_grad():
                logits = proxy(pad_batch(to_float(pixels, device))).logits[: len(places)].float()
            made = zip(pixels, relabel(logits, self.floor), strict=True)
            return list(zip(made, confidence(logits).tolist(), strict=True))

        kept = filter_and_redraw(asked, len(labels), self.tau, self.redraws)
        written = torch.stack([each.image[1] for each in kept])
        changed = (written != labels).flatten(1).sum(1).tolist()
        notes = [
            {
                "confidence": round(each.scores[each.candidate], 6),
                "tries": len(each.scores),
                "relabelled_pixels": pixels,
            }
            for each, pixels in zip(kept, changed, strict=True)
        ]
        tries = [each.candidate for each in kept]
        return Refined(np.stack([each.image[0] for each in kept]), tries, written, notes)
