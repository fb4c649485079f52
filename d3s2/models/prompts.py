"""What a text-to-image model is told of a mask: a prompt that names its classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from d3s2.data.dataset import IGNORE

PREFIX = "a photo of "
BETWEEN = ", "
NOTHING = "a scene"
"""What is named where no class has a name."""
_SILENT = ("other", "merged", "stuff", "background")


class Prompts(nn.Module):
    """From the classes of a mask to text embeddings; each different prompt is encoded once.

    names: of the classes, in train-id order; negative: the text for images without a class set.
    """

    def __init__(
        self, tokenizer: Any, encoder: nn.Module, names: Sequence[str], negative: str
    ) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.names = [spoken(name) for name in names]
        self.negative = negative
        # A tokenizer that was saved without its configuration says that it has room for 1e30.
        self.room = min(tokenizer.model_max_length, encoder.config.max_position_embeddings)
        self._kept: dict[str, Tensor] = {}
        self._spans: dict[tuple[int, ...], list[tuple[int, int]]] = {}

    def forward(self, classes: Tensor, layout: Tensor | None) -> Tensor:
        """float[B, T, D] for multi-hot float[B, C] and layouts int64[B, H, W]; a row of -1 gets the
        negative prompt.
        """
        return torch.stack([self.encode(text) for text in self.texts(classes, layout)])

    def texts(self, classes: Tensor, layout: Tensor | None) -> list[str]:
        """The prompt of every row."""
        named = self._named_rows(classes, layout)
        return [self.negative if ids is None else self._text(ids) for ids in named]

    def owners(self, classes: Tensor, layout: Tensor | None) -> Tensor:
        """int64[B, T]: the class that every token names, -1 where it names none: the beginning, the
        words between the names, all that follows the text, and negative prompts.
        """
        found = torch.full((len(classes), self.room), -1, device=classes.device)
        for row, ids in zip(found, self._named_rows(classes, layout), strict=True):
            for c, (first, after) in zip(ids or [], self._places(ids or []), strict=True):
                row[first:after] = c
        return found

    def _named_rows(self, classes: Tensor, layout: Tensor | None) -> list[list[int] | None]:
        """The classes that each row's prompt names; None for the negative prompt."""
        layouts = [None] * len(classes) if layout is None else layout
        return [
            None if row[0] < 0 else self.named(row, labels)
            for row, labels in zip(classes, layouts, strict=True)
        ]

    def _text(self, ids: Sequence[int]) -> str:
        """The prompt that names these classes."""
        return PREFIX + (BETWEEN.join(self.names[c] for c in ids) or NOTHING)

    def _places(self, ids: Sequence[int]) -> list[tuple[int, int]]:
        """For each class named, its first token in the prompt and the one after its last.

        They are counted by the tokenizer: names end where words end, so the text up to there has
        the same tokens alone as in the whole.
        """
        if tuple(ids) not in self._spans:
            places = []
            for k in range(len(ids)):
                before = PREFIX + "".join(self.names[c] + BETWEEN for c in ids[:k])
                places.append((self._count(before), self._count(before + self.names[ids[k]])))
            self._spans[tuple(ids)] = places
        return self._spans[tuple(ids)]

    def _count(self, text: str) -> int:
        """Tokens of a text and its beginning, without the one that ends it."""
        return len(self.tokenizer(text, verbose=False).input_ids) - 1

    def prompt(self, present: Tensor, labels: Tensor | None = None) -> str:
        """The prompt for the classes of multi-hot float[C], see `named`."""
        return self._text(self.named(present, labels))

    def named(self, present: Tensor, labels: Tensor | None = None) -> list[int]:
        """The classes of multi-hot float[C] that a prompt names, the largest in labels int64[H, W]
        first.

        Names that the text encoder has no room for are left out whole, the smallest classes'.
        """
        area = [0] * len(present)
        if labels is not None:
            known = labels[(labels >= 0) & (labels != IGNORE)]
            area = torch.bincount(known, minlength=len(present))
            area = area.tolist()
        order = sorted(present.nonzero().flatten().tolist(), key=lambda c: (-area[c], c))
        ids = [c for c in order if self.names[c]]
        while ids and not self._fits(self._text(ids)):
            ids.pop()
        return ids

    def _fits(self, text: str) -> bool:
        """Whether the text encoder has room for all of a text."""
        tokens = self.tokenizer(text, verbose=False).input_ids
        return len(tokens) <= self.room

    def encode(self, text: str) -> Tensor:
        """float[T, D]: the text encoder's last hidden states."""
        if text not in self._kept:
            self._kept[text] = encoded(self.tokenizer, self.encoder, text, self.room)[0][0]
        return self._kept[text]


@torch.no_grad()
def encoded(tokenizer: Any, encoder: nn.Module, text: str, room: int, **more: bool) -> Any:
    """What a text encoder says of a text that is padded to `room` tokens."""
    tokens = tokenizer(
        text, padding="max_length", truncation=True, return_tensors="pt", max_length=room
    )
    return encoder(tokens.input_ids.to(encoder.device), **more)


def spoken(name: str) -> str:
    """A class's name as a prompt says it: 'wall-other-merged' is a wall; background is nothing."""
    words = name.replace("-", " ").replace("_", " ").replace(";", ",").split()
    return " ".join(word for word in words if word not in _SILENT)
