"""Chapter 04's network: mmsegmentation's shipped Mask2Former Swin-S configuration, scaled down.

`build_config` inherits mmsegmentation's own file and changes numbers in it: widths, depths, the
size of the images, the schedule. What numbers cannot say is in `registered`. All sizes are our
choice: the paper trains Swin-S at 512 x 512 from ImageNet weights; we train a net of 1.8 million
parameters from scratch at 64 x 64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine import Config
from mmengine.registry import PARAM_SCHEDULERS, init_default_scope
from mmengine.runner import Runner
from safetensors.torch import load_file, save_file
from torch import nn

from d3s2.models.checkpoints import read_checkpoint
from d3s2.models.openmmlab import CONFIGS, MODELS
from d3s2.training import protocol, swin, tracking
from d3s2.training.job import TrainingJob
from d3s2.training.loop import bare

SHIPPED = CONFIGS / "mask2former" / "mask2former_swin-s_8xb2-160k_ade20k-512x512.py"


@dataclass(frozen=True)
class Sizes:
    """The network's sizes where they differ from the shipped Swin-S; all are our choice.

    Of the backbone, whose widths and strides double from level to level: patch (pixels of a side),
    embed (width of the first level), depths and heads of the levels, window, mlp_ratio, drop_path.
    Of the head: width, queries (at least; ten more than classes), layers of the pixel decoder's
    encoder and of the transformer decoder, width of their feed-forward layers, points at which
    masks are compared.
    """

    patch: int = 2
    embed: int = 32
    depths: tuple[int, ...] = (1, 1, 2, 1)
    heads: tuple[int, ...] = (1, 2, 4, 8)
    window: int = 4
    mlp_ratio: int = 4
    drop_path: float = 0.1
    width: int = 64
    queries: int = 30
    encoder_layers: int = 1
    decoder_layers: int = 3
    feedforward: int = 256
    points: int = 512


SIZES = Sizes()
LEARNING_RATE = 2e-3
WARM_UP = 0.2
"""Share of the iterations in which the learning rate rises to LEARNING_RATE."""
WEIGHT_DECAY = 0.05
CLIP = 1.0
"""Largest norm of a step's gradient."""
ZOOM = 1.6
"""Training images are enlarged by up to this factor before they are cut."""
VAL_BATCH = 20


def build_config(job: TrainingJob, checkpoint: Path | None = None) -> Config:
    """mmsegmentation's Mask2Former Swin-S configuration with our sizes, data and schedule (our
    choices); see `swin` for the network as shipped. checkpoint: the file by which a broken training
    goes on.
    """
    config = Config.fromfile(str(SHIPPED))
    _set_data(config, job)
    if job.network == "swin-s":
        swin.adapt(config, job)
    else:
        _scale_down(config.model, job)
        _set_schedule(config, job)
    if job.protocol == "published":
        protocol.adapt(config, job)
    _set_loop(config, job, checkpoint)
    _set_environment(config, job)
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
    state = bare(model).state_dict()
    save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, path)


def build_runner(job: TrainingJob, checkpoint: Path | None = None) -> Runner:
    """mmengine's Runner for a job. On the CPU it takes one thread: then the same job gives the same
    bytes. Raises D3S2Error for backbone weights that are no weights alone.
    """
    if job.network == "swin-s":
        read_checkpoint(Path(job.backbone_weights))  # where mmengine goes on, and runs a pickle
    if job.device == "cpu":
        torch.set_num_threads(1)
        if job.processes > 1 and not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")  # mmengine's own call asks for a GPU
    return Runner.from_cfg(build_config(job, checkpoint))


def learning_rates(config: Config) -> np.ndarray:
    """float64[iterations]: the learning rate of each step of a configuration's schedule, as the
    weights have it whose rate nothing multiplies.
    """
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], config.optim_wrapper.optimizer.lr)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(each), default_args={"optimizer": optimizer})
        for each in config.param_scheduler
    ]
    rates = []
    for _ in range(config.train_cfg.max_iters):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return np.array(rates)


def plain_config(config: Config, shown: Mapping[str, Any]) -> dict[str, Any]:
    """What mmsegmentation's `init_model` needs of a configuration, without d3s2 and without a path:
    JSON values; an image goes the way that those of the evaluation went. shown: the classes and the
    palette, which its pictures are drawn with.

    The head is mmsegmentation's own: ours differs in how it trains.
    """
    model = config.model.to_dict()
    model["backbone"]["init_cfg"] = None
    model["decode_head"]["type"] = "Mask2FormerHead"
    height, width = model["data_preprocessor"]["size"]
    resized = {"type": "Resize", "scale": [width, height], "keep_ratio": False}
    judged = config.val_dataloader["dataset"]
    if judged["size"] is None:  # `published`
        resized = judged["pipeline"][0]
    pipeline = [{"type": "LoadImageFromFile"}, resized, {"type": "PackSegInputs"}]
    meta = {name: shown[name] for name in ("classes", "palette")}
    return {
        "default_scope": "mmseg",
        "model": model,
        "test_pipeline": pipeline,
        "dataset_meta": meta,
    }


def _scale_down(model: Any, job: TrainingJob) -> None:
    """Put `SIZES`, and the job's classes and image size, into the shipped model."""
    _scale_backbone(model, job)
    _scale_head(model.decode_head, job)


