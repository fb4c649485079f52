"""Layout-to-image diffusion: the embedded pixel-space generator and its on-disk format.

Notation (that of diffusers' schedulers): x_t is the noisy image at timestep t, alpha_bar_t the
cumulative alpha, x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps. The network predicts v =
sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0 (Salimans & Ho 2022), from which eps and x_0
follow.

Two conditions, each dropped at random in training so that either, both or neither can be used when
sampling:

* the *layout*: one class id per pixel, 255 where it is unknown;
* the *class set*: which classes occur anywhere, the embedded counterpart of a prompt.

The architecture is our choice; the paper's generator is unknown to us.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from diffusers import DDIMScheduler, ModelMixin, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from d3s2.core.files import explained
from d3s2.data.dataset import IGNORE


class LayoutUNet(ModelMixin, ConfigMixin):
    """diffusers' `UNet2DModel` on pixel-unshuffled images, with an embedded class per pixel and a
    class set.

    Args:
        num_classes: C; layouts hold 0 .. C-1 and 255.
        channels: width of each resolution level; attention at the last one.
        patch: pixel-unshuffle factor; heights and widths must be multiples of
            patch * 2 ** (len(channels) - 1).
        embedding: width of the per-pixel class embedding.
    """

    @register_to_config
    def __init__(
        self,
        num_classes: int = 20,
        channels: tuple[int, ...] = (64, 96, 128),
        patch: int = 2,
        embedding: int = 8,
        layers: int = 2,
    ):
        super().__init__()
        down = ["DownBlock2D"] * (len(channels) - 1) + ["AttnDownBlock2D"]
        self.unet = UNet2DModel(
            in_channels=(3 + embedding) * patch**2,
            out_channels=3 * patch**2,
            block_out_channels=tuple(channels),
            down_block_types=down,
            up_block_types=[d.replace("Down", "Up") for d in reversed(down)],
            layers_per_block=layers,
            attention_head_dim=32,
            norm_num_groups=16,
            class_embed_type="identity",
        )
        # Class C: an unknown pixel, C + 1: the layout is dropped.
        self.layout_embedding = nn.Embedding(num_classes + 2, embedding)
        self.class_set = nn.Sequential(
            nn.Linear(num_classes + 1, channels[0] * 4),
            nn.SiLU(),
            nn.Linear(channels[0] * 4, channels[0] * 4),
        )

    def forward(
        self, x: Tensor, t: Tensor, layout: Tensor | None, classes: Tensor | None
    ) -> Tensor:
        """Predict v.

        Args:
            x: float[B, 3, H, W], the noisy image.
            t: int64[B] or a scalar, timesteps 0 .. 999.
            layout: int64[B, H, W] with 0 .. C-1, 255 (unknown) or -1 everywhere in an image whose
                layout is dropped; None drops it for all.
            classes: float[B, C] multi-hot, or -1 everywhere in a row that is dropped; None drops it
                for all.

        Returns: float[B, 3, H, W], in x's precision.
        """
        num_classes = self.config.num_classes
        if layout is None:
            layout = torch.full((len(x), *x.shape[2:]), -1, device=x.device)
        if classes is None:
            classes = torch.full((len(x), num_classes), -1.0, device=x.device)
        index = layout.masked_fill(layout == IGNORE, num_classes)
        index = index.masked_fill(layout == -1, num_classes + 1)
        embedded = self.layout_embedding(index).permute(0, 3, 1, 2).to(x.dtype)
        painted = F.pixel_unshuffle(torch.cat([x, embedded], 1), self.config.patch)
        dropped = (classes[:, :1] < 0).to(x.dtype)
        condition = self.class_set(torch.cat([classes.clamp(min=0).to(x.dtype), dropped], 1))
        out = self.unet(painted, t, class_labels=condition).sample
        return F.pixel_shuffle(out, self.config.patch)


def save_half(model: ModelMixin, folder: Path) -> None:
    """Write config.json and fp16 safetensors; the model itself keeps its precision.

    Raises D3S2Error when the disk is full.
    """
    with explained(folder / "config.json"):
        nn.Module.half(copy.deepcopy(model).cpu()).save_pretrained(folder)


@dataclass
class LayoutGenerator:
    """A layout-to-image model and the noise schedule it was trained with.

    This one works on pixels. `stable_diffusion.StableDiffusion` works on latents, and says so by
    what it overrides: the sampler's noise and steps are latents, and the losses see what `decode`
    makes of them.
    """

    bounded: ClassVar[bool] = True
    """Clean images lie in [-1, 1], so the sampler may clip its guess; latents have no bounds."""
    padded: ClassVar[bool] = True
    """Batches are padded (see `pad_batch`), so that an image's bytes do not depend on its company.
    """

    unet: LayoutUNet
    scheduler: DDIMScheduler

    @property
    def num_classes(self) -> int:
        """C; layouts hold 0 .. C-1 and 255."""
        return self.unet.config.num_classes

    def noise_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape of the noise that an image of this size starts from."""
        return 3, height, width

    def decode(self, x: Tensor) -> Tensor:
        """Images float[B, 3, H, W] of what the sampler works on, differentiable."""
        return x

    def unconditioned(self, layout: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """(layout, classes) of the free prediction in classifier-free guidance: here neither
        condition.
        """
        return None, None

    def save(self, folder: Path) -> None:
        """Write `unet/` (fp16 safetensors) and `scheduler/` in diffusers' own format."""
        save_half(self.unet, folder / "unet")
        with explained(folder / "scheduler"):
            self.scheduler.save_pretrained(folder / "scheduler")


def noise_schedule() -> DDIMScheduler:
    """1,000 steps, squared cosine, v-prediction (our choice); `clip_sample` keeps x_0 in [-1,
    1].
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=True,
        clip_sample_range=1.0,
        set_alpha_to_one=True,
        timestep_spacing="leading",
    )
