"""A Stable Diffusion with ControlNet of a few thousand random weights, on disk in diffusers' own
format.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

ROOM = 16
"""Tokens that the text encoder takes."""


def save_tokenizer(folder: Path) -> int:
    """Write vocab.json and merges.txt of a byte-pair tokenizer that knows letters and the ends of
    words; returns its size.
    """
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + [",", "-"]
    vocab = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    pairs = [("s", "k"), ("sk", "y</w>"), ("o", "f</w>"), ("r", "o"), ("ro", "a"), ("roa", "d</w>")]
    vocab += [a + b for a, b in pairs]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(
        json.dumps({token: number for number, token in enumerate(vocab)})
    )
    (folder / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(f"{a} {b}" for a, b in pairs) + "\n"
    )
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=ROOM, local_files_only=True)
    tokenizer.save_pretrained(folder)
    if not (
        folder / "vocab.json"
    ).is_file():  # the fast tokenizer writes tokenizer.json alone; real models ship both
        raise AssertionError("vocab.json is gone")
    return len(vocab)


def text_config(words: int, **more: int) -> CLIPTextConfig:
    """Of a text encoder of two layers."""
    sizes = {"hidden_size": 16, "intermediate_size": 32} | more
    return CLIPTextConfig(
        vocab_size=words,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=ROOM,
        bos_token_id=words - 8,
        eos_token_id=words - 7,
        pad_token_id=words - 7,
        **sizes,
    )


def tiny_vae(**more: float) -> AutoencoderKL:
    """Two levels: latents of half the height and width."""
    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        **({"scaling_factor": 0.18215} | more),
    )


def tiny_schedule(prediction: str = "epsilon") -> DDIMScheduler:
    """Stable Diffusion's noise levels, to the clean image."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        prediction_type=prediction,
        set_alpha_to_one=True,
        steps_offset=0,
        timestep_spacing="leading",
    )


def loosen(controlnet: nn.Module) -> None:
    """Give a fresh ControlNet's last layers, which are zero, something to say."""
    with torch.no_grad():
        for weight in controlnet.parameters():
            if not weight.any():
                weight.normal_(std=0.3)


def save_tiny(folder: Path, seed: int = 0, prediction: str = "epsilon") -> tuple[str, str]:
    """Write the model to `<folder>/model` and the ControlNet to `<folder>/control`; returns both as
    text.
    """
    torch.manual_seed(seed)
    model, control = folder / "model", folder / "control"
    words = save_tokenizer(model / "tokenizer")
    CLIPTextModel(text_config(words)).save_pretrained(model / "text_encoder")
    tiny_vae().save_pretrained(model / "vae")
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        cross_attention_dim=16,
        sample_size=16,
    )
    controlnet = ControlNetModel.from_unet(
        unet, conditioning_channels=3, conditioning_embedding_out_channels=(4, 8)
    )
    loosen(controlnet)
    unet.save_pretrained(model / "unet"), controlnet.save_pretrained(control)
    tiny_schedule(prediction).save_pretrained(model / "scheduler")
    return str(model), str(control)


def save_two_encoders(model: Path, first: type, projection: int) -> None:
    """Write two tokenizers and text encoders; the second, and maybe the first, has a projection."""
    words = save_tokenizer(model / "tokenizer")
    save_tokenizer(model / "tokenizer_2")
    text = text_config(words, projection_dim=projection)
    first(text).save_pretrained(model / "text_encoder")
    wide = text_config(words, hidden_size=24, projection_dim=projection)
    CLIPTextModelWithProjection(wide).save_pretrained(model / "text_encoder_2")


def save_tiny_xl(folder: Path, seed: int = 0) -> tuple[str, str]:
    """As `save_tiny`, of the kind of Stable Diffusion XL."""
    torch.manual_seed(seed)
    model, control = folder / "model", folder / "control"
    save_two_encoders(model, CLIPTextModel, 20)
    tiny_vae(scaling_factor=0.13025).save_pretrained(model / "vae")
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
        up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 2),
        projection_class_embeddings_input_dim=20 + 6 * 8,
        cross_attention_dim=40,
        sample_size=16,
    )
    controlnet = ControlNetModel.from_unet(
        unet, conditioning_channels=3, conditioning_embedding_out_channels=(4, 8)
    )
    loosen(controlnet)
    unet.save_pretrained(model / "unet"), controlnet.save_pretrained(control)
    tiny_schedule().save_pretrained(model / "scheduler")
    return str(model), str(control)


def save_tiny_flow(folder: Path, seed: int = 0, **more: bool) -> tuple[str, str]:
    """As `save_tiny`, of the kind of Stable Diffusion 3. more: of the ControlNet."""
    torch.manual_seed(seed)
    model, control = folder / "model", folder / "control"
    save_two_encoders(model, CLIPTextModelWithProjection, 10)
    tiny_vae(scaling_factor=1.5305, shift_factor=0.0609).save_pretrained(model / "vae")
    sizes = {
        "sample_size": 16,
        "patch_size": 2,
        "in_channels": 4,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 48,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 20,
        "out_channels": 4,
        "pos_embed_max_size": 24,
    }
    transformer = SD3Transformer2DModel(num_layers=2, **sizes)
    loosen(transformer)
    controlnet = SD3ControlNetModel(num_layers=1, **sizes, **more)
    loosen(controlnet)
    transformer.save_pretrained(model / "transformer"), controlnet.save_pretrained(control)
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(model / "scheduler")
    return str(model), str(control)
