"""Work that is too much at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from d3s2.core.errors import D3S2Error
from d3s2.core.halving import in_halves


def taking(most: int, seen: list[list[int]]) -> Callable[[Sequence[int]], list[int]]:
    """The squares of at most so many numbers at once."""

    def work(items: Sequence[int]) -> list[int]:
        if len(items) > most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        seen.append(list(items))
        return [item**2 for item in items]

    return work


@pytest.mark.parametrize("most", [1, 2, 3, 7, 9])
def test_all_is_done_once_and_in_order(most: int) -> None:
    seen: list[list[int]] = []
    parts = in_halves(taking(most, seen), range(7), "halve", "batch_size", "less")
    assert [value for part in parts for value in part] == [number**2 for number in range(7)]
    assert [number for part in seen for number in part] == list(range(7))
    assert max(map(len, seen)) <= most and len(parts) == len(seen)


def test_what_fits_is_not_cut() -> None:
    assert in_halves(sum, [1, 2, 3], "halve", "", "less") == [6]


@pytest.mark.parametrize(
    ("most", "how", "batch", "words"),
    [
        (2, "stop", "batch_size", "7 images at once: lower batch_size or set out_of_memory=halve"),
        (2, "stop", "", "7 images at once: set out_of_memory=halve, then take less."),
        (0, "halve", "batch_size", "a single image: take less."),
    ],
)
def test_where_it_stops_it_says_what_to_lower(most: int, how: str, batch: str, words: str) -> None:
    with pytest.raises(D3S2Error, match="too small for ") as raised:
        in_halves(taking(most, []), range(7), how, batch, "less")
    assert words in str(raised.value)


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError):
        in_halves(lambda items: 1 / 0, [1, 2], "halve", "", "less")
