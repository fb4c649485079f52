"""Fetch the public data sets and published weights: resumed where it broke off, checked, unpacked
safely.

    d3s2 fetch ade20k /data/ade20k                     the archives of a data set, unpacked; then -p
    data_root=/data/ade20k d3s2 fetch file https://…/weights-1a2b3c4d.pth out.pth --checksum
    sha256:…

A file is written beside its place as `.part` and takes its name when it is whole and has the
published checksum. Where none is published the SHA-256 found is printed: keep it. Mind each data
set's terms of use.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import IO

from d3s2.core.errors import D3S2Error
from d3s2.core.files import atomic_path, read_json, write_json

CHUNK = 2**20
TIMEOUT = 60
_DONE = ".d3s2-fetched.json"
_PUBLISHED = re.compile(r"-([0-9a-f]{8,64})\.(pth|pt|safetensors)$")
Report = Callable[[str], None]


@dataclass(frozen=True)
class Archive:
    """An archive of a data set. checksum: "sha1:…", "md5:…" or "sha256:…", of which a beginning is
    enough; "" = not published. into: subfolder it is unpacked in; size: about, in bytes.
    """

    url: str
    checksum: str
    size: float
    into: str = ""

    @property
    def name(self) -> str:
        """File name."""
        return self.url.rsplit("/", 1)[-1]


_COCO = "http://images.cocodataset.org/zips/"
_STUFF = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip"
_VOC = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/VOCtrainval_11-May-2012.tar"
ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "ade20k": (
        Archive(
            "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
            "sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
            1e9,
        ),
    ),
    "cocostuff": (
        Archive(
            f"{_COCO}train2017.zip", "sha1:10ad623668ab00c62c096f0ed636d6aff41faca5", 19e9, "images"
        ),
        Archive(
            f"{_COCO}val2017.zip", "sha1:4950dc9d00dbe1c933ee0170f5797584351d2a41", 0.8e9, "images"
        ),
        Archive(_STUFF, "", 0.7e9, "annotations"),
    ),
    "voc2012": (Archive(_VOC, "md5:6cd6e144f989b92b3379bac3b3de84fd", 2e9),),
}
"""The sums are those that torchvision (VOC) and GluonCV (ADE20K, COCO) check; we have not fetched
the archives ourselves.
"""


def fetch_dataset(
    archives: tuple[Archive, ...],
    folder: Path,
    report: Report = print,
    mirror: str = "",
    keep: bool = False,
) -> None:
    """Fetch and unpack what is not yet there. mirror: an address that holds the archives under
    their names instead.

    keep: leave the archives in `<folder>/archives`; False deletes each once it is unpacked.
    Raises D3S2Error for everything that `download` and `unpack` find; the same call goes on from
    there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = read_json(folder / _DONE) if (folder / _DONE).is_file() else []
    for archive in archives:
        if archive.name in done:
            report(f"{archive.name}: done before")
            continue
        url = f"{mirror.rstrip('/')}/{archive.name}" if mirror else archive.url
        path = download(url, folder / "archives" / archive.name, archive.checksum, report)
        count = unpack(path, folder / archive.into)
        report(f"{archive.name}: {count} files unpacked")
        done.append(archive.name)
        write_json(folder / _DONE, done)
        if not keep:
            path.unlink()


# ----------------------------------------------------------------------------------------- download
def download(url: str, path: Path, checksum: str = "", report: Report = print) -> Path:
    """Fetch a file, from where an earlier call broke off; one that is there is only checked.

    checksum: as in `Archive`; without one, the digits that published weights carry in their name
    count as SHA-256.
    Raises D3S2Error for an address that cannot be read, a transfer that breaks off, a full disk and
    a wrong checksum.
    """
    if not url.startswith(("http://", "https://")):
        raise D3S2Error(
            f"{url} is no address to fetch from: it must begin with https:// or http://."
        )
    match = _PUBLISHED.search(url)
    checksum = checksum or (f"sha256:{match[1]}" if match else "")
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        _transfer(url, part, report)
        _verify(part, checksum, report)
        os.replace(part, path)
        _etag_file(part).unlink(missing_ok=True)
    else:
        _verify(path, checksum, report)
    return path


