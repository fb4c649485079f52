"""The bill adds what logs say, and does not guess what they leave out."""

from __future__ import annotations

import csv
import json
from types import SimpleNamespace

import pytest

from d3s2.core.places import EMBEDDED_WEIGHTS
from d3s2.studies.bill import Line, bill, main, table


def training(name: str, images: int, iterations: int, **cost: float) -> SimpleNamespace:
    """What the bill reads of a result."""
    return SimpleNamespace(name=name, train_images=images, iterations=iterations, cost=cost)


def test_the_bill_is_what_the_logs_say(tmp_path):
    for network, seconds in (("proxy", 600), ("generator", 1200.6)):
        (tmp_path / network).mkdir()
        log = f"iteration,loss,seconds\n100,2.5,9.0\n900,1.5,{seconds}\n"
        (tmp_path / network / "training_log.csv").write_text(log)
    (tmp_path / "executed").mkdir()
    for name, seconds in (("01_data_statistics", 60), ("03_guided_sampling", 90)):
        (tmp_path / "executed" / f"{name}.json").write_text(json.dumps({"seconds": seconds}))
    trainings = [training("d3s2-0", 40, 1500, seconds=240.0), training("full-0", 4000, 1500)]
    lines = bill(tmp_path, tmp_path, 4000, 40, trainings)
    assert [(line.part, line.images, line.seconds) for line in lines] == [
        ("masks", 4000, None),
        ("proxy", 4000, 600),
        ("generator", 4000, 1200.6),
        ("statistics", 4000, 60),
        ("selection", 4000, None),  # that notebook was run by hand
        ("distilling", 40, 90),
        ("training d3s2-0", 40, 240.0),
        ("training full-0", 4000, None),
    ]
    text = table(lines)
    assert "| proxy | 4,000 | 900 iterations | 10.0 |" in text
    assert "| training full-0 | 4,000 | 1,500 iterations | not noted |" in text


def test_networks_of_others_have_no_minutes(tmp_path):
    (tmp_path / "proxy").mkdir()
    proxy = bill(tmp_path, tmp_path, 10, 1, [])[1]
    assert proxy == Line("proxy", 10, "trained elsewhere") and proxy.minutes == "not noted"


@pytest.mark.parametrize("network", ["proxy", "generator"])
def test_the_embedded_networks_have_logs_of_rising_seconds(network, tmp_path):
    with open(EMBEDDED_WEIGHTS / network / "training_log.csv", newline="") as stream:
        rows = [(int(row["iteration"]), float(row["seconds"])) for row in csv.DictReader(stream)]
    assert rows == sorted(rows) and [s for _, s in rows] == sorted(s for _, s in rows)
    named = {line.part: line for line in bill(EMBEDDED_WEIGHTS, tmp_path, 7, 1, [])}
    assert named[network].seconds == rows[-1][1]
    assert named[network].images == 4000 and named["masks"].images == 7  # a run may take fewer


def test_a_run_without_trainings_is_refused(tmp_path, capsys):
    assert main(["--run-dir", str(tmp_path)]) != 0
    assert "holds no finished training" in capsys.readouterr().err
