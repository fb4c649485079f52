"""What a text-to-image model is told of a mask: a prompt that names its classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from d3s2.data.dataset import IGNORE

PREFIX = "a photo of "
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

    def forward(self, classes: Tensor, layout: Tensor | None) -> Tensor:
        """float[B, T, D] for multi-hot float[B, C] and layouts int64[B, H, W]; a row of -1 gets the
        negative prompt.
        """
        texts = []
        for k, row in enumerate(classes):
            labels = None if layout is None else layout[k]
            texts.append(self.negative if row[0] < 0 else self.prompt(row, labels))
        return torch.stack([self.encode(text) for text in texts])

    def prompt(self, present: Tensor, labels: Tensor | None = None) -> str:
        """The prompt for the classes of multi-hot float[C], the largest in labels int64[H, W]
        first.

        Names that the text encoder has no room for are left out whole, the smallest classes'.
        """
        area = [0] * len(present)
        if labels is not None:
            area = torch.bincount(labels[labels != IGNORE].flatten(), minlength=len(present))
            area = area.tolist()
        order = sorted(present.nonzero().flatten().tolist(), key=lambda c: (-area[c], c))
        names = [self.names[c] for c in order if self.names[c]]
        while names and not self._fits(PREFIX + ", ".join(names)):
            names.pop()
        return PREFIX + (", ".join(names) or NOTHING)

    def _fits(self, text: str) -> bool:
        """Whether the text encoder has room for all of a text."""
        tokens = self.tokenizer(text, verbose=False).input_ids
        return len(tokens) <= self.room

    @torch.no_grad()
    def encode(self, text: str) -> Tensor:
        """float[T, D]: the text encoder's last hidden states."""
        if text not in self._kept:
            tokens = self.tokenizer(
                text,
                padding="max_length",
                truncation=True,
                return_tensors="pt",
                max_length=self.room,
            )
            self._kept[text] = self.encoder(tokens.input_ids.to(self.encoder.device))[0][0]
        return self._kept[text]


def spoken(name: str) -> str:
    """A class's name as a prompt says it: 'wall-other-merged' is a wall; background is nothing."""
    words = name.replace("-", " ").replace("_", " ").replace(";", ",").split()
    return " ".join(word for word in words if word not in _SILENT)
