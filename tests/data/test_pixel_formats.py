"""Images and masks as people have them: what loses nothing is read, what would lose is refused."""

from __future__ import annotations

import copy
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
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


def indexed(array: np.ndarray) -> Image.Image:
    """Pixels of a palette whose colours mean nothing."""
    picture = Image.fromarray(array)
    picture = picture.convert("L").point(list(range(256)), "P")
    picture.putpalette([value * 7 % 256 for value in range(768)])
    return picture


def interlaced(path: Path, array: np.ndarray) -> None:
    """Write uint8 or uint16 [H, W] or [H, W, 3] as a PNG in the seven passes of Adam7."""
    rows, (height, width) = b"", array.shape[:2]
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2))
    for x, y, across, down in (*passes, (0, 1, 1, 2)):
        part = array[y::down, x::across]
        rows += b"".join(b"\0" + line.astype(f">u{array.itemsize}").tobytes() for line in part)
    kind = 0 if array.ndim == 2 else 2
    head = struct.pack(">IIBBBBB", width, height, 8 * array.itemsize, kind, 0, 0, 1)
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + name + body
        content += struct.pack(">I", zlib.crc32(name + body))
    path.write_bytes(content)


LOSSLESS_MASKS |= {
    "indexed": lambda path: indexed(IDS).save(path),
    "indexed, some transparent": lambda path: indexed(IDS).save(path, transparency=bytes(4)),
    "interlaced": lambda path: interlaced(path, IDS),
    "interlaced, 16 bits": lambda path: interlaced(path, IDS.astype(np.uint16) * 257),
    "a TIFF inside": lambda path: Image.fromarray(IDS).save(path, "TIFF"),
    "a BMP inside": lambda path: Image.fromarray(IDS).save(path, "BMP"),
}


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
@pytest.mark.parametrize("name", LOSSLESS_MASKS)
def test_masks_that_lose_nothing_are_read(data: SegmentationDataset, name: str) -> None:
    LOSSLESS_MASKS[name](data.label_paths[0])
    assert np.array_equal(data.read_labels(0), EXPECTED) and data.read_labels(0).dtype == np.uint8
    for sized in (data, replace(data, size=(4, 5)), replace(data, size=(9, 20))):
        counts = sized.count_labels(0)
        assert counts.dtype == np.int64
        assert counts.tolist() == np.bincount(sized.read_labels(0).ravel(), minlength=256).tolist()


