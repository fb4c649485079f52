"""Chapter 04's network: mmsegmentation's shipped Mask2Former Swin-S configuration, scaled down.

`build_config` inherits mmsegmentation's own file and changes numbers in it: widths, depths, the
size of the images, the schedule. What numbers cannot say is in `registered`. All sizes are our
choice: the paper trains Swin-S at 512 x 512 from ImageNet weights; we train a net of 1.8 million
parameters from scratch at 64 x 64.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine import Config
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from safetensors.torch import load_file, save_file
from torch import nn

from d3s2.models.openmmlab import CONFIGS, MODELS
from d3s2.training import swin
from d3s2.training.job import TrainingJob
from d3s2.training.loop import bare
from d3s2.training.registered import Progress

SHIPPED = CONFIGS / "mask2former" / "mask2former_swin-s_8xb2-160k_ade20k-512x512.py"
PATCH, EMBED, DEPTHS, HEADS, WINDOW, MLP_RATIO = 2, 32, (1, 1, 2, 1), (1, 2, 4, 8), 4, 4
WIDTH, QUERIES, ENCODER_LAYERS, DECODER_LAYERS, FEEDFORWARD, POINTS = 64, 30, 1, 3, 256, 512
LEARNING_RATE, WEIGHT_DECAY, CLIP, DROP_PATH, WARM_UP = 2e-3, 0.05, 1.0, 0.1, 0.2
ZOOM = 1.6


def build_config(job: TrainingJob, checkpoint: Path | None = None) -> Config:
    """mmsegmentation's Mask2Former Swin-S configuration with our sizes, data and schedule (our
    choices); see `swin` for the network as shipped. checkpoint: the file by which a broken training
    goes on.
    """
    config = Config.fromfile(str(SHIPPED))
    if job.network == "swin-s":
        _set_data(config, job)
        swin.adapt(config, job)
    else:
        _scale_down(config.model, job)
        _set_data(config, job)
        _set_schedule(config, job)
    config.work_dir = str(Path(job.work_dir) / "logs")
    config.train_cfg = {
        "type": "D3S2TrainLoop",
        "max_iters": job.iterations,
        "checkpoint": str(checkpoint or ""),
        "every": job.checkpoint_every,
        "parts": job.parts,
    }
    config.val_cfg = {"type": "ValLoop"}
    config.optim_wrapper.accumulative_counts = job.parts
    config.randomness = {"seed": job.seed, "diff_rank_seed": job.processes > 1}
    config.default_hooks = {
        "checkpoint": None,
        "logger": {"type": "LoggerHook", "interval": 50, "log_metric_by_epoch": False},
    }
    config.custom_hooks = [
        {"type": "D3S2Progress", "path": str(Path(job.work_dir) / "logs" / "progress.json")}
    ]
    config.env_cfg = {
        "cudnn_benchmark": False,
        "mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0},
        "dist_cfg": {"backend": "nccl"},
    }
    config.launcher = "none" if job.processes == 1 else "pytorch"
    if job.device == "cpu":  # mmengine would name a GPU
        config.model_wrapper_cfg = {
            "type": "MMDistributedDataParallel",
            "device_ids": None,
            "broadcast_buffers": False,
        }
    return config


def build_model(job: TrainingJob, weights: Path | None = None) -> nn.Module:
    """The network of a job, in eval mode: with fresh weights, or with those that `save_weights`
    wrote.
    """
    init_default_scope("mmseg")
    model = MODELS.build(build_config(job).model)
    if weights is not None:
        model.load_state_dict(load_file(weights))
    return model.eval()


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the state dict as safetensors, fp32; of a network that several processes share, its
    own.
    """
    save_file(
        {
            name: value.detach().cpu().contiguous()
            for name, value in bare(model).state_dict().items()
        },
        path,
    )


def build_runner(job: TrainingJob, checkpoint: Path | None = None) -> Runner:
    """mmengine's Runner for a job. On the CPU it takes one thread: then the same job gives the same
    bytes.
    """
    if job.device == "cpu":
        torch.set_num_threads(1)
        if job.processes > 1 and not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")  # mmengine's own call asks for a GPU
    return Runner.from_cfg(build_config(job, checkpoint))


def progress_hook(runner: Runner) -> Progress:
    """The hook of a runner that recorded the loss."""
    return next(hook for hook in runner.hooks if isinstance(hook, Progress))


