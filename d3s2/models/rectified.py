"""Cross-attention that keeps to the layout: a pixel sees its own class's words, and no other's.

Rectified cross-attention (FreestyleNet, Xue et al. 2023), as a processor of diffusers' attention:
    A = softmax(Q K^T / sqrt(d) + M),
    M_ij = 0 where pixel i is of the class that token j names, else -max;
tokens that name no class, such as the beginning and what follows the text, are seen by all. Which
tokens name a class is counted by the tokenizer (`prompts.Prompts.owners`). FreestyleNet finetunes
Stable Diffusion under this rule; a network that was not will place its things less surely.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor
from torch.nn import functional as F

Masks = dict[int, Tensor]
"""By the number of an attention grid's pixels: bool[B, pixels, T], where attention may go."""


def layout_masks(layout: Tensor, owners: Tensor, shape: tuple[int, int], levels: int) -> Masks:
    """The masks of all attention grids.

    Args:
        layout: int64[B, H, W]; 255 is no class, -1 everywhere in an image whose layout is dropped,
            where all is seen.
        owners: int64[B, T], see `Prompts.owners`.
        shape: of the largest grid, which every further level halves.
    """
    found = {}
    for level in range(levels):
        height, width = (side >> level for side in shape)
        small = F.interpolate(layout[:, None].float(), (height, width), mode="nearest")
        pixels = small.flatten(1).long()[:, :, None]
        tokens = owners[:, None, :]
        found[height * width] = (tokens == pixels) | (tokens < 0) | (pixels < 0)
    return found


class RectifiedAttention(AttnProcessor2_0):
    """diffusers' attention, under the masks that come with the call; self-attention has none."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        layout_masks: Masks | None = None,
        **more: Any,
    ) -> Tensor:
        """float[B, N, D]: as its base class, with one of `layout_masks` for N pixels added."""
        if encoder_hidden_states is not None and layout_masks is not None:
            allowed = layout_masks[hidden_states.shape[1]]
            least = torch.finfo(hidden_states.dtype).min
            bias = torch.zeros(allowed.shape, dtype=hidden_states.dtype, device=allowed.device)
            attention_mask = bias.masked_fill(~allowed, least)
        return super().__call__(
            attn, hidden_states, encoder_hidden_states, attention_mask, temb, **more
        )


def rectify(unet: UNet2DConditionModel) -> None:
    """Give a network's attention this processor; without masks it answers as before."""
    unet.set_attn_processor(RectifiedAttention())