LOSSLESS_IMAGES = {
    "opaque.png": lambda path: Image.fromarray(with_alpha(PHOTO)).save(path),
    "wide.png": lambda path: png16(path, PHOTO.astype(np.uint16) * 257),
    "wide-opaque.png": lambda path: png16(path, with_alpha(PHOTO).astype(np.uint16) * 257),
    "little.tif": lambda path: tiff16(path, PHOTO.astype(np.uint16) * 257, "<"),
    "big.tif": lambda path: tiff16(path, PHOTO.astype(np.uint16) * 257, ">"),
    "interlaced.png": lambda path: interlaced(path, PHOTO),
    "interlaced-wide.png": lambda path: interlaced(path, PHOTO.astype(np.uint16) * 257),
    "capital.PNG": lambda path: Image.fromarray(PHOTO).save(path),
    "Strand, früh 1.png": lambda path: Image.fromarray(PHOTO).save(path),
    "ink.tif": lambda path: Image.fromarray(PHOTO).convert("CMYK").save(path),
    "lossless.webp": lambda path: Image.fromarray(PHOTO).save(path, lossless=True),
    "old.bmp": lambda path: Image.fromarray(PHOTO).save(path),
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


GREY = PHOTO[..., 0]
GREY_IMAGES = {
    "grey.png": (GREY, lambda path: Image.fromarray(GREY).save(path)),
    "opaque.png": (GREY, lambda path: Image.fromarray(with_alpha(GREY), "LA").save(path)),
    "1 bit.png": (GREY // 128 * 255, lambda path: Image.fromarray(GREY > 127).save(path)),
    # of a TIFF of 1 bit Pillow does not write how many there are
    "1 bit.tif": (GREY // 128 * 255, lambda path: Image.fromarray(GREY > 127).save(path)),
}


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
@pytest.mark.parametrize("name", GREY_IMAGES)
def test_grey_photographs_have_three_equal_channels(data: SegmentationDataset, name: str) -> None:
    expected, save = GREY_IMAGES[name]
    data.label_paths[0].rename(data.label_paths[0].with_stem(Path(name).stem))
    data = with_image(data, name, save)
    assert np.array_equal(data.read_image(0), np.stack([expected] * 3, axis=2))


# ---------------------------------------------------------------------------------- what is refused
def one_off(array: np.ndarray) -> np.ndarray:
    """uint16: 8 bits times 257, but for the lowest bit of one value."""
    wide = array.astype(np.uint16) * 257
    wide[3, 3] ^= 1
    return wide


def wide(array: np.ndarray) -> np.ndarray:
    """uint16: 8 bits times 257."""
    return array.astype(np.uint16) * 257


UNEVEN = "not all values 257 times one of 8 bits"
LOSSY_IMAGES = {
    "a.png": (f"16-bit RGB, {UNEVEN}", lambda path: png16(path, one_off(PHOTO))),
    "grey.png": (f"16-bit I;16, {UNEVEN}", lambda path: png16(path, one_off(GREY))),
    "alpha.png": (
        "RGBA with transparency",
        lambda path: Image.fromarray(with_alpha(PHOTO, 254)).save(path),
    ),
    "wide-alpha.png": (
        f"16-bit RGBA, {UNEVEN}",
        lambda path: png16(path, one_off(with_alpha(PHOTO))),
    ),
    "little.tif": (f"16-bit RGB, {UNEVEN}", lambda path: tiff16(path, one_off(PHOTO), "<")),
    "big.tif": (f"16-bit RGB, {UNEVEN}", lambda path: tiff16(path, one_off(PHOTO), ">")),
    "indexed.png": (
        "P with transparency",
        lambda path: Image.fromarray(PHOTO).quantize(16).save(path, transparency=bytes(16)),
    ),
    "transparent-colour.png": (
        "RGB with transparency",
        lambda path: Image.fromarray(PHOTO).save(path, transparency=tuple(PHOTO[0, 0].tolist())),
    ),
    "wide-transparent-colour.png": (
        "16-bit RGB with transparency",
        lambda path: png16(path, wide(PHOTO), transparency=bytes(6)),
    ),
    "wide-grey-transparent.png": (
        "16-bit I;16 with transparency",
        lambda path: png16(path, wide(GREY), transparency=bytes(2)),
    ),
    "twelve-bits.tif": (
        "12-bit I;16",
        lambda path: tiff16(path, np.zeros((6, 8), np.uint16), "<", bits=12),
    ),
}


@pytest.mark.parametrize("name", LOSSY_IMAGES)
def test_images_that_would_lose_are_refused(data: SegmentationDataset, name: str) -> None:
    found, save = LOSSY_IMAGES[name]
    data.label_paths[0].rename(data.label_paths[0].with_stem(Path(name).stem))
    data = with_image(data, name, save)
    with pytest.raises(BadFile) as caught:
        data.read_image(0)
    assert (caught.value.kind, str(caught.value)) == (
        f"image in pixel format {found}",
        f"image {data.image_paths[0]} has pixel format {found}: save it as 8-bit RGB or greyscale.",
    )


COLORS = colors_of(EXPECTED)
LOSSY_MASKS = {
    "RGBA with transparency": lambda path: Image.fromarray(with_alpha(COLORS, 0)).save(path),
    "LA with transparency": lambda path: Image.fromarray(with_alpha(IDS, 0), "LA").save(path),
    f"16-bit I;16, {UNEVEN}": lambda path: png16(path, one_off(IDS)),
    f"16-bit RGB, {UNEVEN}": lambda path: png16(path, one_off(COLORS)),
    "16-bit I;16 with transparency": lambda path: png16(path, wide(IDS), transparency=bytes(2)),
    "1-bit black and white": lambda path: Image.fromarray(IDS > 3).save(path),
    "4-bit greyscale": lambda path: indexed(IDS % 8).convert("L").save(path, bits=4),
    "32-bit F": lambda path: Image.fromarray(IDS.astype(np.float32)).save(path, "TIFF"),
    "CMYK": lambda path: Image.fromarray(COLORS).convert("CMYK").save(path, "TIFF"),
}


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
@pytest.mark.parametrize("found", LOSSY_MASKS)
def test_masks_that_would_lose_are_refused(data: SegmentationDataset, found: str) -> None:
    LOSSY_MASKS[found](data.label_paths[0])
    with pytest.raises(BadFile) as caught:
        data.read_labels(0)
    with pytest.raises(BadFile, match=re.escape(str(caught.value))):
        data.count_labels(0)
    assert (caught.value.kind, str(caught.value)) == (
        f"mask in pixel format {found}",
        f"mask {data.label_paths[0]} has pixel format {found}: save it as 8-bit ids (grey or "
        "indexed) or RGB colours.",
    )


def test_a_wide_mask_with_an_alpha_channel_is_refused(data: SegmentationDataset) -> None:
    png16(data.label_paths[0], wide(with_alpha(COLORS, 0)))
    with pytest.raises(BadFile, match="has pixel format RGBA with transparency: save it as"):
        data.read_labels(0)


@pytest.mark.parametrize(
    ("format", "more"), [("JPEG", {"quality": 100}), ("GIF", {}), ("WEBP", {"lossless": True})]
)
def test_a_mask_that_is_no_png_inside_is_refused(
    data: SegmentationDataset, format: str, more: dict
) -> None:
    """Also where every value happens to be an id: JPEG mixes neighbours, GIF numbers anew."""
    Image.fromarray(np.full_like(IDS, 3)).save(data.label_paths[0], format, **more)
    with pytest.raises(BadFile) as caught:
        data.read_labels(0)
    assert (caught.value.kind, str(caught.value)) == (
        f"mask that is a {format} inside",
        f"mask {data.label_paths[0]} is a {format} inside, which changes ids and colours: save it "
        "as PNG from the original.",
    )


REASONS = {
    "cannot read {} (it has 0 bytes): ": ("empty", lambda path: path.write_bytes(b"")),
    "{} is a folder: ": ("folder instead of", lambda path: (path.unlink(), path.mkdir())),
    "{} is gone: ": ("gone", lambda path: (path.unlink(), path.symlink_to("nowhere"))),
    "cannot read {} (image file is truncated): ": (
        "damaged",
        lambda path: path.write_bytes(path.read_bytes()[:60]),
    ),
    "cannot read {} (cannot identify image file ": (
        "damaged",
        lambda path: path.write_text("<html>"),
    ),
}


@pytest.mark.parametrize("what", ["image", "mask"])
@pytest.mark.parametrize("words", REASONS)
def test_what_cannot_be_read_says_why(data: SegmentationDataset, words: str, what: str) -> None:
    kind, spoil = REASONS[words]
    path = (data.image_paths if what == "image" else data.label_paths)[0]
    spoil(path)
    with pytest.raises(BadFile) as caught:
        (data.read_image if what == "image" else data.read_labels)(0)
    assert str(caught.value).startswith(words.format(f"{what} {path}"))
    assert caught.value.kind == (kind if kind == "gone" else f"{kind} {what}")


@pytest.mark.parametrize("size", [None, (2, 2)])
def test_counting_refuses_what_reading_refuses(
    data: SegmentationDataset, size: tuple[int, int] | None
) -> None:
    """Ids that stand for nothing, of which a resized mask may have lost some, and another size."""
    data = replace(data, size=size)
    unknown, narrow = IDS.copy(), IDS[:, :-1]
    unknown[0, :2] = (200, 201)
    for wrong in (unknown, narrow):
        Image.fromarray(wrong).save(data.label_paths[0])
        with pytest.raises(BadFile) as reading:
            data.read_labels(0)
        with pytest.raises(BadFile) as counting:
            data.count_labels(0)
        found = [
            (str(each.value), each.value.kind, each.value.unknown) for each in (reading, counting)
        ]
        assert found[0] == found[1]
        assert reading.value.unknown == ({200: 1, 201: 1} if wrong is unknown else {})


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


def exif_bytes(orientation: int) -> bytes:
    """EXIF data of one entry, as the file holds it."""
    return b"Exif\0\0II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 3, 1, orientation, 0)


NO_ORIENTATION = {
    "rubbish": b"Exif\0\0rubbish",
    "cut off": exif_bytes(6)[:20],
    "0": exif_bytes(0),
    "9": exif_bytes(9),
    "65535": exif_bytes(65535),
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("suffix", ["png", "webp"])
@pytest.mark.parametrize("name", NO_ORIENTATION)
def test_an_orientation_that_is_damaged_or_unknown_is_none(
    data: SegmentationDataset, name: str, suffix: str
) -> None:
    more = {"lossless": True} if suffix == "webp" else {}
    photo, given = Image.fromarray(PHOTO), NO_ORIENTATION[name]
    data = with_image(data, f"a.{suffix}", lambda path: photo.save(path, exif=given, **more))
    assert np.array_equal(data.read_image(0), PHOTO)
    assert np.array_equal(data.read_labels(0), EXPECTED)


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
