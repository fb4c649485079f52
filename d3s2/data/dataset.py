"""One small type for every dataset: pairs of image and mask files on disk, read and checked one at
a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from d3s2.core.errors import D3S2Error

IGNORE = 255
"""Train id of pixels that belong to no class; never counted, never trained on."""

_IMAGE_MODES = ("RGB", "L", "P", "CMYK")
_MASK_MODES = ("L", "P", "RGB")
_FINGERPRINT_BYTES = 32 * 1024


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
    """

    name: str
    split: str
    classes: tuple[ClassInfo, ...]
    ids: tuple[str, ...]
    image_paths: tuple[Path, ...]
    label_paths: tuple[Path, ...]
    code: MaskCode
    size: tuple[int, int] | None = None

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
            "there with `data.folder.materialise`."
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
        """uint8[H, W, 3]. Raises D3S2Error for a damaged file, 16 bits, or an alpha channel."""
        with _open(self.image_paths[index], _IMAGE_MODES, "image") as image:
            picture = image.convert("RGB")
        if self.size is not None:
            picture = picture.resize(self.size[::-1], Image.Resampling.BILINEAR)
        return np.array(picture)

    def read_labels(self, index: int) -> np.ndarray:
        """uint8[H, W] of train ids, IGNORE = 255.

        Raises D3S2Error for a damaged file, a mode other than 8-bit ids or RGB, an id or a colour
        that stands for no class, and a size other than the image's.
        """
        path = self.label_paths[index]
        with _open(path, _MASK_MODES, "mask") as mask:
            if mask.mode == "RGB":
                labels = _from_colors(np.array(mask), self.code, path)
            else:
                labels = _from_ids(np.array(mask), self.code, path)
        self._check_size(index, labels)
        if self.size is not None:
            mask = Image.fromarray(labels).resize(self.size[::-1], Image.Resampling.NEAREST)
            labels = np.array(mask)
        return labels

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
        """sha256 (hex) over classes, size, ids and file contents; free of paths.

        Files above 64 KiB count with their length, their first and their last 32 KiB, so that it
        stays quick.
        """
        facts = (self.classes, self.size, self.ids, self.code.to_train)
        digest = hashlib.sha256(repr(facts).encode())
        for path in (*self.image_paths, *self.label_paths):
            digest.update(_file_token(path))
        return digest.hexdigest()

    def _check_size(self, index: int, labels: np.ndarray) -> None:
        with _open(self.image_paths[index], _IMAGE_MODES, "image", load=False) as image:
            width, height = image.size
        if labels.shape != (height, width):
            raise D3S2Error(
                f"{self.label_paths[index]} is {labels.shape[1]}x{labels.shape[0]} pixels but its "
                f"image {self.image_paths[index].name} is {width}x{height}: save both at one size."
            )


def _open(path: Path, modes: tuple[str, ...], kind: str, load: bool = True) -> Image.Image:
    """A picture in one of these pixel formats. load: False reads no pixel, and checks no format."""
    try:
        image = Image.open(path)
        if load:
            image.load()
    except FileNotFoundError as error:
        raise D3S2Error(f"{kind} {path} is gone: put it back or prepare the data again.") from error
    except (
        OSError,
        SyntaxError,
        ValueError,
        UnidentifiedImageError,
        Image.DecompressionBombError,
    ) as error:
        raise D3S2Error(
            f"cannot read {kind} {path} ({error}): the file is damaged, save or copy it again."
        ) from error
    found = _pixel_format(path, image, kind) if load else image.mode
    if load and found not in modes:
        image.close()
        wanted = (
            "8-bit RGB or greyscale"
            if kind == "image"
            else "8-bit ids (grey or indexed) or RGB colours"
        )
        raise D3S2Error(f"{kind} {path} has pixel format {found}: save it as {wanted}.")
    return image


def _pixel_format(path: Path, image: Image.Image, kind: str) -> str:
    """Pillow's mode, or words for what Pillow would change in silence.

    It narrows 16-bit RGB to 8 bits, stretches 2- and 4-bit grey values (id 1 of 4 bits becomes 17),
    drops alpha.
    """
    with open(path, "rb") as stream:
        head = stream.read(25)
    bits = head[24] if len(head) == 25 and head.startswith(b"\x89PNG\r\n\x1a\n") else 8
    if bits == 16:
        return f"16-bit {image.mode}"
    if kind == "mask" and bits < 8 and image.mode == "L":
        return f"{bits}-bit greyscale"
    if kind == "image" and "transparency" in image.info:
        return f"{image.mode} with transparency"
    return image.mode


def _from_ids(raw: np.ndarray, code: MaskCode, path: Path) -> np.ndarray:
    """uint8[H, W] train ids of a mask's uint8[H, W] ids."""
    labels = np.array(code.to_train, dtype=np.int16)[raw]
    if (labels < 0).any():
        wrong = sorted({int(value) for value in raw[labels < 0]})
        remedy = code.remedy or "add the class there, or write 255 (ignore) in the mask."
        raise D3S2Error(
            f"mask {path} holds id {', '.join(map(str, wrong[:5]))}, which {code.source} does not "
            f"list: {remedy}"
        )
    return labels.astype(np.uint8)


def _from_colors(raw: np.ndarray, code: MaskCode, path: Path) -> np.ndarray:
    """uint8[H, W] train ids of a mask's uint8[H, W, 3] colours."""
    packed = raw.astype(np.int64) @ np.array([65536, 256, 1])
    values, inverse = np.unique(packed, return_inverse=True)
    colors = [(int(value) >> 16, (int(value) >> 8) & 255, int(value) & 255) for value in values]
    wrong = [color for color in colors if color not in code.colors]
    if wrong:
        remedy = code.remedy or (
            "add the colour there; and save masks as PNG, since JPEG changes colours."
        )
        raise D3S2Error(
            f"mask {path} holds colour {wrong[0]} (one of {len(wrong)} unknown), which "
            f"{code.source} does not list: {remedy}"
        )
    table = np.array([code.colors[color] for color in colors], dtype=np.uint8)
    return table[inverse].reshape(packed.shape)


def _file_token(path: Path) -> bytes:
    """Length and SHA-256 of what a fingerprint reads of a file."""
    try:
        with open(path, "rb") as stream:
            length = stream.seek(0, 2)
            stream.seek(0)
            whole = length <= 2 * _FINGERPRINT_BYTES
            content = stream.read(length if whole else _FINGERPRINT_BYTES)
            if not whole:
                stream.seek(-_FINGERPRINT_BYTES, 2)
                content += stream.read()
    except OSError as error:
        raise D3S2Error(
            f"cannot read {path} ({error.strerror}): put the file back or prepare the data again."
        ) from error
    return length.to_bytes(8, "big") + hashlib.sha256(content).digest()
