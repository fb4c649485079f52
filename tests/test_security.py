"""Nothing that is read can run code, nothing is bound beyond loopback: the sources are searched,
real traps are laid.
"""

from __future__ import annotations

import ast
import io
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from notebook_maker import Sequence, write_notebook

from d3s2.core.errors import D3S2Error, printable
from d3s2.core.files import load_npz
from d3s2.core.machine import peak_memory
from d3s2.core.places import EMBEDDED_WEIGHTS
from d3s2.data.opening import open_dataset
from d3s2.models.checkpoints import read_checkpoint
from d3s2.models.load import load_generator, load_proxy
from d3s2.runs.config import resolve
from d3s2.runs.network_choice import missing_backbone
from d3s2.runs.notebooks import publish, read_chapters
from d3s2.runs.stages import Stage
from d3s2.training.job import TrainingJob
from d3s2.training.mask2former import build_runner

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*(ROOT / "d3s2").rglob("*.py"), *(ROOT / "notebooks").rglob("*.ipynb")])

PICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "tempfile.mktemp",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
    "yaml.unsafe_load",
    "torch.hub.load",
    "torch.jit.load",
}
UNSAFE_METHODS = {"read_pickle", "to_pickle", "load_checkpoint"}  # pandas, mmengine
NEEDS = {
    "torch.load": ("weights_only", True),
    "numpy.load": ("allow_pickle", False),
    "from_pretrained": ("use_safetensors", True),
    "extractall": ("filter", "data"),
    "extract": ("filter", "data"),
    "shutil.unpack_archive": ("filter", "data"),
}
FORBIDDEN = {"shell": True, "trust_remote_code": True, "allow_pickle": True, "weights_only": False}
EVERYWHERE = re.compile(r"0\.0\.0\.0|^(tcp://)?(\[::\]|::)(:\d+)?$")


# --------------------------------------------------------------------------------------- the search
def source_of(path: Path) -> str:
    """The Python of a module, or of all code cells of a notebook; shell and magic lines are left
    out.
    """
    if path.suffix == ".py":
        return path.read_text(encoding="utf-8")
    notebook = nbformat.read(path, as_version=4)
    code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return re.sub(r"^(\s*)[%!].*", r"\1pass", code, flags=re.MULTILINE)


def unsafe(source: str) -> list[str]:
    """What in this source could run foreign code or let others in, as `line: what`."""
    tree = ast.parse(source)
    names = dict(_imported(tree))
    return [f"{line}: {what}" for node in ast.walk(tree) for line, what in _judge(node, names)]


def _imported(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(name here, full name) of everything that import statements bring in."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (
                (
                    alias.asname or alias.name.split(".")[0],
                    alias.name if alias.asname else alias.name.split(".")[0],
                )
                for alias in node.names
            )
        elif isinstance(node, ast.ImportFrom):
            yield from (
                (alias.asname or alias.name, f"{node.module}.{alias.name}") for alias in node.names
            )


def _judge(node: ast.AST, names: dict[str, str]) -> Iterator[tuple[int, str]]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        modules = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
        yield from (
            (node.lineno, f"imports {name}") for name in modules if name.split(".")[0] in PICKLERS
        )
    elif (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and EVERYWHERE.search(node.value)
    ):
        yield node.lineno, f"listens everywhere: {node.value!r}"
    elif isinstance(node, ast.Call):
        yield from ((node.lineno, what) for what in _judge_call(node, _dotted(node.func, names)))


def _judge_call(node: ast.Call, name: str) -> Iterator[str]:
    given = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
    method = name.rpartition(".")[2]
    if name in UNSAFE or method in UNSAFE_METHODS:
        yield f"calls {name}"
    for needed in {name, method} & NEEDS.keys():
        keyword, value = NEEDS[needed]
        if given.get(keyword, "missing") != value and not re.search(
            r"Scheduler\.from_pretrained$", name
        ):  # those are JSON
            yield f"calls {name} without {keyword}={value!r}"
    yield from (
        f"{word}={value}"
        for word, value in FORBIDDEN.items()
        if word in given and given[word] is value
    )


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    """`np.load` as numpy.load; what is no plain name (a call's result, an element) as an empty
    part.
    """
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, names)}.{node.attr}"
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ""


