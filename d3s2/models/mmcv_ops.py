"""A stand-in for mmcv's compiled extension, so that no compiler is needed.

`pip install` of mmcv without torch in its build environment gives a package without `mmcv._ext`,
and then `import mmcv.ops` fails. `install()` puts a module of that name into `sys.modules`:
multi-scale deformable attention, the one operation that Mask2Former needs, in plain PyTorch (it
runs on any device), and for every other operation a function that says what is missing when it is
*called*. A compiled extension, where there is one, is left alone.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from d3s2.core.errors import D3S2Error

NAME = "mmcv._ext"


def install() -> bool:
    """Make `import mmcv.ops` work. True: the stand-in is in use; False: mmcv has compiled
    operations.
    """
    present = sys.modules.get(NAME)
    if present is not None:
        return isinstance(present, _Extension)
    if importlib.util.find_spec(NAME) is not None:
        return False
    sys.modules[NAME] = _Extension()
    return True


def speed_up() -> None:
    """Let mmcv's attention layer use the formulation below on the CPU too: the same sums, a fifth
    faster.
    """
    from mmcv.ops import multi_scale_deform_attn as module

    module.multi_scale_deformable_attn_pytorch = _attention


def _attention(value: Tensor, spatial_shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """`ms_deform_attn_forward` with the signature of mmcv's reference in PyTorch."""
    sizes = spatial_shapes.prod(1)
    starts = sizes.cumsum(0) - sizes
    return ms_deform_attn_forward(value, spatial_shapes, starts, locations, weights)


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    locations: Tensor,
    weights: Tensor,
    im2col_step: int = 64,
) -> Tensor:
    """Multi-scale deformable attention (Deformable DETR, eq. 3), the signature of mmcv's compiled
    operation.

    Each query looks at P points on each of L feature maps and sums what it finds there:
    out[b, q, m] = sum_l sum_p weights[b, q, m, l, p] * bilinear(value[l, m] at locations[b, q, m,
    l, p]).

    Args:
        value: float[B, sum_l H_l W_l, M, D], the L maps flattened one after the other, M heads.
        spatial_shapes: int64[L, 2], (H_l, W_l).
        level_start_index: int64[L], where each map starts in `value`.
        locations: float[B, Q, M, L, P, 2], (x, y) in [0, 1]; outside of the map the value is 0.
        weights: float[B, Q, M, L, P].
        im2col_step: the compiled operation's chunk size; without meaning here.

    Returns: float[B, Q, M * D].
    """
    batch, _, heads, width = value.shape
    _, queries, _, levels, points, _ = locations.shape
    # Queries last, the long dimension: contiguous. mmcv's reference has the few points there:
    # slower.
    grid = (2 * locations - 1).permute(3, 0, 2, 4, 1, 5)
    grid = grid.reshape(levels, batch * heads, points, queries, 2)
    weight = weights.permute(3, 0, 2, 4, 1).reshape(levels, batch * heads, 1, points, queries)
    output = value.new_zeros(())
    maps = zip(spatial_shapes.tolist(), level_start_index.tolist(), strict=True)
    for level, ((height, length), start) in enumerate(maps):
        image = value[:, start : start + height * length].permute(0, 2, 3, 1)
        image = image.reshape(batch * heads, width, height, length)
        sampled = F.grid_sample(
            image, grid[level], mode="bilinear", padding_mode="zeros", align_corners=False
        )
        output = output + (sampled * weight[level]).sum(2)
    return output.view(batch, heads * width, queries).transpose(1, 2).contiguous()


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    locations: Tensor,
    weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_locations: Tensor,
    grad_weights: Tensor,
    im2col_step: int = 64,
) -> None:
    """The gradient of `ms_deform_attn_forward`, written into grad_value, grad_locations and
    grad_weights.

    The forward pass is run again under autograd: mmcv calls this inside an autograd function of its
    own.
    """
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in (value, locations, weights)]
        output = ms_deform_attn_forward(
            inputs[0], spatial_shapes, level_start_index, *inputs[1:], im2col_step
        )
        gradients = torch.autograd.grad(output, inputs, grad_output)
    for target, gradient in zip((grad_value, grad_locations, grad_weights), gradients, strict=True):
        target.copy_(gradient)


class _Extension(ModuleType):
    """The module itself: any operation that is not written here exists, and raises when it is
    called.
    """

    def __init__(self) -> None:
        super().__init__(NAME, __doc__)
        # The Runner asks importlib for it.
        self.__spec__ = importlib.machinery.ModuleSpec(NAME, None)
        self.ms_deform_attn_forward = ms_deform_attn_forward
        self.ms_deform_attn_backward = ms_deform_attn_backward
        self.get_compiler_version = lambda: "none (d3s2 stand-in)"
        self.get_compiling_cuda_version = lambda: "none (d3s2 stand-in)"

    def __getattr__(self, operation: str) -> Callable[..., Any]:
        if operation.startswith("__"):
            raise AttributeError(operation)

        def missing(*args: Any, **kwargs: Any) -> Any:
            raise D3S2Error(
                f"mmcv's operation {operation!r} needs the compiled extension, which is not "
                "installed: build onedl-mmcv with `pip install --no-build-isolation`, or choose a "
                "model that does not use it."
            )

        return missing