def _scale_down(model: Any, job: TrainingJob) -> None:
    channels, strides = (
        [EMBED * 2**level for level in range(4)],
        [PATCH * 2**level for level in range(4)],
    )
    model.data_preprocessor.update(size=tuple(job.size), test_cfg=None)
    model.backbone.update(
        init_cfg=None,
        embed_dims=EMBED,
        depths=list(DEPTHS),
        num_heads=list(HEADS),
        window_size=WINDOW,
        patch_size=PATCH,
        strides=(PATCH, 2, 2, 2),
        drop_path_rate=DROP_PATH,
        mlp_ratio=MLP_RATIO,
    )
    head = model.decode_head
    head.update(
        type="D3S2Mask2FormerHead",
        in_channels=channels,
        strides=strides,
        feat_channels=WIDTH,
        out_channels=WIDTH,
        num_classes=job.num_classes,
        num_queries=max(QUERIES, job.num_classes + 10),
    )
    head.loss_cls.class_weight = [1.0] * job.num_classes + [0.1]
    head.train_cfg.num_points = POINTS
    pixel, decoder = head.pixel_decoder, head.transformer_decoder
    pixel.update(strides=strides, norm_cfg={"type": "GN", "num_groups": 16})
    pixel.encoder.num_layers = ENCODER_LAYERS
    decoder.num_layers = DECODER_LAYERS
    for attention in (
        pixel.encoder.layer_cfg.self_attn_cfg,
        decoder.layer_cfg.self_attn_cfg,
        decoder.layer_cfg.cross_attn_cfg,
    ):
        attention.update(embed_dims=WIDTH, num_heads=4)
    for layer in (pixel.encoder.layer_cfg, decoder.layer_cfg):
        layer.ffn_cfg.update(embed_dims=WIDTH, feedforward_channels=FEEDFORWARD)
    for encoding in (pixel.positional_encoding, head.positional_encoding):
        encoding.num_feats = WIDTH // 2


def _set_data(config: Config, job: TrainingJob) -> None:
    height, width = job.size
    train = [
        {
            "type": "RandomResize",
            "scale": (width, height),
            "ratio_range": (1.0, ZOOM),
            "keep_ratio": True,
        },
        {"type": "RandomCrop", "crop_size": (height, width)},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PhotoMetricDistortion"},
        {"type": "PackSegInputs"},
    ]
    test = [{"type": "PackSegInputs"}]

    def folder(
        root: str, split: str, ids: Sequence[str] | None, pipeline: list, test_mode: bool
    ) -> dict:
        return {
            "type": "D3S2Folder",
            "root": str(root),
            "split": split,
            "ids": ids,
            "size": job.size,
            "pipeline": pipeline,
            "test_mode": test_mode,
        }

    # Worker processes would cost more than reading; the sampler is endless, so the loader never
    # restarts.
    config.train_dataloader = {
        "batch_size": job.batch_size // job.processes,
        "num_workers": 0,
        "sampler": {"type": "InfiniteSampler", "shuffle": True, "seed": job.seed},
        "dataset": folder(job.train_root, job.train_split, job.train_ids, train, False),
    }
    config.val_dataloader = {
        "batch_size": 20,
        "num_workers": 0,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "dataset": folder(job.val_root, job.val_split, job.val_ids, test, True),
    }
    config.val_evaluator = {"type": "D3S2IoU"}
    config.test_dataloader = config.test_evaluator = config.test_cfg = None


def _set_schedule(config: Config, job: TrainingJob) -> None:
    # The shipped file trains the backbone at a tenth of the rate: right for pretrained weights
    # only.
    no_decay = {"lr_mult": 1.0, "decay_mult": 0.0}
    keys = dict.fromkeys(
        ("query_embed", "query_feat", "level_embed", "relative_position_bias_table"), no_decay
    )
    config.optim_wrapper = {
        "type": "OptimWrapper",
        "clip_grad": {"max_norm": CLIP, "norm_type": 2},
        "paramwise_cfg": {"custom_keys": keys, "norm_decay_mult": 0.0},
        "optimizer": {
            "type": "AdamW",
            "lr": LEARNING_RATE,
            "weight_decay": WEIGHT_DECAY,
            "betas": (0.9, 0.999),
            "fused": True,
        },
    }
    config.param_scheduler = [
        {
            "type": "OneCycleLR",
            "eta_max": LEARNING_RATE,
            "total_steps": job.iterations,
            "pct_start": WARM_UP,
            "by_epoch": False,
        }
    ]
