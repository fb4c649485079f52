"""The stand-in for mmcv's compiled operations against mmcv's own PyTorch reference."""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import sys

import pytest
import torch

from d3s2.core.errors import D3S2Error
from d3s2.models import mmcv_ops

STAND_IN = mmcv_ops.install()
SHAPES = ((4, 6), (2, 3), (1, 2))


def problem(
    seed: int, batch: int = 2, queries: int = 5, heads: int = 2, width: int = 3, points: int = 2
):
    """Random inputs in float64; a part of the sampling locations lies outside of the maps."""
    generator = torch.Generator().manual_seed(seed)
    rand = functools.partial(torch.rand, generator=generator, dtype=torch.float64)
    shapes = torch.tensor(SHAPES)
    sizes = shapes.prod(1)
    start = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)[:-1]])
    value = rand(batch, int(sizes.sum()), heads, width) - 0.5
    locations = rand(batch, queries, heads, len(SHAPES), points, 2) * 1.6 - 0.3
    weights = (
        rand(batch, queries, heads, len(SHAPES) * points)
        .softmax(-1)
        .view(batch, queries, heads, -1, points)
    )
    return value, shapes, start, locations, weights


def test_forward_and_backward_equal_mmcvs_own_reference():
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    value, shapes, start, locations, weights = problem(0)
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]
    reference = multi_scale_deformable_attn_pytorch(inputs[0], shapes, *inputs[1:])
    output = mmcv_ops.ms_deform_attn_forward(inputs[0], shapes, start, *inputs[1:])
    torch.testing.assert_close(output, reference, rtol=0, atol=1e-14)
    upstream = torch.randn(
        output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    expected = torch.autograd.grad(reference, inputs, upstream)
    got = [torch.zeros_like(tensor) for tensor in inputs]
    mmcv_ops.ms_deform_attn_backward(
        inputs[0], shapes, start, *inputs[1:], upstream, *got, im2col_step=64
    )
    for mine, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-13)


@pytest.mark.skipif(not STAND_IN, reason="mmcv's compiled extension is installed")
def test_mmcvs_autograd_function_passes_gradcheck():
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    value, shapes, start, locations, weights = problem(3, batch=1, queries=3, heads=1, width=2)
    inputs = [tensor.requires_grad_() for tensor in (value, locations, weights)]

    def function(v: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return MultiScaleDeformableAttnFunction.apply(v, shapes, start, x, w, 64)

    assert torch.autograd.gradcheck(function, inputs, nondet_tol=0)


def test_constant_maps_give_the_sum_of_the_weights():
    value, shapes, start, locations, weights = problem(5)
    inside = locations.clamp(0.5, 0.5)
    output = mmcv_ops.ms_deform_attn_forward(torch.ones_like(value), shapes, start, inside, weights)
    torch.testing.assert_close(output, torch.ones_like(output))


@pytest.mark.skipif(not STAND_IN, reason="mmcv's compiled extension is installed")
def test_other_operations_raise_when_called_and_say_what_to_do():
    from mmcv.ops import nms

    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    with pytest.raises(D3S2Error, match=r"'nms'.*--no-build-isolation"):
        nms(boxes, torch.ones(1), 0.5)


@pytest.mark.skipif(not STAND_IN, reason="mmcv's compiled extension is installed")
def test_the_stand_in_has_a_spec_and_installs_once():
    assert mmcv_ops.install() is True
    assert importlib.util.find_spec(mmcv_ops.NAME) is not None


@pytest.mark.processes
def test_a_fresh_process_imports_mmseg_and_mmdet():
    code = (
        "from d3s2.models import mmcv_ops; mmcv_ops.install(); "
        "import mmcv.ops, mmdet.models, mmseg.models"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