def _strides() -> list[int]:
    """Pixels of an image's side to a cell, at each of the four levels."""
    return [SIZES.patch * 2**level for level in range(4)]


def _scale_backbone(model: Any, job: TrainingJob) -> None:
    model.data_preprocessor.update(size=tuple(job.size), test_cfg=None)
    model.backbone.update(
        init_cfg=None,
        embed_dims=SIZES.embed,
        depths=list(SIZES.depths),
        num_heads=list(SIZES.heads),
        window_size=SIZES.window,
        patch_size=SIZES.patch,
        strides=(SIZES.patch, 2, 2, 2),
        drop_path_rate=SIZES.drop_path,
        mlp_ratio=SIZES.mlp_ratio,
    )


def _scale_head(head: Any, job: TrainingJob) -> None:
    head.update(
        type="D3S2Mask2FormerHead",
        in_channels=[SIZES.embed * 2**level for level in range(4)],
        strides=_strides(),
        feat_channels=SIZES.width,
        out_channels=SIZES.width,
        num_classes=job.num_classes,
        num_queries=max(SIZES.queries, job.num_classes + 10),
    )
    head.loss_cls.class_weight = [1.0] * job.num_classes + [0.1]
    head.train_cfg.num_points = SIZES.points
    pixel = head.pixel_decoder
    decoder = head.transformer_decoder
    pixel.update(strides=_strides(), norm_cfg={"type": "GN", "num_groups": 16})
    pixel.encoder.num_layers = SIZES.encoder_layers
    decoder.num_layers = SIZES.decoder_layers
    for attention in (
        pixel.encoder.layer_cfg.self_attn_cfg,
        decoder.layer_cfg.self_attn_cfg,
        decoder.layer_cfg.cross_attn_cfg,
    ):
        attention.update(embed_dims=SIZES.width, num_heads=4)
    for layer in (pixel.encoder.layer_cfg, decoder.layer_cfg):
        layer.ffn_cfg.update(embed_dims=SIZES.width, feedforward_channels=SIZES.feedforward)
    for encoding in (pixel.positional_encoding, head.positional_encoding):
        encoding.num_feats = SIZES.width // 2


def _set_data(config: Config, job: TrainingJob) -> None:
    """The job's splits, read by `registered.FolderDataset`, with our augmentation."""
    height, width = job.size
    augmentation = [
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
    # Worker processes would cost more than reading; the sampler is endless, so the loader never
    # restarts.
    config.train_dataloader = {
        "batch_size": job.batch_size // job.processes,
        "num_workers": 0,
        "sampler": {"type": "InfiniteSampler", "shuffle": True, "seed": job.seed},
        "dataset": {
            "type": "D3S2Folder",
            "root": str(job.train_root),
            "split": job.train_split,
            "ids": job.train_ids,
            "size": job.size,
            "pipeline": augmentation,
            "test_mode": False,
        },
    }
    config.val_dataloader = {
        "batch_size": VAL_BATCH,
        "num_workers": 0,
        "sampler": {"type": "DefaultSampler", "shuffle": False},
        "dataset": {
            "type": "D3S2Folder",
            "root": str(job.val_root),
            "split": job.val_split,
            "ids": job.val_ids,
            "size": job.size,
            "pipeline": [{"type": "PackSegInputs"}],
            "test_mode": True,
        },
    }
    answers = Path(job.work_dir) / "logs" / "predictions"
    config.val_evaluator = {"type": "D3S2IoU", "folder": str(answers)}
    config.test_dataloader = None
    config.test_evaluator = None
    config.test_cfg = None


def _set_schedule(config: Config, job: TrainingJob) -> None:
    """One cycle with one rate for all layers: the shipped file trains the backbone at a tenth of
    it, which is right for pretrained weights only.
    """
    embeddings = ("query_embed", "query_feat", "level_embed", "relative_position_bias_table")
    keys = {name: {"lr_mult": 1.0, "decay_mult": 0.0} for name in embeddings}
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


def _set_loop(config: Config, job: TrainingJob, checkpoint: Path | None) -> None:
    """How long, with which checkpoints, and what is recorded on the way."""
    logs = Path(job.work_dir) / "logs"
    config.work_dir = str(logs)
    config.train_cfg = {
        "type": "D3S2TrainLoop",
        "max_iters": job.iterations,
        "checkpoint": str(checkpoint or ""),
        "every": job.checkpoint_every,
        "parts": job.parts,
        "judge_every": job.judge_every,
    }
    if job.tracking != "none":
        config.visualizer.vis_backends = tracking.backends(job.tracking, job.name)
    config.val_cfg = {"type": "D3S2JudgeLoop", "out_of_memory": job.out_of_memory}
    config.optim_wrapper.accumulative_counts = job.parts
    if job.precision != "float32":
        bits = {"precision": job.precision, "device": job.device}
        config.optim_wrapper.update(type="D3S2MixedPrecision", **bits)
    config.default_hooks = {
        "checkpoint": None,
        "logger": {"type": "LoggerHook", "interval": 50, "log_metric_by_epoch": False},
    }
    config.custom_hooks = [{"type": "D3S2Progress", "path": str(logs / "progress.json")}]


def _set_environment(config: Config, job: TrainingJob) -> None:
    """Random numbers, and the processes that share the training."""
    config.randomness = {"seed": job.seed, "diff_rank_seed": job.processes > 1}
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
