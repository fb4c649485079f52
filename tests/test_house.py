"""The house: arrows, circles, names and sizes of the package, and what a stage's key covers."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import nbformat
import pytest

from d3s2.core.code_version import code_version, sources
from d3s2.runs.parameters import DECIDING, FIELDS

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
MODULES = sorted(path for path in (ROOT / "d3s2").rglob("*.py"))


def trees() -> dict[str, ast.Module]:
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text()) for path in MODULES}


# ------------------------------------------------------------------------------------------ imports
def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [BIN / "lint-imports", "--no-cache", "--config", str(folder / "pyproject.toml")]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources and their contracts, to be broken."""
    folder = tmp_path_factory.mktemp("house")
    only_sources = shutil.ignore_patterns("weights", "reference", "__pycache__")
    shutil.copytree(ROOT / "d3s2", folder / "d3s2", ignore=only_sources)
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_the_contracts_of_imports_are_kept() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("data/tensors", "from d3s2.models import proxy", "Arrows point one way"),
        ("core/errors", "def f():\n    from d3s2.runs import config", "Arrows point one way"),
        ("data/dataset", "def f():\n    from d3s2.data import folder", "No circles"),
        ("core/machine", "from d3s2.core import parallel\n", "KEPT"),
        ("plots/charts", "from d3s2.statistics import pixels", "Plots know data and core"),
        ("runs/sweep", "from d3s2.runs.cli import main", "Nobody imports the command line"),
        ("runs/runner", "from d3s2.studies import curve", "Nobody imports the studies"),
        ("guidance/losses", "from d3s2.selection import greedy", "A chapter's code knows no other"),
    ],
)
def test_each_contract_is_broken_by_what_it_forbids(
    copied: Path, module: str, line: str, contract: str
) -> None:
    path = copied / "d3s2" / f"{module}.py"
    before = path.read_text()
    path.write_text(f"{before}\n\n{line}\n")
    try:
        done = lint_imports(copied)
    finally:
        path.write_text(before)
    broken = [text for text in done.stdout.splitlines() if text.endswith("BROKEN")]
    assert any(contract in text for text in broken) or (contract == "KEPT" and not broken), (
        done.stdout
    )


def test_imports_are_absolute() -> None:
    for name, tree in trees().items():
        relative = [
            node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level
        ]
        assert not relative, name


# -------------------------------------------------------------------------------- what a key covers
def stage_modules(notebook: str, stage: str) -> list[str]:
    """The modules that a notebook names for the key of a stage."""
    cells = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4).cells
    for cell in cells:
        if cell.cell_type != "code" or f'"{stage}"' not in cell.source:
            continue
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.keyword) and node.arg == "modules":
                return ast.literal_eval(node.value)
    raise AssertionError(f"{notebook} names no modules for {stage}")


STAGES = {
    "statistics": ("01_data_statistics", 15),
    "selection": ("02_mask_selection", 10),
    "distilled": ("03_guided_sampling", 21),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_key_covers_what_its_chapter_uses_and_no_more(stage: str) -> None:
    notebook, most = STAGES[stage]
    found = sources(*stage_modules(notebook, stage))
    assert len(found) <= most, sorted(found)


def code_of(notebook: str) -> list[str]:
    """The sources of its code cells, magics and all."""
    cells = nbformat.read(ROOT / "notebooks" / f"{notebook}.ipynb", as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "code"]


SHOWN = {"profile", "data_format"}
"""Parameters that a notebook only prints; the data itself is in every key."""
THROUGH = {"size": "budget"}
"""What `run` makes of a parameter."""


@pytest.mark.parametrize("stage", STAGES)
def test_a_stages_key_holds_what_its_notebook_reads(stage: str) -> None:
    """Its parameters, and the code of every room that computes; not what suits it to a machine."""
    notebook, _ = STAGES[stage]
    read: set[str] = set()
    imported: set[str] = set()
    for source in code_of(notebook):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                of = node.value.id
                read |= {node.attr} if of == "settings" else set()
                read |= {THROUGH[node.attr]} if of == "run" and node.attr in THROUGH else set()
            elif isinstance(node, ast.ImportFrom) and node.module.startswith("d3s2."):
                imported.add(node.module)
    (cell,) = [
        source
        for source in code_of(notebook)
        if f'run.stage(\n    "{stage}"' in source or f'run.stage("{stage}"' in source
    ]
    texts = {
        node.value
        for node in ast.walk(ast.parse(cell))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert (read & set(DECIDING)) - SHOWN - texts == set()
    assert texts & (set(FIELDS) - set(DECIDING)) == set()  # such as sampling_batch
    rooms = ("data", "statistics", "selection", "guidance")
    computes = {name for name in imported if name.split(".")[1] in rooms}
    assert computes <= sources(*stage_modules(notebook, stage)).keys()


def test_no_notebook_widens_a_whole_split() -> None:
    """Eight bytes a pixel of COCO-Stuff's validation masks are 10 GB: images are counted one by
    one. NumPy's bincount widens what it is given.
    """
    for source in code_of("04_train_mask2former"):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                given = node.args if node.func.attr == "bincount" else []
                given += [node.func.value] if node.func.attr == "astype" else []
                names = {
                    part.id for each in given for part in ast.walk(each) if hasattr(part, "id")
                }
                assert not names & {"truths", "predicted", "stored"}, ast.unparse(node)


def test_the_key_of_the_trainings_is_that_of_each_job() -> None:
    source = "\n".join(code_of("04_train_mask2former"))
    assert "{job.name: job_key(job) for job in every_job}" in source
    assert 'run.stage("training", decides,' in source and "train_all(every_job," in source


def test_a_changed_comment_makes_stale_what_depends_on_it(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["d3s2.core.code_version"], "PACKAGE", copied / "d3s2")
    modules = {stage: stage_modules(notebook, stage) for stage, (notebook, _) in STAGES.items()}
    before = {stage: code_version(*names) for stage, names in modules.items()}
    for edited, stale in (
        ("training/swin", set()),
        ("models/generator", {"distilled"}),
        ("guidance/losses", {"distilled"}),
        ("selection", {"selection"}),
        ("data/dataset", {"statistics", "selection", "distilled"}),
    ):
        path = copied / "d3s2" / f"{edited}.py"
        text = path.read_text()
        path.write_text(f"{text}\n# a comment\n")
        changed = {
            stage for stage, names in modules.items() if code_version(*names) != before[stage]
        }
        path.write_text(text)
        assert changed == stale, edited


# ------------------------------------------------------------------------------------ names, sizes
def test_no_two_modules_and_no_two_classes_have_one_name() -> None:
    names = Counter(path.stem for path in MODULES if path.stem != "__init__")
    classes = Counter(
        node.name
        for tree in trees().values()
        for node in tree.body
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in (names + classes).items() if count > 1] == []


def test_functions_are_short_and_modules_can_be_read() -> None:
    for name, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, (name, node.name)


def test_everything_public_says_what_it_is() -> None:
    for name, tree in trees().items():
        assert ast.get_docstring(tree), name
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), (name, node.name)


def test_the_code_has_one_layout() -> None:
    command = [BIN / "ruff", "format", "--check", "--no-cache", "d3s2", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom d3s2.runs import cli\ncli._parser().format_help()\n"
        "print([name for name in ('numpy', 'torch', 'PIL', 'papermill', 'nbformat', 'yaml', "
        "'matplotlib', 'distributed') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
