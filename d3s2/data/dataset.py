"""One small type for every dataset: pairs of image and mask files on disk, read and checked one at
a time.
"""

from __future__ import annotations

import hashlib
import struct
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from d3s2.core.errors import D3S2Error
from d3s2.core.files import hash_files

IGNORE = 255
"""Train id of pixels that belong to no class; never counted, never trained on."""

_MODES = {"image": ("RGB", "L", "P", "CMYK", "1"), "mask": ("L", "P", "RGB")}
_EXACT = ("PNG", "TIFF", "BMP")
"""Formats of files that keep a mask's ids and colours, whatever the file is called. JPEG and lossy
WebP change colours, and a GIF may number them anew.
"""
_WANTED = {
    "image": "8-bit RGB or greyscale",
    "mask": "8-bit ids (grey or indexed) or RGB colours",
}
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture of each EXIF orientation upright."""
_SIDEWAYS = (5, 6, 7, 8)
"""EXIF orientations that swap height and width."""
_OTHER_HALF = {"B": "L", "L": "B", "N": {"little": "B", "big": "L"}[sys.byteorder]}
"""Pillow reads the upper byte of 16 bits; told the other order of bytes, it reads the lower one."""


class BadFile(D3S2Error):
    """An image or a mask that cannot be read as it is.

    kind: what many files can have in common, in a few words; unknown: the ids and colours of a mask
    that stand for no class, each with its number of pixels.
    """

    def __init__(
        self,
        kind: str,
        message: str,
        unknown: dict[int | tuple[int, int, int], int] | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.unknown = unknown or {}

    def __reduce__(self) -> tuple[type, tuple[object, ...]]:
        """Whole, also on its way back from another process."""
        return type(self), (self.kind, str(self), self.unknown)


@dataclass(frozen=True)
class ClassInfo:
    """A class and the colour it is drawn in, 8 bits a channel."""

    name: str
    color: tuple[int, int, int]


@dataclass(frozen=True)
class MaskCode:
    """How mask files write the classes: `to_train[id]` and `colors[rgb]` give train ids, or IGNORE.

    to_train: 256 entries, -1 for an id that stands for nothing; colors: {(r, g, b): train id} for
    RGB masks.
    remedy: what to do about an id or a colour that stands for nothing, where that is not to list it
    in `source`.
    """

    to_train: tuple[int, ...]
    colors: dict[tuple[int, int, int], int]
    source: str
    remedy: str = ""


@dataclass(frozen=True)
class SegmentationDataset:
    """Image and mask files of one split, in the sorted order of their ids. Nothing is cached.

    size: (H, W) that the readers resize to (image: bilinear with antialiasing; mask: nearest), None
    = as on disk.
    hashes: how `fingerprint` gets the SHA-256 of files, such as from a memory of earlier ones.
    """

    name: str
    split: str
    classes: tuple[ClassInfo, ...]
    ids: tuple[str, ...]
    image_paths: tuple[Path, ...]
    label_paths: tuple[Path, ...]
    code: MaskCode
    size: tuple[int, int] | None = None
    hashes: Callable[[Sequence[Path]], list[str]] = field(
        default=hash_files, compare=False, repr=False
    )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def root(self) -> Path:
        """The folder of a data set in the ordinary layout, of which the images lie in
        `<root>/<split>/images` (see `data.folder`).

        Raises D3S2Error for a data set in another layout, and for one without an image.
        """
        for path in self.image_paths[:1]:
            if path.parts[-3:-1] == (self.split, "images"):
                return path.parents[2]
        raise D3S2Error(
            f"{self.name}/{self.split} does not lie in a folder of the ordinary layout: write it "
            "there with `data.preparing.materialise`."
        )

    @property
    def num_classes(self) -> int:
        """C."""
        return len(self.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names in train-id order."""
        return tuple(info.name for info in self.classes)

    @property
    def palette(self) -> np.ndarray:
        """uint8[C, 3]."""
        return np.array([info.color for info in self.classes], dtype=np.uint8)

    def read_image(self, index: int) -> np.ndarray:
        """uint8[H, W, 3], upright: an EXIF orientation is applied. 16 bits that are 8 bits times
        257, and an alpha channel that is opaque everywhere, lose nothing.

        Raises D3S2Error for a damaged file, true 16 bits, and true transparency.
        """
        with _picture(self.image_paths[index], "image") as image:
            picture = image.convert("RGB")
        if self.size is not None:
            picture = picture.resize(self.size[::-1], Image.Resampling.BILINEAR)
        return np.array(picture)

    def read_labels(self, index: int) -> np.ndarray:
        """uint8[H, W] of train ids, IGNORE = 255. Opaque alpha and 16 bits as in `read_image`.

        Raises D3S2Error for a damaged file, pixels that are neither 8-bit ids nor RGB, an EXIF
        orientation (of the tools that draw masks some apply it and some do not, so that nobody can
        tell how the ids lie), an id or a colour that stands for no class, and a size other than the
        image's.
        """
        with _picture(self.label_paths[index], "mask") as mask:
            return self._labels(mask, index)

    def count_labels(self, index: int) -> np.ndarray:
        """int64[256]: how many pixels of `read_labels` have each train id, and IGNORE; raises as it
        does. A mask of ids is counted before its ids become train ids: half the time.
        """
        path = self.label_paths[index]
        with _picture(path, "mask") as mask:
            if mask.mode == "RGB":
                return np.bincount(self._labels(mask, index).ravel(), minlength=256)
            pixels = np.array(mask.histogram())
            _check_ids(pixels, self.code, path)
            self._check_size(index, mask.size[::-1])
            if self.size is not None:
                small = mask.resize(self.size[::-1], Image.Resampling.NEAREST)
                pixels = np.array(small.histogram())
        there = np.flatnonzero(pixels)
        counts = np.zeros(256, dtype=np.int64)
        np.add.at(counts, np.array(self.code.to_train)[there], pixels[there])
        return counts

    def has_labels(self) -> bool:
        """Whether any pixel of any mask has a class; masks are read up to the first such one.

        Raises D3S2Error for every mask that `read_labels` refuses.
        """
        return any((self.read_labels(index) != IGNORE).any() for index in range(len(self)))

    def subset(self, indices: Sequence[int] | np.ndarray) -> SegmentationDataset:
        """The images at these positions, in the order given. Raises D3S2Error for a position
        outside the dataset.
        """
        chosen = [int(index) for index in indices]
        for index in chosen:
            if not 0 <= index < len(self):
                raise D3S2Error(
                    f"index {index} is outside {self.name}/{self.split}: it has {len(self)} images."
                )
        return replace(
            self,
            ids=tuple(self.ids[index] for index in chosen),
            image_paths=tuple(self.image_paths[index] for index in chosen),
            label_paths=tuple(self.label_paths[index] for index in chosen),
        )

    def fingerprint(self) -> str:
        """sha256 (hex) over classes, size, ids, what the masks' ids and colours stand for, and
        every byte of every file; free of paths.
        """
        colors = sorted(self.code.colors.items())
        facts = (self.classes, self.size, self.ids, self.code.to_train, colors)
        digest = hashlib.sha256(repr(facts).encode())
        for found in self.hashes((*self.image_paths, *self.label_paths)):
            digest.update(bytes.fromhex(found))
        return digest.hexdigest()

    def _labels(self, mask: Image.Image, index: int) -> np.ndarray:
        """The train ids of an opened mask, at the readers' size."""
        path = self.label_paths[index]
        if mask.mode == "RGB":
            labels = _from_colors(np.array(mask), self.code, path)
        else:
            labels = _from_ids(np.array(mask), self.code, path)
        self._check_size(index, labels.shape)
        if self.size is not None:
            small = Image.fromarray(labels).resize(self.size[::-1], Image.Resampling.NEAREST)
            labels = np.array(small)
        return labels

    def _check_size(self, index: int, shape: tuple[int, ...]) -> None:
        """Raise BadFile where a mask's (H, W) is not its image's."""
        path = self.image_paths[index]
        width, height, turned = _upright_size(path)
        if shape != (height, width):
            raise BadFile(
                "image and mask of different sizes",
                f"{self.label_paths[index]} is {shape[1]}x{shape[0]} pixels but its "
                f"image {path.name} is {width}x{height}{turned}: save both at one size.",
            )


