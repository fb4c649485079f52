"""Images and masks as people have them: what loses nothing is read, what would lose is refused."""

from __future__ import annotations

import copy
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d3s2.core.errors import D3S2Error
from d3s2.data.dataset import IGNORE, BadFile, SegmentationDataset
from d3s2.data.opening import open_dataset

HEADER = "id,name,red,green,blue\n"
CLASSES = HEADER + "3,sky,10,20,30\n7,road,40,50,60\n9,void,0,0,0\n"
IDS = np.full((6, 8), 3, np.uint8)
IDS[3:], IDS[0, 0], IDS[0, 1] = 7, 9, 255
EXPECTED = np.zeros((6, 8), np.uint8)
EXPECTED[3:], EXPECTED[0, :2] = 1, IGNORE
PHOTO = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


@pytest.fixture
def data(tmp_path: Path) -> SegmentationDataset:
    """One pair of 6x8 pixels."""
    (tmp_path / "classes.csv").write_text(CLASSES)
    for part, array in (("images", PHOTO), ("labels", IDS)):
        (tmp_path / "train" / part).mkdir(parents=True)
        Image.fromarray(array).save(tmp_path / "train" / part / "a.png")
    return open_dataset("folder", tmp_path, "train")


def with_image(data: SegmentationDataset, name: str, save: Callable) -> SegmentationDataset:
    """The data set with another image file."""
    data.image_paths[0].unlink()
    save(data.image_paths[0].with_name(name))
    return open_dataset("folder", data.root, "train")


def colors_of(labels: np.ndarray) -> np.ndarray:
    """uint8[H, W, 3] in the colours of classes.csv."""
    palette = np.zeros((256, 3), np.uint8)
    palette[:2] = (10, 20, 30), (40, 50, 60)
    return palette[labels]


def with_alpha(array: np.ndarray, alpha: int = 255) -> np.ndarray:
    """uint8[H, W, C] with one more channel, transparent (`alpha`) in one pixel."""
    channel = np.full((*array.shape[:2], 1), 255, array.dtype)
    channel[2, 2] = alpha
    return np.concatenate([array.reshape(*array.shape[:2], -1), channel], axis=2)


def png16(path: Path, array: np.ndarray, transparency: bytes = b"") -> None:
    """Write uint16[H, W] or uint16[H, W, 3 or 4] as a PNG of 16 bits; transparency: of a tRNS
    chunk, the colour that is transparent.
    """
    kind = {1: 0, 3: 2, 4: 6}[array.reshape(*array.shape[:2], -1).shape[2]]
    height, width = array.shape[:2]
    rows = b"".join(b"\0" + array[y].astype(">u2").tobytes() for y in range(height))
    content = b"\x89PNG\r\n\x1a\n"
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"tRNS", transparency), (b"IDAT", zlib.compress(rows))]
    for name, body in [*chunks, (b"IEND", b"")]:
        if name == b"tRNS" and not body:
            continue
        content += struct.pack(">I", len(body)) + name + body
        content += struct.pack(">I", zlib.crc32(name + body))
    path.write_bytes(content)


def tiff16(path: Path, array: np.ndarray, order: str, bits: int = 16) -> None:
    """Write uint16[H, W, 3] as an uncompressed TIFF; order: "<" or ">", of its bytes. bits: 12 for
    a black uint16[H, W].
    """
    if bits == 12:
        Image.fromarray(array).save(path)
        packed = path.read_bytes().replace(
            struct.pack("<HHIHH", 258, 3, 1, 16, 0), struct.pack("<HHIHH", 258, 3, 1, 12, 0)
        )
        path.write_bytes(packed)
        return
    height, width = array.shape[:2]
    body = array.astype(f"{order}u2").tobytes()
    tags = [(256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 8 + 2 + 9 * 12 + 4)]
    tags += [(259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 8 + 2 + 9 * 12 + 4 + 6)]
    tags += [(277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(body))]
    content = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}IH", 8, len(tags))
    for tag, kind, count, value in tags:
        short = kind == 3 and count == 1
        content += struct.pack(f"{order}HHI", tag, kind, count)
        content += struct.pack(f"{order}{'HH' if short else 'I'}", value, *[0] * short)
    path.write_bytes(content + struct.pack(f"{order}IHHH", 0, 16, 16, 16) + body)


