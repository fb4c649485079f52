"""The profiles for real data, with tiny models and tiny data where the big ones would be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_benchmarks import make_ade20k
from tiny_diffusion import save_tiny
from tiny_mmseg import CONFIG

from d3s2.core.code_version import sources
from d3s2.core.errors import D3S2Error
from d3s2.core.places import EMBEDDED_WEIGHTS
from d3s2.data.opening import open_dataset
from d3s2.data.pairing import parse_size
from d3s2.data.splits import open_splits
from d3s2.guidance.losses import FeatureTargets
from d3s2.guidance.painting import Painter, Recipe, synthesise
from d3s2.models.generator import LayoutGenerator, LayoutUNet
from d3s2.models.load import load_generator, load_proxy, weights_digest
from d3s2.models.mmseg_proxy import MmsegProxy, build
from d3s2.models.proxy import ProxySegmenter
from d3s2.models.stable_diffusion import StableDiffusion, load_stable_diffusion
from d3s2.runs import config, readiness, runner
from d3s2.runs import weights as run_weights
from d3s2.runs.model_choice import choose_models, diffusion_options
from d3s2.runs.refusals import OURS, refuse_early
from d3s2.runs.weights import OWN, Models, ensure_weights
from d3s2.statistics.features import feature_statistics

REAL = ("ade20k", "cocostuff", "voc2012")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("D3S2_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    model, control = save_tiny(folder)
    (folder / "tiny.py").write_text(CONFIG.replace("num_classes=5", "num_classes=150"))
    torch.manual_seed(0)
    save_file(build(str(folder / "tiny.py")).state_dict(), folder / "tiny.safetensors")
    torch.save({"weight": torch.zeros(1)}, folder / "swin.pth")
    return {
        "diffusion_model": model,
        "controlnet_model": control,
        "proxy_config": str(folder / "tiny.py"),
        "proxy_checkpoint": str(folder / "tiny.safetensors"),
        "backbone_weights": str(folder / "swin.pth"),
    }


@pytest.mark.filterwarnings("ignore:ade20k/")
def test_a_profile_goes_from_models_in_folders_to_distilled_images(models, tmp_path):
    names = {
        "profile": "ade20k",
        "data_root": str(make_ade20k(tmp_path / "data")),
        "image_size": "32x32",
        "device": "cpu",
        "run_dir": str(tmp_path / "run"),
        "precision": "float32",
    } | models
    settings = config.resolve(names, remember=False)
    train, _ = open_splits(settings, progress=False)
    weights = ensure_weights(settings, train)
    generator, proxy = load_generator(weights / "generator"), load_proxy(weights / "proxy")
    assert (
        isinstance(generator, StableDiffusion)
        and isinstance(proxy, MmsegProxy)
        and generator.num_classes == 150
    )
    targets = FeatureTargets.from_moments(feature_statistics(train, proxy, progress=False))
    painter = Painter(generator, proxy, targets)
    made = synthesise(painter, train, [0], tmp_path / "made", Recipe(steps=2, group=1))
    assert made.read_image(0).shape == (32, 32, 3)
    before = weights_digest(weights)
    assert ensure_weights(settings, train) == weights and weights_digest(weights) == before
    Path(models["proxy_checkpoint"]).touch()
    stamped = choose_models(settings).stamp()
    assert stamped != json.loads((weights / "manifest.json").read_text())["external"]["models"]


def test_what_is_made_with_a_foreign_network_depends_on_its_code(monkeypatch):
    """A chapter's modules import our own networks alone, and so does its stage's key."""
    own = load_proxy(EMBEDDED_WEIGHTS / "proxy")
    painted = LayoutGenerator(None, None)
    foreign = MmsegProxy.__new__(MmsegProxy)
    assert Models(painted, own, EMBEDDED_WEIGHTS).digest() == weights_digest(EMBEDDED_WEIGHTS)
    mixed = Models(painted, foreign, EMBEDDED_WEIGHTS)
    assert OWN <= sources("guidance.painting").keys()
    asked: list[str] = []
    for version in ("one", "two"):
        monkeypatch.setattr(
            run_weights, "code_version", lambda *names, now=version: asked.append(names) or now
        )
        before = mixed.digest()
    monkeypatch.setattr(run_weights, "code_version", lambda *names: "one")
    assert before != mixed.digest() != weights_digest(EMBEDDED_WEIGHTS)
    assert asked == [("d3s2.models.mmseg_proxy",)] * 2


def test_every_real_profile_asks_for_the_papers_budget_and_its_own_palette():
    for name, palette, budget in (
        ("ade20k", "ade20k", 0.01),
        ("cocostuff", "coco", 0.01),
        ("voc2012", "coco", 0.01),
    ):
        settings = config.resolve({"profile": name})
        assert (settings.control_palette, settings.budget, settings.data_format) == (
            palette,
            budget,
            name,
        )
        assert (
            list(choose_models(settings).pretrained) == ["proxy", "generator"]
            and settings.network == "swin-s"
        )
        assert diffusion_options(settings).sources()[0].place == settings.diffusion_model
    shipped, own = (
        choose_models(config.resolve({"profile": name})) for name in ("scenes", "camvid")
    )
    assert shipped.shipped and not shipped.pretrained and not shipped.trained_here
    assert {name: model.iterations for name, model in own.trained_here.items()} == {
        "proxy": 1200,
        "generator": 2000,
    }
    assert not own.pretrained


@pytest.mark.processes
@pytest.mark.parametrize("profile", REAL)
def test_check_says_what_is_missing_with_the_command_that_fetches_it(profile, own_home):
    lines = [
        line
        for line in readiness.check(config.resolve({"profile": profile}, remember=False))
        if not line.ok
    ]
    text = "\n".join(map(str, lines))
    for words in (
        f"d3s2 fetch {profile}",
        "hf download stable-diffusion-v1-5/",
        "hf download lllyasviel/control_v11p_sd15_seg",
        "d3s2 fetch file https://",
        "swin_small_patch4_window7_224",
    ):
        assert words in text, words
    assert str(own_home / "models") in text


def test_check_is_content_when_everything_is_there(models):
    settings = config.resolve({"profile": "ade20k"} | models)
    choice = choose_models(settings)
    assert [
        problem for model in choice.pretrained.values() for problem in model.check()
    ] == [] and choice.stamp()


@pytest.mark.filterwarnings("ignore:ade20k/")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("proxy_checkpoint", "the proxy's checkpoint.*is missing"),
        ("controlnet_model", "No model in"),
    ],
)
def test_missing_models_are_a_sentence_before_anything_is_made(models, tmp_path, name, words):
    train = open_dataset("ade20k", make_ade20k(tmp_path / "data"), "train")
    given = {"profile": "ade20k"} | models | {name: str(tmp_path / "nowhere")}
    settings = config.resolve(given)
    with pytest.raises(D3S2Error, match=words):
        ensure_weights(settings, train)
    assert not settings.weights_folder.exists()


def test_a_missing_backbone_is_a_sentence_before_the_first_notebook(models, tmp_path):
    given = {"profile": "ade20k"} | models | {"backbone_weights": str(tmp_path / "nowhere")}
    with pytest.raises(D3S2Error, match=r"ImageNet weights.*is missing"):
        runner.run(given | {"run_dir": str(tmp_path / "run")})
    assert not (tmp_path / "run").exists()


def test_scenes_have_their_own_models():
    with pytest.raises(D3S2Error, match="generator is 'stable-diffusion' but scenes"):
        config.resolve({"generator": "stable-diffusion"})


@pytest.mark.filterwarnings("ignore:ade20k/")
@pytest.mark.parametrize("size", ["36x32", "32x34", "33x32"])
def test_a_size_that_the_diffusion_model_does_not_take_is_said_at_once(models, tmp_path, size):
    given = {"profile": "ade20k", "data_root": str(make_ade20k(tmp_path / "data")), "device": "cpu"}
    options = diffusion_options(config.resolve(given | models))
    noise = load_stable_diffusion(options, ["one"], np.zeros((1, 3), np.uint8)).noise_shape
    for one in ("32x32", size):
        settings = config.resolve(given | models | {"image_size": one, "budget": 1.0})
        fits = True
        try:
            noise(*parse_size(one))
        except D3S2Error:
            fits = False
        if fits:
            refuse_early(settings)
        else:
            with pytest.raises(D3S2Error, match=f"image_size is '{one}' but the networks take"):
                refuse_early(settings)


def test_our_networks_take_the_multiples_that_are_asked_for():
    proxy, unet = ProxySegmenter(3).config, LayoutUNet(3).config
    ours = (2 ** (len(proxy.channels) - 1), unet.patch * 2 ** (len(unet.channels) - 1))
    assert max(ours) == OURS


@pytest.mark.processes
def test_whether_a_run_on_scenes_can_begin_is_known_before_any_framework_is_imported():
    """It is asked at the start of every `d3s2 run`, and by a run beside another one."""
    code = (
        "import sys\n"
        "from d3s2.runs import config, refusals, runner\n"
        "refusals.refuse_early(config.resolve({'profile': 'smoke'}, remember=False))\n"
        "runner.is_finished({'profile': 'smoke'})\n"
        "print({'torch', 'mmengine', 'mmseg', 'diffusers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