def _transfer(url: str, part: Path, report: Report) -> None:
    start = part.stat().st_size if part.is_file() and _etag_file(part).is_file() else 0
    headers = {"User-Agent": "d3s2", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": _etag_file(part).read_text()}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - `download` lets http and https pass alone
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:  # noqa: S310 - as above
            _receive(response, part, start, report)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is left to send: the checksum decides
            return
        raise D3S2Error(
            f"{url} answers {error.code} {error.reason}: check the address, or fetch it by hand."
        ) from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise D3S2Error(
            f"{url} could not be read ({reason}); {_size(part)} bytes are kept. The same command "
            "goes on from there."
        ) from error


def _receive(response: HTTPResponse, part: Path, start: int, report: Report) -> None:
    """Append what was asked for, or begin anew where the server sends the whole, because it cannot
    resume or has another file.
    """
    resumed = response.status == 206
    start = start if resumed else 0
    length = response.headers.get("Content-Length")
    total = start + int(length) if length else None
    validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    if total is not None and shutil.disk_usage(part.parent).free < total - start:
        raise D3S2Error(
            f"{part.parent} has too little room for {total - start} more bytes: free some, or "
            "choose another folder."
        )
    if validator and not validator.startswith("W/"):
        _etag_file(part).write_text(validator)
    report(
        f"{part.name.removesuffix('.part')}: {f'on from {start} ' if start else ''}of "
        f"{total if total is not None else 'unknown'} bytes"
    )
    with open(part, "ab" if resumed else "wb") as stream:
        _copy(response, stream)
    if total is not None and _size(part) != total:
        raise D3S2Error(
            f"{part.name.removesuffix('.part')} broke off at {_size(part)} of {total} bytes. The "
            "same command goes on from there."
        )


def _copy(source: IO[bytes], target: IO[bytes]) -> None:
    while chunk := source.read(CHUNK):
        target.write(chunk)


def _etag_file(part: Path) -> Path:
    """What the server calls the version that a part belongs to."""
    return part.with_name(f"{part.name}.etag")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _verify(path: Path, checksum: str, report: Report) -> None:
    kind, _, wanted = checksum.partition(":")
    if checksum and (kind not in ("md5", "sha1", "sha256") or not wanted):
        raise D3S2Error(
            f"checksum is {checksum!r}: write md5:…, sha1:… or sha256:… with its digits."
        )
    with open(path, "rb") as stream:
        found = hashlib.file_digest(stream, kind or "sha256").hexdigest()
    if not checksum:
        report(f"{path.name.removesuffix('.part')}: no checksum is published; sha256:{found}")
    elif not found.startswith(wanted.lower()):
        for leftover in (path, _etag_file(path)):
            leftover.unlink(missing_ok=True)
        raise D3S2Error(
            f"{path.name.removesuffix('.part')} has {kind} {found} instead of {wanted}: it was "
            "deleted. Fetch it again; if that does not help, its owner has changed it."
        )


# ------------------------------------------------------------------------------------------- unpack
def unpack(archive: Path, folder: Path) -> int:
    """Unpack a .zip or .tar into a folder; returns the number of files. Files that are there at
    their size are kept.

    Raises D3S2Error, before anything is written, for members that lead out of the folder, links and
    devices; for a damaged archive; and for too little room.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    try:
        with _Members(archive) as members:
            members.check(folder)
            for name, size, source in members:
                target = folder / name
                if not (target.is_file() and target.stat().st_size == size):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with (
                        atomic_path(target) as partial,
                        source() as stream,
                        open(partial, "wb") as out,
                    ):
                        _copy(stream, out)
                count += 1
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError) as error:
        raise D3S2Error(f"{archive} is damaged ({error}): delete it and fetch it again.") from error
    return count


class _Members:
    """The files of a zip or tar alike: (name, size, a function that opens it)."""

    def __init__(self, archive: Path) -> None:
        self.path = archive
        if not zipfile.is_zipfile(archive) and not tarfile.is_tarfile(archive):
            raise D3S2Error(
                f"{archive} is no zip or tar archive: it is damaged or a web page, delete it and "
                "fetch it again."
            )
        self.file: zipfile.ZipFile | tarfile.TarFile
        if zipfile.is_zipfile(archive):
            self.file = zipfile.ZipFile(archive)
        else:
            self.file = tarfile.open(archive)  # noqa: SIM115 - `__exit__` closes it

    def __enter__(self) -> _Members:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def entries(self) -> Iterator[tuple[str, int, bool, bool]]:
        """(name, size, is a folder, is a plain file) of all members."""
        if isinstance(self.file, zipfile.ZipFile):
            for info in self.file.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                yield info.filename, info.file_size, info.is_dir(), kind in (0, stat.S_IFREG)
        else:
            for member in self.file.getmembers():
                yield member.name, member.size, member.isdir(), member.isreg()

    def check(self, folder: Path) -> None:
        """Raises D3S2Error for what must not be unpacked."""
        total = 0
        for name, size, is_folder, is_plain in self.entries():
            pure = PurePosixPath(name)
            if (
                pure.is_absolute()
                or ".." in pure.parts
                or "\\" in name
                or ":" in name.partition("/")[0]
            ):
                raise D3S2Error(
                    f"{self.path} holds {name!r}, which leads out of the folder: do not trust it. "
                    "Nothing was unpacked."
                )
            if not is_folder and not is_plain:
                raise D3S2Error(
                    f"{self.path} holds {name!r}, a link or a device: do not trust it. Nothing was "
                    "unpacked."
                )
            total += size
        if shutil.disk_usage(folder).free < total:
            raise D3S2Error(
                f"{folder} has too little room for the {total} bytes of {self.path.name}: free "
                "some, or choose another folder."
            )

    def __iter__(self) -> Iterator[tuple[str, int, Callable[[], IO[bytes]]]]:
        for name, size, is_folder, _ in self.entries():
            if not is_folder:
                yield name, size, lambda name=name: self._open(name)

    def _open(self, name: str) -> IO[bytes]:
        if isinstance(self.file, zipfile.ZipFile):
            return self.file.open(name)
        return self.file.extractfile(name)
