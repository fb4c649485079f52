"""Break the code line by line and see whether the tests notice: `make mutants`.

mutmut writes the small errors (a sign, a comparison, an argument dropped, a number off by one) and
runs the tests that reach each. This script says which modules decide results or keep data, gives
each room of the house a folder of its own, and prints the score and the survivors.

    make mutants                                every room: hours on two cores
    make mutants ARGS="guidance"                one room
    make mutants ARGS="guidance --only '*x_best*'"   some mutants, tried again
    make mutants ARGS="data --sample 60"        60 mutants of each module, drawn at random
    make mutants ARGS="--report"                nothing is run: what the last runs found

A second call tries only what has no verdict yet, what survived, and what changed. Where only some
mutants were tried, the score has a 95 % interval (Wilson's), which holds where they were drawn at
random.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import json
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "mutants"
REASONS = ROOT / "docs" / "mutants.md"


@dataclass(frozen=True)
class Room:
    """Modules to break, and the tests that should notice: paths with spaces between."""

    modules: str
    tests: str


ROOMS = {
    "files": Room(
        "core/files.py core/hashes.py core/code_version.py runs/stages.py",
        "core/test_files.py core/test_hashes.py core/test_code_version.py runs/test_stages.py "
        "runs/test_stage_marker.py",
    ),
    "data": Room(
        "data/dataset.py data/folder.py data/pairing.py data/camvid.py data/opening.py",
        "data/test_camvid.py data/test_examining.py data/test_fingerprint.py data/test_layouts.py "
        "data/test_pixel_formats.py",
    ),
    # By itself: its tests take digests of the sources, which are huge where mutants are in them
    "splits": Room("data/splits.py", "data/test_prepared.py data/test_layouts.py"),
    "tensors": Room("data/tensors.py", "data/test_tensors.py"),
    "statistics": Room("statistics/pixels.py statistics/features.py", "statistics"),
    "selection": Room("selection.py", "test_selection.py"),
    "guidance": Room(
        "guidance/losses.py guidance/sampler.py guidance/painting.py guidance/quality.py",
        "guidance",
    ),
    "methods": Room(
        "methods/captions.py methods/comparison.py methods/coresets.py methods/distil.py "
        "methods/diver.py methods/edits.py methods/embeddings.py methods/flow_matching.py "
        "methods/inheritance.py methods/method.py methods/painted.py methods/pyramid.py "
        "methods/refinement.py methods/towers.py methods/unidd.py methods/world.py",
        "methods",
    ),
    "training": Room(
        "training/evaluation.py training/loop.py training/job.py training/reuse.py", "training"
    ),
}


# -------------------------------------------------------------------------------------- the folder
def prepare(name: str, room: Room) -> Path:
    """The folder in which mutmut works on one room; what did not change keeps its verdicts."""
    folder = WORK / name
    folder.mkdir(parents=True, exist_ok=True)
    for part in ("d3s2", "tests"):
        _copy_tree(
            ROOT / part, folder / part, {f"d3s2/{module}" for module in room.modules.split()}
        )
    # mutmut does not bring tests that changed into a folder that it made before
    if (folder / "mutants").is_dir():
        shutil.copytree(folder / "tests", folder / "mutants/tests", dirs_exist_ok=True)
        for path in (folder / "mutants/tests").rglob("*.py"):
            if not (folder / "tests" / path.relative_to(folder / "mutants/tests")).is_file():
                path.unlink()
    (folder / "pyproject.toml").write_text(_settings(room))
    return folder


def _copy_tree(source: Path, target: Path, broken: set[str]) -> None:
    """Bring a folder up to date, files that are the same left alone; those to be broken with their
    decorators spelled out.
    """
    found = set()
    for path in sorted(source.rglob("*")):
        if path.is_dir() or "__pycache__" in path.parts:
            continue
        place = target / path.relative_to(source)
        found.add(place)
        content = path.read_bytes()
        if str(path.relative_to(ROOT)) in broken:
            content = spell_out_decorators(content.decode()).encode()
        if not place.is_file() or place.read_bytes() != content:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
    for path in list(target.rglob("*.py")):
        if path not in found:
            path.unlink()


def spell_out_decorators(source: str) -> str:
    """`@deco` above `def f` becomes `f = deco(f)` below it: mutmut skips functions with decorators.

    Static methods, class methods and registered classes it can do.
    """
    lines = source.splitlines(keepends=True)
    functions = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]
    for node in sorted(functions, key=lambda node: -node.lineno):
        names = [ast.unparse(decorator) for decorator in node.decorator_list]
        if not names or set(names) & {"staticmethod", "classmethod"}:
            continue
        assert len(names) == 1, f"{node.name} has several decorators"
        call = f"{' ' * node.col_offset}{node.name} = {names[0]}({node.name})\n"
        lines.insert(node.end_lineno, call)
        del lines[node.decorator_list[0].lineno - 1 : node.lineno - 1]
    return "".join(lines)


def _settings(room: Room) -> str:
    chosen = [f"d3s2/{module}" for module in room.modules.split()]
    tests = [f"tests/{test}" for test in room.tests.split()]
    return f"""\
