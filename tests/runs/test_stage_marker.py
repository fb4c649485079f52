"""Which of the two markers a stage holds, at each moment."""

from __future__ import annotations

from pathlib import Path

from d3s2.runs.stages import IN_PROGRESS, MANIFEST, Stage


def markers(stage: Stage) -> set[str]:
    return {name for name in (IN_PROGRESS, MANIFEST) if (stage.folder / name).exists()}


def test_a_stage_is_either_in_progress_or_finished_and_never_both(tmp_path: Path) -> None:
    stage = Stage(tmp_path, "selection", {"value": 1}, modules=["core.errors"])
    stage.begin()
    assert markers(stage) == {IN_PROGRESS} and not stage.is_current()
    (stage.folder / "data.txt").write_text("1")
    stage.finish()
    assert markers(stage) == {MANIFEST} and stage.is_current()
    stage.begin()  # made again: what was finished moves away
    assert markers(stage) == {IN_PROGRESS} and not stage.is_current()