# ------------------------------------------------------------------------------------- what is read
LOSSLESS_MASKS = {
    "colours with opaque alpha": lambda path: Image.fromarray(with_alpha(colors_of(EXPECTED))).save(
        path
    ),
    "ids with opaque alpha": lambda path: Image.fromarray(with_alpha(IDS), "LA").save(path),
    "ids of 16 bits": lambda path: png16(path, IDS.astype(np.uint16) * 257),
    "colours of 16 bits": lambda path: png16(path, colors_of(EXPECTED).astype(np.uint16) * 257),
    "colours of 16 bits with opaque alpha": lambda path: png16(
        path, with_alpha(colors_of(EXPECTED)).astype(np.uint16) * 257
    ),
    "ids written thrice": lambda path: Image.fromarray(np.stack([IDS] * 3, axis=2)).save(path),
    "ids with a transparent one": lambda path: Image.fromarray(IDS).save(path, transparency=3),
}


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
@pytest.mark.parametrize("name", LOSSLESS_MASKS)
def test_masks_that_lose_nothing_are_read(data: SegmentationDataset, name: str) -> None:
    LOSSLESS_MASKS[name](data.label_paths[0])
    assert np.array_equal(data.read_labels(0), EXPECTED) and data.read_labels(0).dtype == np.uint8


LOSSLESS_IMAGES = {
    "opaque.png": lambda path: Image.fromarray(with_alpha(PHOTO)).save(path),
    "wide.png": lambda path: png16(path, PHOTO.astype(np.uint16) * 257),
    "wide-opaque.png": lambda path: png16(path, with_alpha(PHOTO).astype(np.uint16) * 257),
    "little.tif": lambda path: tiff16(path, PHOTO.astype(np.uint16) * 257, "<"),
    "big.tif": lambda path: tiff16(path, PHOTO.astype(np.uint16) * 257, ">"),
    "plain.tif": lambda path: Image.fromarray(PHOTO).save(path),
    "packed.tif": lambda path: Image.fromarray(PHOTO).save(path, compression="tiff_lzw"),
}


@pytest.mark.parametrize("name", LOSSLESS_IMAGES)
def test_images_that_lose_nothing_are_read(data: SegmentationDataset, name: str) -> None:
    (data.label_paths[0]).rename(data.label_paths[0].with_stem(Path(name).stem))
    data = with_image(data, name, LOSSLESS_IMAGES[name])
    assert np.array_equal(data.read_image(0), PHOTO)
    assert np.array_equal(data.read_labels(0), EXPECTED)


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_grey_16_bit_photographs_and_indexed_ones(data: SegmentationDataset) -> None:
    grey = PHOTO[..., 0]
    wide = with_image(data, "a.png", lambda path: png16(path, grey.astype(np.uint16) * 257))
    assert np.array_equal(wide.read_image(0), np.stack([grey] * 3, axis=2))
    indexed = Image.fromarray(PHOTO).quantize(16)
    # Pillow advises what is done here: to convert it
    same = with_image(wide, "a.png", lambda path: indexed.save(path, transparency=bytes([255] * 9)))
    assert np.array_equal(same.read_image(0), np.array(indexed.convert("RGB")))


# ---------------------------------------------------------------------------------- what is refused
def one_off(array: np.ndarray) -> np.ndarray:
    """uint16: 8 bits times 257, but for the lowest bit of one value."""
    wide = array.astype(np.uint16) * 257
    wide[3, 3] ^= 1
    return wide