KNOWN = {
    # What Dask pickles in any case, between the processes of one cluster (docs/threats.md)
    "d3s2/core/parallel.py": ["imports pickle", "imports cloudpickle"],
    # It counts the bytes of what Dask would send, and reads none of them
    "d3s2/studies/cluster_efficiency.py": ["imports pickle"],
    # What a student wrote, behind a fence (docs/teaching.md); the teacher's tests
    "d3s2/course/apart.py": ["calls exec"],
    "d3s2/course/judging.py": ["calls exec", "calls exec"],
    # No address: a mark in the names of an mmsegmentation config
    "d3s2/models/plain_config.py": ["listens everywhere: '::'"],
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_sources_are_safe(path: Path) -> None:
    found = [what.partition(": ")[2] for what in unsafe(source_of(path))]
    assert found == KNOWN.get(path.relative_to(ROOT).as_posix(), [])


@pytest.mark.parametrize(
    "bad",
    [
        "import pickle",
        "from dill import loads",
        "import joblib as j",
        "import pandas as pd\npd.read_pickle('x')",
        "import torch\ntorch.load('x')",
        "from torch import load as read\nread('x', weights_only=False)",
        "import torch\ntorch.load('x', weights_only=flag)",
        "import numpy as np\nnp.load('x')",
        "import numpy\nwith numpy.load('x', allow_pickle=True) as f: pass",
        "import yaml\nyaml.load(text, Loader)",
        "from yaml import unsafe_load\nunsafe_load(text)",
        "eval('1')",
        "exec(text)",
        "import os\nos.system('ls')",
        "import subprocess as sp\nsp.run('ls', shell=True)",
        "archive.extractall('x')",
        "tarfile.open('x').extractall(filter='tar')",
        "Model.from_pretrained('x')",
        "Model.from_pretrained('x', use_safetensors=True, trust_remote_code=True)",
        "serve(host='0.0.0.0')",
        "address = 'tcp://0.0.0.0:8786'",
        "bind('::')",
        "runner.load_checkpoint('x')",
        "def f():\n    import shelve",
    ],
)
def test_the_search_finds(bad: str) -> None:
    assert unsafe(bad)


@pytest.mark.parametrize(
    "good",
    [
        "network.eval()",
        "import numpy as np\nnp.load('x', allow_pickle=False)",
        "pattern.exec_count",
        "Ranking.load('x')",
        "import torch\ntorch.load('x', weights_only=True, map_location='cpu')",
        "import yaml\nyaml.safe_load(text)",
        "archive.extractall('x', filter='data')",
        "DDIMScheduler.from_pretrained('x')",
        "name = 'a::b'",
        "import subprocess\nsubprocess.run(['ls'], check=True)",
        "address = '127.0.0.1'",
        "Model.from_pretrained('x', use_safetensors=True)",
    ],
)
def test_the_search_leaves_alone(good: str) -> None:
    assert unsafe(good) == []


# ---------------------------------------------------------------------------------------- the traps
class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.mark,)


def test_the_trap_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Trap(tmp_path / "caught")))  # noqa: S301
    assert (tmp_path / "caught").exists()


def test_arrays_with_objects_are_refused(tmp_path: Path) -> None:
    objects = np.array([Trap(tmp_path / "caught")], dtype=object)
    np.savez(tmp_path / "in.npz", counts=objects, allow_pickle=True)
    np.save(tmp_path / "plain.npz.npy", objects, allow_pickle=True)
    (tmp_path / "plain.npz.npy").rename(tmp_path / "plain.npz")
    for name in ("in.npz", "plain.npz"):
        with pytest.raises(D3S2Error, match=f"cannot read .*{name}"):
            load_npz(tmp_path / name, ["counts"])
    assert not (tmp_path / "caught").exists()


