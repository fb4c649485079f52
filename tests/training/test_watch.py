"""The lines about a training in another process, with a clock that is fed."""

from __future__ import annotations

import os
from types import SimpleNamespace

from d3s2.core.files import read_json, write_json
from d3s2.training.registered import Progress
from d3s2.training.watch import SAY_EVERY, STALLED_AFTER, Watch


class Told:
    """A watch, and what it says when so many seconds have passed and the training is there."""

    def __init__(self, folder, iterations: int) -> None:
        self.now = 1000.0
        self.folder = folder
        self.watch = Watch("tiny", iterations, folder, 77, lambda: self.now)

    def at(self, seconds: float, iteration: int | None = None, **more) -> str:
        self.now = 1000.0 + seconds
        if iteration is not None:
            state = {"iteration": iteration, "loss": 2.0, **more}
            write_json(self.folder / "progress.json", state)
        return self.watch.news()


def test_quarters_are_said_once_and_with_the_time_that_is_left(tmp_path):
    told = Told(tmp_path, 40)
    assert told.at(0) == ""
    heard = [told.at(iteration, iteration) for iteration in (5, 10, 15, 25, 25, 35, 40)]
    assert heard == [
        "",
        "tiny: 10 of 40 iterations, loss 2.0, 30 s left",
        "",
        "tiny: 25 of 40 iterations, loss 2.0, 15 s left",
        "",
        "tiny: 35 of 40 iterations, loss 2.0, 5 s left",
        "",
    ]


def test_a_long_training_says_a_line_every_few_minutes(tmp_path):
    told = Told(tmp_path, 10_000)
    lines = {}
    for second in range(0, 3601, 20):  # ten iterations in twenty seconds
        if line := told.at(second, second // 2):
            lines[second] = line
    gaps = [later - earlier for earlier, later in zip([0, *lines], lines, strict=False)]
    assert set(gaps) == {SAY_EVERY} and len(lines) == 3600 / SAY_EVERY
    assert lines[1800] == "tiny: 900 of 10000 iterations, loss 2.0, 5.1 h left"


def test_what_a_checkpoint_had_done_is_no_evidence_for_the_pace(tmp_path):
    told = Told(tmp_path, 2000)
    assert told.at(30, 1010) == "tiny: 1010 of 2000 iterations, loss 2.0"  # the pace is unknown
    assert told.at(430, 1500) == "tiny: 1500 of 2000 iterations, loss 2.0, 7 min left"


def test_a_training_that_stands_still_is_noticed_and_left_alone(tmp_path):
    told = Told(tmp_path, 1000)
    assert told.at(STALLED_AFTER - 1) == ""
    line = told.at(STALLED_AFTER)
    assert line.startswith("tiny: no progress for 10 min (before its first ten iterations); its ")
    assert "process 77 is alive" in line and str(tmp_path / "train.log") in line
    assert told.at(STALLED_AFTER + 1) == ""
    assert told.at(700, 10) == ""  # it moves again
    assert told.at(800).startswith("tiny: 10 of 1000")
    assert told.at(800 + SAY_EVERY) == ""  # nothing new to say
    assert "(10 of 1000 iterations, loss 2.0)" in told.at(700 + STALLED_AFTER)
    assert told.at(700 + 2 * STALLED_AFTER - 1) == ""
    assert "no progress for 20 min" in told.at(700 + 2 * STALLED_AFTER)


def test_judging_a_large_split_is_progress(tmp_path):
    told = Told(tmp_path, 10)
    told.at(0, 10)
    for minute in range(1, 30):
        line = told.at(60 * minute, 10, judged=minute, batches=40)
        assert "no progress" not in line
    assert line == "" and told.at(1801, 10, judged=31, batches=40) == (
        "tiny: trained, judged 31 of 40 batches"
    )
    on_the_way = Told(tmp_path, 40)
    on_the_way.at(0, 10)
    assert on_the_way.at(181, 10, judged=31, batches=40) == (
        "tiny: 10 of 40 iterations, judged 31 of 40 batches"
    )


def test_a_file_that_is_half_written_is_read_the_next_time(tmp_path):
    told = Told(tmp_path, 40)
    (tmp_path / "progress.json").write_text('{"iteration": 1')
    assert told.at(1) == ""
    assert told.at(2, 10).startswith("tiny: 10 of 40")


def test_the_hook_says_how_many_batches_are_judged(tmp_path):
    hook = Progress(str(tmp_path / "progress.json"))
    runner = SimpleNamespace(val_dataloader=range(25))
    hook.after_val_iter(runner, 0)  # of an evaluation without a training
    assert not (tmp_path / "progress.json").exists()
    hook.curve = [(20, 3.5)]
    seen = []
    for batch in range(25):
        hook.after_val_iter(runner, batch)
        seen.append(read_json(tmp_path / "progress.json")["judged"])
    assert seen == [1] * 10 + [11] * 10 + [21] * 5
    assert read_json(tmp_path / "progress.json") == {
        "iteration": 20,
        "loss": 3.5,
        "judged": 21,
        "batches": 25,
    }
    assert os.getppid() == hook.parent
