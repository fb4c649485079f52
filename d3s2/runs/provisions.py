"""`d3s2 fetch --profile`: all that a profile reads from outside, its data and its models, each put
where `d3s2 check` and `d3s2 run` look for it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from d3s2.core.errors import D3S2Error
from d3s2.core.long_work import Steps
from d3s2.core.places import command
from d3s2.data import fetch
from d3s2.models.hub import Source, locate
from d3s2.runs.model_choice import choose_models, diffusion_options
from d3s2.runs.network_choice import backbone_path, missing_backbone
from d3s2.runs.parameters import Settings

GB = 1e9
SIZES = {"generator": 4.3 * GB, "controlnet": 1.4 * GB, "proxy": 0.2 * GB, "backbone": 0.2 * GB}
"""About what the models weigh: of Stable Diffusion 1.5 and its ControlNet the parameters, four
bytes each. The data's sizes stand with their archives.
"""
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Provision:
    """A thing to fetch. place: where it goes, in words; size: about, of what is missing, in bytes;
    fetch: how, telling a function of lines; None where it is here.
    """

    name: str
    place: str
    size: float
    fetch: Callable[[Callable[[str], None]], Any] | None


def provisions(settings: Settings, mirror: str = "", keep: bool = False) -> list[Provision]:
    """All that the settings name from outside; mirror and keep: see `fetch.fetch_dataset`."""
    return [
        *_data(settings, mirror, keep),
        *_generator(settings),
        *_proxy(settings),
        *_backbone(settings),
    ]


def fetch_all(
    settings: Settings, report: Callable[[str], None] = print, mirror: str = "", keep: bool = False
) -> None:
    """Fetch what is missing, one thing after the other; one that fails stops no other.

    Raises D3S2Error that names all that failed; the same call goes on from there.
    """
    wanted = provisions(settings, mirror, keep)
    missing = [one for one in wanted if one.fetch]
    report(f"{settings.profile}: {_size(missing)} to fetch, in {len(missing)} parts")
    for one in wanted:
        how = f"about {one.size / GB:.1f} GB, to" if one.fetch else "is here,"
        report(f"  {one.name}: {how} {one.place}")
    failed = []
    for one in missing:
        try:
            one.fetch(report)
            report(f"{one.name}: fetched")
        except D3S2Error as error:
            report(f"{one.name}: failed, see below")
            failed.append(f"\n- {one.name}: {error}")
    if failed:
        again = f"{command('d3s2')} fetch --profile {settings.profile}"
        raise D3S2Error(
            f"{len(failed)} of {len(missing)} parts could not be fetched; what is fetched stays, "
            f"and the same command ({again}) goes on from there:{''.join(failed)}"
        )


def _size(missing: list[Provision]) -> str:
    return f"about {sum(one.size for one in missing) / GB:.1f} GB"


def _data(settings: Settings, mirror: str, keep: bool) -> Iterator[Provision]:
    archives = fetch.ARCHIVES.get(settings.data_format)
    if archives is None:
        return
    folder = Path(settings.data_root or fetch.own_folder(settings.data_format))
    waiting = fetch.to_fetch(archives, folder)
    if settings.data_root and not (folder / fetch.DONE).is_file() and folder.is_dir():
        waiting = []  # a folder of the user's own, which `check` looks into
    how = partial(fetch.fetch_dataset, archives, folder, mirror=mirror, keep=keep)
    size = sum(archive.size for archive in waiting)
    yield Provision(f"data {settings.data_format}", str(folder), size, how if waiting else None)


def _generator(settings: Settings) -> Iterator[Provision]:
    if "generator" not in choose_models(settings).pretrained:
        return
    for name, source in zip(
        ("generator", "controlnet"), diffusion_options(settings).sources(), strict=True
    ):
        here = _is_here(source)
        revision = f" at {source.revision}" if source.revision else ""
        where = "the hub's cache" if not source.is_path else source.place
        how = None if here else partial(_from_hub, source)
        yield Provision(f"{name} {source.place}{revision}", where, 0 if here else SIZES[name], how)


def _is_here(source: Source) -> bool:
    try:
        locate(source)
    except D3S2Error:
        return False
    return True


def _from_hub(source: Source, report: Callable[[str], None]) -> None:
    with _watched(source):
        locate(source, download=True)


@contextmanager
def _watched(source: Source) -> Iterator[None]:
    """In a log, where the hub's own bars would be debris: how many bytes have arrived."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.utils import disable_progress_bars

    if sys.stderr.isatty():
        yield
        return
    disable_progress_bars()
    folder = Path(HF_HUB_CACHE) / f"models--{source.place.replace('/', '--')}" / "blobs"
    ended = threading.Event()

    def watch() -> None:
        with Steps(f"fetching {source.place}", 0, "B") as steps:
            before = _bytes(folder)
            steps.skip(before)
            while not ended.wait(POLL_SECONDS):
                now = _bytes(folder)
                steps.add(max(0, now - before))
                before = max(now, before)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _bytes(folder: Path) -> int:
    total = 0
    for path in folder.glob("*"):
        try:
            total += path.stat().st_size
        except OSError:  # it has just got its name
            continue
    return total


def _proxy(settings: Settings) -> Iterator[Provision]:
    proxy = choose_models(settings).pretrained.get("proxy")
    if proxy is not None:
        address = "" if settings.proxy_checkpoint else proxy.address
        yield _file("proxy", proxy.checkpoint, address, proxy.checkpoint.is_file())


def _backbone(settings: Settings) -> Iterator[Provision]:
    if settings.network == "swin-s":
        here = not missing_backbone(settings)
        address = "" if settings.backbone_weights else _published_backbone()
        yield _file("backbone", backbone_path(settings), address, here)


def _published_backbone() -> str:
    from d3s2.training.mask2former import SHIPPED, Config  # imports mmsegmentation: seconds

    return Config.fromfile(str(SHIPPED)).model.backbone.init_cfg.checkpoint


def _file(name: str, path: Path, address: str, here: bool) -> Provision:
    how = None if here else partial(_download, name, address, path)
    return Provision(f"{name} {path.name}", str(path), 0 if here else SIZES[name], how)


def _download(name: str, address: str, path: Path, report: Callable[[str], None]) -> None:
    if not address:
        raise D3S2Error(f"nobody is known to publish {path}: put the {name}'s weights there.")
    fetch.download(address, path, report=report)
