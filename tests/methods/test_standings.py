"""What a comparison's file says beside its main table."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from d3s2.core.errors import D3S2Error
from d3s2.core.files import write_csv
from d3s2.methods.comparison import HEADER
from d3s2.methods.standings import (
    across_networks,
    details,
    file_of,
    measured_networks,
    per_budget,
    per_third,
)


def row(method: str, budget: int, seed: int, miou: float, **more: object) -> list[object]:
    known = {"method": method, "budget": budget, "seed": seed, "distillation": seed}
    known |= {"images": budget, "miou": miou, "head": 2 * miou, "body": miou, "tail": miou / 2}
    known |= {"judge": 0.9, "peak_mb": 900, "png_kb": 300, "split": "val"} | more
    return [known.get(name, "") for name in HEADER]


def write(out: Path, *rows: list[object]) -> Path:
    write_csv(out, [HEADER, *rows])
    out.with_suffix(".json").write_text(json.dumps({"iterations": 3}))
    return out


@pytest.fixture
def out(tmp_path) -> Path:
    painted = {"seconds_an_image": 2.25, "evaluations_an_image": 50.0}
    return write(
        tmp_path / "comparison.csv",
        row("random", 20, 0, 30.0, judge=""),
        row("random", 40, 0, 40.0),
        row("random", 40, 1, 44.0),
        row("d3s2", 40, 0, 46.0, **painted),
        row("d3s2", 40, 1, 48.0, **painted | {"seconds_an_image": 2.75, "tail": math.nan}),
    )


def test_scores_by_method_and_budget(out):
    assert per_budget(out) == {"random": {20: [30], 40: [40, 44]}, "d3s2": {40: [46, 48]}}
    assert per_budget(out, "judge") == {"random": {40: [0.9, 0.9]}, "d3s2": {40: [0.9, 0.9]}}
    assert list(per_budget(out, "seconds_an_image")) == ["d3s2"]


def test_thirds_of_one_budget_without_what_is_unknown(out):
    assert per_third(out, 40) == {
        "random": {"head": [80, 88], "body": [40, 44], "tail": [20, 22]},
        "d3s2": {"head": [92, 96], "body": [46, 48], "tail": [23]},
    }
    assert list(per_third(out, 20)) == ["random"]


def test_what_is_not_there_is_named(out, tmp_path):
    with pytest.raises(D3S2Error, match="is missing: measure it with `d3s2 compare`"):
        per_budget(tmp_path / "none.csv")
    with pytest.raises(D3S2Error, match="has no column 'neck': it has method, budget"):
        per_budget(out, "neck")


def test_details_are_means_and_the_bill(out):
    lines = details(out, 40).splitlines()
    assert lines[0].startswith("| arm | head (%) | body (%) | tail (%) | judge | images | seconds")
    assert lines[2] == "| random | 84.0 | 42.0 | 21.0 | 0.900 | 40 |  |  | 900 | 300 |"
    assert lines[3] == "| d3s2 | 94.0 | 47.0 | 23.0 | 0.900 | 40 | 2.50 | 50.0 | 900 | 300 |"
    assert lines[0].count("|") == lines[1].count("|") == lines[2].count("|")
    assert "d3s2" not in details(out, 20)


def test_other_networks_stand_beside(out):
    assert across_networks(out, 40) == ""
    unet = file_of(out, "unet")
    assert unet.name == "comparison-unet.csv" and file_of(out, "mask2former") == out
    write(unet, row("random", 40, 0, 20.0), row("random", 40, 1, 22.0), row("sfm", 40, 0, 25.0))
    assert list(measured_networks(out)) == ["mask2former", "unet"]
    lines = across_networks(out, 40).splitlines()
    assert lines[0] == "| arm | mask2former (%) | minus random | unet (%) | minus random |"
    assert lines[2] == "| random | 42.0 ± 2.8 |  | 21.0 ± 1.4 |  |"
    assert lines[3] == "| d3s2 | 47.0 ± 1.4 | +5.0 ± 12.7 |  |  |"
    assert lines[4] == "| sfm |  |  | 25.0 | +5.0 ± inf |"
    assert across_networks(out, 20) == ""  # the other network has no such budget
