"""How much memory each stage of a real run takes, and what fits a card of 16 or 24 GB:
python -m d3s2.studies.run_memory

No weights are needed. Stable Diffusion's stages and the proxy's are counted on tensors that have a
shape and no content (see `memory`). Swin-S really takes a step of one image with random weights (a
minute, 5 GB), whose bytes alive are counted as well; more images take so many times as much, and
gradients once more: a bound from above. All is counted on a CPU, where autocast chooses some kinds
otherwise than on a GPU, and with d3s2's deformable attention in plain PyTorch. `RESERVE` stands for
what is not counted: workspaces of the kernels, fragmentation, the device's own context.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from mmengine.registry import init_default_scope
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CLIPTextConfig, CLIPTextModel

from d3s2.guidance.sampler import Denoiser
from d3s2.models.mmseg_proxy import MmsegProxy, build
from d3s2.models.stable_diffusion import PRECISIONS
from d3s2.statistics.features import MOST_PIXELS, ClassMoments
from d3s2.studies.memory import (
    GIB,
    PROXY,
    TEXT_ENCODER_WEIGHTS,
    LiveBytes,
    guided_step,
    true_size_model,
)
from d3s2.training import mask2former
from d3s2.training.job import TrainingJob

CARDS = (16, 24)
RESERVE = 2.0
"""GiB of a card that are left for what is not counted."""
CLASSES = 150
PROMPTS = 2
"""Texts at once: the mask's and the negative one."""
SMALL = 128
"""Pixels of a side with which the labels' share of the feature statistics is counted."""
IN_AN_IMAGE = 10
"""Classes of the image that Swin-S is trained with."""
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}


class Need(NamedTuple):
    """One line: what is counted with which settings; GiB of weights, and of all at the peak."""

    name: str
    settings: str
    weights: float
    peak: float

    def fits(self, card: int) -> bool:
        """Whether a card of so many GiB is enough."""
        return self.peak + RESERVE <= card


def bytes_of(*networks: nn.Module) -> int:
    """Bytes of all weights."""
    return sum(
        weight.numel() * weight.element_size()
        for network in networks
        for weight in network.parameters()
    )


# ------------------------------------------------------------------------ painting, and the proxy
@contextmanager
def default_kind(kind: torch.dtype) -> Iterator[None]:
    """Floats are made in this precision."""
    torch.set_default_dtype(kind)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def counted(name: str, settings: str, weights: int, work: Callable[[], object]) -> Need:
    """The bytes that are alive at once during `work`, on top of the weights."""
    with LiveBytes() as live:
        work()
    return Need(name, settings, weights / GIB, (weights + live.peak) / GIB)


def painting(precision: str, size: int, batch: int) -> list[Need]:
    """Chapter 03, all of whose networks are loaded together: text, a step without and with
    guidance, the image at the end.
    """
    proxy = MmsegProxy(build(PROXY))
    kind = PRECISIONS[precision]
    with FakeTensorMode(allow_non_fake_inputs=True):
        with default_kind(kind):
            model = true_size_model(True, "slicing")
            text = CLIPTextModel(CLIPTextConfig(**TEXT)).eval()
        weights = bytes_of(model.unet, model.vae, proxy) + TEXT_ENCODER_WEIGHTS * kind.itemsize
        z = torch.zeros(batch, *model.noise_shape(size, size))
        labels = torch.zeros(batch, size, size, dtype=torch.long)
        words = torch.zeros(PROMPTS * batch, 77, dtype=torch.long)
        with_cfg = Denoiser(model, labels, torch.ones(batch, CLASSES), 3.0)

        def guided(full: bool) -> Callable[[], Tensor]:
            return lambda: guided_step(model, proxy, z, labels, full)

        plain = f"{precision}, {batch} image(s)"
        with torch.no_grad():
            found = [
                counted("text encoding", plain, weights, lambda: text(words)),
                counted("step, unguided", plain, weights, lambda: with_cfg.v(z, 500)),
            ]
        for jacobian in ("detach", "full"):
            settings = f"{plain}, jacobian={jacobian}"
            found.append(counted("step, guided", settings, weights, guided(jacobian == "full")))
        wide = true_size_model(True, "slicing")
        larger = weights + bytes_of(wide.vae) - bytes_of(model.vae)
        with torch.no_grad():
            settings = f"{plain}, the decoder in float32"
            found.append(counted("final decoding", settings, larger, lambda: wide.decode(z)))
    return found


