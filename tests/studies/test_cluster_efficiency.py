"""What workers add: the sums, what is sent, and workers that really run."""

from __future__ import annotations

from pathlib import Path

import pytest

from d3s2.core.places import EMBEDDED_WEIGHTS
from d3s2.models.load import load_proxy
from d3s2.studies.cluster_efficiency import efficiencies, main, sent, table
from d3s2.studies.drawn_masks import draw_scenes


def test_efficiency_is_the_share_of_the_workers_time_that_is_not_lost() -> None:
    assert efficiencies({1: 8.0, 2: 4.0, 4: 4.0}) == {1: 1.0, 2: 1.0, 4: 0.5}
    assert efficiencies({2: 3.0, 4: 2.0}) == {2: 1.0, 4: 0.75}  # two were the fewest


def test_a_line_says_what_the_machine_itself_loses() -> None:
    one, four = table({1: 8.0, 4: 4.0}, {1: 6.0, 4: 2.0}, 16, 2).splitlines()
    assert one.endswith("1.00; without Dask    6.00 s   1.00")
    assert "4.0 images a second" in four
    assert four.endswith("0.50; without Dask    2.00 s   0.75, 4 on 2 cores")


def test_networks_stay_and_results_are_what_comes_back(tmp_path: Path) -> None:
    proxy = load_proxy(EMBEDDED_WEIGHTS / "proxy")
    few, more = (
        sent(draw_scenes(tmp_path / "a", 2), proxy),
        sent(draw_scenes(tmp_path / "b", 8), proxy),
    )
    weights = 4 * sum(value.numel() for value in proxy.parameters())
    assert few.shared < weights / 10  # places, not tensors
    assert 0 < few.there < 100
    moments = 8 * 20 * (5 + 2 * (32 + 64 + 96 + 128 + 32))  # float64: n, mean and m2 of each layer
    assert moments < 2 * few.back < 1.1 * moments and few.back == pytest.approx(
        4 * more.back, rel=0.1
    )


@pytest.mark.processes
def test_the_command_starts_workers(capsys) -> None:
    assert main(["--workers", "1", "2", "--images", "16", "--rounds", "1"]) == 0
    first, one, two = capsys.readouterr().out.splitlines()
    assert "bytes to each worker" in first
    assert one.split()[:2] == ["1", "workers"] and one.count("1.00") == 2
    assert two.split()[0] == "2" and "without Dask" in two
    assert main(["--workers", "0"]) == 2
