"""A generator of one's own by a setting: what is called, what is refused, what its key covers."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_scenes import small_scenes

from d3s2.core.errors import D3S2Error
from d3s2.core.files import read_json
from d3s2.guidance.losses import FeatureTargets
from d3s2.guidance.painting import Painter, Recipe, synthesise
from d3s2.models.custom import code_of, files_of, open_custom
from d3s2.models.diffusion_parts import DiffusionOptions
from d3s2.models.load import load_generator, load_proxy, weights_digest
from d3s2.runs import config
from d3s2.runs.model_choice import PINNED, CustomGenerator, choose_models, diffusion_options
from d3s2.runs.refusals import refuse_early
from d3s2.runs.weights import Models, ensure_weights
from d3s2.statistics.features import feature_statistics

SOURCE = '''
"""Paints every class in its colour."""
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from d3s2.models.generator import LayoutGenerator, noise_schedule


@dataclass
class Flat(LayoutGenerator):
    colors: torch.Tensor
    count: int

    num_classes = property(lambda self: self.count)


def paint(options, names, colors, device):
    own = noise_schedule()
    table = torch.zeros(256, 3)
    table[: len(colors)] = torch.from_numpy(colors) / 127.5 - 1

    def unet(x, t, layout, classes):
        a = own.alphas_cumprod[int(t)].item()
        clean = table[layout].permute(0, 3, 1, 2)
        return (math.sqrt(a) * x - clean) / math.sqrt(1 - a)

    return Flat(unet, own, table, len(names))


def files(options):
    return [Path(options.model)] if options.model.endswith(".txt") else []


def other_classes(options, names, colors, device):
    return Flat(None, noise_schedule(), None, 7)


class Half:
    unet = schedule = noise_shape = decode = None


def half(options, names, colors, device):
    return Half()


def stepless(options, names, colors, device):
    return type("Stepless", (Flat,), {"schedule": None})(None, None, None, len(names))


number = 3
'''
COLORS = np.array([[10, 20, 30], [200, 100, 0]], dtype=np.uint8)
NAMES = ("ground", "leaf")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of modules that can be imported: `mine_alone`, and `mine.models` with a package."""
    place = tmp_path / "python"
    (place / "mine").mkdir(parents=True)
    (place / "mine_alone.py").write_text(SOURCE)
    (place / "mine" / "__init__.py").write_text("")
    (place / "mine" / "models.py").write_text(SOURCE)
    (place / "mine" / "broken.py").write_text("import nothing_of_this_name\n")
    (place / "mine" / "raises.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(place)
    yield place
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mine", "mine_alone")]:
        del sys.modules[name]


def options(model: str = "somewhere") -> DiffusionOptions:
    return DiffusionOptions(model, "control")


def test_the_function_is_called_with_options_names_colours_and_device(folder):
    model = open_custom("mine.models:paint", options(), NAMES, COLORS, "cpu")
    assert model.num_classes == 2
    layout = torch.tensor([[[0, 1], [1, 1]]])
    x = torch.randn(1, 3, 2, 2)
    v = model.unet(x, torch.tensor(500), layout, None)
    a = model.schedule.alpha_bars[500]
    clean = a.sqrt() * x - (1 - a).sqrt() * v
    expected = torch.from_numpy(COLORS)[layout].permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(clean, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.at_all:paint", r"nowhere.at_all cannot be imported \(ModuleNotFoundError"),
        ("mine.broken:paint", r"mine.broken cannot be imported .*nothing_of_this_name"),
        ("mine.raises:paint", r"mine.raises cannot be imported \(ZeroDivisionError"),
        ("mine.models:draw", r"mine.models has no 'draw': name a function"),
        ("mine.models:number", r"has something that cannot be called under 'number'"),
        ("mine.models:half", r"lacks render: derive its class from .*LayoutGenerator"),
        ("mine.models:stepless", r"schedule of 'mine.models:stepless' lacks steps"),
        ("mine.models:other_classes", r"is for 7 classes, the data has 2"),
    ],
)
def test_what_is_amiss_is_a_sentence(folder, name, words):
    with pytest.raises(D3S2Error, match=words) as caught:
        open_custom(name, options(), NAMES, COLORS, "cpu")
    assert "\n" not in str(caught.value)


def test_what_it_reads_is_asked_for(folder, tmp_path):
    weights = tmp_path / "weights.txt"
    with pytest.raises(D3S2Error, match=r"weights.txt, which the generator .* is missing"):
        files_of("mine.models:paint", options(str(weights)))
    weights.write_text("1")
    assert files_of("mine.models:paint", options(str(weights))) == [weights]
    assert files_of("mine_alone:paint", options()) == []


def test_its_code_is_its_whole_package_or_its_own_module(folder):
    package, alone = code_of("mine.models:paint"), code_of("mine_alone:paint")
    (folder / "mine" / "helpers.py").write_text("x = 1\n")
    assert code_of("mine.models:paint") != package and code_of("mine_alone:paint") == alone
    (folder / "mine_alone.py").write_text(SOURCE + "\n")
    assert code_of("mine_alone:paint") != alone
    ours = code_of("d3s2.models.flow:load")
    assert ours == code_of("d3s2.models.flow:files") != code_of("d3s2.models.stable_diffusion:load")


# ------------------------------------------------------------------------------------ through a run
@pytest.fixture
def given(folder, tmp_path, monkeypatch) -> dict[str, str]:
    monkeypatch.setenv("D3S2_HOME", str(tmp_path / "home"))
    small_scenes(tmp_path / "data", 3)
    (tmp_path / "data" / "val").symlink_to(tmp_path / "data" / "train")
    (tmp_path / "weights.txt").write_text("1")
    return {
        "profile": "camvid",
        "data_format": "folder",
        "data_root": str(tmp_path / "data"),
        "image_size": "64x64",
        "run_dir": str(tmp_path / "run"),
        "budget": 1.0,
        "generator": "mine.models:paint",
        "diffusion_model": str(tmp_path / "weights.txt"),
    }


def test_a_run_takes_it_and_its_note_follows_code_and_files(given, folder, tmp_path, monkeypatch):
    settings = config.resolve(given, remember=False)
    refuse_early(settings)
    choice = choose_models(settings)
    assert isinstance(choice.generator, CustomGenerator) and not list(choice.generator.check())
    assert str(choice.generator) == "mine.models:paint"
    dataset = small_scenes(tmp_path / "again", 3)
    before, stamp = choice.decides(), choice.stamp()
    note_folder = tmp_path / "note"
    note_folder.mkdir()
    digests = set()
    for change in (None, "code", "file"):
        if change == "code":
            (folder / "mine" / "models.py").write_text(SOURCE + "# another\n")
            assert choice.decides() != before
        if change == "file":
            (tmp_path / "weights.txt").write_text("22")
            assert choice.stamp() != stamp
        choice.generator.write_note(dataset, note_folder)
        (note_folder / "unused.safetensors").write_bytes(b"")
        digests.add(weights_digest(note_folder))
    assert len(digests) == 3
    note = read_json(next(note_folder.glob("*.json")))
    assert note["function"] == "mine.models:paint" and note["names"] == list(dataset.class_names)
    model = load_generator(note_folder)
    proxy = load_proxy(Path(config.resolve({"profile": "scenes"}).weights_folder) / "proxy")
    assert Models(model, proxy, note_folder).digest() == weights_digest(note_folder)
    targets = FeatureTargets.from_moments(feature_statistics(dataset, proxy, progress=False))
    painter = Painter(model, proxy, targets)
    made = synthesise(painter, dataset, [1], tmp_path / "made", Recipe(steps=2, group=1))
    painted = made.palette[made.read_labels(0)].astype(int)
    known = made.read_labels(0) < 255
    assert np.abs(made.read_image(0).astype(int) - painted)[known].max() <= 2


def test_a_run_is_refused_before_its_first_notebook(given, tmp_path):
    (tmp_path / "weights.txt").unlink()
    with pytest.raises(D3S2Error, match=r"weights.txt, which the generator"):
        refuse_early(config.resolve(given, remember=False))
    gone = given | {"generator": "mine.gone:paint"}
    with pytest.raises(D3S2Error, match=r"mine.gone cannot be imported"):
        refuse_early(config.resolve(gone, remember=False))
    with pytest.raises(D3S2Error, match=r"mine.gone cannot be imported"):
        ensure_weights(config.resolve(gone), small_scenes(tmp_path / "again", 3))


def test_a_known_model_is_pinned_to_its_commit_and_another_is_not():
    (name,) = PINNED
    for given, revision in (
        ({}, PINNED[name]),
        ({"diffusion_revision": "fp16"}, "fp16"),
        ({"diffusion_model": "someone/else"}, ""),
    ):
        settings = config.resolve({"profile": "ade20k"} | given, remember=False)
        assert diffusion_options(settings).revision == revision
        assert diffusion_options(settings).controlnet_revision == ""
    assert len(PINNED[name]) == 40 and int(PINNED[name], 16)
