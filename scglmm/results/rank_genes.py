"""The record arrays in which scanpy keeps ranked genes, so that its getters and plots read our results.

What scanpy (1.11, 1.12) needs of them, beyond the layout of :func:`scanpy.tl.rank_genes_groups`:

* finite `scores`: :func:`scanpy.pl.rank_genes_groups` takes its axis limits from the first `n_genes` scores
  and fails on NaN. Genes without a test get the score 0, as scanpy gives a gene it cannot test, but their
  p-values and fold changes stay NaN, so every cut-off drops them.
* at least one field: a record array without fields cannot be written, so a model that has only an intercept
  gets none.
* few enough fields: HDF5 keeps their names in a header of 64 KiB, which some 700 combinations of group and
  coefficient fill. A result with more gets none of these arrays, since it could not be written.
* field names without ":" in the Zarr v2 format (see :func:`scglmm.results.names.field`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scanpy import logging as logg

from scglmm.results.names import INTERCEPTS, compose, field

RANKED = ("names", "scores", "logfoldchanges", "pvals", "pvals_adj")
"""Names of the record arrays."""

HEADER_BYTES = 64_000
"""Most that the fields may take in the header of an HDF5 dataset (64 KiB with what else is in it)."""

_DTYPES = {
    "names": "O",
    "scores": "float32",
    "logfoldchanges": "float32",
    "pvals": "float64",
    "pvals_adj": "float64",
}


def rank_arrays(
    var_names: pd.Index,
    tests: Sequence[tuple[str | None, str, NDArray, NDArray, NDArray, NDArray]],
) -> dict[str, np.recarray]:
    """Record arrays with one field per tested coefficient.

    Parameters
    ----------
    var_names
        Names of all genes.
    tests
        One entry per field: group (or None), coefficient, and the columns coef (natural log), stat, pval and
        padj, each of length genes. Intercepts are left out.

    Returns
    -------
    `names`, `scores` (the statistic), `logfoldchanges` (log2), `pvals` and `pvals_adj`, each sorted by the
    statistic, descending, with untested genes (p-value NaN) last. Empty when nothing but intercepts was
    tested, and when there are more fields than a file can hold.
    """
    genes = np.asarray(var_names, dtype=object)
    columns: dict[str, dict[str, NDArray]] = {name: {} for name in RANKED}
    for group, coefficient, coef, stat, pval, padj in tests:
        if coefficient in INTERCEPTS:
            continue
        order, n_tested = ranking(stat, pval)
        ranked = {
            "names": genes[order],
            "scores": np.asarray(stat, dtype=np.float64)[order],
            "logfoldchanges": np.asarray(coef, dtype=np.float64)[order] / np.log(2),
            "pvals": np.asarray(pval, dtype=np.float64)[order],
            "pvals_adj": np.asarray(padj, dtype=np.float64)[order],
        }
        ranked["scores"][n_tested:] = 0.0
        for name in ("logfoldchanges", "pvals_adj"):
            ranked[name][n_tested:] = np.nan
        for name, values in ranked.items():
            columns[name][field(compose(group, coefficient))] = values
    if not columns["names"]:
        return {}
    if sum(_header_bytes(name) for name in columns["names"]) > HEADER_BYTES:
        logg.warning(
            f"{len(columns['names'])} combinations of group and coefficient are more than the arrays that scanpy's "
            "functions on ranked genes read can hold: they are left out. `scglmm.get` and `scglmm.pl` have everything."
        )
        return {}
    return {name: _record_array(columns[name], _DTYPES[name]) for name in RANKED}


def ranking(stat: NDArray, pval: NDArray) -> tuple[NDArray[np.intp], int]:
    """Order of the genes (statistic descending, ties as they stand, untested last) and the number tested."""
    stat, pval = np.asarray(stat, dtype=np.float64), np.asarray(pval, dtype=np.float64)
    tested = ~(np.isnan(pval) | np.isnan(stat))
    first = np.flatnonzero(tested)
    first = first[np.argsort(-stat[first], kind="stable")]
    return np.concatenate([first, np.flatnonzero(~tested)]), len(first)


def _header_bytes(name: str) -> int:
    """Room that the field of a record array takes in the header of an HDF5 dataset."""
    return 8 * (len(name.encode()) // 8 + 1) + 56


def _record_array(columns: dict[str, NDArray], dtype: str) -> np.recarray:
    n = len(next(iter(columns.values())))
    out = np.recarray(n, dtype=[(name, dtype) for name in columns])
    for name, values in columns.items():
        out[name] = values
    return out
