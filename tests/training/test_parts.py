"""A batch in parts, number by number; `test_loop.py` trains with them, which takes processes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from d3s2.training.loop import mean_losses, split


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=6))
def test_the_loss_that_is_noted_is_the_mean_over_the_parts(values):
    found = mean_losses([{"loss": torch.tensor(v), "other": torch.tensor(2 * v)} for v in values])
    mean = sum(values) / len(values)
    assert set(found) == {"loss", "other"}
    assert found["loss"].item() == pytest.approx(mean, abs=1e-4)
    assert found["other"].item() == pytest.approx(2 * mean, abs=1e-4)


@given(st.integers(1, 5), st.integers(1, 5))
def test_the_parts_are_the_batch_in_its_order(size, parts):
    batch = {"inputs": [*range(size * parts)], "data_samples": [-k for k in range(size * parts)]}
    pieces = [*split(batch, parts)]
    assert len(pieces) == parts
    assert all(len(values) == size for piece in pieces for values in piece.values())
    for name, values in batch.items():
        assert [value for piece in pieces for value in piece[name]] == values
