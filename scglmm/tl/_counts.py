"""Which matrix holds the counts, and what to say when it does not hold counts."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np

from scglmm.compression.counts import NotCountsError, Summary, canonical, looks_like_counts, summarise

if TYPE_CHECKING:
    from anndata import AnnData


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
    """

    matrix: Any
    name: str
    columns: np.ndarray


def find_counts(adata: AnnData, layer: str | None, use_raw: bool) -> Source:
    """Pick the matrix that was asked for.

    Raises
    ------
    KeyError
        There is no such layer.
    ValueError
        There is no `adata.raw`, or both a layer and raw were asked for.
    """
    own = np.arange(adata.n_vars)
    if use_raw:
        if layer is not None:
            msg = f"layer={layer!r} and use_raw=True exclude each other: choose one."
            raise ValueError(msg)
        if adata.raw is None:
            msg = "use_raw=True, but `adata.raw` is not set. Leave use_raw=False to use `adata.X`, or name a layer."
            raise ValueError(msg)
        return Source(canonical(adata.raw.X), "adata.raw.X", adata.raw.var_names.get_indexer(adata.var_names))
    if layer is None:
        if adata.X is None:
            msg = f"`adata.X` is empty. Name the layer with the counts: layer= one of {_listed(adata.layers)}."
            raise ValueError(msg)
        return Source(canonical(adata.X), "adata.X", own)
    if layer not in adata.layers:
        near = get_close_matches(str(layer), [str(name) for name in adata.layers], n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        msg = f"There is no layer {layer!r}; the layers are {_listed(adata.layers)}.{hint}"
        raise KeyError(msg)
    return Source(canonical(adata.layers[layer]), f"adata.layers[{layer!r}]", own)


def check_counts(adata: AnnData, source: Source, used: np.ndarray) -> Summary:
    """Check that the matrix holds counts, and sum it.

    Raises
    ------
    ValueError
        It does not; the message names what does look like counts.
    """
    try:
        return summarise(source.matrix, used)
    except NotCountsError as error:
        msg = f"{source.name} {error}. {_advice(adata, source.name)}"
    raise ValueError(msg)


def _advice(adata: AnnData, name: str) -> str:
    """Say where else counts may be; matrices are looked at in turn, and only their first rows."""
    candidates = {f"layer={layer!r}": (f"adata.layers[{layer!r}]", adata.layers[layer]) for layer in adata.layers}
    if adata.X is not None:
        candidates["`adata.X` (the default, without layer= or use_raw=)"] = ("adata.X", adata.X)
    if adata.raw is not None:
        candidates["use_raw=True"] = ("adata.raw.X", adata.raw.X)
    good = [how for how, (where, matrix) in candidates.items() if where != name and _plausible(matrix)]
    if good:
        return f"A mixed model of counts needs the raw counts; this looks like them: {' or '.join(good)}."
    return (
        "A mixed model of counts needs the raw counts, and nothing else in `adata` (X, layers, raw) looks like them: "
        "go back to the object before normalisation."
    )


def _plausible(matrix: Any) -> bool:
    try:
        return looks_like_counts(matrix)
    except (TypeError, ValueError):
        return False


def _listed(names: Any) -> str:
    return ", ".join(repr(str(name)) for name in names) or "(none)"
