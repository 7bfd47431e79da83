"""Writing the results of a fit into an AnnData: built first, then assigned at once or not at all."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData, ImplicitModificationWarning
from numpy.typing import NDArray

from scglmm.results.names import check_distinct, compose, storable
from scglmm.results.rank_genes import rank_arrays
from scglmm.results.table import (
    NOT_SELECTED,
    PER_COEFFICIENT,
    STATUSES,
    GeneTable,
    triangle_positions,
    triangle_size,
)
from scglmm.results.writable import strings, writable

TABLES = (*PER_COEFFICIENT, "vcov", "varpart", "fit")
"""Suffixes of the keys in `varm`: ``{key}_{suffix}``."""

OPTIONAL = ("dvcov",)
"""Suffixes of keys that not every result has."""

_PARAMS = {
    "groupby": None,
    "reference": None,
    "method": None,
    "use_raw": False,
    "layer": None,
    "corr_method": "benjamini-hochberg",
}


def check_target(adata: AnnData, key: str, argument: str = "key_added") -> None:
    """Check, before any work is done, that results can be written to `adata` under `key`.

    Parameters
    ----------
    adata
        Object to write to.
    key
        Name of the result.
    argument
        What the caller calls `key`, for messages.

    Raises
    ------
    TypeError
        `key` is not a string.
    ValueError
        `key` is empty, or `adata` is a view of a backed object, which cannot be made into an object of its
        own.
    """
    if not isinstance(key, str):
        msg = f"{argument} must be a string, not {key!r} ({type(key).__name__})."
        raise TypeError(msg)
    if not key.strip("."):
        msg = f"{argument} cannot be {key!r}: give the result a name such as 'nbmm'."
        raise ValueError(msg)
    if adata.is_view and adata.isbacked:
        msg = (
            "`adata` is a view of a backed AnnData, which cannot hold results of its own: "
            "use `adata.to_memory()`, or `adata.copy(filename=...)`, and run on that."
        )
        raise ValueError(msg)


def write_results(
    adata: AnnData,
    key: str,
    tables: Mapping[str | None, GeneTable],
    info: Mapping[str, Any],
    further: Mapping[str, pd.DataFrame] | None = None,
    *,
    finish: Callable[[], object] = lambda: None,
) -> None:
    """Write the tables of one result to `adata.varm` and `adata.uns[key]`, all of it or none.

    Parameters
    ----------
    adata
        Object to write to. A view becomes an object of its own, with a warning, as in scanpy.
    key
        Name of the result. An earlier result of that name is replaced, all its keys included.
    tables
        Group -> its table; the single key None where the cells were not grouped. Genes of `adata` that a
        table does not have get NaN and the status `not_selected`. Groups may differ in their coefficients and
        sources.
    info
        What describes the fit, for `adata.uns[key]`: nested mappings of None, bool, int, float, str, arrays
        and sequences. Three entries have a meaning here:

        * `params`, a mapping with `groupby`, `reference`, `method`, `use_raw`, `layer`, `corr_method`.
          Without it those of them that are found in `info` itself are moved there (`method` is copied).
        * `groups`, a mapping from every group, the skipped ones included, to its status; or a DataFrame, index
          group, with a column `status` and whatever else there is to say about a group. By default the groups of
          `tables`, with the status "ok".
        * `coefficients` is replaced by the coefficients of the tables, as they are spelled in the columns.
    further
        More tables, one row per gene of `adata`: suffix -> table.
    finish
        Called when all is written, to say so.

    Raises
    ------
    ValueError
        Columns would collide (see :func:`scglmm.results.names.check_distinct`), genes do not match, or
        `adata` is a view of a backed object.
    TypeError
        `info` holds something that cannot be written to a file.

    Notes
    -----
    Written to `adata.varm`, with "/" in names replaced by "∕" (U+2215) and ``{group}|`` before every column
    where there are groups: ``{key}_coef``, ``_se``, ``_stat``, ``_dof``, ``_pval``, ``_padj`` (genes ×
    coefficients, natural log scale), ``{key}_varpart`` (genes × sources), ``{key}_fit`` (genes × columns of
    the fit), ``{key}_vcov`` (genes × p(p+1)/2, or genes × groups × p(p+1)/2, NaN for skipped groups and
    coefficients that a group lacks) and, where a table has it, ``{key}_dvcov`` (genes × m × p(p+1)/2, or
    genes × groups × m × p(p+1)/2, m that of the group with most).

    Written to `adata.uns[key]`: `info`, `params`, the record arrays of :mod:`scglmm.results.rank_genes`,
    `coefficients`, `sources` and `fit_columns` (the names that columns are made of), `terms` (the term of each
    coefficient, where it is known), `varm_keys` (what belongs to this result) and, where there are groups,
    `groups` (a DataFrame, index group, column `status`).

    Whatever stops the assignment (KeyboardInterrupt included), `adata.varm` and `adata.uns` are put back as
    they were.
    """
    check_target(adata, key)
    key = storable(key)
    frames, entry = _build(adata, key, tables, info)
    frames |= {f"{key}_{suffix}": table for suffix, table in (further or {}).items()}
    entry["varm_keys"] = strings(list(frames))
    assign(adata, frames, key, entry, stale=_owned_keys(adata, key), finish=finish)


def own(adata: AnnData) -> None:
    """Make a view an object of its own, with a warning, as scanpy does before it writes to one."""
    if adata.is_view:
        warnings.warn(
            "Received a view of an AnnData: it becomes an object of its own, to hold the results.",
            ImplicitModificationWarning,
            stacklevel=_outside(),
        )
        adata._init_as_actual(adata.copy())


def assign(
    adata: AnnData,
    tables: Mapping[str, Any],
    key: str,
    entry: Mapping[str, Any],
    *,
    stale: Iterable[str] = (),
    finish: Callable[[], object] = lambda: None,
) -> None:
    """Write tables to `adata.varm` and an entry to `adata.uns`, all of it or nothing: the last thing that a call does.

    Whatever stops it, KeyboardInterrupt included, everything is put back as it was, and a view is a view again.

    Parameters
    ----------
    adata
        Object to write to. A view becomes an object of its own.
    tables
        Name in `varm` -> table. Others stay.
    key, entry
        What is to be ``adata.uns[key]``.
    stale
        Names in `varm` that are to go.
    finish
        Called when all is written, to say so.
    """
    state = dict(adata.__dict__)
    uns = None if adata.is_view else dict(adata.uns)
    try:
        own(adata)
        # Not written out here: Python 3.12 may leave a comprehension in a `try` past its `except` when it is stopped.
        adata.varm = _merged(adata.varm, tables, stale)
        adata.uns[key] = dict(entry)
        finish()
    except BaseException:
        # Attributes of an AnnData are replaced, never changed; but for `uns`, to which others may hold a reference.
        adata.__dict__.clear()
        adata.__dict__.update(state)
        if uns is not None:
            if key not in uns:
                adata.uns.pop(key, None)
            elif adata.uns.get(key) is not uns[key]:
                adata.uns[key] = uns[key]
        raise


def _merged(varm: Mapping[str, Any], tables: Mapping[str, Any], stale: Iterable[str]) -> dict[str, Any]:
    """Give the old tables but for those that are to go, and the new ones."""
    gone = set(stale) - set(tables)
    return {name: value for name, value in varm.items() if name not in gone} | dict(tables)


def _outside() -> int:
    """Level of the first frame outside of this package, for the function that calls this."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("scglmm."):
        frame, level = frame.f_back, level + 1
    return level


