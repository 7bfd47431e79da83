"""Turning what describes a fit into values that `write_h5ad` and `write_zarr` take and give back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
import pandas as pd

from scglmm.results.names import storable


def writable(value: Any, where: str = "info") -> Any:
    """Copy of `value` that anndata writes to h5ad and zarr, and that reads back as the same thing.

    Sequences become arrays (strings an array of objects, as they are read back), keys become strings without
    "/", numpy scalars become Python's. None stays: anndata 0.12 and later write it, and scanpy stores
    `layer=None`.

    Parameters
    ----------
    value
        Nested mappings of None, bool, int, float, str, arrays, sequences of one kind, or DataFrames.
    where
        What the value is called in an error message.

    Raises
    ------
    TypeError
        A value of another kind, or a sequence of mixed kinds.
    ValueError
        Two keys become the same once "/" is replaced.
    """
    if isinstance(value, Mapping):
        out = {storable(str(k)): writable(v, f"{where}[{k!r}]") for k, v in value.items()}
        if len(out) < len(value):
            msg = f"Two keys of {where} are stored under the same name: {', '.join(map(repr, value))}."
            raise ValueError(msg)
        return out
    if value is None or isinstance(value, str | bool | int | float | np.generic):
        return _scalar(value, where)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, pd.DataFrame):
        return value.rename(columns=lambda column: storable(str(column)))
    if isinstance(value, np.ndarray | pd.Index | pd.Series | pd.api.extensions.ExtensionArray):
        return _array(value, where)
    if isinstance(value, list | tuple | set | frozenset | range):
        return _array(_from_sequence(value, where), where)
    msg = f"{where} is a {type(value).__name__}, which cannot be written to a file: {value!r}."
    raise TypeError(msg)


def strings(values: Any) -> np.ndarray:
    """Array of `str` objects, the form in which lists of names are stored (and read back from h5ad)."""
    out = np.empty(len(values), dtype=object)
    out[:] = [str(v) for v in values]
    return out


def _scalar(value: Any, where: str) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    # an exact type: a subclass (an Enum of strings, numpy's str_) has no writer
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if value is None:
        return None
    msg = f"{where} is a {type(value).__name__}, which cannot be written to a file: {value!r}."
    raise TypeError(msg)


def _from_sequence(value: Any, where: str) -> np.ndarray:
    items = list(value)
    if all(isinstance(item, str) for item in items):
        return strings(items)
    if all(isinstance(item, bool | int | float | np.number | np.bool_) for item in items):
        return np.array(items)
    kinds = ", ".join(sorted({type(item).__name__ for item in items}))
    msg = f"{where} is a sequence of {kinds}: only strings, or only numbers, can be written to a file."
    raise TypeError(msg)


def _array(value: Any, where: str) -> Any:
    array = np.asarray(value)
    if array.ndim == 0:
        return writable(array.item(), where)
    if array.dtype.names is not None or array.dtype.kind in "biuf":
        return array.copy()
    flat = array.ravel()
    if array.dtype.kind in "UT" or (array.dtype.kind == "O" and all(isinstance(item, str) for item in flat)):
        return strings(flat).reshape(array.shape)
    if array.dtype.kind == "O":
        return _from_sequence(flat, where).reshape(array.shape)
    msg = f"{where} is an array of {array.dtype}, which cannot be written to a file."
    raise TypeError(msg)
