"""From simulated cells, and for one response from a formula, to the results of `scglmm.inference`."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pandas as pd
from models import Cells
from scipy import sparse

from scglmm.compression.nodes import Nodes, make_nodes
from scglmm.formula import build_design, parse_formula
from scglmm.inference.frame import Frame, make_frame, strata_of
from scglmm.inference.gene import GeneFit
from scglmm.inference.genes import Options, fit_genes
from scglmm.inference.response import fit_response
from scglmm.inference.response_fit import ResponseFit


def design(X: np.ndarray, terms: Sequence[tuple[np.ndarray, int, np.ndarray]]) -> SimpleNamespace:
    """What `scglmm.formula.Design` is to this layer: X and random terms (codes, levels, covariates) on the cells."""
    random = [
        SimpleNamespace(
            group=f"g{r}",
            codes=np.asarray(codes, np.int32),
            columns=["(Intercept)", *(f"x{j}" for j in range(1, covariates.shape[1]))],
            covariates=covariates,
        )
        for r, (codes, _, covariates) in enumerate(terms)
    ]
    return SimpleNamespace(X=np.ascontiguousarray(X, float), random=random)


def frame_of(
    X: np.ndarray, terms: Sequence[tuple[np.ndarray, int, np.ndarray]], offset: np.ndarray | None = None
) -> tuple[Frame, Nodes]:
    """Frame and nodes of a model on the cells."""
    of_cells = design(X, terms)
    stratum, first = strata_of(of_cells)
    nodes = make_nodes(stratum, np.zeros(X.shape[0]) if offset is None else offset, 1e-12)
    return make_frame(of_cells, first, nodes.n_cells), nodes


def intercepts(*codes: np.ndarray) -> list[tuple[np.ndarray, int, np.ndarray]]:
    """Random intercepts of grouping factors."""
    return [(np.unique(c, return_inverse=True)[1], np.unique(c).size, np.ones((len(c), 1))) for c in codes]


def fit_cells(cells: Cells, method: str = "reml", *, X: np.ndarray | None = None, **options: bool) -> GeneFit:
    """Fit one simulated gene."""
    return fit_counts(cells.y[:, None], cells.offset, cells.X if X is None else X, cells.terms, method, **options)[0]


def fit_counts(
    counts: np.ndarray,
    offset: np.ndarray,
    X: np.ndarray,
    terms: Sequence[tuple[np.ndarray, int, np.ndarray]],
    method: str = "reml",
    **options: bool,
) -> list[GeneFit]:
    """Fit genes, the columns of `counts`."""
    frame, nodes = frame_of(X, terms, offset)
    n, n_genes = counts.shape
    return fit_genes(
        sparse.csr_array(counts),
        np.arange(n),
        nodes,
        frame,
        np.arange(n_genes),
        Options(method=method, **options),
        n_jobs=1,
        max_bytes=1e8,
    ).fits


def fit_formula(table: pd.DataFrame, response: str, formula: str, zi: str | None = None, **options) -> ResponseFit:
    design = build_design(parse_formula(formula), table)
    zi_design = None if zi is None else build_design(parse_formula(zi), table)
    return fit_response(design, table[response].to_numpy(float), zi_design=zi_design, **options)
