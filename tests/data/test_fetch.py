"""Fetching from a local HTTP server: resuming, checksums, transfers that break off, archives that
must not be unpacked.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from d3s2.core.errors import D3S2Error
from d3s2.data import fetch
from d3s2.data.benchmarks import FORMATS

CONTENT = bytes(range(256)) * 4000
ALL = [archive for archives in fetch.ARCHIVES.values() for archive in archives]


class Server(ThreadingHTTPServer):
    """Serves `files`; `stop_at` breaks the next transfers off, `plain` takes no ranges;
    `shift` sends pieces that begin elsewhere, `total` announces another length, as servers do that
    are wrong; `asked` lists what was wanted.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {"/data.bin": CONTENT}
        self.stop_at, self.plain, self.version = 0, False, "1"
        self.shift, self.total, self.silent = 0, 0, False
        self.asked: list[tuple[str, str | None]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted, tag = self.headers.get("Range"), f'"{self.server.version}"'
        self.server.asked.append((self.path, wanted))
        body = self.server.files.get(self.path)
        if body is None:
            self.send_error(404)
            return
        first = 0
        if wanted and not self.server.plain and self.headers.get("If-Range") == tag:
            first = int(wanted.removeprefix("bytes=").removesuffix("-"))
            first += self.server.shift
            if first >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.end_headers()
                return
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(body) - first))
        total = self.server.total or len(body)
        if first and not self.server.silent:
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{total}")
        self.send_header("ETag", tag)
        self.end_headers()
        self.wfile.write(body[first : self.server.stop_at or None])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def sha(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def zipped(**files: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def test_a_transfer_that_breaks_off_goes_on_where_it_stopped(
    server: Server, tmp_path: Path
) -> None:
    path, url = tmp_path / "sub" / "data.bin", f"{server.address}/data.bin"
    server.stop_at = 300_000
    with pytest.raises(
        D3S2Error,
        match=rf"300000 of {len(CONTENT)} bytes.*goes on|could not be read.*300000 bytes are kept",
    ):
        fetch.download(url, path, sha(CONTENT))
    assert not path.exists()
    server.stop_at = 0
    assert fetch.download(url, path, sha(CONTENT)).read_bytes() == CONTENT
    assert server.asked == [("/data.bin", None), ("/data.bin", "bytes=300000-")]
    assert [p.name for p in path.parent.iterdir()] == ["data.bin"]
    fetch.download(url, path, sha(CONTENT))
    assert len(server.asked) == 2  # what is there is only checked


@pytest.mark.parametrize("change", ["plain", "version"])
def test_it_begins_anew_where_the_server_cannot_resume_or_has_another_file(
    server: Server, tmp_path: Path, change: str
) -> None:
    path, url = tmp_path / "data.bin", f"{server.address}/data.bin"
    server.stop_at = 1000
    with pytest.raises(D3S2Error):
        fetch.download(url, path)
    server.stop_at = 0
    if change == "plain":
        server.plain = True
    else:
        server.version, server.files["/data.bin"] = "2", CONTENT[::-1]
    assert fetch.download(url, path).read_bytes() == server.files["/data.bin"]


def part(path: Path, content: bytes) -> None:
    """What an earlier call left."""
    path.with_name(f"{path.name}.part").write_bytes(content)
    note = json.dumps({"validator": '"1"', "total": len(CONTENT)})
    path.with_name(f"{path.name}.part.json").write_text(note)


@pytest.mark.parametrize("wrong", ["shift", "total", "silent", "416"])
def test_an_answer_that_does_not_go_on_from_here_begins_anew(
    server: Server, tmp_path: Path, wrong: str
) -> None:
    path = tmp_path / "data.bin"
    part(path, b"not the beginning" if wrong != "416" else CONTENT + b"more")
    server.shift = 5 if wrong == "shift" else 0
    server.total = len(CONTENT) + 1 if wrong == "total" else 0
    server.silent = wrong == "silent"
    assert fetch.download(f"{server.address}/data.bin", path).read_bytes() == CONTENT
    assert [wanted is None for _, wanted in server.asked] == [False, True]
    assert [p.name for p in tmp_path.iterdir()] == ["data.bin"]


def test_a_part_that_is_complete_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    part(tmp_path / "data.bin", CONTENT)
    assert (
        fetch.download(
            f"{server.address}/data.bin", tmp_path / "data.bin", sha(CONTENT)
        ).read_bytes()
        == CONTENT
    )


def test_a_wrong_checksum_deletes_what_was_fetched_and_says_both(
    server: Server, tmp_path: Path
) -> None:
    path, url = tmp_path / "data.bin", f"{server.address}/data.bin"
    found = hashlib.sha1(CONTENT, usedforsecurity=False).hexdigest()
    for _ in range(2):
        with pytest.raises(D3S2Error, match=f"sha1 {found} instead of {'0' * 40}: .* is deleted"):
            fetch.download(url, path, f"sha1:{'0' * 40}")
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(D3S2Error, match="checksum is 'crc:1'"):
        fetch.download(url, path, "crc:1")


def test_nothing_is_destroyed_that_was_not_made_here(server: Server, tmp_path: Path) -> None:
    path, url = tmp_path / "thesis.odt", f"{server.address}/data.bin"
    path.write_bytes(b"years of work")
    for wanted in (sha(CONTENT), "sha256:00"):
        said = f"{sha(b'years of work')[7:]}, not the sha256 {wanted[7:]} .*move it away"
        with pytest.raises(D3S2Error, match=said):
            fetch.download(url, path, wanted)
    fetch.download(url, path)  # without a checksum what is there is said to be there
    assert path.read_bytes() == b"years of work" and server.asked == []
    (tmp_path / "data.bin.part").write_bytes(b"somebody's")
    with pytest.raises(D3S2Error, match="no earlier fetch made it"):
        fetch.download(url, tmp_path / "data.bin", sha(CONTENT))
    assert (tmp_path / "data.bin.part").read_bytes() == b"somebody's"
    with pytest.raises(D3S2Error, match="is a folder"):
        fetch.download(url, tmp_path, sha(CONTENT))


def test_an_archive_that_lay_there_is_kept(server: Server, tmp_path: Path) -> None:
    archive = zipped(a=b"a")
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives" / "a.zip").write_bytes(archive)
    fetch.fetch_dataset((fetch.Archive("http://x/a.zip", sha(archive), 1),), tmp_path)
    assert (tmp_path / "a").read_bytes() == b"a"
    assert (tmp_path / "archives" / "a.zip").read_bytes() == archive


def test_other_addresses_are_asked_in_turn(server: Server, tmp_path: Path) -> None:
    archive = zipped(a=b"a")
    server.files |= {"/2/a.zip": b"another file", "/3/a.zip": archive}
    urls = [f"{server.address}/{number}/a.zip" for number in (1, 2, 3, 4)]
    asked = fetch.Archive(urls[0], sha(archive), 1, elsewhere=tuple(urls[1:]))
    said: list[str] = []
    fetch.fetch_dataset((asked,), tmp_path, said.append)
    assert (tmp_path / "a").read_bytes() == b"a"
    assert [path for path, _ in server.asked] == ["/1/a.zip", "/2/a.zip", "/3/a.zip"]
    assert "answers 404" in said[0] and any("instead of" in line for line in said)
    nowhere = fetch.Archive(urls[0], sha(b""), 1, elsewhere=(urls[1],))
    with pytest.raises(D3S2Error, match="instead of"):
        fetch.fetch_dataset((nowhere,), tmp_path / "other")
    assert all(len(archive.elsewhere) < 1 or archive.checksum for archive in ALL)


def test_every_archive_has_a_checksum_that_is_published_and_is_asked_for_by_https() -> None:
    """But for the masks of COCO-Stuff, of which neither is known."""
    known = [archive for archive in ALL if archive.checksum]
    assert [archive.name for archive in ALL if archive not in known] == [
        "stuffthingmaps_trainval2017.zip"
    ]
    for archive in known:
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", archive.checksum), archive.name
        assert archive.url.startswith("https://") and archive.elsewhere
        assert all(url.endswith(f"/{archive.name}") for url in archive.elsewhere)
        assert len({archive.url, *archive.elsewhere}) == 1 + len(archive.elsewhere)
    hosts = {url.split("/")[2] for url in fetch.ARCHIVES["voc2012"][0].elsewhere}
    assert len(hosts) >= 3


def test_published_weights_carry_their_checksum_in_their_name(
    server: Server, tmp_path: Path
) -> None:
    good = f"/net-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth"
    server.files |= {good: CONTENT, "/net-00000000.pth": CONTENT}
    said: list[str] = []
    assert fetch.download(server.address + good, tmp_path / "a.pth", report=said.append).is_file()
    assert not any("no checksum" in line for line in said)
    with pytest.raises(D3S2Error, match="instead of 00000000"):
        fetch.download(f"{server.address}/net-00000000.pth", tmp_path / "b.pth")
    fetch.download(f"{server.address}/data.bin", tmp_path / "c", report=said.append)
    assert f"data.bin: no checksum is published; {sha(CONTENT)}".replace("data.bin", "c") in said


def test_addresses_that_cannot_be_read_are_a_sentence(server: Server, tmp_path: Path) -> None:
    with pytest.raises(D3S2Error, match="answers 404"):
        fetch.download(f"{server.address}/nothing", tmp_path / "a")
    with pytest.raises(D3S2Error, match="could not be read"):
        fetch.download("http://127.0.0.1:9/a", tmp_path / "a")
    with pytest.raises(D3S2Error, match="must begin with https"):
        fetch.download("file:///etc/passwd", tmp_path / "a")
    assert not (tmp_path / "a").exists()


# ------------------------------------------------------------------------------------------- unpack
def test_a_data_set_is_fetched_unpacked_and_not_fetched_again(
    server: Server, tmp_path: Path
) -> None:
    images, masks = (
        zipped(**{"train/a.jpg": b"image", "train/": b""}),
        zipped(**{"train/a.png": b"mask"}),
    )
    server.files |= {"/images.zip": images, "/masks.zip": masks}
    archives = (
        fetch.Archive("http://elsewhere/images.zip", sha(images), 1, "images"),
        fetch.Archive("http://elsewhere/masks.zip", sha(masks), 1, "annotations"),
    )
    server.files["/masks.zip"] = b"not yet"
    with pytest.raises(D3S2Error, match=r"masks\.zip has sha256"):
        fetch.fetch_dataset(archives, tmp_path, mirror=server.address)
    server.files["/masks.zip"] = masks
    fetch.fetch_dataset(archives, tmp_path, mirror=f"{server.address}/")
    assert [path for path, _ in server.asked] == ["/images.zip", "/masks.zip", "/masks.zip"]
    assert (tmp_path / "images/train/a.jpg").read_bytes() == b"image"
    assert (tmp_path / "annotations/train/a.png").read_bytes() == b"mask"
    assert not list((tmp_path / "archives").iterdir())
    fetch.fetch_dataset(archives, tmp_path, mirror=server.address)
    assert len(server.asked) == 3


def test_unpacking_keeps_what_is_there_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(**{"x/a": b"aaaa", "x/b": b"bbbb"}))
    assert fetch.unpack(tmp_path / "a.zip", tmp_path / "out") == 2
    stamp = (tmp_path / "out/x/a").stat().st_mtime_ns
    (tmp_path / "out/x/b").unlink()
    fetch.unpack(tmp_path / "a.zip", tmp_path / "out")
    assert (tmp_path / "out/x/b").read_bytes() == b"bbbb"
    assert (tmp_path / "out/x/a").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("there", ["file", "folder"])
def test_unpacking_writes_over_nothing(tmp_path: Path, there: str) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(**{"x/a": b"aaaa", "x/b": b"bbbb"}))
    mine = tmp_path / "out/x/b"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"years of work") if there == "file" else mine.mkdir()
    with pytest.raises(D3S2Error, match=r"x/b is there and is not what a\.zip holds"):
        fetch.unpack(tmp_path / "a.zip", tmp_path / "out")
    assert list((tmp_path / "out/x").iterdir()) == [mine]
    assert mine.is_dir() or mine.read_bytes() == b"years of work"


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz"])
def test_an_archive_that_swells_is_refused_before_anything_is_written(
    tmp_path: Path, kind: str
) -> None:
    path, size = tmp_path / f"bomb.{kind}", 20 * 2**20
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("zeros", bytes(size))
    else:
        with tarfile.open(path, f"w:{kind.partition('.')[2]}") as archive:
            info = tarfile.TarInfo("zeros")
            info.size = size
            archive.addfile(info, io.BytesIO(bytes(size)))
    with pytest.raises(D3S2Error, match=f"swells from .* to {size} bytes"):
        fetch.unpack(path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_member_that_says_less_than_it_holds_is_refused(tmp_path: Path) -> None:
    content = zipped(a=bytes(5000))
    real, said = (5000).to_bytes(4, "little"), (10).to_bytes(4, "little")
    (tmp_path / "a.zip").write_bytes(content.replace(real + real, real + said))
    with pytest.raises(D3S2Error, match="is damaged"):
        fetch.unpack(tmp_path / "a.zip", tmp_path / "out")
    assert not list((tmp_path / "out").glob("a"))


def test_a_file_and_a_folder_of_one_name_are_damage(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(**{"x": b"aaaa", "x/b": b"bbbb"}))
    with pytest.raises(D3S2Error, match="is damaged"):
        fetch.unpack(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/d3s2/evil", "a\\..\\evil", "C:/evil"]
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_paths_that_lead_out_are_refused_before_anything_is_written(
    tmp_path: Path, name: str, kind: str
) -> None:
    path = tmp_path / f"bad.{kind}"
    if kind == "zip":
        path.write_bytes(zipped(**{"good": b"1", name: b"2"}))
    else:
        with tarfile.open(path, "w") as archive:
            for member in ("good", name):
                archive.addfile(tarfile.TarInfo(member), io.BytesIO())
    with pytest.raises(D3S2Error, match=r"leads out of the folder.*Nothing was unpacked"):
        fetch.unpack(path, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir()) and not (tmp_path / "evil").exists()


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc/passwd"
        with tarfile.open(tmp_path / "bad.tar", "w") as archive:
            archive.addfile(info)
        with pytest.raises(D3S2Error, match="a link or a device"):
            fetch.unpack(tmp_path / "bad.tar", tmp_path / "out")
    info = zipfile.ZipInfo("link")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(D3S2Error, match="a link or a device"):
        fetch.unpack(tmp_path / "bad.zip", tmp_path / "out")


def test_damaged_archives_are_a_sentence(tmp_path: Path) -> None:
    whole = zipped(a=b"a" * 1000)
    (tmp_path / "page.zip").write_bytes(b"<html>")
    (tmp_path / "flipped.zip").write_bytes(whole.replace(b"a" * 1000, b"a" * 999 + b"b"))
    (tmp_path / "cut.zip").write_bytes(whole[:500])
    with tarfile.open(tmp_path / "whole.tar", "w") as archive:
        info = tarfile.TarInfo("a")
        info.size = 5000
        archive.addfile(info, io.BytesIO(b"a" * 5000))
    (tmp_path / "cut.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[:3000])
    for name in ("page.zip", "flipped.zip", "cut.zip", "cut.tar"):
        with pytest.raises(D3S2Error, match=f"{name}.*fetch it again"):
            fetch.unpack(tmp_path / name, tmp_path / "out" / name)


@pytest.mark.processes
def test_the_command(server: Server, tmp_path: Path) -> None:
    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "d3s2.runs.cli", "fetch", *words],
            capture_output=True,
            text=True,
            check=False,
        )

    done = run(
        "file", f"{server.address}/data.bin", str(tmp_path / "out.bin"), "--checksum", sha(CONTENT)
    )
    assert done.returncode == 0 and (tmp_path / "out.bin").read_bytes() == CONTENT
    server.files["/ADEChallengeData2016.zip"] = zipped(a=b"a")
    done = run("ade20k", str(tmp_path / "ade"), "--mirror", server.address)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    _, _, published = fetch.ARCHIVES["ade20k"][0].checksum.partition(":")
    assert f"instead of {published}" in done.stderr
    assert run("voc2012aug", "x").returncode == 2 and run("file", "x").returncode == 2


def test_every_benchmark_has_its_archives() -> None:
    assert {*fetch.ARCHIVES, "voc2012aug"} == set(FORMATS)
