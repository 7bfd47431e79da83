"""obs columns made clean before anything is coded: float64 numbers, or categories that all occur.

What would go wrong otherwise: categories that no cell has become columns of zeros; nullable strings are taken for
numbers; integers overflow when squared; missing values are dropped or coded as the reference without a word.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from .errors import DesignError
from .evaluate import as_factor, listed

Column = np.ndarray | pd.Series


def in_memory(table: Any, columns: Iterable[str] | None = None) -> pd.DataFrame:
    """Give `obs` or `var` as a DataFrame; of a lazily read one (`anndata.experimental.read_lazy`) only some columns.

    Parameters
    ----------
    table
        DataFrame, or what can be made one by its `to_memory`.
    columns
        What is needed; all where one of them is not there, so that it can be said what is.
    """
    if isinstance(table, pd.DataFrame) or not hasattr(table, "to_memory"):
        return table
    wanted = None if columns is None else list(dict.fromkeys(columns))
    if wanted and set(wanted) <= set(table.columns):
        table = table[wanted]
    return table.to_memory()


def get_column(obs: pd.DataFrame, name: str) -> pd.Series:
    """Get one column of `obs`.

    Raises
    ------
    KeyError
        There is none of that name; near names are listed.
    ValueError
        There are several.
    """
    if name not in obs.columns:
        names = [str(column) for column in obs.columns]
        lower = {column.lower(): column for column in reversed(names)}
        near = [lower[match] for match in difflib.get_close_matches(name.lower(), lower, 3, 0.6)]
        if near:
            hint = f"Did you mean {' or '.join(repr(match) for match in near)}?"
        elif name == obs.index.name:
            hint = "It is the name of the index: copy the index into a column to use it."
        else:
            hint = f"The columns of obs are {listed(names, 30)}." if names else "obs has no columns."
        msg = f"obs has no column {name!r}, which the formula uses. {hint}"
        raise KeyError(msg)
    column = obs[name]
    if isinstance(column, pd.DataFrame):
        msg = f"obs has {column.shape[1]} columns named {name!r}; names have to be unique."
        raise ValueError(msg)
    return column


def rows_without_missing(columns: Mapping[str, pd.Series], n: int, na_action: str) -> np.ndarray:
    """Rows on which every column of the formula has a value.

    Parameters
    ----------
    columns
        The obs columns that the formula uses, and no others.
    n
        Number of rows.
    na_action
        "raise", or "drop" to leave rows with missing values out.

    Returns
    -------
    Boolean array (n,).

    Raises
    ------
    ValueError
        Values are missing and `na_action` is "raise", or nothing would be left.
    """
    if na_action not in {"raise", "drop"}:
        msg = f"na_action is 'raise' or 'drop', not {na_action!r}."
        raise ValueError(msg)
    kept = np.ones(n, dtype=bool)
    missing = {}
    for name, column in columns.items():
        absent = column.isna().to_numpy(dtype=bool)
        if absent.any():
            missing[name] = int(absent.sum())
            kept &= ~absent
    if not missing:
        return kept
    counts = ", ".join(f"{name!r} in {count:,}" for name, count in missing.items())
    if na_action == "raise":
        msg = (
            f"Values are missing (NaN) in columns of obs that the formula uses: {counts} of {n:,} cells. Fill them in, "
            f"or leave these {int((~kept).sum()):,} cells out with na_action='drop'."
        )
        raise ValueError(msg)
    if not kept.any():
        msg = f"No cell is left after dropping those with missing values: {counts} of {n:,} cells."
        raise DesignError(msg)
    return kept


def clean_column(column: pd.Series, name: str) -> Column:
    """Make a column without missing values clean.

    Returns
    -------
    A float64 array for numbers; a Series of dtype category for everything else: text, booleans, categories. The
    order of categories is kept, those that do not occur are dropped; text and booleans are sorted.

    Raises
    ------
    ValueError
        Numbers that are infinite, or a type that is neither number nor text (dates, mixtures of text and numbers).
    """
    dtype = column.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        factor = pd.Categorical(column)
        if np.bincount(factor.codes, minlength=len(factor.categories)).min(initial=1) == 0:
            factor = factor.remove_unused_categories()
    elif isinstance(dtype, pd.SparseDtype):
        return clean_column(pd.Series(np.asarray(column)), name)
    elif pd.api.types.is_bool_dtype(dtype):
        factor = pd.Categorical(column.to_numpy(dtype=bool))
    elif pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype):
        return _numbers(column, name, whole=pd.api.types.is_integer_dtype(dtype))
    elif pd.api.types.is_object_dtype(dtype):
        kind = pd.api.types.infer_dtype(column, skipna=True)
        if kind in {"integer", "floating", "mixed-integer-float", "decimal"}:
            return _numbers(column, name, whole=kind == "integer")
        if kind not in {"string", "boolean", "empty"}:
            kinds = sorted({type(value).__name__ for value in column})
            msg = (
                f"The obs column {name!r} mixes types ({', '.join(kinds)}). Convert it to numbers, or to text with "
                f"adata.obs[{name!r}] = adata.obs[{name!r}].astype(str)."
            )
            raise ValueError(msg)
        factor = pd.Categorical(column)
    elif pd.api.types.is_string_dtype(dtype):
        factor = pd.Categorical(column.astype(object))
    else:
        msg = (
            f"The obs column {name!r} is of type {dtype}, neither number nor text. Convert it first: to a number if "
            "its size matters, to text or a category if each value is a group of its own."
        )
        raise ValueError(msg)
    return pd.Series(factor)


def recode_column(column: pd.Series, name: str, like: Column) -> Column:
    """Make a column of new data clean, the way `like` was.

    Raises
    ------
    ValueError
        Values are missing or infinite, text stands where numbers were, or a level is new: never is an unknown level
        taken for the reference.
    """
    absent = int(column.isna().sum())
    if absent:
        msg = f"Values of {name!r} are missing (NaN) in {absent:,} of {len(column):,} rows of the new data."
        raise ValueError(msg)
    if isinstance(like, np.ndarray):
        clean = clean_column(column, name)
        if isinstance(clean, pd.Series):
            msg = f"{name!r} is a number in the model, and not in the new data (for instance {clean.iloc[0]!r})."
            raise ValueError(msg)
        return clean
    return as_factor(clean_column(column, name), like.cat.categories, name)


def constant_value(column: Column) -> str | None:
    """Spell out the one value of a column, where it has only one; else None."""
    if isinstance(column, pd.Series):
        return f"the level {str(column.cat.categories[0])!r}" if len(column.cat.categories) == 1 else None
    low, high = column.min(), column.max()
    return f"the value {low:g}" if low == high and np.isfinite(low) else None


def _numbers(column: pd.Series, name: str, *, whole: bool) -> np.ndarray:
    values = column.to_numpy(dtype=np.float64)
    infinite = int(np.isinf(values).sum())
    if infinite:
        msg = (
            f"The obs column {name!r} is infinite in {infinite:,} of {len(values):,} cells. Correct it, or set these "
            "values to NaN and leave the cells out with na_action='drop'."
        )
        raise ValueError(msg)
    if whole and len(values) and max(values.max(), -values.min()) >= 2**53:
        msg = (
            f"The obs column {name!r} holds whole numbers too large to be told apart as numbers (2**53 and more). If "
            f"they are names, convert them: adata.obs[{name!r}] = adata.obs[{name!r}].astype(str)."
        )
        raise ValueError(msg)
    return values