@pytest.mark.parametrize(
    ("load", "folder"), [(load_proxy, "proxy"), (load_generator, "generator/unet")]
)
def test_pickled_weights_are_refused(
    load: Callable[[Path], object], folder: str, tmp_path: Path
) -> None:
    top = folder.split("/")[0]
    shutil.copytree(
        EMBEDDED_WEIGHTS / top, tmp_path / top, ignore=shutil.ignore_patterns("*.safetensors")
    )
    stream = io.BytesIO()
    torch.save({"weight": Trap(tmp_path / "caught")}, stream)
    (tmp_path / folder / "diffusion_pytorch_model.bin").write_bytes(stream.getvalue())
    with pytest.raises(OSError, match="safetensors"):
        load(tmp_path / top)
    assert not (tmp_path / "caught").exists()


def test_pickled_weights_of_a_backbone_are_refused(tmp_path: Path) -> None:
    """mmengine alone would warn, and run them."""
    torch.save({"state_dict": {}, "meta": Trap(tmp_path / "caught")}, tmp_path / "swin.pth")
    job = TrainingJob(
        name="swin",
        train_root=str(tmp_path),
        val_root=str(tmp_path),
        num_classes=5,
        work_dir=str(tmp_path / "work"),
        network="swin-s",
        backbone_weights=str(tmp_path / "swin.pth"),
    )
    with pytest.raises(D3S2Error, match=r"swin\.pth cannot be read safely"):
        build_runner(job)
    names = {"profile": "ade20k", "backbone_weights": job.backbone_weights}
    sentence = missing_backbone(resolve(names, remember=False))
    assert "swin.pth cannot be read safely" in sentence
    assert not (tmp_path / "caught").exists()