# --------------------------------------------------------------------------------- files to pixels
def _opened(path: Path, kind: str, prepare: Callable[[Image.Image], None]) -> Image.Image:
    """A picture, after `prepare` has changed or loaded it. Raises BadFile for a damaged file."""
    try:
        image = Image.open(path)
        prepare(image)
    except IsADirectoryError as error:
        raise BadFile(
            f"folder instead of {kind}",
            f"{kind} {path} is a folder: put a file of that name there.",
        ) from error
    except FileNotFoundError as error:
        raise BadFile(
            "gone", f"{kind} {path} is gone: put it back or prepare the data again."
        ) from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
    ) as error:
        empty = path.is_file() and not path.stat().st_size
        raise BadFile(
            f"empty {kind}" if empty else f"damaged {kind}",
            f"cannot read {kind} {path} ({'it has 0 bytes' if empty else error}): the file is "
            "damaged or of a kind that is not read here, save or copy it again.",
        ) from error
    return image


def _picture(path: Path, kind: str) -> Image.Image:
    """All pixels in 8 bits without alpha, upright. Raises BadFile where that would lose
    anything.
    """
    bits = []

    def load(image: Image.Image) -> None:
        if kind == "mask" and image.format not in _EXACT:
            raise BadFile(
                f"mask that is a {image.format} inside",
                f"mask {path} is a {image.format} inside, which changes ids and colours: save it "
                "as PNG from the original.",
            )
        bits.append(_bits(image, path))
        if image.format == "TIFF":
            image.filename = ""  # Pillow 13 maps a plain file that EXIF turns sideways as it lies
        image.load()

    image = _opened(path, kind, load)
    if bits[0] > 8:
        image = _narrowed(image, path, kind, bits[0])
    elif kind == "mask" and bits[0] < 8 and image.mode == "L":  # Pillow stretches: id 1 becomes 17
        raise _refused(path, kind, f"{bits[0]}-bit greyscale")
    image = _without_alpha(image, path, kind)
    if image.mode not in _MODES[kind]:
        raise _refused(path, kind, "1-bit black and white" if image.mode == "1" else image.mode)
    orientation = _orientation(image)
    if orientation == 1:
        return image
    if kind == "mask":
        raise BadFile(
            "mask with an EXIF orientation",
            f"mask {path} carries the EXIF orientation {orientation}, which may or may not have "
            "been applied to its ids: save it upright and without EXIF.",
        )
    return image.transpose(_UPRIGHT[orientation])