[tool.mutmut]
source_paths = ["d3s2"]
only_mutate = {json.dumps(chosen)}
pytest_add_cli_args = {json.dumps(_OPTIONS)}
pytest_add_cli_args_test_selection = {json.dumps([*tests, "-m", "not notebooks and not processes"])}
timeout_multiplier = 10.0
timeout_constant = 5.0
use_git_change_detection = false
on_dependency_change = "ignore"

[tool.pytest.ini_options]
addopts = "--strict-markers"
markers = ["notebooks: whole notebooks", "processes: starts processes"]
filterwarnings = ["ignore"]
"""


_OPTIONS = ["-p", "no:cacheprovider", "-p", "no:nbval", "--hypothesis-profile=mutants"]


# ------------------------------------------------------------------------------------------- a run
def run(folder: Path, patterns: list[str], children: int) -> None:
    """mutmut on one room's folder; survivors are forgotten first and so tried again."""
    for meta in metas(folder):
        verdicts = json.loads(meta.read_text())
        codes = verdicts["exit_code_by_key"]
        for mutant, code in codes.items():
            if code not in KILLED and any(fnmatch(mutant, each) for each in patterns or ["*"]):
                codes[mutant] = None
        meta.write_text(json.dumps(verdicts, indent=4))
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(children), *patterns]
    subprocess.run(command, cwd=folder, env=os.environ | threads, check=False)


def drawn(folder: Path, count: int, seed: int) -> list[str]:
    """Names of at most so many mutants of each module of a room, drawn at random.

    The mutants are written first, by a run of none of them.
    """
    run(folder, ["none.of.them"], 1)
    names = []
    for meta in metas(folder):
        known = sorted(json.loads(meta.read_text())["exit_code_by_key"])
        names += random.Random(seed).sample(known, min(count, len(known)))
    return names


def interval(killed: int, tried: int, there: int) -> str:
    """Wilson's 95 % interval of a share, in percent; "" where every mutant was tried."""
    if tried in (0, there):
        return ""
    z = 1.96
    share = killed / tried
    middle = (share + z**2 / (2 * tried)) / (1 + z**2 / tried)
    half = z / (1 + z**2 / tried) * (share * (1 - share) / tried + z**2 / (4 * tried**2)) ** 0.5
    return f"{100 * (middle - half):5.1f} to {100 * (middle + half):.1f} %"


KILLED = {1, 3, 24, -24, 36, 152, 255}
"""Exit codes of pytest that a mutant is noticed by: a failure, an error inside, no end in sight."""


def metas(folder: Path) -> list[Path]:
    return sorted((folder / "mutants").rglob("*.meta"))


# ---------------------------------------------------------------------------------------- a report
@dataclass(frozen=True)
class Mutant:
    """One error put in: the function, the lines it changed, and what became of it."""

    module: str
    name: str
    verdict: str
    change: str

    @property
    def line(self) -> str:
        """As it stands in docs/mutants.md."""
        return f"{self.module} {self.change}"


