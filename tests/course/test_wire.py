"""Plain values cross whole; nothing else crosses."""

from __future__ import annotations

import json
import math
import os
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from d3s2.course import wire

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.integers() | st.text(), inner, max_size=3)
    ),
    max_leaves=12,
)


def crossed(value: Any) -> Any:
    return wire.decode(json.loads(json.dumps(wire.encode(value))))


@given(plain)
def test_what_is_plain_comes_back(value: Any) -> None:
    found = crossed(value)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("kind", [np.bool_, np.uint8, np.int64, np.float16, np.float64])
def test_arrays_keep_their_kind_and_shape(kind: Any) -> None:
    for array in (np.arange(6).reshape(2, 3).astype(kind), np.zeros((0, 4), kind)):
        found = crossed(array[:, ::-1])
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array[:, ::-1])
        assert crossed(torch.from_numpy(array)).tolist() == array.tolist()
    number = crossed(kind(1))
    assert type(number) is kind and number == 1
    assert math.isnan(crossed(float("nan")))


def test_what_is_not_plain_is_refused() -> None:
    class Bent(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    assert crossed(Bent(3)) == 3 and type(crossed(Bent(3))) is int
    for value in (object(), {1, 2}, lambda: 0, np.array([object()]), np.array(["a"]), [len]):
        with pytest.raises(wire.Broken, match="was returned"):
            wire.encode(value)


@pytest.mark.parametrize(
    "said",
    [
        [1],
        {"list": 3},
        {"pickle": "gASV"},
        {"array": ["O", [1], ""]},
        {"array": ["<U1", [1], "YQAAAA=="]},
        {"array": ["<f8", [9], "AAAA"]},
        {"array": ["<f8", [-1], 3]},
        {"list": [], "tuple": []},
        {"dict": [[{"list": []}, 1]]},
    ],
)
def test_a_forged_answer_is_refused(said: Any) -> None:
    with pytest.raises(wire.Broken):
        wire.decode(said)


def test_messages_pass_through_a_pipe() -> None:
    out, into = os.pipe()
    for message in ({"a": [1, 2]}, "", "x" * 5000):
        wire.write(into, message)
        assert wire.read(out) == message
    os.close(into)
    with pytest.raises(EOFError):
        wire.read(out)
    os.close(out)


def test_a_long_message_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "LONGEST", 100)
    with pytest.raises(wire.Broken, match="KB were returned"):
        wire.pack("x" * 101)
