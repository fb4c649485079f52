"""Which generator and proxy a run uses: its settings resolved once, into values that say
it.

A model is *pretrained*, named by the settings and loaded from its own files, or *trained here*, on
the run's training split, from the embedded weights. What is pretrained is never copied: a note
stands for it (see `models.load`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from d3s2.core.errors import D3S2Error
from d3s2.core.files import digest, sha256, write_json
from d3s2.data.dataset import SegmentationDataset
from d3s2.models import custom
from d3s2.models.control_colors import control_colors
from d3s2.models.diffusion_parts import DiffusionOptions, files_of_sources
from d3s2.models.hub import locate, problems
from d3s2.models.load import GENERATOR_NOTE, PROXY_NOTE, digest_of
from d3s2.models.mmseg_proxy import published_weights
from d3s2.runs.parameters import Settings
from d3s2.runs.published import missing, named_or_published

PINNED = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "451f4fe16113bff5a5d2269ed5ad43b0592e9a14",
}
"""The commit of a model on the hub that is meant where no revision is named."""


@dataclass(frozen=True)
class TrainedHere:
    """A network of ours, trained on the run's data for so many iterations."""

    iterations: int

    def decides(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"iterations": self.iterations}

    def check(self) -> Iterator[str]:
        """Nothing can be missing."""
        return iter(())


@dataclass(frozen=True)
class PretrainedGenerator:
    """Stable Diffusion with a ControlNet, and the colours in which the ControlNet expects a
    layout.
    """

    options: DiffusionOptions
    palette: str

    def decides(self) -> dict[str, Any]:
        """What a manifest says of it; where its files come from decides nothing."""
        options = {
            name: value for name, value in asdict(self.options).items() if name != "download"
        }
        return options | {"palette": self.palette}

    def check(self) -> Iterator[str]:
        """A sentence for each model that is missing or damaged, with the command that fetches
        it.
        """
        yield from problems(self.options.sources())

    def files(self) -> list[Path]:
        """All files of the models. Raises D3S2Error for a model that is missing."""
        return files_of_sources(self.options.sources(), self.options.download)

    def write_note(self, dataset: SegmentationDataset, folder: Path) -> None:
        """Write the note. Raises D3S2Error for models that are missing, and classes without a
        control colour.
        """
        colors = control_colors(dataset.classes, self.palette)
        note = {
            "options": asdict(self.options),
            "names": dataset.class_names,
            "colors": colors.tolist(),
        }
        write_json(folder / GENERATOR_NOTE, note | self._read())

    def _read(self) -> dict[str, Any]:
        """What the note says of files and code."""
        sources = enumerate(self.options.sources())
        folders = {str(i): locate(source, self.options.download) for i, source in sources}
        return {"digest": digest_of(folders)}

    def __str__(self) -> str:
        return " with ".join(source.place for source in self.options.sources())


@dataclass(frozen=True)
class CustomGenerator(PretrainedGenerator):
    """What a function of the user's own makes, `package.module:function` (see `models.custom`)."""

    function: str

    def decides(self) -> dict[str, Any]:
        """What a manifest says of it: the code that makes it too."""
        return super().decides() | {
            "function": self.function,
            "code": custom.code_of(self.function),
        }

    def check(self) -> Iterator[str]:
        """A sentence when the function, or a file that it reads, is missing."""
        try:
            self.files()
        except D3S2Error as error:
            yield str(error)

    def files(self) -> list[Path]:
        """The files that it says it reads. Raises D3S2Error for one, or a function, that is
        missing.
        """
        return custom.files_of(self.function, self.options)

    def _read(self) -> dict[str, Any]:
        files = {str(i): sha256(path) for i, path in enumerate(self.files())}
        code = custom.code_of(self.function)
        return {"function": self.function, "code": code, "digest": digest(files)}

    def __str__(self) -> str:
        return self.function


