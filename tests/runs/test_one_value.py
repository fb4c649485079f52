"""One value for every parameter: whoever sets it, every notebook of the run sees the same."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import papermill
import pytest
import torch
from notebook_maker import write_notebook
from small_scenes import small_scenes

from d3s2.core.errors import D3S2Error
from d3s2.data.scenes import write_split
from d3s2.runs import cli, config, runner
from d3s2.runs.parameter_files import read_parameters
from d3s2.runs.parameters import DECIDING, FIELDS, typed
from d3s2.runs.profiles import PROFILES

LOOK = """
import json, pathlib
from dataclasses import asdict
seen = pathlib.Path(settings.run_dir) / f"seen-{NAME}.json"
seen.write_text(json.dumps(asdict(settings)))
"""
BEGIN = """
from d3s2.runs.run import open_run
settings = open_run(globals(), begin=True).settings
"""
BOMB = "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(20)
)
"""YAML of a few lines, in which the last list has a million items."""
NAMES = ("00_start", "01_first", "02_second")


def another(name: str, value: Any) -> Any:
    """A valid value unlike this one."""
    meta = FIELDS[name].metadata
    if meta["choices"]:
        return next(choice for choice in reversed(meta["choices"]) if choice != value)
    if meta["type"] is str:
        return "128x96" if name == "image_size" else f"{value}x"
    for candidate in (value + 1, value * 2, value - 1, value / 2, value + 0.25):
        try:
            found = typed(name, candidate)
        except D3S2Error:
            continue
        if found != value:
            return found
    raise AssertionError(f"no other value for {name}")


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Every parameter, with a value unlike its profile's."""
    monkeypatch.setenv("D3S2_HOME", str(tmp_path))
    values = {name: another(name, value) for name, value in PROFILES["camvid"].items()}
    backbone = tmp_path / "backbone.pth"
    torch.save({"weight": torch.zeros(1)}, backbone)  # read before the first notebook
    small_scenes(tmp_path / "mine", 2)
    write_split(tmp_path / "mine", "val", 1)
    fitting = {"data_format": "folder", "data_root": str(tmp_path / "mine"), "budget": 2.0}
    fitting |= {
        "device": "cpu",
        "training_precision": "bfloat16",
        "batch_size": 6,
        "proxy_checkpoint": str(backbone),
        "train_images": 2,
    }
    library = tmp_path / "library" / values["tracking"]  # looked for before the first notebook
    library.mkdir(parents=True)
    (library / "__init__.py").touch()
    monkeypatch.syspath_prepend(library.parent)
    fitting |= {"proxy_config": "segformer/segformer_mit-b2_8xb2-160k_ade20k-512x512.py"}
    places = {"run_dir": str(tmp_path / "run"), "backbone_weights": str(backbone)}
    return values | places | fitting | {"profile": "camvid"}


@pytest.fixture
def notebooks(tmp_path: Path) -> Path:
    """Notebooks that declare few parameters, each another one, and write down what they see."""
    for name, own in zip(NAMES, ("image_size", "proxy_iterations", "seed"), strict=True):
        cell = f"profile = None  # set\nrun_dir = None  # folder\n{own} = None  # its own"
        path = tmp_path / "notebooks" / f"{name}.ipynb"
        write_notebook(path, f"NAME = {name!r}\n{LOOK}", parameters=cell)
    return tmp_path / "notebooks"


def seen(run_dir: str) -> list[dict[str, Any]]:
    return [json.loads((Path(run_dir) / f"seen-{name}.json").read_text()) for name in NAMES]


def test_every_parameter_has_a_value_unlike_its_profile(given: dict[str, Any]) -> None:
    same = [name for name, value in PROFILES["camvid"].items() if given[name] == value]
    assert same == [] and given.keys() == FIELDS.keys()


@pytest.mark.processes
def test_every_notebook_sees_every_parameter_as_it_was_given(
    given: dict[str, Any], notebooks: Path
) -> None:
    first = notebooks / f"{NAMES[0]}.ipynb"  # begins the run anew, as notebook 00 does
    cell = "profile = None  # set\nrun_dir = None  # folder"
    write_notebook(first, BEGIN, f"NAME = {NAMES[0]!r}\n{LOOK}", parameters=cell)
    runner.run(given, notebooks=notebooks)
    assert seen(given["run_dir"]) == [given] * 3
    assert json.loads((Path(given["run_dir"]) / "run.json").read_text())["settings"] == given


