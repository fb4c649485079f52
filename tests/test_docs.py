"""What README and documents say can be typed, opened and run: commands, parameters, links, paths,
code. README stays short, and its table is what the committed measurements give.
"""

from __future__ import annotations

import ast
import csv
import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from small_scenes import small_scenes
from tiny_painter import tiny_shared
from training_jobs import make_job, write_splits

import d3s2
from d3s2.core import places
from d3s2.core.errors import D3S2Error
from d3s2.core.files import read_json, write_json
from d3s2.data import opening
from d3s2.data.folder import open_folder
from d3s2.data.tensors import read_masks
from d3s2.guidance.losses import FeatureTargets
from d3s2.guidance.painting import Painter, Recipe, generate
from d3s2.guidance.sampler import Guidance, finish, initial_noise, sample
from d3s2.methods import intervals
from d3s2.methods import table as methods_table
from d3s2.methods.distil import distil
from d3s2.methods.world import World
from d3s2.models.custom import files_of, open_custom
from d3s2.models.diffusion_parts import DiffusionOptions
from d3s2.models.load import load_generator, load_proxy
from d3s2.runs import cli, config
from d3s2.runs.contest import REFERENCE
from d3s2.runs.export import export_training
from d3s2.runs.parameters import FIELDS, parse
from d3s2.runs.profiles import PROFILES
from d3s2.runs.stages import Stage
from d3s2.statistics.features import feature_statistics
from d3s2.studies import ablation, bill, curve, images
from d3s2.training.job import CONFIG, PREDICTIONS, open_split
from d3s2.training.worker import train

ROOT = Path(__file__).resolve().parent.parent
FILES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
MOST_WORDS = 900


def document(path: Path) -> SimpleNamespace:
    """Name and text of a Markdown file; its blocks as (language, code); its prose without them."""
    text = path.read_text(encoding="utf-8")
    fence = r"^```(\w*)\n(.*?)^```\n?"
    blocks = re.findall(fence, text, re.MULTILINE | re.DOTALL)
    prose = re.sub(fence, "", text, flags=re.MULTILINE | re.DOTALL)
    name = path.relative_to(ROOT).as_posix()
    return SimpleNamespace(name=name, path=path, text=text, blocks=blocks, prose=prose)


DOCUMENTS = [document(ROOT / name) for name in FILES]
DOCUMENTS += [document(path) for path in sorted((ROOT / "docs").glob("*.md"))]
README = DOCUMENTS[0]


def blocks(language: str) -> list[tuple[str, str]]:
    """(document, code) of every block in this language."""
    return [
        (page.name, code) for page in DOCUMENTS for kind, code in page.blocks if kind == language
    ]


def spans(page: SimpleNamespace) -> list[str]:
    """What stands between single backticks in the prose."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", page.prose)]


def typed(page: SimpleNamespace) -> list[str]:
    """Every line of a block without a language, and every span: what a reader may type."""
    lines = [line for kind, code in page.blocks if not kind for line in code.splitlines()]
    return lines + spans(page)


def found(pattern: str) -> list[str]:
    """Group 1 of the pattern in all that may be typed."""
    matches = [re.search(pattern, line) for page in DOCUMENTS for line in typed(page)]
    return sorted({match.group(1) for match in matches if match})


def slug(heading: str) -> str:
    """The anchor that a web view gives a heading."""
    plain = re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading.strip().lower())
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


# ----------------------------------------------------------------------------------------- commands
COMMANDS = found(r"^(?:\.venv/bin/)?d3s2 ([a-z].*)") + found(r"^docker run .* d3s2 ([a-z].*)")


@pytest.fixture
def named_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the parameter files that the documents show: the YAML blocks whose
    first line is a comment with their name.
    """
    for _, code in blocks("yaml"):
        (tmp_path / re.match(r"# (\S+\.yaml)\n", code).group(1)).write_text(code)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("D3S2_HOME", str(tmp_path))
    return tmp_path


