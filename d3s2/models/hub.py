"""Pretrained models in diffusers' format: where they lie, whether they are whole, and the command
that fetches them.

Nothing is downloaded unless it was asked for, and nothing is unpickled: weights are safetensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from d3s2.core.errors import D3S2Error
from d3s2.core.places import command

MODEL_FILES = ("config.json", "*model.safetensors")
"""Half-precision copies, which some models add, have other names: nobody needs to fetch them too.
"""
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")


@dataclass(frozen=True)
class Source:
    """A model: a folder, or `owner/name` on the Hugging Face hub, at a revision (a commit, tag or
    branch; "" = main).

    parts: what must be in it, {subfolder ("" = the folder itself): patterns of files of which each
    needs one match}.
    """

    place: str
    parts: dict[str, Sequence[str]]
    revision: str = ""

    @property
    def command(self) -> str:
        """The command that fetches it."""
        if self.is_path:
            return (
                f"put the model into {self.place}, for example: {command('hf')} download "
                f"OWNER/NAME --local-dir {self.place}"
            )
        words = [command("hf"), "download", self.place]
        if self.revision:
            words += ["--revision", self.revision]
        for pattern in self.patterns():
            words += ["--include", f"'{pattern}'"]
        return " ".join(words)

    @property
    def is_path(self) -> bool:
        """Whether `place` can only be a folder of this machine."""
        path = Path(self.place)
        return path.is_dir() or path.is_absolute() or self.place.count("/") != 1

    def patterns(self) -> list[str]:
        """The files that are needed, for a download."""
        found = []
        for part, needed in self.parts.items():
            found += [f"{part}/{pattern}" if part else pattern for pattern in needed]
        return found


def locate(source: Source, download: bool = False) -> Path:
    """The folder of a model that is whole.

    download: fetch from the hub what is not here; False never touches the network.
    Raises D3S2Error, naming what is missing or damaged, and the command that fetches it.
    """
    folder = Path(source.place) if source.is_path else _from_hub(source, download)
    if not folder.is_dir():
        raise D3S2Error(f"No model in {folder}: {source.command}")
    for part, patterns in source.parts.items():
        _check_part(folder / part, patterns, source)
    return folder


def _from_hub(source: Source, download: bool) -> Path:
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            source.place,
            revision=source.revision or None,
            local_files_only=not download,
            allow_patterns=source.patterns(),
        )
    except Exception as error:  # of the hub's own kinds, and those of several HTTP libraries
        reason = "could not be fetched" if download else "is not on this machine"
        raise D3S2Error(
            f"The model {source.place} {reason} ({type(error).__name__}). Fetch it: "
            f"{source.command}"
        ) from error
    return Path(found)


def _check_part(folder: Path, patterns: Sequence[str], source: Source) -> None:
    """Raise D3S2Error for a file that is missing, a pickle instead of safetensors, and damage."""
    for pattern in patterns:
        if any(folder.glob(pattern)):
            continue
        if pattern.endswith(".safetensors") and _holds_pickle(folder):
            raise D3S2Error(
                f"{folder} holds weights as a pickle, which can run code: d3s2 loads safetensors "
                f"only. Fetch those: {source.command}"
            )
        raise D3S2Error(
            f"{folder} lacks {pattern}: the model is missing or half downloaded. Fetch it: "
            f"{source.command}"
        )
    for path in sorted(folder.glob("*.safetensors")):
        if problem := damage(path):
            raise D3S2Error(f"{path} {problem}. Delete it and fetch it again: {source.command}")


def _holds_pickle(folder: Path) -> bool:
    return any(path.suffix in _PICKLES for path in folder.glob("*"))


def damage(path: Path) -> str:
    """What is wrong with a safetensors file, judged by its header and length; "" when it is
    whole.
    """
    try:
        with safe_open(path, framework="np"):
            return ""
    except SafetensorError as error:
        return f"is damaged, or only its beginning ({error})"


def problems(sources: Iterable[Source]) -> list[str]:
    """What `locate` would raise for each model that is missing or damaged; touches no network."""
    found = []
    for source in sources:
        try:
            locate(source)
        except D3S2Error as error:
            found.append(str(error))
    return found
