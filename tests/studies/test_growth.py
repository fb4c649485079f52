"""Exponents of growth that is known, and a picture of it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d3s2.studies import growth, turns
from d3s2.studies.drawn_masks import draw_scenes
from d3s2.studies.growth import Growth, main, measure, picture, repeated, selection_of


@pytest.mark.parametrize("power", [0.0, 1.0, 1.7])
def test_the_exponent_is_that_of_a_power(power: float) -> None:
    images = (20, 200, 2000)
    assert Growth(images, tuple(3 * n**power for n in images)).exponent == pytest.approx(power)
    bent = Growth(images, (1.0, 10.0, 1000.0))  # slopes of 1 and 2: least squares is between
    assert bent.exponent == pytest.approx(1.5)


def test_the_work_is_done_for_once_ten_and_a_hundred_times_as_much(monkeypatch) -> None:
    now, done = [0.0], []
    monkeypatch.setattr(turns.time, "process_time", lambda: now[0])

    def work(count: int) -> None:
        done.append(count)
        now[0] += count**2

    found = measure(lambda folder: work, 3, 2)
    assert found.images == (3, 30, 300) and found.seconds == (9, 900, 90_000)
    assert sorted(done) == sorted([3, 30, 300] * 3) and found.exponent == pytest.approx(2)


def test_a_few_files_stand_for_many_images(tmp_path: Path) -> None:
    dataset = draw_scenes(tmp_path, 3)
    many = repeated(dataset, 7)
    assert many.ids == tuple(dataset.ids[k] for k in (0, 1, 2, 0, 1, 2, 0))


def test_one_percent_is_selected(tmp_path: Path) -> None:
    select = selection_of(tmp_path)
    assert len(select(300)) == 3 and len(select(30)) == 1


def test_the_picture_has_a_line_for_each(tmp_path: Path) -> None:
    found = {name: Growth((1, 10, 100), (1.0, 9.0, 80.0)) for name in growth.NAMES}
    axes = picture(found).axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert len(labels) == 3 and all("exponent 0.95" in label for label in labels)
    colours = {line.get_color() for line in axes.lines if line.get_label() in labels}
    assert len(colours) == 3 and axes.get_xscale() == axes.get_yscale() == "log"
    fitted, points = axes.lines[:2]
    assert np.allclose(np.log(fitted.get_ydata()), np.log(points.get_ydata()), atol=0.06)


def test_the_command_prints_exponents_and_draws(tmp_path: Path, capsys, monkeypatch) -> None:
    small = {name: (prepare, 1) for name, (prepare, _) in growth.WORK.items()}
    monkeypatch.setattr(growth, "WORK", small)
    monkeypatch.setattr(growth, "DRAWN", 2)
    path = tmp_path / "growth.png"
    assert (
        main(["selection", "statistics", "features", "--rounds", "1", "--picture", str(path)]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all("exponent" in line and "100:" in line for line in lines[1:])
    assert Image.open(io.BytesIO(path.read_bytes())).size[0] > 400
    assert main(["speed"]) == 2 and main(["--rounds", "0"]) == 2
    assert "choose statistics, features, selection" in capsys.readouterr().err