@dataclass(frozen=True)
class PretrainedProxy:
    """A model of mmsegmentation. checkpoint: its weights; address: where they are published, "" =
    nowhere known.
    """

    config: str
    checkpoint: Path
    address: str
    layers: tuple[str, ...]

    def decides(self) -> dict[str, Any]:
        """What a manifest says of it."""
        return {"config": self.config, "layers": self.layers}

    def check(self) -> Iterator[str]:
        """A sentence when the checkpoint is missing."""
        if not self.checkpoint.is_file():
            yield missing(
                "the proxy's checkpoint", self.checkpoint, self.address, "proxy_checkpoint"
            )

    def files(self) -> list[Path]:
        """The checkpoint. Raises D3S2Error when it is missing."""
        for sentence in self.check():
            raise D3S2Error(sentence)
        return [self.checkpoint]

    def write_note(self, dataset: SegmentationDataset, folder: Path) -> None:
        """Write the note. Raises D3S2Error for a checkpoint that is missing."""
        note = {"config": self.config, "checkpoint": str(self.checkpoint), "layers": self.layers}
        (path,) = self.files()
        write_json(
            folder / PROXY_NOTE, note | {"num_classes": dataset.num_classes, "digest": sha256(path)}
        )

    def __str__(self) -> str:
        return str(self.checkpoint)


@dataclass(frozen=True)
class ModelChoice:
    """The generator and the proxy of a run. shipped: their weights come with the package.

    folder: where `proxy/` and `generator/` lie, or will; seed: of what is trained here.
    """

    generator: TrainedHere | PretrainedGenerator
    proxy: TrainedHere | PretrainedProxy
    folder: Path
    shipped: bool
    seed: int

    @cached_property
    def pretrained(self) -> dict[str, PretrainedGenerator | PretrainedProxy]:
        """Those that are pretrained, by "proxy" and "generator"."""
        return {
            name: model for name, model in self._all().items() if not isinstance(model, TrainedHere)
        }

    @cached_property
    def trained_here(self) -> dict[str, TrainedHere]:
        """Those that are trained here, by "proxy" and "generator"; none where the weights are
        shipped.
        """
        found = {
            name: model for name, model in self._all().items() if isinstance(model, TrainedHere)
        }
        return {} if self.shipped else found

    def decides(self) -> dict[str, Any]:
        """All that decides the weights beside the data and the files of pretrained models."""
        return {"seed": self.seed} | {name: model.decides() for name, model in self._all().items()}

    def stamp(self) -> str:
        """Digest over names, sizes and times of the pretrained models' files.

        Raises D3S2Error for a model that is missing.
        """
        files = [path for model in self.pretrained.values() for path in model.files()]
        return digest([[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files])

    def _all(self) -> dict[str, TrainedHere | PretrainedGenerator | PretrainedProxy]:
        return {"proxy": self.proxy, "generator": self.generator}


def choose_models(settings: Settings) -> ModelChoice:
    """What the settings say of generator and proxy. Touches no file but mmsegmentation's list of
    checkpoints.
    """
    generator: TrainedHere | PretrainedGenerator = TrainedHere(settings.generator_iterations)
    proxy: TrainedHere | PretrainedProxy = TrainedHere(settings.proxy_iterations)
    if settings.generator != "embedded":
        generator = _pretrained_generator(settings)
    if settings.proxy_config:
        proxy = _pretrained_proxy(settings)
    shipped = settings.data_format == "scenes"
    return ModelChoice(generator, proxy, settings.weights_folder, shipped, settings.seed)


def diffusion_options(settings: Settings) -> DiffusionOptions:
    """How Stable Diffusion is loaded in this run."""
    return DiffusionOptions(
        model=settings.diffusion_model,
        controlnet=settings.controlnet_model,
        revision=_revision(settings.diffusion_model, settings.diffusion_revision),
        controlnet_revision=_revision(settings.controlnet_model, settings.controlnet_revision),
        download=settings.model_files == "download",
        precision=settings.precision,
        negative_prompt=settings.negative_prompt,
        control_scale=settings.control_scale,
        checkpointing=bool(settings.checkpointing),
        vae=settings.vae_memory,
        layout_control=settings.layout_control,
    )


def _revision(model: str, named: str) -> str:
    """The revision that is named, else the pinned one; "" = main."""
    return named or PINNED.get(model, "")


def _pretrained_generator(settings: Settings) -> PretrainedGenerator:
    options = diffusion_options(settings)
    if settings.generator == "stable-diffusion":
        return PretrainedGenerator(options, settings.control_palette)
    return CustomGenerator(options, settings.control_palette, settings.generator)


def _pretrained_proxy(settings: Settings) -> PretrainedProxy:
    address = published_weights(settings.proxy_config)
    checkpoint = named_or_published(settings.proxy_checkpoint, address)
    layers = tuple(name.strip() for name in settings.proxy_layers.split(",") if name.strip())
    return PretrainedProxy(settings.proxy_config, checkpoint, address, layers)
