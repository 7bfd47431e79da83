"""Which matrix holds the counts, and what to say when it does not hold counts."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np

from scglmm.compression.counts import NotCountsError, Summary, canonical, looks_like_counts, summarise_groups
from scglmm.compression.tables import accumulate_and_check

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

    from scglmm.compression.tables import Part, Tables


@dataclass(frozen=True)
class Source:
    """Matrix of counts of an AnnData.

    Attributes
    ----------
    matrix
        (n_obs, columns).
    name
        What a user calls it.
    columns
        (n_vars,) its column for every gene of `adata`, -1 where it has none (`adata.raw` of other genes).
    genes
        Names of its columns.
    """

    matrix: Any
    name: str
    columns: np.ndarray
    genes: pd.Index


def find_counts(adata: AnnData, layer: str | None, use_raw: bool) -> Source:
    """Pick the matrix that was asked for.

    Raises
    ------
    KeyError
        There is no such layer.
    ValueError
        There is no `adata.raw`, gene names are not unique there or in `adata`, or both a layer and raw were asked for.
    TypeError
        The matrix does not hold numbers.
    """
    own = np.arange(adata.n_vars)
    layers = _layers(adata)
    if use_raw:
        if layer is not None:
            msg = f"layer={layer!r} and use_raw=True exclude each other: choose one."
            raise ValueError(msg)
        if adata.raw is None:
            msg = "use_raw=True, but `adata.raw` is not set. Leave use_raw=False to use `adata.X`, or name a layer."
            raise ValueError(msg)
        names = adata.raw.var_names
        if not names.is_unique:
            twice = names[names.duplicated()][0]
            msg = (
                f"Gene names of `adata.raw` are not unique (for instance {str(twice)!r}), so genes cannot be found in "
                "it. Make them unique before `adata.raw` is set, or keep the counts in a layer."
            )
            raise ValueError(msg)
        if not adata.var_names.is_unique:
            msg = (
                "Gene names of `adata` are not unique, so genes cannot be looked up in `adata.raw`: run "
                "`adata.var_names_make_unique()`, or keep the counts in a layer."
            )
            raise ValueError(msg)
        return _source(adata.raw.X, "adata.raw.X", names.get_indexer(adata.var_names), names)
    if layer is None:
        if adata.X is None:
            places = [f"layer= one of {_listed(layers)}"] if layers else []
            places += ["use_raw=True"] if adata.raw is not None else []
            msg = f"`adata.X` is None. Say where the counts are: {' or '.join(places) or '(no layer, no raw)'}."
            raise ValueError(msg)
        return _source(adata.X, "adata.X", own, adata.var_names)
    if layer not in layers:
        near = get_close_matches(str(layer), layers, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else " Leave layer= out to use `adata.X`."
        there = f"the layers are {_listed(layers)}" if layers else "`adata` has no layers"
        msg = f"There is no layer {layer!r}: {there}.{hint}"
        raise KeyError(msg)
    return _source(adata.layers[layer], f"adata.layers[{layer!r}]", own, adata.var_names)


def _source(matrix: Any, name: str, columns: np.ndarray, genes: pd.Index) -> Source:
    if np.dtype(matrix.dtype).kind not in "biuf":
        msg = f"{name} holds values of type {matrix.dtype}: counts must be numbers."
        raise TypeError(msg)
    return Source(canonical(matrix), name, columns, genes)


def check_counts(
    adata: AnnData,
    source: Source,
    group: np.ndarray,
    n_groups: int,
    parts: Sequence[Part] = (),
    n_jobs: int = 1,
    chunk_bytes: int | None = None,
) -> tuple[list[Summary], list[Tables]]:
    """Check that the matrix holds counts, and sum the cells of every group, in one pass.

    Parameters
    ----------
    group
        (n_obs,) group of every cell, 0 to `n_groups` - 1; -1 for cells that are not used.
    parts
        Cells whose counts are to be summed onto nodes in the same pass.
    n_jobs
        Threads.
    chunk_bytes
        See `scglmm.compression.chunks.chunks`.

    Raises
    ------
    ValueError
        It does not; the message names what does look like counts.
    """
    try:
        if parts:
            return accumulate_and_check(source.matrix, parts, group, n_groups, n_jobs, chunk_bytes)
        return summarise_groups(source.matrix, group, n_groups), []
    except NotCountsError as error:
        where = f"gene {str(source.genes[error.column])!r}, cell {str(adata.obs_names[error.row])!r}"
        advice = _advice(adata, source.name, "fractional" in error.what)
        msg = f"{source.name} contains {error.what} ({where}): {error.advice}. {advice}"
    raise ValueError(msg)


def _advice(adata: AnnData, name: str, fractional: bool) -> str:
    """Say where else counts may be; matrices are looked at in turn, and only their first rows."""
    candidates = {f"layer={layer!r}": (f"adata.layers[{layer!r}]", adata.layers[layer]) for layer in _layers(adata)}
    if adata.X is not None:
        candidates["`adata.X` (the default, without layer= or use_raw=)"] = ("adata.X", adata.X)
    if adata.raw is not None:
        candidates["use_raw=True"] = ("adata.raw.X", adata.raw.X)
    good = [how for how, (where, matrix) in candidates.items() if where != name and _plausible(matrix)]
    if good:
        return f"A mixed model of counts needs the raw counts; this looks like them: {' or '.join(good)}."
    ambient = ", or round counts that a correction for ambient RNA made fractional" if fractional else ""
    return (
        "A mixed model of counts needs the raw counts, and nothing else in `adata` (X, layers, raw) looks like them: "
        f"go back to the object before normalisation{ambient}."
    )


def _plausible(matrix: Any) -> bool:
    try:
        return looks_like_counts(matrix)
    except (TypeError, ValueError):
        return False


def _layers(adata: AnnData) -> list[str]:
    """Names of the layers; anndata 0.13 lists `adata.X` among them, under the name None."""
    return [str(name) for name in adata.layers if name is not None]


def _listed(names: Any) -> str:
    return ", ".join(repr(str(name)) for name in names)