def statistics(size: int) -> Need:
    """Chapter 01: the proxy's features of as many images as are taken at once, and their
    moments.
    """
    proxy = MmsegProxy(build(PROXY))
    images = max(1, MOST_PIXELS // size**2)

    def work() -> None:
        features = proxy(torch.zeros(images, 3, size, size)).features
        labels = torch.zeros(images, size, size, dtype=torch.long)
        moments = ClassMoments(CLASSES, [feature.shape[1] for feature in features])
        moments.update(features, labels)

    with torch.no_grad():
        small = counted("", "", 0, work) if size <= SMALL else None
    if small is None:  # `update` looks into the labels: content is needed, bytes go with the pixels
        tiny = statistics(SMALL)
        share = images * size**2 / (max(1, MOST_PIXELS // SMALL**2) * SMALL**2)
        peak = tiny.weights + (tiny.peak - tiny.weights) * share
        return Need("feature statistics", f"{images} images at once", tiny.weights, peak)
    weights = bytes_of(proxy) / GIB
    return Need("feature statistics", f"{images} images at once", weights, weights + small.peak)


# ------------------------------------------------------------------------------- Swin-S, really run
def swin(size: int) -> tuple[nn.Module, dict[str, list]]:
    """Mask2Former Swin-S with random weights, and a batch of one image."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    init_default_scope("mmseg")
    job = TrainingJob("memory", "", "", CLASSES, "", size=(size, size), network="swin-s")
    config = mask2former.build_config(job)
    config.model.backbone.init_cfg = None
    model = mask2former.MODELS.build(config.model)
    rows = torch.arange(size)[:, None] * IN_AN_IMAGE // size
    labels = rows.expand(size, size)[None].contiguous()
    sample = SegDataSample(gt_sem_seg=PixelData(data=labels))
    sample.set_metainfo({"img_shape": (size, size), "ori_shape": (size, size)})
    image = torch.zeros(3, size, size, dtype=torch.uint8)
    return model, {"inputs": [image], "data_samples": [sample]}


def step_bytes(precision: str, size: int) -> tuple[int, int]:
    """(Bytes of the weights, bytes alive at once in a training step of one image on top of them and
    of the optimizer's).
    """
    model, data = swin(size)
    model.train()
    kind = PRECISIONS[precision]
    with LiveBytes() as live:
        inputs = model.data_preprocessor(data, True)
        with torch.autocast("cpu", kind, enabled=kind != torch.float32):
            losses = model(**inputs, mode="loss")
        model.parse_losses(losses)[0].backward()
    return bytes_of(model), live.peak


def judging_bytes(size: int) -> tuple[int, int]:
    """(Bytes of the weights, bytes alive at once while one image is judged)."""
    model, data = swin(size)
    model.eval()
    with torch.no_grad(), LiveBytes() as live:
        model(**model.data_preprocessor(data, False), mode="predict")
    return bytes_of(model), live.peak


def training(precision: str, size: int, batches: Sequence[int]) -> list[Need]:
    """Chapter 04: a step with so many images at once (batch_size divided by parts and GPUs)."""
    weights, one = step_bytes(precision, size)
    constant = 4 * weights  # themselves, their gradients, and two moments of AdamW
    found = []
    for batch in batches:
        settings = f"{precision}, {batch} image(s) at once"
        peak = (constant + batch * one) / GIB
        found.append(Need("Swin-S, a training step", settings, weights / GIB, peak))
    return found


def judging(size: int) -> list[Need]:
    """Chapter 04: the validation batch of each protocol."""
    weights, one = judging_bytes(size)
    cases = {"squeezed, 4 images at once": 4, "published, an image of 4:3": 4 / 3}
    return [
        Need("Swin-S, judging", what, weights / GIB, (weights + images * one) / GIB)
        for what, images in cases.items()
    ]


# ---------------------------------------------------------------------------------------- the table
def table(stages: Sequence[Need]) -> str:
    """A Markdown table of the stages, with what fits which card."""
    head = ["stage", "settings", "weights GiB", "peak GiB", *(f"{card} GB" for card in CARDS)]
    lines = [f"| {' | '.join(head)} |", "|---|---|---:|---:|" + "---|" * len(CARDS)]
    for stage in stages:
        fits = ["fits" if stage.fits(card) else "too large" for card in CARDS]
        numbers = [f"{stage.weights:.2f}", f"{stage.peak:.2f}"]
        lines.append(f"| {' | '.join([stage.name, stage.settings, *numbers, *fits])} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table of the module's text."""
    parser = argparse.ArgumentParser(
        prog="python -m d3s2.studies.run_memory", description="Count the memory of a run's stages."
    )
    parser.add_argument("--size", type=int, default=512, help="height and width in pixels")
    size = parser.parse_args(arguments).size
    stages = [statistics(size)]
    for precision in ("bfloat16", "float32"):
        stages += painting(precision, size, 1)
    for precision in ("bfloat16", "float32"):
        stages += training(precision, size, (8, 4, 2, 1))
    stages += judging(size)
    print(f"counted, not measured; {RESERVE:.0f} GiB of a card are kept free\n\n{table(stages)}")


if __name__ == "__main__":
    main()
