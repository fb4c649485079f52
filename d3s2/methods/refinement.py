"""Chapter 05, what UniDD does with an image once it is made: score it, filter, and label it anew.

    {x, y} = {x_i, F(x_i) | score(F(x_i)) >= tau}

F is the proxy. The paper gives tau = 0.75 for segmentation, but neither the score nor what takes
the place of an image that fails. Ours: the score is `confidence`; a mask whose image fails gets
three more noises, and if all fail the best of the four. What was thrown away is counted, for its
making was paid for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor

from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import IGNORE
from d3s2.guidance.quality import first_best

REDRAWS = 3
"""New noises for an image that fails. Our choice."""
Image = TypeVar("Image")


# -------------------------------------------------------------------------------- scores and labels
def confidence(logits: Tensor) -> Tensor:
    """float[B] in [1 / C, 1]: the mean over an image's pixels of the largest class probability.

    logits: float[B, C, H, W]. No mask is asked: UniDD's score sees the image alone. Our reading.
    """
    return _largest(logits).flatten(1).mean(1)


def pixel_accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    """float[B] in [0, 1]: the share of a mask's valid pixels that the proxy labels as it; 0 where
    all are ignored. The other score, which does look at the mask.

    logits: float[B, C, H, W]; labels: int64[B, H, W], 255 = ignore.
    """
    right = (logits.argmax(1) == labels).flatten(1).sum(1)
    valid = (labels != IGNORE).flatten(1).sum(1)
    return right / valid.clamp(min=1)


def relabel(logits: Tensor, floor: float = 0.0) -> Tensor:
    """int64[B, H, W]: the proxy's own labels for an image; 255 where the largest class probability
    is below the floor.

    logits: float[B, C, H, W]. Raises D3S2Error for a floor out of [0, 1].
    """
    if not 0 <= floor <= 1:
        raise D3S2Error(f"floor is {floor}: give a probability from 0 (keep all) to 1.")
    return logits.argmax(1).masked_fill(_largest(logits) < floor, IGNORE)


def _largest(logits: Tensor) -> Tensor:
    """float[B, H, W]: the largest class probability of each pixel, without a table of them all."""
    return (logits.amax(1) - logits.logsumexp(1)).exp()


# -------------------------------------------------------------------------------- filter and redraw
def passes(score: float, tau: float) -> bool:
    """Whether an image is good enough: score >= tau; a score that is NaN never is."""
    return score >= tau


def settled(scores: Sequence[float], tau: float, redraws: int = REDRAWS) -> int | None:
    """Which of one mask's tries is kept, from 0; None = draw once more.

    scores: of the tries so far, in the order of drawing. The first that passes is kept; if none has
    after `redraws` new noises, the best, of equals the first. Raises D3S2Error for a number of
    redraws below 0, and where all tries are NaN.
    """
    if redraws < 0:
        raise D3S2Error(f"redraws is {redraws}: give 0, for one try alone, or more.")
    passing = [place for place, score in enumerate(scores) if passes(score, tau)]
    if passing:
        return passing[0]
    if len(scores) <= redraws:
        return None
    return first_best(scores, "score of an image")


@dataclass(frozen=True)
class Kept(Generic[Image]):
    """What became of one mask: the image, from which try it is, and the scores of all tries."""

    image: Image
    candidate: int
    scores: tuple[float, ...]
    passed: bool

    @property
    def discarded(self) -> int:
        """Images that were made for this mask and thrown away."""
        return len(self.scores) - 1


def filter_and_redraw(
    draw: Callable[[list[int], int], Sequence[tuple[Image, float]]],
    count: int,
    tau: float,
    redraws: int = REDRAWS,
) -> list[Kept[Image]]:
    """One image for each of `count` masks, by the rule of `settled`.

    draw: (places of the masks, number of the try, from 0) to an image and its score for each, in
    this order. It is called for all masks at once, then for those that still wait. Raises D3S2Error
    as `settled`, and for a `draw` that gives another number of images.
    """
    tries: list[list[tuple[Image, float]]] = [[] for _ in range(count)]
    kept: dict[int, Kept[Image]] = {}
    candidate = 0
    while len(kept) < count:
        waiting = [place for place in range(count) if place not in kept]
        drawn = draw(waiting, candidate)
        if len(drawn) != len(waiting):
            raise D3S2Error(
                f"{len(waiting)} images were asked for and {len(drawn)} came: give one for each."
            )
        for place, made in zip(waiting, drawn, strict=True):
            tries[place].append((made[0], float(made[1])))
            scores = tuple(score for _, score in tries[place])
            chosen = settled(scores, tau, redraws)
            if chosen is not None:
                good = passes(scores[chosen], tau)
                kept[place] = Kept(tries[place][chosen][0], chosen, scores, good)
        candidate += 1
    return [kept[place] for place in range(count)]
