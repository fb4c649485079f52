"""Parameter files: a YAML mapping of parameters to values, such as a user's own profile.

profile: camvid
data_root: /data/camvid
budget: 0.1
seed: [0, 1, 2]      # a list: only for `d3s2 sweep`, where it is a part of the grid
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from d3s2.core.errors import D3S2Error
from d3s2.runs.parameters import FIELDS, parse, require_known, typed

MOST_LETTERS = 100_000


def read_parameters(path: str | Path) -> tuple[dict[str, Any], dict[str, tuple[Any, ...]]]:
    """(value of each parameter, values of each that has a list) from a YAML file.

    Raises D3S2Error, naming the file, for one that cannot be read, is no mapping or names a
    parameter twice, and for unknown parameters and wrong values.
    """
    values: dict[str, Any] = {}
    lists: dict[str, tuple[Any, ...]] = {}
    for name, value in _mapping(Path(path)).items():
        try:
            require_known([name])
            if isinstance(value, list):
                lists[name] = tuple(_typed(name, item) for item in value)
            else:
                values[name] = _typed(name, value)
        except D3S2Error as error:
            raise D3S2Error(f"{path}: {error}") from error
    return values, lists


def _typed(name: str, value: Any) -> Any:
    """The value as the parameter's type; YAML takes 1e-3 and other numbers for text."""
    if isinstance(value, str) and FIELDS[name].metadata["type"] is not str:
        return parse(name, value)
    return typed(name, value)


def _mapping(path: Path) -> dict[str, Any]:
    import yaml

    try:
        with open(path, encoding="utf-8") as stream:
            text = stream.read(MOST_LETTERS + 1)
        if len(text) > MOST_LETTERS:
            raise ValueError(f"it has more than {MOST_LETTERS} letters")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise ValueError("it has an alias, which parameters need none of")  # they can multiply
        document = yaml.compose(text, Loader=yaml.SafeLoader)
        found = yaml.safe_load(text)
    except FileNotFoundError as error:
        raise D3S2Error(f"There is no parameter file {path}: check its name.") from error
    except Exception as error:  # PyYAML raises many kinds
        reason = " ".join(str(error).split())[:300]
        raise D3S2Error(f"{path} is no YAML that can be read ({reason}).") from error
    if not isinstance(found, dict):
        raise D3S2Error(f"{path} must hold lines such as `seed: 1`, one for each parameter.")
    keys = [key.value for key, _ in document.value]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice is not None:
        raise D3S2Error(f"{path} names {twice!r} twice: keep one of the lines.")
    return {str(name): value for name, value in found.items()}
