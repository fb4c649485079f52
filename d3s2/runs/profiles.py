"""The values of the profiles: a complete set for `scenes`, and what the others change in it. All
are our choice.

Of the profiles for real data only `camvid` was run to its end by us: the others' strengths,
schedules and sizes are starting points. `d3s2 check --profile ade20k` says what such a profile
still needs.
"""

from __future__ import annotations

from typing import Any

_SCENES: dict[str, Any] = {
    "run_dir": "",
    "data_format": "scenes",
    "data_root": "",
    "image_size": "64x64",
    "train_images": 4000,
    "val_images": 500,
    "seed": 0,
    "threads": 0,
    "device": "auto",
    "jobs": 0,
    "proxy_iterations": 1500,
    "generator_iterations": 3000,
    "feature_images": 0,
    "budget": 0.01,
    "beta": 0.5,
    "delta": 1.0,
    "presence_threshold": 0.02,
    "steps": 50,
    "cfg_scale": 1.0,
    "lambda_seg": 0.1,
    "lambda_feat": 0.1,
    "window_start": 0.1,
    "window_end": 0.8,
    "jacobian": "detach",
    "guide_every": 3,
    "eta": 0.0,
    "strength": 1.0,
    "images_per_mask": 1,
    "sampling_batch": 8,
    "method": "d3s2",
    "iterations": 1500,
    "batch_size": 4,
    "train_seeds": 1,
    "full_iterations": 0,
    "generator": "embedded",
    "diffusion_model": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "diffusion_revision": "",
    "controlnet_model": "lllyasviel/control_v11p_sd15_seg",
    "controlnet_revision": "",
    "control_palette": "dataset",
    "layout_control": "controlnet",
    "control_scale": 1.0,
    "negative_prompt": "cartoon, painting, illustration, blurry, deformed, text, watermark",
    "model_files": "local",
    "precision": "bfloat16",
    "checkpointing": 1,
    "vae_memory": "slicing",
    "proxy_config": "",
    "proxy_checkpoint": "",
    "proxy_layers": "",
    "network": "scaled-down",
    "protocol": "squeezed",
    "training_precision": "float32",
    "backbone_weights": "",
    "gpus": 1,
    "out_of_memory": "stop",
    "judge_every": 0,
    "tracking": "none",
}

# One GPU of 16 GB: images one by one, Swin-S from ImageNet weights at a learning rate scaled to the
# batch.
_REAL = _SCENES | {
    "image_size": "512x512",
    "train_images": 0,
    "val_images": 0,
    "device": "cuda",
    "jobs": 1,
    "feature_images": 2000,
    "cfg_scale": 3.0,
    "sampling_batch": 1,
    "batch_size": 8,
    "iterations": 10_000,
    "train_seeds": 3,
    "generator": "stable-diffusion",
    "network": "swin-s",
    "protocol": "published",
    "training_precision": "bfloat16",
}

PROFILES: dict[str, dict[str, Any]] = {
    "scenes": _SCENES,
    "camvid": _SCENES
    | {
        "data_format": "camvid",
        "image_size": "96x128",
        "train_images": 0,
        "val_images": 0,
        "budget": 0.05,
        "proxy_iterations": 1200,
        "generator_iterations": 2000,
    },
    "smoke": _SCENES
    | {
        "train_images": 200,
        "val_images": 24,
        "feature_images": 64,
        "budget": 0.03,
        "steps": 5,
        "sampling_batch": 4,
        "iterations": 20,
    },
    "ade20k": _REAL
    | {
        "data_format": "ade20k",
        "control_palette": "ade20k",
        "proxy_config": "segformer/segformer_mit-b2_8xb2-160k_ade20k-512x512.py",
    },
    "cocostuff": _REAL
    | {
        "data_format": "cocostuff",
        "control_palette": "coco",
        "proxy_config": "deeplabv3/deeplabv3_r50-d8_4xb4-160k_coco-stuff164k-512x512.py",
        "iterations": 20_000,
    },
    "voc2012": _REAL
    | {
        "data_format": "voc2012",
        "control_palette": "coco",
        "proxy_config": "deeplabv3plus/deeplabv3plus_r50-d8_4xb4-40k_voc12aug-512x512.py",
    },
}
"""What `--profile` may name."""
