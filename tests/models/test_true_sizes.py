"""The published configurations at their true size, without weights: from a folder through loading,
prediction and decoding on device `meta`, which computes shapes alone.

Their counts of parameters are those of the published weights, so the configurations are too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_diffusion import save_tokenizer
from transformers import CLIPTextConfig
from transformers.modeling_utils import PreTrainedModel

from d3s2.data.class_lists import classes_of
from d3s2.data.tensors import class_sets
from d3s2.models import stable_diffusion_xl
from d3s2.models.control_colors import control_colors
from d3s2.models.diffusion_parts import PRECISIONS, DiffusionOptions, Loader
from d3s2.models.rectified import layout_masks, rectify
from d3s2.models.stable_diffusion import StableDiffusion, load_stable_diffusion

UNET = {
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
VAE = {
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
CONTROLNET = {
    name: UNET[name]
    for name in (
        "act_fn",
        "attention_head_dim",
        "block_out_channels",
        "cross_attention_dim",
        "down_block_types",
        "downsample_padding",
        "flip_sin_to_cos",
        "freq_shift",
        "in_channels",
        "layers_per_block",
        "mid_block_scale_factor",
        "norm_eps",
        "norm_num_groups",
    )
} | {
    "controlnet_conditioning_channel_order": "rgb",
    "conditioning_embedding_out_channels": [16, 32, 96, 256],
}
TEXT = {
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
    "vocab_size": 49408,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
TOKENIZER = {
    "add_prefix_space": False,
    "bos_token": "<|startoftext|>",
    "do_lower_case": True,
    "eos_token": "<|endoftext|>",
    "errors": "replace",
    "model_max_length": 77,
    "pad_token": "<|endoftext|>",
    "tokenizer_class": "CLIPTokenizer",
    "unk_token": "<|endoftext|>",
}
SCHEDULER = {
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
XL_UNET = UNET | {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
    "use_linear_projection": True,
}
XL_CONTROLNET = CONTROLNET | {
    name: XL_UNET[name] for name in XL_UNET.keys() - {"sample_size", "up_block_types"}
    if name in CONTROLNET or XL_UNET[name] != UNET.get(name)
}  # fmt: skip
XL_TEXT_2 = TEXT | {
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}


def write(path: Path, config: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(config))


def write_model(folder: Path, unet: dict, controlnet: dict, texts: list[dict]) -> DiffusionOptions:
    """A model's folders with everything but the weights, whose files are empty."""
    parts = {"model/unet": unet, "model/vae": VAE, "control": controlnet}
    for number, text in zip(("", "_2"), texts, strict=False):
        parts[f"model/text_encoder{number}"] = text
        save_tokenizer(folder / f"model/tokenizer{number}")
        write(folder / f"model/tokenizer{number}/tokenizer_config.json", TOKENIZER)
    for name, config in parts.items():
        write(folder / name / "config.json", config)
        size = (2).to_bytes(8, "little")
        (folder / name / "model.safetensors").write_bytes(size + b"{}")
    write(folder / "model" / "scheduler" / "scheduler_config.json", SCHEDULER)
    return DiffusionOptions(str(folder / "model"), str(folder / "control"))


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks are built from their configurations, on no device."""

    def network(self: Loader, cls: type, place: Path, kind: torch.dtype | None = None) -> Any:
        with torch.device("meta"):
            if issubclass(cls, PreTrainedModel):
                built = cls(CLIPTextConfig.from_pretrained(place))
            else:
                built = cls.from_config(cls.load_config(place))
        kind = kind or PRECISIONS[self.options.precision]
        return built.to(kind).requires_grad_(False).eval()

    monkeypatch.setattr(Loader, "network", network)


def count(network: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def all_the_way(model: StableDiffusion, size: int) -> None:
    """One prediction with and without a layout, and both decodings, as shapes."""
    shape = model.noise_shape(size, size)
    assert shape == (4, size // 8, size // 8)
    z = torch.zeros(1, *shape, device="meta")
    layout = torch.zeros(1, size, size, dtype=torch.long)
    classes = class_sets(layout, 150)
    assert model.unet.prompts(classes, layout).device.type == "meta"
    assert model.unet.control_image(layout.to("meta")).shape == (1, 3, size, size)
    for given in (layout, None):
        v = model.unet(z, torch.tensor(500), given, classes)
        assert v.shape == z.shape and v.dtype == torch.float32
    for image in (model.decode(z), model.render(z)):
        assert image.shape == (1, 3, size, size) and image.dtype == torch.float32


@pytest.fixture(scope="module")
def ade20k() -> tuple[list[str], np.ndarray]:
    classes = classes_of("ade20k")
    return [info.name for info in classes], control_colors(classes, "ade20k")


def test_stable_diffusion_15_and_its_controlnet(tmp_path, ade20k):
    options = write_model(tmp_path, UNET, CONTROLNET, [TEXT])
    model = load_stable_diffusion(options, *ade20k, "meta")
    own = model.unet
    assert count(own.unet) == 859_520_964 and count(own.controlnet) == 361_279_120
    assert count(model.vae) == 83_653_863 and count(own.prompts.encoder) == 123_060_480
    assert own.prompts.room == 77 and own.unet.dtype == torch.bfloat16
    steps = model.schedule.steps(50)
    assert (steps[0].t, steps[-1].t) == (981, 1)
    all_the_way(model, 512)


def test_every_grid_of_its_attention_has_a_mask(tmp_path, ade20k):
    options = write_model(tmp_path, UNET, CONTROLNET, [TEXT])
    unet = load_stable_diffusion(options, *ade20k, "meta").unet.unet
    rectify(unet)
    masks = layout_masks(torch.zeros(1, 512, 512), torch.zeros(1, 77), (64, 64), 4)
    assert list(masks) == [4096, 1024, 256, 64]
    masks = {pixels: mask.to("meta") for pixels, mask in masks.items()}
    z = torch.zeros(1, 4, 64, 64, device="meta", dtype=torch.bfloat16)
    text = torch.zeros(1, 77, 768, device="meta", dtype=torch.bfloat16)
    more = {"cross_attention_kwargs": {"layout_masks": masks}}
    said = unet(z, torch.tensor(500), encoder_hidden_states=text, **more).sample
    assert said.shape == z.shape
    del masks[256]
    with pytest.raises(KeyError):  # so all were looked up
        unet(z, torch.tensor(500), encoder_hidden_states=text, **more)


def test_stable_diffusion_xl(tmp_path, ade20k):
    options = write_model(tmp_path, XL_UNET, XL_CONTROLNET, [TEXT, XL_TEXT_2])
    model = stable_diffusion_xl.load(options, *ade20k, "meta")
    assert count(model.unet.unet) == 2_567_463_684
    assert count(model.unet.prompts.encoders[1]) == 694_659_840
    all_the_way(model, 1024)
