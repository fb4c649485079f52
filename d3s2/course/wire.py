"""What passes between a submission's process and the tests': plain values, as JSON.

Nothing that runs can be packed into it, so that the tests may read what a stranger's code returns.
"""

from __future__ import annotations

import base64
import json
import os
import struct
from typing import Any

import numpy as np
import torch

LONGEST = 2**19
"""Bytes of one message. A larger array, held against another one, could fill the tests' memory."""
KINDS = "biuf"
"""Of NumPy's dtypes: truth values, integers, floats."""


class Broken(Exception):
    """A message that is not one, or a value that is not plain."""


# ------------------------------------------------------------------------------------------- values
def encode(value: Any) -> Any:
    """A value as what JSON can hold.

    Plain are numbers, texts, None, arrays and tensors of numbers, and lists, tuples and dicts of
    these. Raises Broken for all else.
    """
    if isinstance(value, np.generic):  # before float, of which NumPy's float64 is one
        return {"number": _encode_array(np.asarray(value))}
    if value is None or isinstance(value, bool | int | float | str):
        return value  # JSON knows only its own kinds: of a subclass the number or text is left
    if isinstance(value, torch.Tensor):
        return {"tensor": _encode_array(value.detach().cpu().numpy())}
    if isinstance(value, np.ndarray):
        return {"array": _encode_array(value)}
    if isinstance(value, list):
        return {"list": [encode(each) for each in value]}
    if isinstance(value, tuple):
        return {"tuple": [encode(each) for each in value]}
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(each)] for key, each in value.items()]}
    raise Broken(f"a {type(value).__name__} was returned: return numbers, arrays or lists of them")


def _encode_array(array: np.ndarray) -> list[Any]:
    if array.dtype.kind not in KINDS:
        raise Broken(f"an array of {array.dtype} was returned: return one of numbers")
    whole = np.ascontiguousarray(array)
    return [array.dtype.str, list(array.shape), base64.b64encode(whole.tobytes()).decode()]


def decode(said: Any) -> Any:
    """The value of what `encode` gave. Raises Broken for anything else."""
    if said is None or isinstance(said, bool | int | float | str):
        return said
    if not isinstance(said, dict) or len(said) != 1:
        raise Broken("an answer cannot be read")
    ((kind, content),) = said.items()
    try:
        return _READERS[kind](content)
    except (KeyError, TypeError, ValueError) as error:
        raise Broken(f"an answer cannot be read: {error}") from None


def _decode_array(content: Any) -> np.ndarray:
    text, shape, data = content
    dtype = np.dtype(text)
    if dtype.kind not in KINDS:
        raise Broken(f"an array of {dtype}")
    return np.frombuffer(base64.b64decode(data), dtype).reshape(shape).copy()


_READERS = {
    "array": _decode_array,
    "tensor": lambda content: torch.from_numpy(_decode_array(content)),
    "number": lambda content: _decode_array(content)[()],
    "list": lambda content: [decode(each) for each in content],
    "tuple": lambda content: tuple(decode(each) for each in content),
    "dict": lambda content: {decode(key): decode(each) for key, each in content},
}


# ----------------------------------------------------------------------------------------- messages
def pack(message: Any) -> bytes:
    """A message as bytes, with its length before it. Raises Broken for one that is too long."""
    text = json.dumps(message).encode()
    if len(text) > LONGEST:
        raise Broken(f"{len(text) >> 10:,} KB were returned: more than {LONGEST >> 10:,}")
    return struct.pack(">I", len(text)) + text


def write(descriptor: int, message: Any) -> None:
    """Send a message through an open file descriptor."""
    left = memoryview(pack(message))
    while left:
        left = left[os.write(descriptor, left) :]


def read(descriptor: int) -> Any:
    """The next message from an open file descriptor. Raises EOFError when the other end is gone."""
    (length,) = struct.unpack(">I", _read_exactly(descriptor, 4))
    return json.loads(_read_exactly(descriptor, length))


def _read_exactly(descriptor: int, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = os.read(descriptor, count - len(parts))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)
