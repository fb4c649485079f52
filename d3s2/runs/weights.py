"""The weights of a run: in the package for scenes, else made in the run's folder on first use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from functools import partial
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from d3s2.core import machine
from d3s2.core.code_version import code_version, is_module
from d3s2.core.files import digest
from d3s2.core.places import EMBEDDED_WEIGHTS
from d3s2.data.dataset import SegmentationDataset
from d3s2.models.diffusion_parts import DiffusionOptions
from d3s2.models.generator import LayoutGenerator
from d3s2.models.load import JUDGE, load_generator, load_proxy, weights_digest
from d3s2.models.pretraining import Schedule, train_generator, train_proxy
from d3s2.models.proxy import ProxySegmenter
from d3s2.runs.model_choice import ModelChoice, choose_models
from d3s2.runs.parameters import Settings
from d3s2.runs.run import Run
from d3s2.runs.stages import Stage

BATCH_SIZE = 8
TRAINERS = {"proxy": (train_proxy, 2e-3), "generator": (train_generator, 4e-4)}
"""How each network is trained, and at which highest learning rate; our choice."""
OWN = {"d3s2.models.generator", "d3s2.models.proxy"}
"""Modules of the networks that every chapter imports, so that they are in its stage's key."""


def ensure_weights(
    settings: Settings, dataset: SegmentationDataset, report: Callable[[str], None] = print
) -> Path:
    """The folder with `proxy/` and `generator/` for a run: the embedded one for scenes, else made
    on first use.

    What the settings name as pretrained gets a note (see `model_choice`); the rest is trained, from
    the embedded weights: on CamVid the generator's loss is .08 after 250 iterations, from random
    weights .24 (batch 8, 96 x 128). A killed training goes on from its last checkpoint. Raises
    D3S2Error when the embedded weights or a pretrained model are missing.
    """
    choice = choose_models(settings)
    if choice.shipped:
        weights_digest(choice.folder)
        return choice.folder
    stage = weights_stage(settings.run_dir, choice, dataset)
    if not stage.is_current():
        stage.begin()
        _make(choice, dataset, machine.pick_device(settings.device), report)
        stage.finish()
    return choice.folder


class Models(NamedTuple):
    """The networks of a run, frozen, on its device; folder: where their weights lie."""

    generator: LayoutGenerator
    proxy: ProxySegmenter
    folder: Path

    def digest(self) -> str:
        """SHA-256 for the key of what is made with the networks: over all weights, and over code
        and libraries of networks that are not our own, which no chapter's modules import.
        """
        modules = {type(network).__module__ for network in (self.generator, self.proxy)}
        foreign = sorted(filter(is_module, modules - OWN))  # a user's own are in the note
        weights = weights_digest(self.folder)
        return digest([weights, code_version(*foreign)]) if foreign else weights


def load_models(run: Run) -> Models:
    """The generator and the proxy of a run, made first where they are missing."""
    folder = ensure_weights(run.settings, run.train)
    generator = load_generator(folder / "generator", run.device)
    return Models(generator, load_proxy(folder / "proxy", run.device), folder)


def load_judge(run: Run) -> ProxySegmenter | None:
    """A segmenter that guides nobody, of other widths than the proxy, trained on the same
    photographs; None for data other than the embedded scenes, which alone have one.
    """
    if run.settings.data_format != "scenes":
        return None
    return load_proxy(EMBEDDED_WEIGHTS / JUDGE, run.device)


def load_stand_in(run: Run) -> LayoutGenerator:
    """Stable Diffusion and a ControlNet for the classes of a run, narrow and with random weights,
    on the CPU: to see what passes through a latent model where none is at hand. It paints noise.
    """
    from d3s2.models.stable_diffusion import load_stable_diffusion  # imports diffusers' pipelines
    from d3s2.models.stand_ins import write_diffusion

    with TemporaryDirectory() as folder, _no_bars():
        model, controlnet = write_diffusion(Path(folder))
        options = DiffusionOptions(model, controlnet, precision="float32", checkpointing=False)
        return load_stable_diffusion(options, run.train.class_names, run.train.palette)


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without transformers' bars of progress: they would stand in a notebook's output for good."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        if shown:
            logging.enable_progress_bar()


def weights_stage(run_dir: str, choice: ModelChoice, dataset: SegmentationDataset) -> Stage:
    """The stage that holds the weights of a run. Raises D3S2Error for a pretrained model that is
    missing.
    """
    external = {"dataset": dataset.fingerprint(), "pretrained": weights_digest(EMBEDDED_WEIGHTS)}
    if choice.pretrained:
        external["models"] = choice.stamp()
    modules = ["d3s2.models.pretraining", "d3s2.models.load"]
    return Stage(run_dir, "weights", choice.decides(), modules=modules, external=external)


def _make(
    choice: ModelChoice,
    dataset: SegmentationDataset,
    device: str,
    report: Callable[[str], None],
) -> None:
    for name, model in choice.pretrained.items():
        model.write_note(dataset, choice.folder / name)
    for name, model in choice.trained_here.items():
        train, rate = TRAINERS[name]
        schedule = Schedule(model.iterations, BATCH_SIZE, rate, choice.seed, device=device)
        say = partial(_say, report, name)
        train(dataset, choice.folder / name, schedule, say, EMBEDDED_WEIGHTS / name)
    for checkpoint in choice.folder.glob("*/checkpoint.pt"):
        checkpoint.unlink()


def _say(report: Callable[[str], None], name: str, line: str) -> None:
    report(f"{name}: {line}")
