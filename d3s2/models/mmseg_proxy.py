"""Any mmsegmentation model as the proxy: a config and a checkpoint, features by the names of its
layers.

UniDD guides with LR-ASPP on MobileNetV3, D3S2's proxy is unknown: which model is asked decides what
the losses see, so it is a parameter. A config is Python that gets executed; take it from
mmsegmentation or write it yourself. A checkpoint is read without unpickling anything but weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from d3s2.core.errors import D3S2Error
from d3s2.models.checkpoints import read_checkpoint
from d3s2.models.plain_config import require_plain, require_plain_types
from d3s2.models.proxy import ProxyOutput

_NAMED = re.compile(r"(?P<module>[\w.]+)(\[(?P<item>\d+)\])?")


class MmsegProxy(nn.Module):
    """A frozen mmsegmentation segmenter with the interface of `ProxySegmenter`.

    Args:
        model: an `EncoderDecoder`, in evaluation mode.
        layers: modules whose outputs are the features, such as "decode_head.fusion_conv", with
            "[i]" where an output is a list; () = every output of the backbone, "backbone[0]" on.
    Raises D3S2Error for a name that is no module of the model.
    """

    def __init__(self, model: nn.Module, layers: Sequence[str] = ()) -> None:
        super().__init__()
        self.model = model
        self._wanted = tuple(_parse(name, model) for name in layers or ("backbone",))
        self.layers = tuple(layers) or self._backbone_layers()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.model.parameters()).dtype

    def forward(self, images: Tensor) -> ProxyOutput:
        """Segment float[B, 3, H, W] images in [-1, 1] (RGB); logits are [B, C, H, W]."""
        outputs: dict[str, Any] = {}
        with self._recording(outputs):
            scores = self.model.encode_decode(self._normalised(images), _metas(images))
        features: list[Tensor] = []
        for module, item in self._wanted:
            features += _maps(outputs[module], module, item)
        return ProxyOutput(self._logits(scores), features)

    @contextmanager
    def _recording(self, outputs: dict[str, Any]) -> Iterator[None]:
        """While it lasts, a forward pass writes what the wanted modules give, by their names."""
        hooks = []
        for name in dict.fromkeys(module for module, _ in self._wanted):
            keep = partial(_keep, outputs, name)
            hooks.append(self.model.get_submodule(name).register_forward_hook(keep))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _normalised(self, images: Tensor) -> Tensor:
        """What the model's own data preprocessor makes of the same picture; it is given BGR in 0 ..
        255.
        """
        prepare = self.model.data_preprocessor
        pixels = (images + 1) * 127.5
        if not prepare._channel_conversion:
            pixels = pixels.flip(1)
        if prepare._enable_normalize:
            pixels = (pixels - prepare.mean.to(pixels)) / prepare.std.to(pixels)
        return pixels.to(self.dtype)

    def _logits(self, scores: Tensor) -> Tensor:
        """Mask classification gives positive scores that are summed over queries: their logarithm
        plays the logit.
        """
        if hasattr(self.model.decode_head, "num_queries"):
            return scores.clamp(min=1e-6).log()
        return scores

    @torch.no_grad()
    def _backbone_layers(self) -> tuple[str, ...]:
        """The names of all outputs of the backbone."""
        example = torch.zeros(1, 3, 128, 128, device=self.device, dtype=self.dtype)
        maps = _maps(self.model.backbone(example), "backbone", None)
        return tuple(f"backbone[{k}]" for k in range(len(maps)))


def _metas(images: Tensor) -> list[dict[str, tuple[int, ...]]]:
    """What mmsegmentation wants to know of each image: it is neither padded nor resized."""
    size = tuple(images.shape[2:])
    names = ("img_shape", "ori_shape", "pad_shape", "batch_input_shape")
    return [dict.fromkeys(names, size)] * len(images)


def _keep(outputs: dict[str, Any], name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    """A forward hook: remember a module's output under its name."""
    outputs[name] = output


def _parse(name: str, model: nn.Module) -> tuple[str, int | None]:
    """A module's name, and which of its outputs is meant (None = all), from "module" or
    "module[i]".
    """
    match = _NAMED.fullmatch(name)
    modules = dict(model.named_modules())
    if match is None or match["module"] not in modules:
        known = ", ".join(part for part in modules if part and part.count(".") < 2)
        raise D3S2Error(
            f"The proxy has no layer {name!r}: name one of its modules, such as {known[:300]}."
        )
    return match["module"], int(match["item"]) if match["item"] else None