LOSSY_IMAGES = {
    "a.png": lambda path: png16(path, one_off(PHOTO)),
    "grey.png": lambda path: png16(path, one_off(PHOTO[..., 0])),
    "alpha.png": lambda path: Image.fromarray(with_alpha(PHOTO, 254)).save(path),
    "wide-alpha.png": lambda path: png16(path, one_off(with_alpha(PHOTO))),
    "little.tif": lambda path: tiff16(path, one_off(PHOTO), "<"),
    "big.tif": lambda path: tiff16(path, one_off(PHOTO), ">"),
    "indexed.png": lambda path: (
        Image.fromarray(PHOTO).quantize(16).save(path, transparency=bytes([0] * 16))
    ),
    "transparent-colour.png": lambda path: Image.fromarray(PHOTO).save(
        path, transparency=tuple(int(value) for value in PHOTO[0, 0])
    ),
    "wide-transparent-colour.png": lambda path: png16(
        path, PHOTO.astype(np.uint16) * 257, transparency=b"\0" * 6
    ),
    "wide-grey-transparent.png": lambda path: png16(
        path, PHOTO[..., 0].astype(np.uint16) * 257, transparency=b"\0" * 2
    ),
    "twelve-bits.tif": lambda path: tiff16(path, np.zeros((6, 8), np.uint16), "<", bits=12),
}


@pytest.mark.parametrize("name", LOSSY_IMAGES)
def test_images_that_would_lose_are_refused(data: SegmentationDataset, name: str) -> None:
    data.label_paths[0].rename(data.label_paths[0].with_stem(Path(name).stem))
    data = with_image(data, name, LOSSY_IMAGES[name])
    with pytest.raises(D3S2Error, match=f"{name} has pixel format .*: save it as 8-bit"):
        data.read_image(0)


LOSSY_MASKS = {
    "alpha": lambda path: Image.fromarray(with_alpha(colors_of(EXPECTED), 0)).save(path),
    "16 bits": lambda path: png16(path, one_off(IDS)),
    "16-bit colours": lambda path: png16(path, one_off(colors_of(EXPECTED))),
    "16-bit alpha": lambda path: png16(
        path, with_alpha(colors_of(EXPECTED), 0).astype(np.uint16) * 257
    ),
}


@pytest.mark.parametrize("name", LOSSY_MASKS)
def test_masks_that_would_lose_are_refused(data: SegmentationDataset, name: str) -> None:
    LOSSY_MASKS[name](data.label_paths[0])
    with pytest.raises(D3S2Error, match=r"has pixel format .*: save it as 8-bit ids"):
        data.read_labels(0)


def test_equal_channels_are_ids_only_where_no_grey_says_otherwise(
    data: SegmentationDataset,
) -> None:
    Image.fromarray(np.stack([IDS] * 3, axis=2)).save(data.label_paths[0])
    for line, unknown in (
        ("4,tree,7,7,7\n", 3),  # colour (7, 7, 7) is tree, id 7 is road
        ("4,snow,255,255,255\n", 3),  # and 255 is ignore
        ("12,snow,200,200,200\n", 0),  # no id 200: one meaning
        ("12,snow,12,12,12\n", 0),  # the same meaning
    ):
        (data.root / "classes.csv").write_text(CLASSES + line)
        changed = open_dataset("folder", data.root, "train")
        if unknown:
            with pytest.raises(BadFile) as caught:
                changed.read_labels(0)
            assert str(caught.value) == (
                f"mask {data.label_paths[0]} holds colour (3, 3, 3) (one of {unknown} unknown), "
                "which classes.csv does not list: its channels are equal, as if they were ids, but "
                "a grey there means another class than the id of that value: save ids in one "
                "channel."
            )
        else:
            assert np.array_equal(changed.read_labels(0), EXPECTED)


def test_equal_channels_are_no_ids_where_no_colours_are_listed(tmp_path: Path) -> None:
    for part, array in (("train", PHOTO), ("trainannot", np.zeros((6, 8, 3), np.uint8))):
        (tmp_path / part).mkdir()
        Image.fromarray(array).save(tmp_path / part / "a.png")
    with pytest.raises(D3S2Error, match="colour"):
        open_dataset("camvid", tmp_path, "train").read_labels(0)


# --------------------------------------------------------------------------------------------- EXIF
def exif(orientation: int) -> Image.Exif:
    """EXIF data with nothing but an orientation."""
    found = Image.Exif()
    found[0x0112] = orientation
    return found


