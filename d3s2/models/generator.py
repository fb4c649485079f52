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

Every generator here speaks of noise in this one form, whatever its network was trained on. A model
that mixes x_t = alpha_t x_0 + sigma_t eps otherwise, such as flow matching (alpha_t = 1 - s,
sigma_t = s), has it too: divided by sqrt(alpha_t^2 + sigma_t^2) its x_t is that of alpha_bar_t =
alpha_t^2 / (alpha_t^2 + sigma_t^2). So the sampler's steps, and the guidance, are written once.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from diffusers import DDIMScheduler, ModelMixin, UNet2DModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from d3s2.core.errors import D3S2Error
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


# ------------------------------------------------------------------------------------- noise levels
class Timestep(NamedTuple):
    """One step of a run, from the noise level of a_t to that of a_next."""

    index: int  # from 0, pure noise, to steps - 1
    t: float  # timestep of the network: an int 0 .. 999, or between them where it takes that
    a_t: float  # alpha_bar at t; 0 = pure noise
    a_next: float  # alpha_bar at the next timestep; after the last the schedule's final one


def timesteps(
    steps: int, train_steps: int = 1000, offset: int = 0, spacing: str = "leading"
) -> list[int]:
    """Evenly spaced timesteps, last first, as diffusers' DDIM has them.

    Args:
        offset: of the "leading" spacing, whose last timestep it is (Stable Diffusion 1.5: 1).
        spacing: "leading", which begins a stride before the end of the training's timesteps, or
            "trailing", which begins at their end.
    Raises:
        D3S2Error: unless `steps` divides `train_steps`, without which the spacing would be uneven;
            for another spacing, and an offset that leads out of the training's timesteps.
    """
    if steps < 1 or train_steps % steps:
        raise D3S2Error(
            f"steps is {steps}: it must divide {train_steps}, for example 10, 20, 25, 40, 50 or "
            "100."
        )
    stride = train_steps // steps
    if spacing == "trailing":
        return list(range(train_steps - 1, -1, -stride))
    if spacing != "leading":
        raise D3S2Error(
            f"The scheduler's timestep_spacing is {spacing!r}: 'leading' and 'trailing' are known."
        )
    if not 0 <= offset < stride:
        raise D3S2Error(
            f"The scheduler's steps_offset is {offset}, with {steps} steps {stride} apart: take "
            "fewer steps."
        )
    return [t + offset for t in range(0, train_steps, stride)][::-1]


def numbered(times: list[float], levels: list[float], end: float) -> list[Timestep]:
    """The steps of a run through these timesteps and levels alpha_bar, noisiest first, to `end`."""
    following = [*levels[1:], end]
    return [
        Timestep(index, t, a_t, a_next)
        for index, (t, a_t, a_next) in enumerate(zip(times, levels, following, strict=True))
    ]


@dataclass(frozen=True)
class DiffusionSchedule:
    """The noise levels of a model in diffusers' DDIM format, and what its network's answer means.

    A schedule is what has `steps`, for the sampler, and `alpha_bars`, for pictures;
    `flow.FlowSchedule` is another. `unscaled` and `v` are for the generator's network.
    """

    scheduler: DDIMScheduler
    levels: list[float] = field(init=False, repr=False)
    """alpha_bar of every timestep of the training."""

    def __post_init__(self) -> None:
        # numbers at once: later the network may be asked where tensors have no values
        object.__setattr__(self, "levels", self.scheduler.alphas_cumprod.tolist())

    @property
    def alpha_bars(self) -> Tensor:
        """float32[T]: the same."""
        return self.scheduler.alphas_cumprod

    def steps(self, count: int) -> list[Timestep]:
        """The numbered steps of a run, each with the noise levels that it goes from and to.

        Spacing, offset and where the last step ends are the scheduler's own: the clean image
        (alpha_bar = 1) or, with its `set_alpha_to_one` off, the first training timestep's noise.
        Raises D3S2Error as `timesteps`.
        """
        config = self.scheduler.config
        chosen = timesteps(count, len(self.levels), config.steps_offset, config.timestep_spacing)
        end = float(self.scheduler.final_alpha_cumprod)
        return numbered(chosen, [self.levels[t] for t in chosen], end)

    def unscaled(self, x: Tensor, t: float) -> Tensor:
        """x as the network knows it: just so."""
        return x

    def v(self, said: Tensor, x: Tensor, t: float) -> Tensor:
        """v, of what the network said of x at timestep t: v itself, or the noise."""
        if self.scheduler.config.prediction_type == "v_prediction":
            return said
        a = self.levels[int(t)]
        return (said - math.sqrt(1 - a) * x) / math.sqrt(a)


# ------------------------------------------------------------------------------------ the generator
def save_half(model: ModelMixin, folder: Path) -> None:
    """Write config.json and fp16 safetensors; the model itself keeps its precision.

    Raises D3S2Error when the disk is full.
    """
    with explained(folder / "config.json"):
        nn.Module.half(copy.deepcopy(model).cpu()).save_pretrained(folder)


@dataclass
class LayoutGenerator:
    """A layout-to-image model and the noise schedule it was trained with.

    `unet(x, t, layout, classes)` predicts v, see `LayoutUNet.forward`. This one works on pixels.
    `stable_diffusion.StableDiffusion` works on latents, and says so by what it overrides: the
    sampler's noise and steps are latents, and the losses see what `decode` makes of them.
    """

    bounded: ClassVar[bool] = True
    """Clean images lie in [-1, 1], so the sampler may clip its guess; latents have no bounds."""
    padded: ClassVar[bool] = True
    """Batches are padded (see `pad_batch`), so that an image's bytes do not depend on its company.
    """
    one_batch: ClassVar[bool] = False
    """Whether classifier-free guidance asks for both its predictions at once, as a batch of twice
    the size: faster on a GPU, and other bytes than two batches on a CPU.
    """

    unet: LayoutUNet
    scheduler: DDIMScheduler

    @property
    def schedule(self) -> DiffusionSchedule:
        """The noise levels that its runs go through."""
        return DiffusionSchedule(self.scheduler)

    @property
    def num_classes(self) -> int:
        """C; layouts hold 0 .. C-1 and 255."""
        return self.unet.config.num_classes

    def noise_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Shape of the noise that an image of this size starts from."""
        return 3, height, width

    def encode(self, images: Tensor) -> Tensor:
        """What the sampler works on, float[B, *noise_shape], of images float[B, 3, H, W]."""
        return images

    def decode(self, x: Tensor) -> Tensor:
        """Images float[B, 3, H, W] of what the sampler works on, differentiable."""
        return x

    def render(self, x: Tensor) -> Tensor:
        """`decode` of a finished run, without gradients, and as exactly as the generator can."""
        return self.decode(x)

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
