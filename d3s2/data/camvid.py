"""CamVid in the SegNet layout: `<split>/` and `<split>annot/`, ids 0 .. 10, 11 = void."""

from __future__ import annotations

from pathlib import Path

from d3s2.data.dataset import IGNORE, ClassInfo, MaskCode, SegmentationDataset
from d3s2.data.pairing import Tell, checked_size, existing_folder, pair_up, refuse

CAMVID_CLASSES = (
    ClassInfo("sky", (128, 128, 128)),
    ClassInfo("building", (128, 0, 0)),
    ClassInfo("pole", (192, 192, 128)),
    ClassInfo("road", (128, 64, 128)),
    ClassInfo("pavement", (0, 0, 192)),
    ClassInfo("tree", (128, 128, 0)),
    ClassInfo("sign_symbol", (192, 128, 128)),
    ClassInfo("fence", (64, 64, 128)),
    ClassInfo("car", (64, 0, 128)),
    ClassInfo("pedestrian", (64, 64, 0)),
    ClassInfo("bicyclist", (0, 128, 192)),
)
_CAMVID_VOID = 11


def open_camvid(
    root: Path | str, split: str, size: tuple[int, int] | None = None, tell: Tell = refuse
) -> SegmentationDataset:
    """Open one split. Raises D3S2Error for a missing folder, and tells of images without masks or
    the reverse.
    """
    root = existing_folder(root)
    pairs = pair_up(root / split, root / f"{split}annot", tell)
    return SegmentationDataset(
        root.resolve().name, split, CAMVID_CLASSES, *pairs, camvid_code(), checked_size(size)
    )


def camvid_code() -> MaskCode:
    """Ids 0 .. 10 are the classes; 11 and 255 are void."""
    table = [*range(len(CAMVID_CLASSES)), *[-1] * (256 - len(CAMVID_CLASSES))]
    table[_CAMVID_VOID] = table[IGNORE] = IGNORE
    return MaskCode(tuple(table), {}, "CamVid's list of 11 classes and void")
