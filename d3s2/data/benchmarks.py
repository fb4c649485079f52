"""The public benchmarks as they come out of their archives: ADE20K, COCO-Stuff 164k, PASCAL VOC
2012.

    ade20k      ADEChallengeData2016/{images,annotations}/{training,validation}   0 = ignore, 1 ..
    150 shift down cocostuff   {images,annotations}/{train2017,val2017}     <id>_labelTrainIds.png
                (0 .. 170), or the raw <id>.png of stuffthingmaps, whose ids 0 .. 181 have eleven
                gaps; 255 = ignore
    voc2012     VOC2012/{JPEGImages,SegmentationClass,ImageSets/Segmentation}     indexed PNGs, 255
    = ignore (borders) voc2012aug  the same with SegmentationClassAug and trainaug.txt

Classes come from the installed mmsegmentation. Where it gives two classes one colour, the later one
is drawn in the next free colour, so that pictures of masks can be told apart; ids are what counts.
A split of another size than the published one is opened, with a warning.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from d3s2.core.errors import D3S2Error
from d3s2.core.places import command
from d3s2.data.class_lists import classes_of
from d3s2.data.dataset import IGNORE, ClassInfo, MaskCode, SegmentationDataset
from d3s2.data.pairing import Tell, checked_size, existing_folder, files_by_stem, pairs, refuse

COUNTS = {
    "ade20k": {"train": 20_210, "val": 2_000},
    "cocostuff": {"train": 118_287, "val": 5_000},
    "voc2012": {"train": 1_464, "val": 1_449},
    "voc2012aug": {"train": 10_582, "val": 1_449},
}
"""Published numbers of images with masks."""
FORMATS = tuple(COUNTS)

COCO_GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
"""Raw ids that COCO never used."""
_TRAIN_IDS = "_labelTrainIds"
_FOLDERS = {
    "ade20k": {"train": "training", "val": "validation"},
    "cocostuff": {"train": "train2017", "val": "val2017"},
}
_LAYOUTS = {
    "ade20k": "ADEChallengeData2016 with images/training, images/validation, "
    "annotations/training, annotations/validation",
    "cocostuff": "a folder with images/train2017, images/val2017, annotations/train2017, "
    "annotations/val2017",
    "voc2012": "VOC2012 with JPEGImages, SegmentationClass, ImageSets/Segmentation",
    "voc2012aug": "VOC2012 with JPEGImages, SegmentationClass, SegmentationClassAug, "
    "ImageSets/Segmentation/trainaug.txt",
}
_INSIDE = {
    "ade20k": ("ADEChallengeData2016",),
    "cocostuff": ("coco_stuff164k",),
    "voc2012": ("VOC2012", "VOCdevkit/VOC2012"),
    "voc2012aug": ("VOC2012", "VOCdevkit/VOC2012"),
}


@dataclass(frozen=True)
class _Files:
    images: dict[str, Path]
    labels: dict[str, Path]
    image_folder: Path
    label_folder: Path
    code: MaskCode


def open_benchmark(
    format: str,
    root: Path | str,
    split: str,
    size: tuple[int, int] | None = None,
    tell: Tell = refuse,
) -> SegmentationDataset:
    """Open a split ("train" or "val") of a benchmark; `root` is its folder, or the one it was
    unpacked in.

    Warns when the split has another number of images than published. Raises D3S2Error for another
    layout, and tells of images without masks and the reverse; reading a mask, for ids or colours
    that its annotation variant does not have.
    """
    if split not in COUNTS[format]:
        raise D3S2Error(f"{format} has no split {split!r}: use 'train' or 'val'.")
    root = _inner(format, existing_folder(root))
    files = (
        _voc_files(root, split, format == "voc2012aug")
        if format.startswith("voc")
        else _folder_files(format, root, split)
    )
    found = pairs(files.images, files.labels, files.image_folder, files.label_folder, tell)
    if note := count_note(format, split, len(found.ids)):
        warnings.warn(note, stacklevel=3)
    return SegmentationDataset(
        format, split, benchmark_classes(format), *found, files.code, checked_size(size)
    )


def count_note(format: str, split: str, count: int) -> str:
    """A sentence when a benchmark's split has not the published number of images; "" when it has,
    or is none.
    """
    expected = COUNTS.get(format, {}).get(split, count)
    if count == expected:
        return ""
    return (
        f"{format}/{split} has {count} images instead of {expected}: unpack its archives again "
        "unless you meant a part of it."
    )


def benchmark_classes(format: str) -> tuple[ClassInfo, ...]:
    """The classes in train-id order, each in a colour of its own."""
    taken: set[tuple[int, int, int]] = set()
    classes = []
    for info in classes_of(format.removesuffix("aug")):
        color = info.color
        while color in taken:
            color = (*color[:2], (color[2] + 1) % 256)
        taken.add(color)
        classes.append(ClassInfo(info.name, color))
    return tuple(classes)


def fetching(format: str, root: Path | str = "/path/to/data") -> str:
    """The command that fetches a benchmark into a folder, as it is typed here."""
    return f"{command('d3s2')} fetch {format} {root}"


def _inner(format: str, root: Path) -> Path:
    needed = "ImageSets" if format.startswith("voc") else "annotations"
    for folder in (root, *(root / inside for inside in _INSIDE[format])):
        if (folder / needed).is_dir():
            return folder
    raise D3S2Error(
        f"{root} does not hold {format}: expected {_LAYOUTS[format]}. Fetch it with: "
        f"{fetching(format, root)}"
    )


def _folder_files(format: str, root: Path, split: str) -> _Files:
    part = _FOLDERS[format][split]
    images, labels = root / "images" / part, root / "annotations" / part
    for folder in (images, labels):
        if not folder.is_dir():
            raise D3S2Error(
                f"folder {folder} does not exist: {format} is laid out as {_LAYOUTS[format]}."
            )
    found = files_by_stem(labels, (".png",))
    if format == "ade20k":
        return _Files(files_by_stem(images, (".jpg",)), found, images, labels, ade20k_code())
    converted = {
        name.removesuffix(_TRAIN_IDS): path
        for name, path in found.items()
        if name.endswith(_TRAIN_IDS)
    }
    code = cocostuff_code(raw=not converted)
    return _Files(files_by_stem(images, (".jpg",)), converted or found, images, labels, code)


def _voc_files(root: Path, split: str, augmented: bool) -> _Files:
    lists, images, labels = (
        root / "ImageSets" / "Segmentation",
        root / "JPEGImages",
        root / "SegmentationClass",
    )
    listed = _listed(lists / f"{'trainaug' if augmented and split == 'train' else split}.txt")
    original = set(listed) if not augmented or split == "val" else set(_listed(lists / "train.txt"))
    masks = {
        name: (labels if name in original else root / "SegmentationClassAug") / f"{name}.png"
        for name in listed
    }
    pictures = {name: images / f"{name}.jpg" for name in listed}
    return _Files(_present(pictures.items()), _present(masks.items()), images, labels, voc_code())


def _listed(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise D3S2Error(
            f"{path} is missing: it lists the images of the split; unpack the archive again."
        ) from error
    # The lists of the augmented set, as they circulate, hold paths: /JPEGImages/x.jpg
    # /SegmentationClassAug/x.png
    names = [Path(line.split()[0]).stem for line in lines if line.split()]
    if not names or len(set(names)) < len(names):
        raise D3S2Error(
            f"{path} lists {len(names)} images, {len(set(names))} of them different: get the "
            "original list."
        )
    return names


def _present(files: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    return {name: path for name, path in files if path.is_file()}


# -------------------------------------------------------------------------------------- label rules
def ade20k_code() -> MaskCode:
    """0 = ignore, 1 .. 150 become 0 .. 149."""
    table = [IGNORE, *range(150), *[-1] * 105]
    return MaskCode(
        tuple(table),
        {},
        "ADE20K (0 = none, 1 to 150)",
        (
            "take the annotations of ADEChallengeData2016, not the full data set's coloured or "
            "part masks, nor converted ones."
        ),
    )


def cocostuff_code(raw: bool) -> MaskCode:
    """raw: ids of stuffthingmaps; otherwise train ids 0 .. 170."""
    used = [number for number in range(182) if number not in COCO_GAPS] if raw else list(range(171))
    table = [-1] * 256
    for train_id, number in enumerate(used):
        table[number] = train_id
    table[IGNORE] = IGNORE
    kind = "stuffthingmaps (0 to 181 with gaps, 255)" if raw else "labelTrainIds (0 to 170, 255)"
    return MaskCode(
        tuple(table),
        {},
        f"COCO-Stuff's {kind}",
        (
            "take the pixel maps of stuffthingmaps_trainval2017; the panoptic PNGs hold colours, "
            "the stuff challenge's hold no things, and train ids belong into files named "
            "<id>_labelTrainIds.png."
        ),
    )


def voc_code() -> MaskCode:
    """0 = background, 1 .. 20; 255 = border."""
    table = [*range(21), *[-1] * 234, IGNORE]
    return MaskCode(
        tuple(table),
        {},
        "PASCAL VOC's list of 21 classes",
        (
            "take the indexed PNGs of SegmentationClass as they are: SegmentationObject numbers "
            "objects, and RGB copies hold colours."
        ),
    )
