"""CamVid's layout, made small."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d3s2.core.errors import D3S2Error
from d3s2.data.camvid import CAMVID_CLASSES, open_camvid
from d3s2.data.dataset import IGNORE, BadFile
from d3s2.data.opening import open_dataset


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """One pair of 3x4 pixels with every id."""
    for part, array in (
        ("val", np.zeros((3, 4, 3), np.uint8)),
        ("valannot", np.arange(12, dtype=np.uint8).reshape(3, 4)),
    ):
        (tmp_path / part).mkdir()
        Image.fromarray(array).save(tmp_path / part / "0001TP_1.png")
    return tmp_path


def test_eleven_ids_are_classes_and_the_twelfth_is_void(root: Path) -> None:
    data = open_dataset("camvid", root, "val")
    assert (data.name, data.split, data.ids) == (root.name, "val", ("0001TP_1",))
    assert data.classes == CAMVID_CLASSES and data.num_classes == 11
    assert data.read_labels(0).ravel().tolist() == [*range(11), IGNORE]
    small = open_camvid(str(root), "val", (6, 4))
    assert small.size == (6, 4) and small.read_labels(0).shape == (6, 4)
    assert data.code.to_train == (*range(11), IGNORE, *[-1] * 243, IGNORE)
    assert data.code.colors == {}


def test_another_id_is_a_sentence(root: Path) -> None:
    mask = root / "valannot" / "0001TP_1.png"
    Image.fromarray(np.full((3, 4), 12, np.uint8)).save(mask)
    with pytest.raises(BadFile) as caught:
        open_camvid(root, "val").read_labels(0)
    assert str(caught.value) == (
        f"mask {mask} holds id 12, which CamVid's list of 11 classes and void does not list: add "
        "the class there, or write 255 (ignore) in the mask."
    )


def test_faults_are_told_and_sizes_checked(root: Path) -> None:
    (root / "valannot" / "b.png").write_bytes(b"")
    told: list[D3S2Error] = []
    assert len(open_camvid(root, "val", tell=told.append)) == 1
    assert "b.png has no image" in str(*told)
    (root / "valannot" / "b.png").unlink()
    with pytest.raises(D3S2Error, match="image size"):
        open_camvid(root, "val", (0, 4))
