"""The benchmark of selection compares like with like."""

from __future__ import annotations

import numpy as np
import pytest

from d3s2.studies import selection_speed
from d3s2.studies.selection_speed import heap, long_tail, main, ours


def test_the_data_has_as_many_classes_a_mask_as_is_said() -> None:
    matrix = long_tail(20_000, 150)
    held = np.diff(matrix.tocsc().indptr) / 20_000
    assert matrix.nnz / 20_000 == pytest.approx(8, rel=0.02)
    assert held.max() < 0.77 and held[-1] < held[10] < held[0]
    assert matrix.data.min() > 0 and matrix.data.max() == 1


def test_the_heap_picks_the_same() -> None:
    matrix = long_tail(900, 30)
    assert heap(matrix, 60).tolist() == ours(matrix, 60).tolist()


def test_the_command_prints_a_line_for_each_size(capsys, monkeypatch) -> None:
    monkeypatch.setattr(selection_speed, "SIZES", {"small": (300, 12, 9), "million": (400, 12, 9)})
    assert main([]) == 0
    small, million, memory = capsys.readouterr().out.splitlines()
    assert "300 x 12" in small and "heap" in small and "9 of 9 picks the same" in small
    assert "400 x 12" in million and "heap" not in million and "MB" in memory


def test_an_unknown_size_is_a_sentence(capsys) -> None:
    assert main(["big"]) == 2
    assert "'big' is no size: choose ade20k" in capsys.readouterr().err