UNDO = {
    2: np.fliplr,
    3: lambda array: np.rot90(array, 2),
    4: np.flipud,
    5: lambda array: array.transpose(1, 0, 2),
    6: lambda array: np.rot90(array, 1),
    7: lambda array: np.rot90(array, 2).transpose(1, 0, 2),
    8: lambda array: np.rot90(array, 3),
}
"""How a camera that is held so stores an upright picture."""


def wide_grey(picture: Image.Image) -> Image.Image:
    """The same in grey of 16 bits, 8 bits times 257."""
    return Image.fromarray(np.array(picture.convert("L")).astype(np.uint16) * 257)


SAVED_AS = {
    "jpg": ("a.jpg", lambda picture: picture),
    "png": ("a.png", lambda picture: picture),
    "tif": ("a.tif", lambda picture: picture),
    "webp": ("a.webp", lambda picture: picture),
    "png with alpha": ("a.png", lambda picture: picture.convert("RGBA")),
    "tif with alpha": ("a.tif", lambda picture: picture.convert("RGBA")),
    "indexed png": ("a.png", lambda picture: picture.quantize(16)),
    "grey tif": ("a.tif", lambda picture: picture.convert("L")),
    "16-bit png": ("a.png", wide_grey),
    "16-bit tif": ("a.tif", wide_grey),
}


@pytest.mark.parametrize("form", SAVED_AS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_upright(data: SegmentationDataset, orientation: int, form: str) -> None:
    name, change = SAVED_AS[form]
    upright = np.zeros((6, 8, 3), np.uint8)
    upright[:3, :4], upright[:3, 4:], upright[3:, :4] = 255, 180, 90
    upright = upright.repeat(8, 0).repeat(8, 1)
    stored = UNDO.get(orientation, lambda array: array)(upright)
    picture = change(Image.fromarray(np.ascontiguousarray(stored)))
    data = with_image(data, name, lambda path: picture.save(path, exif=exif(orientation)))
    assert np.abs(data.read_image(0).astype(int) - upright).mean() < 8
    Image.fromarray(IDS.repeat(8, 0).repeat(8, 1)).save(data.label_paths[0])
    assert data.read_labels(0).shape == (48, 64)


def test_a_mask_that_lies_as_the_camera_was_held_is_told_why(data: SegmentationDataset) -> None:
    lying = Image.fromarray(np.ascontiguousarray(np.rot90(PHOTO)))
    data = with_image(data, "a.jpg", lambda path: lying.save(path, exif=exif(6)))
    Image.fromarray(np.ascontiguousarray(np.rot90(IDS))).save(data.label_paths[0])
    with pytest.raises(BadFile) as caught:
        data.read_labels(0)
    assert str(caught.value) == (
        f"{data.label_paths[0]} is 6x8 pixels but its image a.jpg is 8x6 (its EXIF orientation 6 "
        "applied): save both at one size."
    )


def test_a_mask_with_an_orientation_is_refused(data: SegmentationDataset) -> None:
    Image.fromarray(IDS).save(data.label_paths[0], exif=exif(3))
    with pytest.raises(BadFile) as caught:
        data.read_labels(0)
    assert (caught.value.kind, str(caught.value)) == (
        "mask with an EXIF orientation",
        f"mask {data.label_paths[0]} carries the EXIF orientation 3, which may or may not have "
        "been applied to its ids: save it upright and without EXIF.",
    )
    Image.fromarray(IDS).save(data.label_paths[0], exif=exif(1))
    assert np.array_equal(data.read_labels(0), EXPECTED)


def test_damaged_exif_is_none(data: SegmentationDataset) -> None:
    data = with_image(
        data, "a.jpg", lambda path: Image.fromarray(PHOTO).save(path, exif=b"Exif\0\0rubbish")
    )
    assert data.read_image(0).shape == (6, 8, 3) and data.read_labels(0).shape == (6, 8)


def test_the_error_of_a_worker_comes_back_whole(data: SegmentationDataset) -> None:
    Image.fromarray(np.full((6, 8), 5, np.uint8)).save(data.label_paths[0])
    with pytest.raises(D3S2Error) as caught:
        data.read_labels(0)
    back = copy.copy(caught.value)  # as pickle does
    assert (str(back), back.kind, back.unknown) == (
        str(caught.value),
        "mask with an unknown id",
        {5: 48},
    )
