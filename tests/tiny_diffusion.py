"""A Stable Diffusion with ControlNet of a few thousand random weights, on disk in diffusers' own
format.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

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


def save_tiny(folder: Path, seed: int = 0, prediction: str = "epsilon") -> tuple[str, str]:
    """Write the model to `<folder>/model` and the ControlNet to `<folder>/control`; returns both as
    text.
    """
    torch.manual_seed(seed)
    model, control = folder / "model", folder / "control"
    words = save_tokenizer(model / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=words,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=ROOM,
        bos_token_id=words - 8,
        eos_token_id=words - 7,
        pad_token_id=words - 7,
    )
    CLIPTextModel(text).save_pretrained(model / "text_encoder")
    AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.18215,
    ).save_pretrained(model / "vae")
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
    with torch.no_grad():  # a fresh ControlNet's last layers are zero: it would say nothing
        for weight in controlnet.parameters():
            if not weight.any():
                weight.normal_(std=0.3)
    unet.save_pretrained(model / "unet"), controlnet.save_pretrained(control)
    schedule = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        prediction_type=prediction,
        set_alpha_to_one=True,
        steps_offset=0,
        timestep_spacing="leading",
    )
    schedule.save_pretrained(model / "scheduler")
    return str(model), str(control)