def _maps(output: Any, name: str, item: int | None) -> list[Tensor]:
    """The feature maps [B, D, h, w] among a module's output: all, or the one at a place."""
    maps = [output] if isinstance(output, Tensor) else list(output)
    if item is not None and item >= len(maps):
        raise D3S2Error(
            f"Layer {name!r} of the proxy gives {len(maps)} outputs: [{item}] is none of them, "
            "they count from 0."
        )
    chosen = maps if item is None else [maps[item]]
    if not all(isinstance(one, Tensor) and one.dim() == 4 for one in chosen):
        raise D3S2Error(
            f"Layer {name!r} of the proxy gives no feature maps [B, D, h, w]: choose another layer."
        )
    return chosen


# ------------------------------------------------------------------------------------------ loading
def load_mmseg_proxy(
    config: str, checkpoint: Path, num_classes: int, layers: Sequence[str] = (), device: str = "cpu"
) -> MmsegProxy:
    """Build the config's model, load the checkpoint (.safetensors, or .pth read with weights_only),
    freeze it.

    config: a file, or the name of one that mmsegmentation ships, such as
    "segformer/segformer_mit-b2_…".
    Raises D3S2Error for a missing file, another number of classes, a checkpoint of another config,
    and a pickle that holds more than weights.
    """
    model = build(config)
    if model.decode_head.num_classes != num_classes:
        raise D3S2Error(
            f"The proxy of {Path(config).name} knows {model.decode_head.num_classes} classes, the "
            f"data has {num_classes}: name a config and checkpoint made for this data set."
        )
    _load_weights(model, read_checkpoint(checkpoint), checkpoint, config)
    return MmsegProxy(model.requires_grad_(False).eval().to(device), layers).eval()


def build(config: str) -> nn.Module:
    """The config's network with random weights, in evaluation mode."""
    from mmengine.registry import init_default_scope

    from d3s2.models.openmmlab import MODELS

    init_default_scope("mmseg")
    return MODELS.build(read_config(config).model).eval()


def read_config(config: str) -> Any:
    """mmengine's Config of a file or a shipped name, set up to load no pretrained weights and to
    run on one device. Raises D3S2Error for a file that holds more than values (`plain_config`).
    """
    from mmengine import Config

    path = find_config(config)
    require_plain(path)
    settings = Config.fromfile(str(path), import_custom_modules=False)
    _quiet(settings.model)
    require_plain_types(settings.model)
    return settings


def find_config(config: str) -> Path:
    """The file of a config. Raises D3S2Error when there is none."""
    from d3s2.models.openmmlab import CONFIGS

    shipped = CONFIGS / config
    for path in (Path(config), shipped, shipped.with_name(f"{shipped.name}.py")):
        if path.is_file():
            return path
    raise D3S2Error(
        f"There is no mmsegmentation config {config!r}: give a file, or FOLDER/NAME of one under "
        f"{shipped.parents[len(Path(config).parts) - 1]}."
    )


def published_weights(config: str) -> str:
    """The address of the checkpoint that mmsegmentation lists for a shipped config; "" when it
    lists none.
    """
    import yaml

    from d3s2.models.openmmlab import CONFIGS

    path = find_config(config)
    listing = path.with_name("metafile.yaml")
    if CONFIGS not in path.parents or not listing.is_file():
        return ""
    models = yaml.safe_load(listing.read_text(encoding="utf-8")).get("Models") or []
    return next((model.get("Weights", "") for model in models if model["Name"] == path.stem), "")


def _quiet(part: Any) -> None:
    """No downloads while building, and batch normalisation that needs no process group."""
    if isinstance(part, dict):
        for key in ("init_cfg", "pretrained"):
            if key in part:
                part[key] = None
        if part.get("type") == "SyncBN":
            part["type"] = "BN"
        for value in part.values():
            _quiet(value)
    elif isinstance(part, (list, tuple)):
        for value in part:
            _quiet(value)


def _load_weights(
    model: nn.Module, weights: dict[str, Tensor], checkpoint: Path, config: str
) -> None:
    """Give the model its weights. Raises D3S2Error where they are another model's; those of the
    auxiliary head, which only training uses, may lack.
    """
    own = model.state_dict()
    common = [name for name in weights if name in own]
    other = [name for name in common if own[name].shape != weights[name].shape]
    if other:
        raise D3S2Error(
            f"The checkpoint {checkpoint} does not fit {Path(config).name}: {other[0]} is "
            f"{tuple(weights[other[0]].shape)} there and {tuple(own[other[0]].shape)} here, so it "
            "was made for other classes or for another config."
        )
    needed = [name for name in own if not name.startswith("auxiliary_head")]
    missing = [name for name in needed if name not in weights]
    if missing:
        raise D3S2Error(
            f"The checkpoint {checkpoint} does not fit {Path(config).name}: it lacks {missing[0]} "
            f"({len(missing)} such), so it was made for another config."
        )
    model.load_state_dict(weights, strict=False)
