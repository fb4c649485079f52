"""The version of a piece of code: a digest of its modules' sources, of all they import from this
package, and of the versions of the libraries that these import.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import sys
from importlib import metadata
from pathlib import Path

from d3s2.core.errors import D3S2Error

PACKAGE = Path(__file__).resolve().parents[1]
BESIDE = ("d3s2.core.machine", "d3s2.core.parallel")
"""Modules that say where and by how many something is computed, never what: a library that only
they import decides no byte.
"""
WATCHING = ("psutil", "tqdm")
"""Libraries that only look at processes, or draw how far something is."""
ONLOOKERS = ("d3s2.core.long_work",)
"""Modules that do no more than that: no source of theirs counts, nor what only they import."""


def code_version(*modules: str) -> str:
    """SHA-256 over the sources of these modules of d3s2 and of all they import from d3s2, and over
    the `library_versions`.

    Names are given inside the package ("selection", "data.scenes") or in full. Imports are read
    from the syntax tree, those inside functions too; so editing `plots` leaves a stage valid whose
    modules never import it. Raises D3S2Error for a module that there is not.
    """
    made_of = [sources(*modules), library_versions(*modules)]
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def library_versions(*modules: str) -> dict[str, str]:
    """The installed version of every library that these modules of d3s2 import, or those that they
    import from d3s2, by the name under which it is installed.

    A build for another device is the same version ("2.13.0+cpu" counts as "2.13.0"). `BESIDE` and
    `WATCHING` do not count, nor does what is not installed.
    """
    named: set[str] = set()
    for module, source in sources(*modules).items():
        if module not in BESIDE:
            named |= _libraries(source)
    found = {}
    for name in sorted(named.difference(WATCHING)):
        for distribution in _distributions().get(name, []):
            found[distribution.lower()] = metadata.version(distribution).partition("+")[0]
    return found


def sources(*modules: str) -> dict[str, str]:
    """The source of these modules and of all that they import from d3s2, by full name.

    The package's own `__init__` (only the version number) and `ONLOOKERS` do not count.
    """
    found: dict[str, str] = {}
    waiting = ["d3s2." + name.removeprefix("d3s2.") for name in modules]
    while waiting:
        name = waiting.pop()
        if name in found or name in ONLOOKERS:
            continue
        path = _source_file(name)
        if path is None:
            raise D3S2Error(f"There is no module {name!r}, whose version a stage asks for.")
        found[name] = path.read_text(encoding="utf-8")
        waiting += _imports(name, found[name], path.name == "__init__.py")
    return found


def is_module(name: str) -> bool:
    """True when `name`, in full, is a module or package inside d3s2."""
    return name.startswith("d3s2.") and _source_file(name) is not None


def _source_file(module: str) -> Path | None:
    base = PACKAGE.joinpath(*module.split(".")[1:])
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _imports(module: str, source: str, is_package: bool) -> list[str]:
    """Modules of d3s2 named by import statements, with the packages they lie in."""
    here = module.split(".") if is_package else module.split(".")[:-1]
    names: set[str] = set()
    for node in _import_statements(source):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            base = here[: len(here) - node.level + 1] if node.level else []
            parent = ".".join([*base, *([node.module] if node.module else [])])
            names |= {parent, *(f"{parent}.{alias.name}" for alias in node.names)}
    packages = names.union(*map(_packages, names))
    return sorted(name for name in packages if is_module(name))


def _libraries(source: str) -> set[str]:
    """What import statements name that is neither this package nor Python's own."""
    names: set[str] = set()
    for node in _import_statements(source):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names.difference(sys.stdlib_module_names, ["d3s2"])


@functools.cache
def _import_statements(source: str) -> list[ast.Import | ast.ImportFrom]:
    """Every import statement of a source. A run asks for the same hundred files again and again."""
    statements = (ast.Import, ast.ImportFrom)
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, statements)]


@functools.cache
def _distributions() -> dict[str, list[str]]:
    """Under which names what one imports is installed: "PIL" comes with "pillow"."""
    return dict(metadata.packages_distributions())


def _packages(module: str) -> list[str]:
    """The packages inside d3s2 that a module lies in: their `__init__` is run too."""
    parts = module.split(".")
    return [".".join(parts[:depth]) for depth in range(2, len(parts))]