def _build(
    adata: AnnData, key: str, tables: Mapping[str | None, GeneTable], info: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Everything that is to be stored: entries of `varm`, and the entry of `uns`."""
    if not tables:
        msg = "There is no table to write: every group was skipped."
        raise ValueError(msg)
    if None in tables and len(tables) > 1:
        msg = "`tables` has groups and an ungrouped table: a result has either."
        raise ValueError(msg)
    info = dict(info)
    listing = info.pop("groups", None)
    groups: list[str] | None = None
    if None not in tables:
        listing = _listing(dict.fromkeys(tables, "ok") if listing is None else listing)
        groups = list(listing.index)
        if unknown := [g for g in tables if str(g) not in groups]:
            msg = f"`info['groups']` lacks the group {unknown[0]!r}, which has a table."
            raise ValueError(msg)

    fitted = list(tables.values())
    names = {
        "coefficients": _union(table.coefficients for table in fitted),
        "sources": _union(table.varpart.columns for table in fitted),
        "fit_columns": _union(table.fit.columns for table in fitted),
    }
    for listed in names.values():
        check_distinct(listed, groups)

    rows = {group: table.rows(adata.var_names) for group, table in tables.items()}
    frames: dict[str, Any] = {}
    for suffix in PER_COEFFICIENT:
        columns = {
            compose(group, c): _take(getattr(table, suffix)[:, j], rows[group])
            for group, table in tables.items()
            for j, c in enumerate(table.coefficients)
        }
        frames[f"{key}_{suffix}"] = _frame(columns, adata.var_names)
    frames[f"{key}_vcov"] = _covariances(tables, rows, groups, names["coefficients"], adata.n_vars)
    if (dvcov := _derivatives(tables, rows, groups, names["coefficients"], adata.n_vars)) is not None:
        frames[f"{key}_dvcov"] = dvcov
    for suffix in ("varpart", "fit"):
        columns = {
            compose(group, str(c)): _take_column(getattr(table, suffix)[c], rows[group])
            for group, table in tables.items()
            for c in getattr(table, suffix).columns
        }
        if columns:  # contrasts have no variance fractions
            frames[f"{key}_{suffix}"] = _frame(columns, adata.var_names)

    params = info.pop("params", None)
    if params is None:
        params = {name: info.pop(name) for name in _PARAMS if name in info and name != "method"}
        params["method"] = info.get("method")
    entry = writable(info)
    entry["params"] = writable(_PARAMS | dict(params), "info['params']")
    entry |= {name: strings([storable(n) for n in listed]) for name, listed in names.items()}
    if all(table.terms is not None for table in fitted):
        term_of = {c: term for table in fitted for c, term in zip(table.coefficients, table.terms, strict=True)}
        entry["terms"] = strings([storable(term_of[c]) for c in names["coefficients"]])
    if groups is not None:
        entry["groups"] = listing.set_axis(pd.Index([storable(g) for g in groups], dtype=object))
    entry |= rank_arrays(
        adata.var_names,
        [
            (group, c, *(frames[f"{key}_{s}"][compose(group, c)] for s in ("coef", "stat", "pval", "padj")))
            for group, table in tables.items()
            for c in table.coefficients
        ],
    )
    return frames, entry


def _listing(groups: Mapping[str, str] | pd.DataFrame) -> pd.DataFrame:
    """Make the table of groups: their status first, text as objects."""
    if not isinstance(groups, pd.DataFrame):
        groups = pd.DataFrame({"status": list(groups.values())}, index=list(groups))
    columns = {"status": groups["status"]} | {str(name): groups[name] for name in groups.columns}
    index = pd.Index([str(g) for g in groups.index], dtype=object)
    return pd.DataFrame(
        {
            storable(name): column.to_numpy() if pd.api.types.is_numeric_dtype(column.dtype) else strings(list(column))
            for name, column in columns.items()
        },
        index=index,
    )


def _covariances(
    tables: Mapping[str | None, GeneTable],
    rows: Mapping[str | None, NDArray[np.intp]],
    groups: list[str] | None,
    coefficients: Sequence[str],
    n_vars: int,
) -> NDArray[np.float64]:
    """Covariances, genes × p(p+1)/2, with an axis of groups in the middle where there are any."""
    size = triangle_size(len(coefficients))
    out = np.full((n_vars, 1 if groups is None else len(groups), size), np.nan)
    for group, table in tables.items():
        place = 0 if groups is None else groups.index(str(group))
        target = np.array(triangle_positions([coefficients.index(c) for c in table.coefficients]))
        has = rows[group] >= 0
        out[np.ix_(has, np.array([place]), target)] = table.vcov[rows[group][has]][:, None, :]
    return out[:, 0, :] if groups is None else out


def _derivatives(
    tables: Mapping[str | None, GeneTable],
    rows: Mapping[str | None, NDArray[np.intp]],
    groups: list[str] | None,
    coefficients: Sequence[str],
    n_vars: int,
) -> NDArray[np.float64] | None:
    """Gather what degrees of freedom of contrasts need, genes × (groups ×) m × p(p+1)/2; None where no table has it."""
    having = {group: table for group, table in tables.items() if table.dvcov is not None}
    if not having:
        return None
    m = max(table.dvcov.shape[1] for table in having.values())
    out = np.full((n_vars, 1 if groups is None else len(groups), m, triangle_size(len(coefficients))), np.nan)
    for group, table in having.items():
        place = 0 if groups is None else groups.index(str(group))
        target = np.array(triangle_positions([coefficients.index(c) for c in table.coefficients]))
        has = rows[group] >= 0
        values = table.dvcov[rows[group][has]]
        # a group with fewer parameters: nothing depends on those it lacks
        values = np.pad(values, ((0, 0), (0, m - values.shape[1]), (0, 0)))
        values[np.isnan(values[:, :1]).repeat(m, axis=1)] = np.nan
        out[np.ix_(has, np.array([place]), np.arange(m), target)] = values[:, None]
    return out[:, 0] if groups is None else out


def _take(values: NDArray[np.float64], rows: NDArray[np.intp]) -> NDArray[np.float64]:
    """Values of the given rows, NaN for row -1."""
    out = np.full(len(rows), np.nan)
    out[rows >= 0] = values[rows[rows >= 0]]
    return out


def _take_column(column: pd.Series, rows: NDArray[np.intp]) -> Any:
    """Column of the fit table for the given rows; strings as categories, integers if no gene is missing."""
    if pd.api.types.is_bool_dtype(column.dtype) and (rows >= 0).all():
        return column.to_numpy()[rows]
    if pd.api.types.is_integer_dtype(column.dtype) and (rows >= 0).all():
        return column.to_numpy(dtype=np.int64)[rows]
    if pd.api.types.is_numeric_dtype(column.dtype):
        return _take(column.to_numpy(dtype=np.float64, na_value=np.nan), rows)
    values = np.full(len(rows), NOT_SELECTED, dtype=object)
    values[rows >= 0] = column.astype(object).to_numpy()[rows[rows >= 0]]
    found = {str(v) for v in pd.unique(values[~pd.isna(values)])}
    known = [s for s in STATUSES if s in found]
    return pd.Categorical(values, categories=known + sorted(found - set(known)))


def _frame(columns: dict[str, Any], var_names: pd.Index) -> pd.DataFrame:
    # an index object of its own, since anndata sets the name of the index it is given
    return pd.DataFrame(columns, index=var_names.copy())


def _union(lists: Any) -> list[str]:
    return list(dict.fromkeys(str(name) for names in lists for name in names))


def _owned_keys(adata: AnnData, key: str) -> list[str]:
    """Keys of `varm` that belong to the result `key`: the tables, and what it lists as its own."""
    entry = adata.uns.get(key)
    listed = entry.get("varm_keys", ()) if isinstance(entry, Mapping) else ()
    own = [f"{key}_{suffix}" for suffix in (*TABLES, *OPTIONAL)]
    own += [str(name) for name in listed if str(name).startswith(f"{key}_")]
    return [name for name in dict.fromkeys(own) if name in adata.varm]