def _refused(path: Path, kind: str, found: str) -> BadFile:
    return BadFile(
        f"{kind} in pixel format {found}",
        f"{kind} {path} has pixel format {found}: save it as {_WANTED[kind]}.",
    )


def _bits(image: Image.Image, path: Path) -> int:
    """Bits a channel as the file holds them; Pillow narrows 16-bit colours in silence."""
    if image.format == "PNG":
        with open(path, "rb") as stream:
            return stream.read(25)[24]
    if image.format == "TIFF":
        return max(image.tag_v2.get(ExifTags.Base.BitsPerSample, (1,)))
    return 8


def _narrowed(image: Image.Image, path: Path, kind: str, bits: int) -> Image.Image:
    """The 8 bits of a picture of 16 whose every value is 257 times one of 8, upper byte = lower
    byte. Raises BadFile for all else.
    """
    if bits != 16:
        raise _refused(path, kind, f"{bits}-bit {image.mode}")
    if "transparency" in image.info:
        raise _refused(path, kind, f"16-bit {image.mode} with transparency")
    refused = _refused(path, kind, f"16-bit {image.mode}, not all values 257 times one of 8 bits")
    if image.mode.startswith("I;16"):
        values = np.array(image)
        if (values % 257).any():
            raise refused
        narrow = Image.fromarray((values // 257).astype(np.uint8))
        narrow.info = image.info  # with the EXIF data, if any
        return narrow
    try:
        with Image.open(path) as lower:
            lower.tile = [_other_half(tile) for tile in lower.tile]
            lower.load()
            same = lower.tobytes() == image.tobytes()
    except (OSError, ValueError, KeyError, SyntaxError) as error:
        raise refused from error
    if not same:
        raise refused
    return image


def _other_half(tile: tuple) -> tuple:
    """A tile of 16-bit pixels whose other byte is read. Raises ValueError when it is none."""
    arguments = tile.args if isinstance(tile.args, tuple) else (tile.args,)
    raw = arguments[0]
    if not raw[:-1].endswith(";16"):
        raise ValueError(f"no 16 bits a channel: {raw}")
    changed = (raw[:-1] + _OTHER_HALF[raw[-1]], *arguments[1:])
    return tile._replace(args=changed)


def _without_alpha(image: Image.Image, path: Path, kind: str) -> Image.Image:
    """The picture without an alpha channel that is opaque everywhere. Raises BadFile where it is
    not. A mask's ids and colours are what they are, whatever a transparent one looks like.
    """
    plain = {"RGBA": "RGB", "LA": "L"}.get(image.mode)
    if plain is None and (kind == "mask" or "transparency" not in image.info):
        return image
    alpha = image.convert("RGBA").getchannel("A")
    if alpha.getextrema()[0] < 255:
        raise _refused(path, kind, f"{image.mode} with transparency")
    return image.convert(plain or "RGB")


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 = upright, also where EXIF is damaged. Pillow turns a TIFF."""
    if image.format == "TIFF":
        return 1
    try:  # the method of PNG files would decode all pixels first
        exif = Image.Image.getexif(image) if image.info else {}
    except (SyntaxError, ValueError, TypeError, KeyError, OSError, struct.error):
        return 1
    found = exif.get(ExifTags.Base.Orientation, 1)
    return found if found in _UPRIGHT else 1


def _upright_size(path: Path) -> tuple[int, int, str]:
    """(W, H) of an image without reading a pixel, and words for its EXIF orientation."""
    with _opened(path, "image", lambda image: None) as image:
        width, height = image.size
        orientation = _orientation(image)
    words = "" if orientation == 1 else f" (its EXIF orientation {orientation} applied)"
    return (height, width, words) if orientation in _SIDEWAYS else (width, height, words)


# --------------------------------------------------------------------------------- pixels to labels
def _from_ids(raw: np.ndarray, code: MaskCode, path: Path) -> np.ndarray:
    """uint8[H, W] train ids of a mask's uint8[H, W] ids."""
    labels = np.array(code.to_train, dtype=np.int16)[raw]
    if (labels < 0).any():
        _check_ids(np.bincount(raw.ravel()), code, path)
    return labels.astype(np.uint8)


def _check_ids(pixels: np.ndarray, code: MaskCode, path: Path) -> None:
    """Raise BadFile where a mask has ids that stand for nothing. pixels: of each id, up to 256."""
    wrong = np.array(code.to_train[: len(pixels)]) < 0
    unknown = {int(id_): int(pixels[id_]) for id_ in np.flatnonzero(wrong & (pixels > 0))}
    if not unknown:
        return
    remedy = code.remedy or "add the class there, or write 255 (ignore) in the mask."
    first = ", ".join(map(str, list(unknown)[:5]))
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    raise BadFile(
        "mask with an unknown id",
        f"mask {path} holds id {first}{more}, which {code.source} does not list: {remedy}",
        unknown,
    )


def _from_colors(raw: np.ndarray, code: MaskCode, path: Path) -> np.ndarray:
    """uint8[H, W] train ids of a mask's uint8[H, W, 3] colours, or of ids written thrice."""
    packed = raw.astype(np.int64) @ np.array([65536, 256, 1])
    values, inverse, counts = np.unique(packed, return_inverse=True, return_counts=True)
    colors = [(int(value) >> 16, (int(value) >> 8) & 255, int(value) & 255) for value in values]
    wrong = [index for index, color in enumerate(colors) if color not in code.colors]
    if not wrong:
        table = np.array([code.colors[color] for color in colors], dtype=np.uint8)
        return table[inverse]
    grey = bool(code.colors) and all(red == green == blue for red, green, blue in colors)
    known = grey and all(code.to_train[red] >= 0 for red, _, _ in colors)
    if known and _grey_is_clear(code):
        return _from_ids(raw[..., 0], code, path)
    remedy = code.remedy or (
        "its channels are equal, as if they were ids, but a grey there means another class than "
        "the id of that value: save ids in one channel."
        if known
        else "add the colour there. Where colours are many and not meant, the mask was smoothed or "
        "was a JPEG once: make it anew."
        if len(wrong) > 20
        else "add the colour there."
    )
    one_of = f" (one of {len(wrong)} unknown)" if len(wrong) > 1 else ""
    raise BadFile(
        "mask with an unknown colour",
        f"mask {path} holds colour {colors[wrong[0]]}{one_of}, which {code.source} does not list: "
        f"{remedy}",
        {colors[index]: int(counts[index]) for index in wrong},
    )


def _grey_is_clear(code: MaskCode) -> bool:
    """True when no grey (v, v, v) of the colours means another class than the id v: then a mask of
    three equal channels has one meaning.
    """
    return all(
        code.to_train[red] in (-1, train)
        for (red, green, blue), train in code.colors.items()
        if red == green == blue
    )
