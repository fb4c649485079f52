"""Chapter 05: a text for every image, which UniDD's contextual prompts and EDITS' captions share.

UniDD has a language model describe objects, their relations and the background; its prompt is not
published. EDITS has one caption every training image. Neither model is embedded here: what stands
in is a template of the mask, our choice, which knows nothing beyond the labels:

    a photo of large sky, medium road, small car, sky above road, car left of tree

Classes come by size, the largest first, each with a word for its size; then how each class lies to
the next larger one. A captioner of your own, any function of (image, mask), takes its place. The
same text goes to Stable Diffusion's prompt, so it is kept to the tokens that CLIP's text encoder
takes.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from d3s2.core.errors import D3S2Error
from d3s2.core.long_work import over
from d3s2.data.dataset import IGNORE, SegmentationDataset
from d3s2.models.prompts import BETWEEN, NOTHING, PREFIX, spoken

Captioner = Callable[[np.ndarray, np.ndarray], str]
"""(image uint8[H, W, 3], mask uint8[H, W] of train ids, 255 = ignore) to its caption."""

ROOM = 77
"""Tokens that CLIP's text encoder takes, with the two that begin and end a text."""
LETTERS = 3
"""Letters of a word that are counted as one token, of which CLIP gives common words of any length
one alone: a careful guess of ours. What is too long all the same, the text encoder cuts off.
"""
SIZES = ((0.2, "large"), (0.05, "medium"), (0.01, "small"), (0.0, "tiny"))
"""Least share of a mask's valid pixels for each word. Our choice."""
APART = 0.1
"""Share of the image's side by which the middles of two classes must differ to be in a relation."""


class Region(NamedTuple):
    """One class of a mask: its share of the valid pixels, and its middle in [0, 1] of the image,
    y downwards.
    """

    train_id: int
    share: float
    x: float
    y: float


def regions(labels: np.ndarray) -> list[Region]:
    """The classes of a mask uint8[H, W], the largest first, of equal ones the lower id."""
    height, width = labels.shape
    found = []
    valid = int((labels != IGNORE).sum())
    for train_id in np.unique(labels[labels != IGNORE]).tolist():
        rows, columns = np.nonzero(labels == train_id)
        x = (columns.mean() + 0.5) / width
        y = (rows.mean() + 0.5) / height
        found.append(Region(train_id, len(rows) / valid, float(x), float(y)))
    return sorted(found, key=lambda region: (-region.share, region.train_id))


def size_word(share: float) -> str:
    """The word of `SIZES` for a share of the pixels."""
    return next(word for least, word in SIZES if share >= least)


def relation(larger: Region, smaller: Region) -> tuple[Region, str, Region] | None:
    """(who, how, to whom): left of, right of or above, by the middles; None where these are nearer
    than `APART`.

    The direction in which they are farther apart decides, of equal ones the vertical.
    """
    right = smaller.x - larger.x
    down = smaller.y - larger.y
    if max(abs(right), abs(down)) < APART:
        return None
    if abs(down) >= abs(right):
        return (larger, "above", smaller) if down > 0 else (smaller, "above", larger)
    return (smaller, "right of" if right > 0 else "left of", larger)


# ------------------------------------------------------------------------------------- the template
@dataclass(frozen=True)
class TemplateCaptioner:
    """The caption of a mask by the template above; the image is not looked at.

    Args:
        names: of the classes, in train-id order, spoken as `models.prompts.spoken` says them;
            classes that this leaves without a name are not named.
        required: classes that are named whatever else must go.
        room: tokens of the text encoder, counted by `tokens`. What does not fit goes: relations,
            the smallest class's first; then the words for sizes, in the same order; then the names
            of the smallest classes that are not required.
    """

    names: Sequence[str]
    required: Collection[int] = ()
    room: int = ROOM

    def __call__(self, image: np.ndarray | None, labels: np.ndarray) -> str:
        """The caption. Raises D3S2Error where not even the required names fit, and for a class that
        has no name in `names`.
        """
        named = [region for region in regions(labels) if self._name(region)]
        for wanted in self._versions(named):
            text = PREFIX + (BETWEEN.join(wanted) or NOTHING)
            if tokens(text) <= self.room:
                return text
        must = ", ".join(self._name(region) for region in self._must(named))
        raise D3S2Error(
            f"room is {self.room} tokens, too few for a caption that names what is required "
            f"({must or 'nothing'}): give more, or require fewer classes."
        )

    def _versions(self, named: Sequence[Region]) -> Iterable[list[str]]:
        """The caption's phrases, whole and then with less and less of what may go."""
        sized = [f"{size_word(region.share)} {self._name(region)}" for region in named]
        plain = [self._name(region) for region in named]
        pairs = [relation(*pair) for pair in itertools.pairwise(named)]
        related = [self._related(*pair) for pair in pairs if pair]
        for count in range(len(related), -1, -1):
            yield sized + related[:count]
        for count in range(len(sized), -1, -1):
            yield sized[:count] + plain[count:]
        must = self._must(named)
        for count in range(len(named), -1, -1):
            kept = [r for place, r in enumerate(named) if place < count or r in must]
            yield [self._name(region) for region in kept]

    def _must(self, named: Sequence[Region]) -> list[Region]:
        return [region for region in named if region.train_id in self.required]

    def _related(self, who: Region, how: str, whom: Region) -> str:
        return f"{self._name(who)} {how} {self._name(whom)}"

    def _name(self, region: Region) -> str:
        if region.train_id >= len(self.names):
            raise D3S2Error(
                f"A mask has class {region.train_id}, but names has {len(self.names)}: give one "
                "name for every class."
            )
        return spoken(self.names[region.train_id])


