"""Costs on paper: proportions that must hold whatever the constants are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from d3s2.runs import estimate, speed
from d3s2.studies import on_paper
from d3s2.studies.on_paper import Constants, Counts, counts, main, memory, parts, table

BY = Constants(preparing=0.1, counting=0.001, selecting=2.0, exponent=1.0, gpu=1e14)
OF = Counts(
    images=20_000,
    judged=2_000,
    seen=1_000,
    features=1e11,
    painting=1e17,
    trainings=4e17,
    batches=(2, 8),
)


def test_each_part_is_its_count_times_its_constant() -> None:
    found = parts(OF, BY, 1, 10)
    assert found == pytest.approx(
        {
            "preparing images": 220,
            "counting masks": 2,
            "features": 1,
            "selecting (one core)": 0.4,
            "painting": 1000,
            "training": 4000,
        }
    )


def test_what_more_gpus_share_and_what_not() -> None:
    """Selection has one core; two trainings of batches of eight keep sixteen GPUs busy at most."""
    one, eight, many = (parts(OF, BY, gpus, 10) for gpus in (1, 8, 64))
    for part in ("preparing images", "counting masks", "features", "painting", "training"):
        assert one[part] == pytest.approx(8 * eight[part])
    assert one["selecting (one core)"] == many["selecting (one core)"]
    assert many["training"] == pytest.approx(one["training"] / 16)
    assert many["painting"] == pytest.approx(one["painting"] / 64)


def test_selection_grows_by_its_exponent_and_its_table_with_the_masks() -> None:
    by = replace(BY, exponent=1.5)
    assert by.selection(100_000) == 2 and by.selection(10_000_000) == pytest.approx(2000)
    assert memory(2**30) == 8 * 16 + 8


def test_the_longest_part_of_each_column_is_bold() -> None:
    """Where the bottleneck moves to."""
    head, rule, *rows = table({"small": OF, "large": replace(OF, images=10**9)}, BY, 1).splitlines()
    assert head.startswith("| part | small, 1 GPU | small, 8 GPUs | small, 64 GPUs | large, 1 GPU")
    assert rule.count("|") == head.count("|") == rows[0].count("|") == 8
    cells = {row.split(" | ")[0]: row.split(" | ") for row in rows}
    bold = {part: [k for k, cell in enumerate(row) if "**" in cell] for part, row in cells.items()}
    assert bold.pop("| training") == [1, 2, 3] and bold.pop("| preparing images") == [4, 5, 6]
    assert not any(bold.values())


def test_the_counts_are_those_of_the_estimate(tmp_path, monkeypatch) -> None:
    """Without the networks, whose FLOPs `runs.speed` counts and its tests hold."""
    monkeypatch.setenv("D3S2_HOME", str(tmp_path))

    class Head:
        num_classes = 150

    class Proxy:
        decode_head = Head()

    monkeypatch.setattr("d3s2.models.mmseg_proxy.build", lambda config: Proxy())
    monkeypatch.setattr(speed, "sampling_flops", lambda *_: speed.Sampling(10.0, 3.0, 1.0))
    monkeypatch.setattr(speed, "trained_flops", lambda *_: 5.0)
    of, large = counts("ade20k", 0), counts("ade20k", 10**8)
    assert (of.images, of.judged, of.seen) == (20_210, 2_000, 2_000)
    assert large.images == 10**8 and large.painting == pytest.approx(of.painting * 10**6 / 202)
    assert of.batches == (estimate.SETS * 3, 8)
    iterations = 12 * 10_000
    assert of.trainings == (3.0 * iterations * 8 + 12 * 2_000) * 5.0
    assert of.features == 1 + speed.moments_flops(150, (512, 512))


def test_the_command_says_what_is_measured_and_what_assumed(capsys, monkeypatch) -> None:
    monkeypatch.setattr(on_paper, "counts", lambda profile, images: OF)
    monkeypatch.setattr(on_paper, "SIZES", (300, 3_000))
    monkeypatch.setattr(on_paper, "MASKS", 1)
    monkeypatch.setattr(speed, "SECONDS", 0.01)
    assert main(["--tflops", "50", "--cores", "4"]) == 0
    text = capsys.readouterr().out
    assert "selecting 1 % of 3,000 masks" in text and "with 4 cores" in text
    assert "| together |" in text and "GiB" in text
    assert main(["--tflops", "0"]) == 2 and main(["--cores", "0"]) == 2