def test_there_are_commands_of_every_kind() -> None:
    kinds = {line.split()[0] for line in COMMANDS}
    assert kinds >= {"run", "sweep", "check", "results", "fetch", "publish"}
    assert any(" -f " in line for line in COMMANDS)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_and_their_parameters_exist(line: str, named_files: Path) -> None:
    options = cli._parser().parse_args(shlex.split(line, comments=True))
    if line == "sweep":  # the command as such, named in a sentence
        return
    if options.command is cli._sweep:
        fixed, grid = cli.grid_of(options)
        fixed |= {name: values[-1] for name, values in grid.items()}
    else:
        fixed = cli.parameters(options) if hasattr(options, "parameters") else {}
    config.resolve(fixed, remember=False)


def test_a_parameter_file_does_what_is_said(named_files: Path) -> None:
    line = "run -f mine.yaml -p budget=0.2"
    options = cli._parser().parse_args(line.split())
    settings = config.resolve(cli.parameters(options), remember=False)
    assert (settings.profile, settings.budget, settings.image_size) == ("camvid", 0.2, "96x128")
    assert Path(settings.run_dir) == named_files / "runs" / "mine"


def test_parameters_of_their_own_exist() -> None:
    """`-p name=value` where no command stands before it; names in a table of parameters."""
    for setting in found(r"^-p (\w+=\S+)$"):
        name, _, value = setting.partition("=")
        parse(name, value)
    for page in DOCUMENTS:
        for head, cells in re.findall(
            r"^\| (parameter [^\n]*)\n\|[-:| ]+\n((?:\|.*\n)+)", page.text, re.M
        ):
            assert "-p" in head
            for row in cells.splitlines():
                for name in re.findall(r"`(\w+)`", row.split("|")[1]):
                    assert name in FIELDS, f"{page.name}: {name}"


def test_the_profiles_that_are_described_are_those_there_are() -> None:
    page = (ROOT / "docs" / "parameters.md").read_text()
    table = page[page.index("| profile |") : page.index("A *parameter file*")]
    rows = [row.split("|")[1] for row in table.strip().splitlines()[2:]]
    assert set(re.findall(r"`(\w+)`", "".join(rows))) == set(PROFILES)
    said = re.search(r"make nothing run again: (.*?)\.", page, re.DOTALL).group(1)
    free = {name for name, entry in FIELDS.items() if not entry.metadata["decides"]}
    assert set(re.findall(r"`(\w+)`", said)) == free


def test_targets_build_arguments_and_ports_exist() -> None:
    makefile, dockerfile = (ROOT / "Makefile").read_text(), (ROOT / "Dockerfile").read_text()
    targets, given = found(r"^make ([a-z]+)"), found(r"--build-arg (\w+)=")
    assert {"run", "test", "unit", "lint", "lab"} <= set(targets)
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    assert len(given) >= 3 and all(f"ARG {name}=" in dockerfile for name in given)
    ports = found(r"-p 127\.0\.0\.1:\d+:(\d+)")
    assert ports and all("EXPOSE " + port in dockerfile for port in ports)


def modules() -> list[str]:
    """`module options` of every `python -m d3s2…`, but those that the changelog says are gone."""
    pages = [page for page in DOCUMENTS if page.name != "CHANGELOG.md"]
    lines = [line for page in pages for line in typed(page)]
    gone = r"\| before \| now \|\n.*\n((?:.*\|.*\n)+)"
    table = re.search(gone, (ROOT / "CHANGELOG.md").read_text()).group(1)
    lines += [
        span for row in table.splitlines() for span in re.findall(r"`(.+?)`", row.split("|")[2])
    ]
    matches = [re.search(r"python -m (d3s2\..*)", line) for line in lines]
    return sorted({match.group(1) for match in matches if match})


@pytest.mark.parametrize("line", modules())
def test_modules_that_are_run_exist_and_know_their_options(line: str) -> None:
    module, *words = shlex.split(line, comments=True)
    source = Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8")
    assert '__name__ == "__main__"' in source
    for option in [word for word in words if word.startswith("--")]:
        assert f'"{option}"' in source, option
    if "--arms" in words:
        arms = words[words.index("--arms") + 1 :]
        end = next((place for place, word in enumerate(arms) if word[0] == "-"), len(arms))
        assert set(arms[:end]) <= set(ablation.ARMS)


