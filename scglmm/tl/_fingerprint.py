"""What identifies a run: two with the same fingerprint have the same fits, to the last bit.

Inputs are compared exactly: the formula, options, columns of `obs`, genes, and the sums of the counts over cells and
over genes (sums of whole numbers, so in whatever order and on whatever machine they were added up). What is computed
from them (designs, nodes) may differ in the last bit between machines, and is compared to eight digits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scglmm.formula import formula_columns

if TYPE_CHECKING:
    from scglmm.compression.nodes import Nodes

    from ._options import RunOptions
    from ._prepare import Run

# Options of a run without a say in the fits: what is made of them afterwards, the memory that they may take, and where
# the counts are, which are compared themselves.
NO_SAY = {"padj_across", "varpart_method", "max_memory", "layer", "use_raw"}
DIGITS = 8

Fingerprint = dict[str, Any]
"""Name of what is compared -> plain value, or digest (text that begins with `DIGEST`)."""

DIGEST = "sha256:"


def settings(formula: str, options: RunOptions) -> Fingerprint:
    """Fingerprint of what a user asked for, known before anything is read."""
    import scglmm

    found = {name: _plain(value) for name, value in asdict(options).items() if name not in NO_SAY}
    return {"scglmm version": scglmm.__version__, "formula": " ".join(formula.split())} | found


def inputs(obs: pd.DataFrame, genes: pd.Index, run: Run, nodes: list[Nodes], options: RunOptions) -> Fingerprint:
    """Fingerprint of the cells, genes and counts that a run uses, and of the models on them.

    Parameters
    ----------
    obs, genes
        `adata.obs` and `adata.var_names`.
    run, nodes, options
        The run.
    """
    formulas = [run.fitted[0].design.formula, *([] if options.inflation is None else [options.inflation])]
    columns = dict.fromkeys(name for formula in formulas for name in formula_columns(formula))
    found: Fingerprint = {
        "number of cells": len(obs),
        "groups": [_plain(group.name) for group in run.fitted],
        "genes": _digest(*run.testable, run.positions, _text(genes[run.positions])),
        "cells": _digest(*(group.used for group in run.fitted)),
    }
    found |= {f"column {name!r} of obs": _column(obs[name]) for name in columns}
    counts = []
    for group, summary in zip(run.fitted, run.summaries, strict=True):
        counts += [summary.gene_total, summary.gene_cells, summary.cell_total[group.used]]
    found["counts"] = _digest(*counts)
    found["models"] = [_model(*each) for each in zip(run.fitted, run.offsets, nodes, strict=True)]
    return found


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say what differs: settings with both values; only where these are the same, data by their names."""
    plain, digests = [], []
    for name in dict.fromkeys([*old, *new]):
        one, two = old.get(name), new.get(name)
        if one == two:
            continue
        if isinstance(two, list) or any(str(value).startswith(DIGEST) for value in (one, two)):
            digests.append(f"{name} {'differs' if name.startswith('column') else 'differ'}")
        else:
            plain.append(f"{name} was {one!r} and is {two!r}")
    return plain or digests


def _model(group: Any, offset: np.ndarray, nodes: Nodes) -> list[Any]:
    """Names and shapes of a model, and averages of its numbers, to so many digits that all machines agree."""
    frame = group.frame
    size = np.sqrt((frame.X**2).mean(axis=0))
    offset_scale = max(1.0, float(np.abs(offset).max()))
    inflated = [] if group.inflation is None else [*group.inflation.columns, _rounded(group.inflation.zi.mean(axis=0))]
    return [
        [str(name) for name in group.design.columns],
        [[term.group, [str(name) for name in term.columns], int(term.n_levels)] for term in frame.terms],
        [nodes.n_strata, nodes.size],
        _rounded(frame.X.mean(axis=0) / np.where(size > 0, size, 1.0)),
        _rounded(np.array([offset.mean() / offset_scale, nodes.tau.mean() / offset_scale])),
        inflated,
    ]


def _rounded(values: np.ndarray) -> list[float]:
    return (np.round(np.asarray(values, float), DIGITS) + 0.0).tolist()  # + 0: no negative zeros


def _plain(value: Any) -> Any:
    """Value as JSON keeps it."""
    if isinstance(value, np.generic):
        value = value.item()
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _text(values: Any) -> np.ndarray:
    """Bytes of some texts, such that their limits are seen."""
    return np.frombuffer("\0".join(f"{len(text)}:{text}" for text in map(str, values)).encode(), np.uint8)


def _column(column: pd.Series) -> str:
    """Digest of a column of `obs`: numbers, or codes and the categories that occur, in their order."""
    dtype = column.dtype
    if pd.api.types.is_numeric_dtype(dtype) and not pd.api.types.is_complex_dtype(dtype):
        return _digest(column.to_numpy(dtype=np.float64, na_value=np.nan))
    factor = pd.Categorical(column).remove_unused_categories()
    return _digest(np.asarray(factor.codes, np.int64), _text(factor.categories))


def _digest(*arrays: np.ndarray) -> str:
    found = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array)
        found.update(f"{array.dtype.kind}{array.dtype.itemsize}{array.shape};".encode())
        found.update(array.view(np.uint8).reshape(-1).data)
    return DIGEST + found.hexdigest()[:32]
