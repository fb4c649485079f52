"""What is said of a configuration to others: its schedule, and what mmsegmentation needs of it.

A training is opened with it in `tests/test_docs.py`, by the lines of the document.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from training_jobs import make_job, write_splits

from d3s2.training import mask2former


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_splits(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("iterations", [1, 7, 40])
def test_the_rates_that_are_drawn_are_those_of_the_schedule(data, tmp_path, iterations):
    """One cycle as torch has it; for Swin-S the shipped fall to nothing, a power of the rest."""
    config = mask2former.build_config(make_job(data, tmp_path, iterations=iterations))
    rates = mask2former.learning_rates(config)
    assert len(rates) == iterations
    if iterations > 1:  # torch divides by the steps that are left
        peak = mask2former.LEARNING_RATE
        weight = torch.nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([weight], peak, momentum=0.9)
        cycle = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, peak, iterations, pct_start=mask2former.WARM_UP
        )
        for rate in rates:
            assert rate == pytest.approx(cycle.get_last_lr()[0], rel=1e-12)
            optimizer.step()
            cycle.step()
    (tmp_path / "backbone.pth").write_bytes(b"weights")
    place = str(tmp_path / "backbone.pth")
    swin = make_job(data, tmp_path, iterations=iterations, network="swin-s", backbone_weights=place)
    rates = mask2former.learning_rates(mask2former.build_config(swin))
    left = 1 - np.arange(iterations) / max(iterations - 1, 1)  # nothing in the last step
    np.testing.assert_allclose(rates, 1e-4 * swin.batch_size / 16 * left**0.9, rtol=1e-6)


def test_what_is_written_for_mmsegmentation_is_json(data, tmp_path):
    config = mask2former.build_config(make_job(data, tmp_path))
    shown = {"classes": ["a"], "palette": [[1, 2, 3]], "more": object()}
    found = mask2former.plain_config(config, shown)
    assert json.loads(json.dumps(found))["dataset_meta"] == {
        "classes": ["a"],
        "palette": [[1, 2, 3]],
    }
    assert found["test_pipeline"][1]["scale"] == [48, 32]  # width, then height
