"""A second device for machines that have none: `far`, whose tensors lie on the CPU and count as
elsewhere.

As with a GPU, an operation refuses tensors of two devices, and NumPy takes nothing before `.cpu()`.
Unlike PyTorch's fake tensors these have values, so that whole notebooks run, and their results can
be compared with the CPU's. Importing this module registers the device for the process.
"""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "far"


class _Module:
    """What PyTorch asks `torch.far`; random numbers are drawn on the CPU."""

    is_initialized = is_available = staticmethod(lambda: True)
    _is_in_bad_fork = staticmethod(lambda: False)
    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    manual_seed_all = staticmethod(lambda seed: None)
    device = staticmethod(lambda number: nullcontext())
    get_rng_state = staticmethod(torch.get_rng_state)
    set_rng_state = staticmethod(torch.set_rng_state)
    get_amp_supported_dtype = staticmethod(lambda: [torch.bfloat16, torch.float16])


_setup_privateuseone_for_python_backend(NAME, _Module())
# Not in a thread of that device's own, as PyTorch has it
torch.autograd.set_multithreading_enabled(False)
_aten = torch.ops.aten
MOVES = (_aten.copy_.default, _aten._to_copy.default, _aten._copy_from.default)
"""What may take tensors of two devices."""
LOOKUPS = (
    _aten.index.Tensor,
    _aten.index_put.default,
    _aten.index_put_.default,
    _aten._index_put_impl_.default,
)
"""What may be told its places by tensors on the CPU."""


operations: Counter[str] = Counter()
"""How often each was done there in this process."""


class FarTensor(Tensor):
    """A tensor whose values are those of `here`, on the CPU."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor, requires_grad: bool = False) -> FarTensor:
        made = Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=torch.device(NAME, 0),
            requires_grad=requires_grad,
        )
        made.here = here
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{self.here!r} on {NAME}"

    def tolist(self) -> Any:
        return self.here.tolist()

    def __format__(self, spec: str) -> str:
        return format(self.here, spec)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    """The operation on the CPU's values; what it makes is far again unless it was asked for on the
    CPU.
    """
    operations[str(func)] += 1
    given = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    _refuse_two_devices(func, given)
    known = {id(_here(tensor)): tensor for tensor in given}
    out = func(*tree_map(_here, args), **tree_map(_here, kwargs))
    place = kwargs.get("device")
    asked_here = place is not None and torch.device(place).type != NAME

    def back(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in known:  # changed in place
            return known[id(value)]
        return value if asked_here else FarTensor(value)

    return tree_map(back, out)


def _here(value: Any) -> Any:
    if isinstance(value, FarTensor):
        return value.here
    if isinstance(value, torch.device) and value.type == NAME:
        return torch.device("cpu")
    return value


def _refuse_two_devices(func: Any, given: list[Tensor]) -> None:
    if func in MOVES:
        return
    checked = given[:1] if func in LOOKUPS else given
    near = [one for one in checked if not isinstance(one, FarTensor) and one.dim()]
    if near and len(near) < len(given):
        shapes = [f"{one.device.type}{list(one.shape)}" for one in given]
        raise RuntimeError(f"{func}: tensors on two devices: {', '.join(shapes)}")


def _empty(size: Any, *, dtype: Any = None, memory_format: Any = None, **_: Any) -> Tensor:
    form = torch.contiguous_format if memory_format is None else memory_format
    return FarTensor(torch.empty(size, dtype=dtype, memory_format=form))


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return FarTensor(torch.empty_strided(size, stride, dtype=dtype))


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    _here(target).copy_(_here(source))
    return target


_kernels = torch.library.Library("aten", "IMPL")
_kernels.impl("empty.memory_format", _empty, "PrivateUse1")
_kernels.impl("empty_strided", _empty_strided, "PrivateUse1")
_kernels.impl("_copy_from", _copy_from, "PrivateUse1")
# Mixed precision changes nothing there
_any = torch.library.Library("_", "IMPL", "AutocastPrivateUse1")
_any.fallback(torch.library.fallthrough_kernel)
