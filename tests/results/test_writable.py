from __future__ import annotations

import contextlib
import enum
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scglmm.results.writable import writable


class Colour(enum.StrEnum):
    RED = "red"


def test_everything_gets_a_kind_that_anndata_writes():
    out = writable(
        {
            "none": None,
            "int": np.int64(3),
            "bool": np.bool_(True),
            "float": np.float32(0.5),
            "str": np.str_("x"),
            "enum": Colour.RED,
            "path": Path("a") / "b",
            "tuple": ("a", "b"),
            "empty": [],
            "numbers": [1, 2.5],
            "array": np.array([["a", "b"]]),
            "objects": np.array(["a", "b"], dtype=object),
            "series": pd.Series([1, 2]),
            "categorical": pd.Categorical(["x", "y"]),
            "zero_dim": np.array(4.0),
            "a/b": {1: {"deep": (1, 2)}},
            "frame": pd.DataFrame({"x/y": [1]}),
        }
    )
    assert out["none"] is None
    for name, kind in {"int": int, "bool": bool, "float": float, "str": str, "enum": str, "path": str}.items():
        assert type(out[name]) is kind
    assert out["enum"] == "red"
    for name in ("tuple", "empty", "array", "objects", "categorical"):
        assert out[name].dtype == object
    assert out["array"].shape == (1, 2)
    assert out["numbers"].tolist() == [1, 2.5]
    assert out["zero_dim"] == 4.0
    assert list(out["a∕b"]) == ["1"]
    assert list(out["frame"].columns) == ["x∕y"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"a": {"b": object()}}, r"info\['a'\]\['b'\] is a object"),
        ({"a": [1, "x"]}, "sequence of int, str"),
        ({"a": [["x"], ["y"]]}, "sequence of list"),
        ({"a": np.array([1 + 2j])}, "array of complex128"),
        ({"a": np.complex128(1j)}, "is a complex"),
        ({"a": np.array([None, "x"], dtype=object)}, "sequence of NoneType, str"),
    ],
)
def test_what_cannot_be_written_is_named(value, message):
    with pytest.raises(TypeError, match=message):
        writable(value)


def test_keys_that_become_equal_are_refused():
    with pytest.raises(ValueError, match="stored under the same name"):
        writable({"a/b": 1, "a∕b": 2})


def test_the_original_is_not_shared():
    array = np.arange(3)
    out = writable({"x": array})
    array[0] = 9
    assert out["x"].tolist() == [0, 1, 2]


@settings(deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats() | st.text(),
        lambda inner: st.dictionaries(st.text(max_size=4), inner, max_size=3) | st.lists(st.text(), max_size=3),
        max_leaves=8,
    )
)
def test_nested_plain_values_are_always_writable(value):
    def plain(v):
        if isinstance(v, dict):
            return all(type(k) is str and "/" not in k and plain(x) for k, x in v.items())
        return v is None or type(v) in {bool, int, float, str} or isinstance(v, np.ndarray)

    with contextlib.suppress(ValueError):  # keys that become equal
        assert plain(writable(value))