def test_the_changelog_sends_people_to_modules_that_exist() -> None:
    rows = re.findall(
        r"^  \|([^|]*)\|([^|]*)\|$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )
    new = re.findall(r"`(?:python -m )?(d3s2[.\w]+)`", "".join(now for _, now in rows))
    assert len(new) > 20
    for name in new:
        assert importlib.util.find_spec(name) is not None, name


# ---------------------------------------------------------------------------------- links and paths
@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_links_and_anchors_lead_somewhere(page: SimpleNamespace) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.prose):
        assert "://" not in target, f"{target}: nothing outside is linked to"
        name, _, anchor = target.partition("#")
        path = (page.path.parent / name).resolve() if name else page.path
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", document(path).prose, re.MULTILINE)
            assert anchor in map(slug, headings), target


def definitions(path: Path) -> set[str]:
    """Names that a module defines at its top level, and `Class.method`."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign):
            names.add(ast.unparse(node.target))
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
            names |= {f"{node.name}.{part.name}" for part in node.body if hasattr(part, "name")}
    return names


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_paths_and_the_names_in_them_exist(page: SimpleNamespace) -> None:
    pattern = r"(?<![\w/.-])((?:d3s2|tests|notebooks|docs)/[\w./-]*\w/?)(?:::([\w.]+))?"
    for span in spans(page):
        for name, definition in re.findall(pattern, span):
            path = ROOT / name
            assert path.exists() or name == "d3s2/home", name
            if definition:
                assert definition in definitions(path), f"{name}::{definition}"


def test_every_room_is_on_the_map() -> None:
    tree = next(
        code for kind, code in document(ROOT / "docs" / "architecture.md").blocks if not kind
    )
    inside = tree[tree.index("d3s2/\n") : tree.index("tests/")]
    said = set(re.findall(r"^  (\w+)(?:/|\.py) ", inside, re.MULTILINE))
    there = {path.stem for path in (ROOT / "d3s2").iterdir() if path.name[0] not in "_."}
    assert said == there


# --------------------------------------------------------------------------------------------- code
def without(code: str) -> bool:
    """Whether a block says by its first line that it needs a module, and that is not here."""
    needed = re.match(r"# needs (\w+)\n", code)
    return bool(needed) and importlib.util.find_spec(needed.group(1)) is None


def run_block(name: str, about: str, names: dict[str, Any] | None = None) -> dict[str, Any]:
    """Execute the one Python block of a document that contains `about`; its names."""
    code = [code for page, code in blocks("python") if page == name and about in code]
    assert len(code) == 1, about
    names = {"__name__": "block"} if names is None else names
    exec(compile(code[0], f"{name}: {about}", "exec"), names)  # noqa: S102 - our own documents
    return names


def test_every_python_block_is_executed_below_or_says_what_it_needs() -> None:
    below = Path(__file__).read_text(encoding="utf-8").partition("def test_every_python_block")[2]
    run = re.findall(r'run_block\((\w+), "(.+?)"', below)
    for page, code in blocks("python"):
        ast.parse(code)
        executed = [about for name, about in run if globals()[name] == page and about in code]
        assert without(code) or executed, code


PAGE = "docs/architecture.md"
METHODS_PAGE = "docs/methods.md"
EXPORT_PAGE = "docs/export.md"


def test_a_layout_can_be_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "OPENERS", dict(opening.OPENERS))
    for part, value in (("photos", 90), ("masks", 1)):
        (tmp_path / "train" / part).mkdir(parents=True)
        kind = (8, 8, 3) if part == "photos" else (8, 8)
        Image.fromarray(np.full(kind, value, np.uint8)).save(tmp_path / "train" / part / "a.png")
    run_block(PAGE, "OPENERS[")
    (tmp_path / "train" / "masks" / "b.png").write_bytes(b"")
    told: list[D3S2Error] = []
    leaves = opening.open_dataset("leaves", tmp_path, "train", tell=told.append)
    assert "b.png has no image" in str(*told)
    with pytest.raises(D3S2Error, match=re.escape(str(*told))):
        opening.open_dataset("leaves", tmp_path, "train")
    assert leaves.ids == ("a",) and leaves.class_names == ("ground", "leaf")
    assert (leaves.read_labels(0) == 1).all() and (leaves.read_image(0) == 90).all()


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On a busy machine several threads wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.processes
def test_a_loss_can_be_added(tmp_path: Path, one_thread: None) -> None:
    scenes = small_scenes(tmp_path, 4)
    proxy = load_proxy(places.EMBEDDED_WEIGHTS / "proxy")
    moments = feature_statistics(scenes, proxy, progress=False)
    names: dict[str, Any] = {
        "__name__": "block",
        "generator": load_generator(places.EMBEDDED_WEIGHTS / "generator"),
        "proxy": proxy,
        "targets": FeatureTargets.from_moments(moments),
        "labels": read_masks(scenes, [0, 1]),
        "ids": scenes.ids[:2],
    }
    run_block(PAGE, "def muted_losses", names)
    run_block(PAGE, "losses=muted_losses", names)
    plain = Painter(names["generator"], proxy, names["targets"])
    guidance = Guidance({"segmentation": 0.1, "feature": 0.1})
    recipe = Recipe("plain", steps=10, guidance=guidance)
    unmuted = generate(plain, names["labels"], names["ids"], recipe)
    colour = names["colourfulness"]
    assert (colour(names["images"]) < 0.8 * colour(unmuted)).all()


def test_a_generator_can_be_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = [code for page, code in blocks("python") if page == PAGE and "def crayons" in code]
    names = run_block(PAGE, "def crayons", {"__name__": __name__})
    (tmp_path / "crayon_box").mkdir()
    (tmp_path / "crayon_box" / "models.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    told = tmp_path / "crayons.json"
    told.write_text("{}")
    scenes = small_scenes(tmp_path / "scenes", 1)
    options = DiffusionOptions(str(told), "")
    model = open_custom(
        "crayon_box.models:crayons", options, scenes.class_names, scenes.palette[:20], "cpu"
    )
    assert files_of("crayon_box.models:crayons", options) == names["files"](options) == [told]
    labels = read_masks(scenes, [0])
    run = sample(model, initial_noise([1], model.noise_shape(64, 64)), labels, None, 4)
    pixels = (255 * (finish(run).image[0] / 2 + 0.5)).round().permute(1, 2, 0)
    known = labels[0] < 255
    expected = torch.from_numpy(scenes.palette[:20])[labels[0][known]]
    assert (pixels[known] - expected).abs().max() <= 1


def test_a_method_can_be_added(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "ARMS", dict(ablation.ARMS))
    run_block(PAGE, "ARMS[")
    assert ablation.ARMS["fresh noise"].recipe.guidance.random
    assert not ablation.ARMS["d3s2"].recipe.guidance.random


def test_a_method_of_ones_own_joins_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods_table, "METHODS", dict(methods_table.METHODS))
    source = run_block(METHODS_PAGE, "class Pairs")["Pairs"]
    assert methods_table.find("pairs").name == "pairs"
    train = small_scenes(tmp_path / "scenes", 5)
    world = World(tiny_shared(train, tmp_path), budget=3)
    made = open_folder(distil(source(), world), "train")
    assert len(made) == 3
    index = train.ids.index(made.ids[0])
    image = made.read_image(0)
    assert (image[:, :32] == train.read_image(index)[:, :32]).all()
    assert (image[:, 32:] == train.read_image((index + 1) % 5)[:, 32:]).all()


def test_a_notebook_can_be_added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D3S2_HOME", str(tmp_path))
    run_dir = places.home() / "runs" / "scenes"
    before = Stage(run_dir, "selection", {}, modules=["selection"])
    write_json(before.begin() / "selected.json", {"ids": ["b", "a"]})
    before.finish()
    names = run_block(PAGE, "profile: str = None")
    run_block(PAGE, "run.find(", names)
    assert names["stage"].is_current()
    assert read_json(run_dir / "first" / "first.json") == {"first": "b"}


@pytest.mark.processes  # it trains
def test_a_training_opens_without_d3s2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    data = write_splits(tmp_path / "data")
    job = make_job(data, tmp_path / "run", iterations=2)
    train(job)
    monkeypatch.chdir(tmp_path / "run")
    text = Path(CONFIG).read_text()
    assert "d3s2" not in text.lower() and str(tmp_path) not in text
    val = open_split(data, "val", None, job.size)
    image = np.ascontiguousarray(val.read_image(0)[..., ::-1])
    names = run_block(PAGE, "init_model(", {"__name__": "block", "image": image})
    model = names["model"]
    assert type(model.decode_head).__module__.startswith("mmseg.")
    assert model.dataset_meta["classes"] == list(val.class_names)
    with np.load(PREDICTIONS) as stored:
        found = names["answer"].pred_sem_seg.data[0].numpy()
        np.testing.assert_array_equal(found, stored[val.ids[0]])
    export_training(tmp_path / "run", "", tmp_path / "my-model")
    monkeypatch.chdir(tmp_path)
    Image.fromarray(val.read_image(0)).save("photograph.png")
    again = run_block(EXPORT_PAGE, "my-model/config.py")["answer"]
    np.testing.assert_array_equal(again.pred_sem_seg.data[0].numpy(), found)


def test_yaml_can_be_read() -> None:
    found = {
        re.match(r"# (\S+)", code).group(1): yaml.safe_load(code) for _, code in blocks("yaml")
    }
    pod = found.pop("workers.yaml")["spec"]["template"]["spec"]
    assert pod["containers"][0]["volumeMounts"] == [
        {"name": pod["volumes"][0]["name"], "mountPath": "/d3s2"}
    ]
    assert found.keys() == {"mine.yaml", "grid.yaml"}
    assert all(name in FIELDS for values in found.values() for name in values)


# ------------------------------------------------------------------------------ README and citation
def test_readme_is_short() -> None:
    """Words count as a reader sees them, those in tables too; code blocks, the targets of links and
    the strokes of tables do not.
    """
    text = re.sub(r"\]\([^)]*\)", "]", README.prose)
    words = [word for word in text.split() if re.search(r"\w", word)]
    assert len(words) < MOST_WORDS, len(words)


def test_nothing_is_said_of_other_places() -> None:
    for page in [*DOCUMENTS, document(ROOT / "CITATION.cff")]:
        assert not re.search(r"https?://|/(?:home|root|work|tmp)/", page.text), page.name


ROWS = ("random", "balanced", "unguided", "segmentation", "d3s2", "unguided x 4", "d3s2 x 4")


def lacking(text: str) -> list[str]:
    """Lines of a table that the README has not word for word."""
    said = set(README.text.splitlines())
    return [line for line in text.strip().splitlines() if line not in said]


def test_the_table_is_what_was_measured() -> None:
    assert not lacking(intervals.table(ablation.read_scores(), ablation.REFERENCES, ROWS))
    arms = " ".join(f"'{name}'" if " " in name else name for name in ROWS)
    assert f"`python -m d3s2.studies.ablation --show --arms {arms}`" in README.text


CAMVID = REFERENCE.with_stem("comparison-camvid")


@pytest.mark.parametrize(("masks", "clear"), [(18, []), (37, ["d3s2 x 4"])])
def test_camvids_tables_are_what_was_measured(masks: int, clear: list[str]) -> None:
    found = intervals.read_measurement(CAMVID, "d3s2 compare", masks)
    page = document(ROOT / "docs" / "real-data.md").text
    said = set(page.splitlines())
    measured = intervals.table(found, ("random", "balanced", "unguided"))
    assert all(line in said for line in measured.strip().splitlines())
    above_unguided = found.against("unguided")
    assert [name for name, one in above_unguided.items() if one.is_clear] == clear
    assert not any(one.is_clear for one in found.against("balanced").values())


def test_what_is_said_of_camvids_pairs_is_what_was_measured() -> None:
    text = " ".join(document(ROOT / "docs" / "real-data.md").text.split())
    higher = {("d3s2", "unguided"): 0, ("d3s2 at 0.5", "d3s2"): 0}
    for masks in (18, 37):
        scores = intervals.read_measurement(CAMVID, "d3s2 compare", masks).scores
        for one, other in higher:
            higher[one, other] += sum(scores[one][n] > scores[other][n] for n in range(3))
        for name in ("unguided", "d3s2", "d3s2 at 0.5"):
            lower = [scores[name][n] < scores["balanced"][n] for n in range(3)]
            assert all(lower) or masks == 37
    assert list(higher.values()) == [6, 5]
    assert "in each of six pairs" in text and "in five of six" in text


def test_the_curves_in_the_table_are_what_was_measured() -> None:
    curves = curve.read_curves()[0]
    assert not lacking(curve.table(curves))
    assert "Trained longer, all real images are ahead" in README.text
    for name, points in curves.items():
        for length in points.keys() - {1500}:
            least = min(curves["full"][length].values())
            assert name == "full" or max(points[length].values()) < least


def test_the_bill_of_the_networks_is_that_of_their_logs(tmp_path: Path) -> None:
    of_run = bill.bill(places.EMBEDDED_WEIGHTS, tmp_path, 4000, 40, [])
    assert [line.part for line in of_run[1:3]] == ["proxy", "generator"]
    assert not lacking(bill.table(of_run[:3]))


def test_prose_says_what_fresh_seeds_left_of_the_leads() -> None:
    fresh = ablation.read_scores(ablation.confirmation())
    prose = " ".join(README.text.split())
    assert "on eight fresh seeds and 500 held-out scenes" in prose
    assert (fresh.facts["split"], fresh.facts["judged_images"]) == ("test", 500)
    seen = {seed for scores in ablation.read_scores().scores.values() for seed in scores}
    for scores in fresh.scores.values():
        assert len(scores) == 8 and not seen & scores.keys()
    lead = fresh.family([("d3s2", "balanced"), ("d3s2", "unguided")])
    over_photographs, over_unguided = (one.difference for one in lead.values())
    assert f"d3s2 minus balanced is {over_photographs}, minus unguided {over_unguided} (" in prose
    (alone,) = fresh.family([("segmentation", "unguided")]).values()
    assert f"(segmentation: {alone.difference})." in prose and not alone.is_clear
    protocol = " ".join(document(ROOT / "docs" / "protocol.md").text.split())
    ours, theirs = fresh.scores["segmentation"], fresh.scores["unguided"]
    assert sum(ours[seed] > theirs[seed] for seed in ours) == 7
    assert f"It came to {alone.difference}, above in seven of eight pairs" in protocol
    four = fresh.family([("d3s2 x 4", "balanced"), ("d3s2 x 4", "unguided x 4")])
    over_photographs, over_unguided = (one.difference for one in four.values())
    assert "both are clear" in prose and all(one.is_clear for one in four.values())
    assert (
        f"d3s2 x 4 minus balanced is {over_photographs}, minus unguided x 4 {over_unguided}."
        in prose
    )
    five = (ROOT / "notebooks" / "05_compare_methods.ipynb").read_text(encoding="utf-8")
    claim = "its leads over `balanced` and `unguided` were not told apart from nothing"
    assert (claim in five) == (not any(one.is_clear for one in lead.values()))


def test_the_images_of_the_protocol_are_those_that_were_judged() -> None:
    """Every number of the table, and what is said of the guided images beside the unguided ones."""
    page = document(ROOT / "docs" / "protocol.md").text
    named = {
        "photographs": "photographs",
        "photographs of train": "photographs of other masks",
        "segmentation": "segmentation loss alone",
        "feature": "feature loss alone",
        "half strength": "both, half strength",
        "d3s2": "both (the default)",
    }
    columns = ("frechet_proxy", "frechet_judge", "told_apart", "proxy_recall", "judge_recall")
    with open(images.REFERENCE, newline="", encoding="utf-8") as stream:
        found = {row["arm"]: row for row in csv.DictReader(stream)}
    for arm, row in found.items():
        cells = [
            f" {float(row[name]):.3f} ".replace(" 0.", " .") if row[name] else " "
            for name in columns
        ]
        assert f"| {named.get(arm, arm)} |{'|'.join(cells)}|\n" in page, arm
    gap, default, half = (
        float(found["photographs"]["judge_recall"]) - float(found[arm]["judge_recall"])
        for arm in ("unguided", "d3s2", "half strength")
    )
    assert round(1 - default / gap, 1) == 0.8 and round((1 - half / gap) * 4) == 3
    by_proxy, by_judge = (
        float(found["d3s2"][name]) / float(found["unguided"][name]) for name in columns[:2]
    )
    assert 1.8 < by_proxy < 2.2 and 1.4 < by_judge < 1.6


def test_the_row_that_is_said_to_be_highest_is_so() -> None:
    found = intervals.read_measurement(REFERENCE, "d3s2 compare", 40).scores
    assert f"Of the {len(found)} rows of `d3s2 compare`" in README.text
    assert set(found) == set(methods_table.METHODS)
    highest = max(found, key=lambda name: np.mean(list(found[name].values())))
    assert f"{highest} has the highest mean" in README.text
    assert {len(values) for values in found.values()} == {5}
    assert "Every row has five seeds there" in document(ROOT / "docs" / "methods.md").text


def test_what_came_of_the_expectations_is_what_was_measured() -> None:
    """Of the trainings on images that lie nearer to photographs, or further."""
    page = document(ROOT / "docs" / "protocol.md").text
    found = ablation.read_scores()
    pairs = {
        ("half strength", "d3s2"): "not seen: {}, not told apart |",
        ("segmentation", "unguided"): "so: {}, clear after Holm",
        ("segmentation", "d3s2"): "{}, not told apart |",
        (
            "feature",
            "segmentation",
        ): "no, more: {}, clear after Holm, if barely (p .04, three pairs",
    }
    family = found.family(pairs)
    for pair, said in pairs.items():
        one = family[" - ".join(pair)]
        assert f"| {said.format(one.difference)}" in page
        assert one.is_clear == ("clear after Holm" in said)
    assert f"{family['feature - segmentation'].corrected:.2f}" == "0.04"
    assert found.against("unguided")["segmentation"].is_clear
    assert len(found.scores["feature"]) == 3


def test_the_table_of_budgets_is_what_was_measured() -> None:
    page = document(ROOT / "docs" / "methods.md").text
    rows = ("random", "edits", "balanced", "d3s2")
    pairs = [("balanced", "random"), ("d3s2", "balanced"), ("edits", "balanced")]
    ahead = []
    for masks in (20, 40, 80, 200):
        path = REFERENCE if masks == 40 else REFERENCE.with_stem("comparison-budgets")
        found = intervals.read_measurement(path, "d3s2 compare", masks)
        means = [intervals.spread(found, name) for name in rows]
        gaps = [str(one.difference) for one in found.family(pairs).values()]
        assert f"| {masks} | {' | '.join([*means, *gaps])} |\n" in page
        ours, theirs = found.scores["d3s2"], found.scores["balanced"]
        ahead += [ours[seed] - theirs[seed] for seed in ours]
    assert len(ahead) == 14 and min(ahead) > 0 and "in each of 14 pairs" in page


def test_what_is_said_of_the_predictions_is_what_the_file_gives() -> None:
    """With five seeds a row, and with the first three of them."""
    five = json.loads((ROOT / "notebooks" / "05_compare_methods.ipynb").read_text(encoding="utf-8"))
    sources = ["".join(cell["source"]) for cell in five["cells"]]
    predicted = next(ast.parse(each).body[0] for each in sources if each.startswith("PREDICTED"))
    pairs = ast.literal_eval(predicted.value)
    found = intervals.read_measurement(REFERENCE, "d3s2 compare", 40)
    verdicts = {one: str(found.family(pairs.values())[" - ".join(pairs[one])]) for one in pairs}
    assert [one for one, said in verdicts.items() if said != "higher"] == [
        "UniDD beats a random draw"
    ]
    assert verdicts["UniDD beats a random draw"] == "lower"
    early = {name: {seed: of[seed] for seed in range(3)} for name, of in found.scores.items()}
    fewer = replace(found, scores=early).family(pairs.values())
    assert sum(str(one) == "higher" for one in fewer.values()) == 3
    assert all(str(one) != "lower" for one in fewer.values())
    assert any("three held and the rest were not told apart" in each for each in sources)


def test_the_citation_is_one() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors", "type", "license"} <= cited.keys()
    assert cited["cff-version"] == "1.2.0" and str(cited["version"]) == d3s2.__version__
    assert cited["type"] == "software" and cited["license"] == "MIT"
    paper = cited["references"][0]
    assert {"type", "title", "authors"} <= paper.keys()
    assert {"type": "other", "value": "arXiv:2605.25022"} in paper["identifiers"]
    for author in (*cited["authors"], *paper["authors"]):
        assert author.keys() == {"name"}  # persons are not known to us: none is invented


def test_the_changelog_knows_this_version() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == "Unreleased" and d3s2.__version__ in versions