# ----------------------------------------------------------------------------- texts of any origin
def tokens(text: str) -> int:
    """A careful guess at a text's tokens, begin and end among them: one for every `LETTERS` letters
    of a word that are begun, one for every other sign. No tokenizer is asked, so that a
    caption does not depend on which one is installed.
    """
    pieces = re.findall(r"\w+|[^\w\s]", text)
    return 2 + sum(math.ceil(len(piece) / LETTERS) for piece in pieces)


def shortened(text: str, room: int = ROOM) -> str:
    """The text without the words at its end that do not fit into so many tokens."""
    words = text.split()
    while words and tokens(" ".join(words)) > room:
        words.pop()
    return " ".join(words).rstrip(" ,;:")


def with_names(text: str, names: Iterable[str], room: int = ROOM) -> str:
    """The text with those of the names, spoken, at its end that it lacks; shortened to fit, but
    never by a name.

    Raises D3S2Error where the names alone do not fit.
    """
    wanted = [name for name in map(spoken, names) if name]
    words = text.split()
    while True:
        kept = " ".join(words).rstrip(" ,;:")
        lacking = [name for name in wanted if not mentions(kept, name)]
        whole = BETWEEN.join(part for part in (kept, *lacking) if part)
        if tokens(whole) <= room:
            return whole
        if not words:
            raise D3S2Error(
                f"The names {', '.join(wanted)} take more than {room} tokens: require fewer."
            )
        words.pop()


def fitting_names(names: Sequence[str], room: int = ROOM) -> list[str]:
    """As many of the names, from the first on, as a text with nothing else has room for."""
    wanted = list(names)
    while wanted and tokens(BETWEEN.join(map(spoken, wanted))) > room:
        wanted.pop()
    return wanted


def mentions(text: str, name: str) -> bool:
    """Whether a text has this name in it, as whole words, in capitals or not."""
    return re.search(rf"(?<!\w){re.escape(name.lower())}(?!\w)", text.lower()) is not None


def captions(
    dataset: SegmentationDataset,
    captioner: Captioner,
    indices: Sequence[int] | None = None,
    room: int = ROOM,
    progress: bool = True,
) -> list[str]:
    """The captions of images of a data set (None = of all), on one line each, shortened to fit.

    Raises D3S2Error, with the image's id, for a captioner that fails or gives no text.
    """
    chosen = range(len(dataset)) if indices is None else indices
    texts = (_told(dataset, captioner, int(index)) for index in chosen)
    return [
        shortened(text, room) for text in over(texts, len(chosen), "captioning images", progress)
    ]


def _told(dataset: SegmentationDataset, captioner: Captioner, index: int) -> str:
    """What the captioner says of one image."""
    asked = f"The captioner at image {dataset.ids[index]}"
    return said(asked, captioner, dataset.read_image(index), dataset.read_labels(index))


def said(asked: str, hook: Callable[..., str], *given: object) -> str:
    """What a hook of the user's, `asked` by this name, says of what is given.

    Raises D3S2Error where it fails, or gives anything but a text.
    """
    try:
        text = hook(*given)
    except D3S2Error:
        raise
    except Exception as error:  # whatever it is that a user's function raises
        raise D3S2Error(
            f"{asked} failed ({type(error).__name__}: {error}): mend it, or take the template's "
            "texts."
        ) from error
    if not isinstance(text, str) or not text.strip():
        raise D3S2Error(f"{asked} gave {text!r}: it must give a text.")
    return text


def units(text: str) -> list[str]:
    """What a caption is made of, for comparing captions: its words and its phrases, in lower case,
    without the template's beginning.

    So "a photo of large sky, small car" is large, sky, small, car, large sky, small car.
    """
    lowered = text.lower().removeprefix(PREFIX)
    phrases = [" ".join(phrase.split()) for phrase in re.split(r"[,.;:]", lowered)]
    words = [word for phrase in phrases for word in phrase.split()]
    return list(dict.fromkeys([*words, *filter(None, phrases)]))