# ------------------------------------------------------------------------ a stranger's run, by hand
def hostile_run(folder: Path) -> Path:
    """A run folder whose notebook, modules and report would make `caught` if they could."""
    trap = f"open({str(folder / 'caught')!r}, 'w')"
    shown = nbformat.v4.new_output("stream", name="stdout", text="\x1b]0;owned\x07")
    cells = [
        nbformat.v4.new_code_cell("seed = 0", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(f"{trap}\n%run trap.py", execution_count=1, outputs=[shown]),
    ]
    cells[0].execution_count = 1
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata = {"kernelspec": {"name": "x; touch caught", "display_name": trap}}
    (folder / "executed").mkdir(parents=True)
    nbformat.write(notebook, folder / "executed" / "00_start.ipynb")
    report = Stage(folder, "report", {})
    text = "| d3s2 | 99.0 ± 1 |\n\x1b]0;owned\x07\x9b31m\n"
    (report.begin() / "results.md").write_text(text)
    report.finish()
    for name in ("json", "numpy", "torch", "d3s2", "sitecustomize"):
        (folder / f"{name}.py").write_text(trap)
    return folder


@pytest.mark.processes
def test_a_strangers_run_is_read_and_published_and_runs_nothing(tmp_path: Path) -> None:
    folder = hostile_run(tmp_path / "theirs")
    for words in (
        ["results", "--run-dir", str(folder)],
        ["publish", str(folder), "--to", str(tmp_path / "out")],
        ["check", "--run-dir", str(folder)],
    ):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "d3s2.runs.cli", *words],
            cwd=folder,
            env=os.environ | {"D3S2_HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 or words[0] == "check", done.stderr
        assert not set("\x1b\x07\x9b") & set(done.stdout + done.stderr)
        if words[0] == "results":
            assert "99.0 ± 1" in done.stdout and "\\x1b]0;owned\\x07\\x9b31m" in done.stdout
    assert read_chapters(folder / "executed")[0].parameters == ("seed",)
    assert not (folder / "caught").exists()


@pytest.mark.processes
def test_a_run_imports_no_module_of_its_folder(tmp_path: Path) -> None:
    sequence = Sequence(tmp_path)
    hostile_run(sequence.run_dir)
    assert sequence.run() == ["00", "01", "02"]
    assert not (sequence.run_dir / "caught").exists()


def test_other_cells_are_not_published_over_ours(tmp_path: Path) -> None:
    executed = hostile_run(tmp_path / "theirs") / "executed" / "00_start.ipynb"
    ours = write_notebook(tmp_path / "notebooks" / "00_start.ipynb", "print('mine')")
    before = ours.read_bytes()
    with pytest.raises(D3S2Error, match=r"00_start\.ipynb has other cells than .*run it again"):
        publish(executed, ours)
    assert ours.read_bytes() == before


# ----------------------------------------------------------------------------- what is made to harm
def array_of(shape: str, body: bytes = b"") -> bytes:
    """A .npy whose header announces a shape."""
    head = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".encode()
    head += b" " * (63 - (len(head) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + body


@pytest.mark.parametrize(
    "shape",
    ["(1000000000000,)", "(-5,)", "(" * 3000, "(__import__('os').mknod('caught'),)", "(9,)"],
)
def test_an_array_that_announces_more_than_there_is(
    tmp_path: Path, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("in.npz", "w") as archive:
        archive.writestr("counts.npy", array_of(shape, bytes(16)))
    with pytest.raises(D3S2Error, match=r"cannot read in\.npz"):
        load_npz(Path("in.npz"), ["counts"])
    assert not Path("caught").exists()


@pytest.mark.parametrize(
    "text",
    ["[1]", '"x"', "[" * 100_000, '{"settings": [1]}', '{"settings": {"seed": [1]}}', "9" * 5000],
)
def test_a_strangers_record_of_a_run_is_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(D3S2Error):
        resolve({"run_dir": str(tmp_path)})


BOMBS = {
    "many pixels": (60_000, 60_000, b""),
    "all pixels": (2**31 - 1, 2**31 - 1, b""),
    "a long text": (8, 8, ("zTXt", 10**8)),
    "a long profile": (8, 8, ("iCCP", 10**8)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_picture_that_swells_is_refused(tmp_path: Path, name: str) -> None:
    """The file is small, what it announces is not; little memory is taken."""
    width, height, text = BOMBS[name]
    chunks = [("IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))]
    if text:
        chunks.append((text[0], b"a\0\0" + zlib.compress(bytes(text[1]))))
    chunks += [("IDAT", zlib.compress(bytes(1000))), ("IEND", b"")]
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        content += struct.pack(">I", len(body)) + kind.encode() + body
        content += struct.pack(">I", zlib.crc32(kind.encode() + body))
    for part in ("images", "labels"):
        (tmp_path / "train" / part).mkdir(parents=True)
        (tmp_path / "train" / part / "a.png").write_bytes(content)
    (tmp_path / "classes.csv").write_text("id,name,red,green,blue\n0,sky,1,2,3\n")
    data = open_dataset("folder", tmp_path, "train")
    before = peak_memory()
    for read in (data.read_image, data.read_labels):
        with pytest.raises(D3S2Error, match=r"cannot read .*(bomb|too large)"):
            read(0)
    assert peak_memory() < before + 200


@pytest.mark.parametrize("header", [2**63, 2**40, 0, 10])
def test_safetensors_of_a_wrong_header_are_a_sentence(tmp_path: Path, header: int) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", header) + b'{"a":{"dtype":"F32","shape":[9]}}')
    with pytest.raises(D3S2Error, match="cannot be read safely"):
        read_checkpoint(path)


def test_what_could_command_a_terminal_is_written_out() -> None:
    assert printable("a\x1b[2J\r\u202eb\u009b\n\tü ± \udcff") == (
        "a\\x1b[2J\\r\\u202eb\\x9b\n\tü ± \\udcff"
    )
