"""`d3s2 fetch --profile`: data and models from a server on this machine, each in its place."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from d3s2.core.errors import D3S2Error
from d3s2.core.files import write_json
from d3s2.data import fetch
from d3s2.data.miniatures import write_miniature
from d3s2.models.stand_ins import write_diffusion
from d3s2.runs import config, provisions

COMMIT = "c" * 40


class Hub(ThreadingHTTPServer):
    """The few routes of the hub that a snapshot needs, over folders by "owner/name"; and `files` by
    path. `asked`: the paths that were sent.
    """

    def __init__(self, models: dict[str, Path]) -> None:
        super().__init__(("127.0.0.1", 0), Routes)
        self.models = models
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.revisions: set[str] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Routes(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = self.path.partition("?")[0]
        content, headers = self._find(path)
        self.send_response(404 if content is None else 200)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if body and content is not None:
            self.server.asked.append(path)
            self.wfile.write(content)

    def _find(self, path: str) -> tuple[bytes | None, dict[str, str]]:
        if path in self.server.files:
            return self.server.files[path], {}
        for name, folder in self.server.models.items():
            names = [one.relative_to(folder).as_posix() for one in folder.rglob("*.*")]
            names = [one for one in names if (folder / one).is_file()]
            if path.startswith(f"/api/models/{name}/revision/"):
                self.server.revisions.add(path.rsplit("/", 1)[-1])
                listed = [{"rfilename": one} for one in sorted(names)]
                found = {"id": name, "sha": COMMIT, "siblings": listed}
                return json.dumps(found).encode(), {"Content-Type": "application/json"}
            if path == f"/api/models/{name}/tree/{COMMIT}":
                sizes = {one: (folder / one).stat().st_size for one in sorted(names)}
                tree = [
                    {"type": "file", "path": one, "size": size, "oid": "0"}
                    for one, size in sizes.items()
                ]
                return json.dumps(tree).encode(), {"Content-Type": "application/json"}
            prefix = f"/{name}/resolve/{COMMIT}/"
            if path.startswith(prefix) and path.removeprefix(prefix) in names:
                content = (folder / path.removeprefix(prefix)).read_bytes()
                tag = hashlib.sha256(content).hexdigest()
                return content, {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT}
        return None, {}

    def log_message(self, *arguments: object) -> None:
        """Says nothing."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    model, control = write_diffusion(tmp_path / "published")
    running = Hub({"somebody/model": Path(model), "somebody/control": Path(control)})
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield running
    running.shutdown()


def zipped(folder: Path) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path in sorted(folder.rglob("*.*")):
            archive.write(path, path.relative_to(folder))
    return stream.getvalue()


FETCH = """
import sys
from d3s2.data import fetch
from d3s2.models import mmseg_proxy
from d3s2.runs import cli, model_choice, provisions
address, digest = sys.argv[1:3]
fetch.ARCHIVES["ade20k"] = (fetch.Archive(address + "/data.zip", "sha256:" + digest, 1e6),)
model_choice.published_weights = lambda config: address + "/proxy.pth"
provisions._published_backbone = lambda: address + "/backbone.pth"
sys.exit(cli.main(["fetch", *sys.argv[3:]]))
"""
"""The command, with addresses of this machine."""


@pytest.mark.processes
def test_all_of_a_profile_is_fetched_and_found_and_what_fails_stops_no_other(
    hub: Hub, tmp_path: Path
) -> None:
    archive = zipped(write_miniature("ade20k", tmp_path / "mini", 2, 1, (8, 8)))
    hub.files = {"/data.zip": archive}
    environment = os.environ | {
        "HF_ENDPOINT": hub.address,
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "D3S2_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    words = ["--profile", "ade20k", "-p", "diffusion_model=somebody/model"]
    words += ["-p", "controlnet_model=somebody/control", "-p", "diffusion_revision=v9"]
    command = [sys.executable, "-c", FETCH, hub.address, hashlib.sha256(archive).hexdigest()]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *words, *more], env=environment, capture_output=True, text=True, check=False
        )

    first = run()
    assert first.returncode == 2, first.stderr
    assert "2 of 5 parts could not be fetched" in first.stderr and "proxy.pth answers 404" in (
        first.stderr
    )
    assert "in 5 parts" in first.stdout and "somebody/model at v9: about" in first.stdout
    assert hub.revisions == {"v9", "main"}
    weights = io.BytesIO()
    torch.save({"weight": torch.zeros(1)}, weights)
    hub.files |= {"/proxy.pth": b"proxy", "/backbone.pth": weights.getvalue()}
    hub.asked.clear()
    second = run()
    assert second.returncode == 0, second.stderr
    assert hub.asked == ["/proxy.pth", "/backbone.pth"]
    home = tmp_path / "home"
    assert (home / "data/ade20k/ADEChallengeData2016/images/training").is_dir()
    hub.asked.clear()
    third = run()
    assert third.returncode == 0 and hub.asked == [] and "about 0.0 GB to fetch" in third.stdout


def test_a_run_finds_what_was_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D3S2_HOME", str(tmp_path))
    folder = fetch.own_folder("cocostuff")
    assert config.resolve({"profile": "cocostuff"}, remember=False).data_root == ""
    names = [archive.name for archive in fetch.ARCHIVES["cocostuff"]]
    folder.mkdir(parents=True)
    write_json(folder / fetch.DONE, names[:1])  # not all of it
    assert config.resolve({"profile": "cocostuff"}, remember=False).data_root == ""
    write_json(folder / fetch.DONE, names)
    assert config.resolve({"profile": "cocostuff"}, remember=False).data_root == str(folder)
    mine = {"profile": "cocostuff", "data_root": "/mine"}
    assert config.resolve(mine, remember=False).data_root == "/mine"


def test_a_folder_of_the_users_own_is_not_fetched_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D3S2_HOME", str(tmp_path))
    for root, waits in ((tmp_path, False), (tmp_path / "new", True)):
        names = {"profile": "voc2012", "data_root": str(root)}
        first = provisions.provisions(config.resolve(names, remember=False))[0]
        assert (first.fetch is not None) == waits and first.place == str(root)


def test_scenes_need_nothing() -> None:
    said: list[str] = []
    provisions.fetch_all(config.resolve({}, remember=False), said.append)
    assert said == ["scenes: about 0.0 GB to fetch, in 0 parts"]


def test_weights_that_nobody_publishes_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(D3S2Error, match="nobody is known to publish"):
        provisions._download("proxy", "", tmp_path / "a.pth", print)