def mutants(folder: Path) -> Iterator[Mutant]:
    """Every mutant of a room, as the last run left it; changes are read for survivors only."""
    for meta in metas(folder):
        module = str(meta.relative_to(folder / "mutants")).removesuffix(".meta")
        verdicts = json.loads(meta.read_text())["exit_code_by_key"]
        missed = [mutant for mutant, code in verdicts.items() if code not in KILLED | {None}]
        changes = _changes(folder / "mutants" / module, missed) if missed else {}
        for mutant, code in verdicts.items():
            verdict = "untried" if code is None else "killed" if code in KILLED else "survived"
            yield Mutant(module, mutant, verdict, changes.get(mutant, ""))


def _changes(path: Path, names: list[str]) -> dict[str, str]:
    """{mutant: what it does to its function}, read out of the file with all mutants in it."""
    source = path.read_text()
    lines = source.splitlines()
    bodies = {
        node.name: lines[node.lineno - 1 : node.end_lineno]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
    }
    found = {}
    for name in names:
        broken = name.rpartition(".")[2]
        original = f"{broken.rpartition('__mutmut_')[0]}__mutmut_orig"
        pair = [[line.replace(it, "f") for line in bodies[it]] for it in (original, broken)]
        diff = [line for line in difflib.ndiff(*pair) if line[:2] in ("- ", "+ ")]
        old = " ".join(line[2:].strip() for line in diff if line[0] == "-")
        new = " ".join(line[2:].strip() for line in diff if line[0] == "+")
        function = broken.partition("__mutmut")[0].removeprefix("x_").replace("xǁ", "")
        found[name] = f"{function.replace('ǁ', '.')}: {old}  ->  {new}"
    return found


def report(names: list[str]) -> int:
    """Print the score of each module and the survivors that docs/mutants.md gives no reason for."""
    explained = REASONS.read_text() if REASONS.is_file() else ""
    everything = [
        mutant for name in names if (WORK / name).is_dir() for mutant in mutants(WORK / name)
    ]
    counts = {}
    for mutant in everything:
        counts.setdefault(mutant.module, Counter())[mutant.verdict] += 1
    counts["all"] = sum(counts.values(), Counter())
    print(f"{'module':30} {'mutants':>8} {'killed':>8} {'survived':>9} {'untried':>8} {'score':>8}")
    for module, count in counts.items():
        tried = count["killed"] + count["survived"]
        score = f"{100 * count['killed'] / tried:6.1f} %" if tried else "-"
        print(
            f"{module:30} {count.total():8} {count['killed']:8} {count['survived']:9}"
            f" {count['untried']:8} {score:>8} {interval(count['killed'], tried, count.total())}"
        )
    survivors = [mutant for mutant in everything if mutant.verdict == "survived"]
    unexplained = [mutant for mutant in survivors if mutant.line not in explained]
    print(f"\n{len(survivors)} survived, {len(unexplained)} without a reason in {REASONS.name}")
    for mutant in unexplained:
        print(f"{mutant.name}\n    {mutant.line}")
    return 1 if unexplained else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("rooms", nargs="*", help=f"of {', '.join(ROOMS)}; none = all")
    parser.add_argument(
        "--only", action="append", default=[], help="names of mutants, with * and ?"
    )
    parser.add_argument("--sample", type=int, default=0, help="so many of each module; 0 = all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--children", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--report", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    unknown = set(arguments.rooms) - set(ROOMS)
    if unknown:
        parser.error(f"no room is called {', '.join(sorted(unknown))}: {', '.join(ROOMS)}")
    names = arguments.rooms or list(ROOMS)
    if not arguments.report:
        for name in names:
            print(f"== {name}", flush=True)
            folder = prepare(name, ROOMS[name])
            only = arguments.only
            if arguments.sample:
                only = drawn(folder, arguments.sample, arguments.seed)
            run(folder, only, arguments.children)
    return report(names)


if __name__ == "__main__":
    raise SystemExit(main())