@pytest.mark.processes
def test_plain_papermill_and_a_notebook_by_hand_see_the_runs_values(
    given: dict[str, Any], notebooks: Path, tmp_path: Path
) -> None:
    runner.run(given, notebooks=notebooks)
    for name in NAMES:
        (Path(given["run_dir"]) / f"seen-{name}.json").unlink()
        path = notebooks / f"{name}.ipynb"
        where = {"run_dir": given["run_dir"]}
        papermill.execute_notebook(
            path,
            tmp_path / "out.ipynb",
            where,
            progress_bar=False,
            kernel_name="python3",
            language="python",
        )
    assert seen(given["run_dir"]) == [given] * 3
    assert asdict(config.resolve({"run_dir": given["run_dir"]})) == given


def test_each_parameter_that_decides_makes_the_notebooks_stale(
    given: dict[str, Any], notebooks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also one that no notebook declares: any of them may read it."""
    monkeypatch.setattr(runner, "code_version", lambda *_: "the same code")  # parsed once is enough
    chapters = runner.read_chapters(notebooks)
    start = {"profile": "camvid", "run_dir": given["run_dir"]}
    before = runner.chapter_keys(chapters, config.resolve(start))
    for name in set(FIELDS) - {"profile", "run_dir"}:
        settings = config.resolve(start | {name: given[name]})
        after = runner.chapter_keys(chapters, settings)
        changed = before["02_second"] != after["02_second"]
        assert changed == (name in DECIDING), name


# --------------------------------------------------------------------------------- parameter files
def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return path


def options(*words: object) -> Any:
    return cli._parser().parse_args([str(word) for word in words])


def test_a_file_sets_what_the_command_line_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("D3S2_HOME", str(tmp_path))
    path = write(tmp_path, "profile: smoke\nseed: 4\nbudget: 1e-2\nimage_size: 64x64\n")
    found = cli.parameters(options("run", "-f", path, "-p", "seed=5"))
    assert found == {
        "profile": "smoke",
        "seed": 5,
        "budget": 0.01,
        "image_size": "64x64",
        "run_dir": str(tmp_path / "runs" / "mine"),
    }
    chosen = cli.parameters(options("run", "-f", path, "--profile", "scenes", "--run-dir", "x"))
    assert (chosen["profile"], chosen["run_dir"], chosen["seed"]) == ("scenes", "x", 4)
    assert config.resolve(found, remember=False).steps == PROFILES["smoke"]["steps"]


def test_lists_in_a_file_are_a_sweeps_grid(tmp_path: Path) -> None:
    path = write(tmp_path, "profile: smoke\nseed: [0, 1]\nbeta: [0.25, 1]\nsteps: 10\n")
    fixed, grid = cli.grid_of(options("sweep", "-f", path, "-g", "beta=0.5"))
    assert grid == {"beta": (0.5,), "seed": (0, 1)} and fixed["steps"] == 10
    fixed, grid = cli.grid_of(options("sweep", "-f", path, "-p", "seed=3"))
    assert grid == {"beta": (0.25, 1.0)} and fixed["seed"] == 3
    with pytest.raises(D3S2Error, match="seed has a list of values"):
        cli.parameters(options("run", "-f", path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sede: 1", "no parameter 'sede': did you mean 'seed'"),
        ("seed: x", "seed is 'x'"),
        ("seed: 1.5", "seed is 1.5"),
        ("checkpointing: true", "checkpointing is True"),
        ("diffusion_revision: 123", "diffusion_revision is 123"),
        ("seed: {a: 1}", "seed is {'a': 1}"),
        ("seed: 1\nseed: 2", "names 'seed' twice"),
        ("- 1", "must hold lines such as"),
        ("", "must hold lines such as"),
        ("seed: [1", "no YAML that can be read"),
        ("seed: !!python/object/apply:os.system [ls]", "no YAML that can be read"),
        ("seed: !!python/name:os.system", "no YAML that can be read"),
        ("a: &a [1]\n" + BOMB, "it has an alias"),
        ("seed: " + "9" * 5000, "no YAML that can be read"),
        ("seed: 2023-13-45", "no YAML that can be read"),
        ("seed: !!timestamp x", "no YAML that can be read"),
        ("seed: " + "[" * 1500, "no YAML that can be read"),
        ("negative_prompt: " + "x" * 200_000, "more than 100000 letters"),
        ("device: " + "x" * 5000, "xxx...xxx"),
    ],
)
def test_what_is_wrong_with_a_file_is_a_sentence_that_names_it(
    tmp_path: Path, text: str, words: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(D3S2Error) as caught:
        read_parameters(path)
    assert str(path) in str(caught.value) and words in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(D3S2Error, match=r"no parameter file .*nowhere\.yaml"):
        read_parameters(tmp_path / "nowhere.yaml")
