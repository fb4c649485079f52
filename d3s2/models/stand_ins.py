"""Random weights in the true formats, for a rehearsal where the published models are missing.

Stable Diffusion and its ControlNet have the levels, strides, schedule and files of version 1.5 and
a hundredth of its width; models of mmsegmentation have their true configuration. What they paint
and say is noise: the code that loads and runs them is what is rehearsed.
"""

from __future__ import annotations

import json
import shutil
import string
from fnmatch import fnmatch
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, PNDMScheduler, UNet2DConditionModel
from torch import nn

from d3s2.core.files import atomic_path
from d3s2.models.mmseg_proxy import build
from d3s2.models.stable_diffusion import DiffusionOptions

TOKENS = 77
"""What Stable Diffusion's text encoder takes."""
_LEVELS = 4
_WIDTH = 16


def write_diffusion(folder: Path, seed: int = 0) -> tuple[str, str]:
    """Write a diffusion model and a ControlNet below `folder`; returns both places as text.

    They hold the files that `d3s2 check` asks for, and no others.
    """
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    model, control = folder / "diffusion", folder / "controlnet"
    words = _write_tokenizer(model / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=words,
        hidden_size=_WIDTH,
        intermediate_size=2 * _WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        pad_token_id=words - 1,
    )
    CLIPTextModel(text).save_pretrained(model / "text_encoder")
    AutoencoderKL(
        block_out_channels=(_WIDTH,) * _LEVELS,
        down_block_types=("DownEncoderBlock2D",) * _LEVELS,
        up_block_types=("UpDecoderBlock2D",) * _LEVELS,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.18215,
    ).save_pretrained(model / "vae")
    unet = UNet2DConditionModel(
        block_out_channels=(_WIDTH,) * _LEVELS,
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=_WIDTH,
    )
    unet.save_pretrained(model / "unet")
    _controlnet(unet).save_pretrained(control)
    PNDMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        set_alpha_to_one=False,
        skip_prk_steps=True,
        steps_offset=1,
    ).save_pretrained(model / "scheduler")
    for source in DiffusionOptions(str(model), str(control)).sources():
        _keep_only(Path(source.place), source.patterns())
    return str(model), str(control)


def _controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """A ControlNet for a U-Net; a fresh one's last layers are zero, and it would say nothing."""
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 8, 8, 8))
    with torch.no_grad():
        for weight in controlnet.parameters():
            if not weight.any():
                weight.normal_(std=0.1)
    return controlnet


def _write_tokenizer(folder: Path) -> int:
    """Write a byte-pair tokenizer that knows letters and the ends of words; returns its size."""
    from transformers import CLIPTokenizer

    letters = [*string.ascii_lowercase, *string.digits, ",", "-", "'"]
    vocabulary = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary += ["<|startoftext|>", "<|endoftext|>"]
    numbered = {token: number for number, token in enumerate(vocabulary)}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(numbered))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS, use_safetensors=True)
    tokenizer.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(numbered))  # real models ship these as well
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return len(numbered)


def _keep_only(folder: Path, patterns: list[str]) -> None:
    """Delete what no pattern asks for."""
    for path in sorted(folder.rglob("*"), reverse=True):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and not any(fnmatch(name, pattern) for pattern in patterns):
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            shutil.rmtree(path)


def write_checkpoint(config: str, path: Path, part: str = "", seed: int = 0) -> Path:
    """Write random weights of an mmsegmentation config as its trainer does, {"state_dict": ...}.

    part: a module of the model, such as "backbone"; "" = all of it. Returns `path`.
    Raises D3S2Error for a config that is not there.
    """
    torch.manual_seed(seed)
    model: nn.Module = build(config)
    with atomic_path(path) as temporary:
        torch.save({"state_dict": model.get_submodule(part).state_dict()}, temporary)
    return path
