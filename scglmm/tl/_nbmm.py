"""The main job: a negative binomial mixed model for every gene."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import joblib
import numpy as np
import pandas as pd
from scanpy import logging as logg
from scanpy import settings
from tqdm import tqdm

from scglmm.compression.nodes import Nodes, make_nodes
from scglmm.formula import Design, build_design, parse_formula
from scglmm.inference.frame import Frame, make_frame, strata_of
from scglmm.inference.genes import GeneFits, Options, fit_genes
from scglmm.inference.varpart import METHODS as VARPART_METHODS
from scglmm.inference.varpart import log_mean_exp
from scglmm.results.names import near_first
from scglmm.results.write import check_target, write_results

from ._counts import Source, check_counts, find_counts
from ._table import make_table

if TYPE_CHECKING:
    from anndata import AnnData

    from scglmm.compression.counts import Summary

METHODS = ("reml", "ml")
TABLE_BYTES = 256 * 2**20  # memory for the tables of a block of genes
FEW_GENES = 2_000  # below this the sum over genes is hardly a library size
RELATIVE_ERROR = 1e-10  # of the log-likelihood, by interpolation
ABSOLUTE_ERROR = 1e-4


def nbmm(
    adata: AnnData,
    formula: str,
    *,
    layer: str | None = None,
    use_raw: bool = False,
    mask_var: np.ndarray | Sequence[bool] | str | None = None,
    method: str = "reml",
    min_cells: int = 10,
    na_action: str = "raise",
    varpart_method: str = "trigamma",
    n_jobs: int | None = None,
    key_added: str = "nbmm",
    copy: bool = False,
) -> AnnData | None:
    r"""Fit a negative binomial mixed model to every gene.

    Counts of cell i are NB2 with mean :math:`\mu_i = \exp(o_i + x_i'\beta + z_i'u)` and variance
    :math:`\mu_i + \mu_i^2/\theta`; the random effects u are normal. The Laplace approximation of the likelihood is
    maximised for each gene, on cells compressed into nodes, to the numbers of R's glmmTMB
    (Brooks et al. 2017, doi 10.32614/RJ-2017-066).

    Parameters
    ----------
    adata
        Raw counts with one row of `obs` per cell.
    formula
        lme4's grammar without a left side: ``"~ offset(log(libSize)) + Dx + Age + (1|SubID)"``. Random terms `(1|g)`,
        `(x|g)`, `(x||g)`, `(0+x|g)`, `(1|a/b)`, `(1|a:b)`; fixed part by formulaic. Without `offset()` the log of each
        cell's total count over all genes is the offset.
    layer
        Layer with the counts; `adata.X` by default.
    use_raw
        Take the counts from `adata.raw`.
    mask_var
        Genes to fit: a boolean array over `adata.var_names` or the name of a boolean column of `adata.var`.
    method
        `"reml"`: REML and t tests with Satterthwaite's degrees of freedom, containment degrees of freedom where the
        variance that carries the coefficient is estimated at 0. `"ml"`: maximum likelihood and Wald z tests, as glmmTMB
        does, which reject too often with few donors.
    min_cells
        Genes with counts in fewer cells are not fitted (status `too_few_counts`).
    na_action
        `"raise"`, or `"drop"` to leave out cells with a missing value in a column of the formula.
    varpart_method
        Definition of the distribution-specific variance, see :func:`scglmm.tl.varpart`.
    n_jobs
        Workers; `scanpy.settings.n_jobs` by default. Threads, unless `joblib.parallel_config` says otherwise.
    key_added
        Prefix of what is written.
    copy
        Return a copy with the results instead of writing to `adata`.

    Returns
    -------
    None, or the copy. Written, nothing of it unless the whole call succeeded:

    ``adata.varm["nbmm_coef"]``, ``_se``, ``_stat``, ``_dof``, ``_pval``, ``_padj``
        DataFrames, genes × coefficients: estimate and standard error (natural log), statistic, degrees of freedom
        (inf for z), p-value, p-value adjusted over the genes tested (Benjamini and Hochberg 1995).
    ``adata.varm["nbmm_varpart"]``
        DataFrame, genes × (fixed terms, random terms, CountNoise, Residuals): fractions of variance, rows sum to 1.
    ``adata.varm["nbmm_fit"]``
        DataFrame: theta, variances of the random effects, log-likelihood, mean count, numbers of cells and donors with
        counts, the record of the search, and `status`: `ok`; `singular` (a variance is estimated at 0);
        `poisson_limit` (theta at infinity); `separated` (a coefficient would be infinite, for instance because the
        gene is absent in one condition); `too_few_counts`; `not_converged`; `not_selected`.
    ``adata.varm["nbmm_vcov"]``
        Array, genes × p(p+1)/2: covariance of the coefficients, lower triangle by rows.
    ``adata.varm["nbmm_dvcov"]``
        Array, genes × m × p(p+1)/2 (REML only): its derivatives with respect to the m variance parameters, scaled so
        that a contrast c has ``df = 2 (c'Cc)^2 / sum_k (c'D_k c)^2``; see :func:`scglmm.tl.contrast`.
    ``adata.uns["nbmm"]``
        The model, and the arrays of `scanpy.tl.rank_genes_groups` (fold changes in log2).

    Raises
    ------
    ValueError, KeyError, TypeError
        Before any work: the matrix does not hold counts, the formula cannot be read, a column is missing or has
        missing values, the design is rank deficient, a grouping factor has one level or one per cell, no gene is left.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :5].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + (1|SubID)")
    >>> scglmm.get.nbmm_df(adata, "Dx[T.AD]").shape
    (5, 10)
    """
    _check_arguments(adata, formula, method, min_cells, varpart_method, n_jobs, copy)
    if copy:
        adata = adata.copy()
    check_target(adata, key_added)
    parsed = parse_formula(formula)
    if parsed.response is not None:
        msg = (
            f"The formula {formula!r} has a left side ({parsed.response!r}), but every gene is a response in turn: "
            "start it with '~'."
        )
        raise ValueError(msg)
    design = build_design(parsed, adata.obs, na_action=na_action)
    selected = _selected_genes(adata, mask_var)
    source = find_counts(adata, layer, use_raw)
    in_matrix = _genes_in_matrix(selected, source)
    summary = check_counts(adata, source, design.kept)
    offset, offset_name = _offset(adata, design, summary, source)
    _advise(design)

    stratum, first = strata_of(design)
    nodes = make_nodes(stratum, offset, _tolerance(summary))
    frame = make_frame(design, first, nodes.n_cells)
    positions = np.flatnonzero(in_matrix)
    testable = summary.gene_cells[source.columns[positions]] >= max(1, min_cells)
    n_jobs = joblib.effective_n_jobs(settings.n_jobs if n_jobs is None else n_jobs)

    start = logg.info(
        f"fitting {formula} to {testable.sum()} genes: {frame.n_total} cells, {nodes.n_strata} strata, "
        f"{nodes.size} nodes"
    )
    fits = _fit(source, design, nodes, frame, positions[testable], method, n_jobs)
    table = make_table(
        adata.var_names, design, frame, offset, positions, testable, fits, summary, source, varpart_method
    )
    info = _describe(design, formula, method, nodes, frame, table.fit, offset, offset_name, varpart_method)
    info["params"] = _params(design, method, layer, use_raw)
    write_results(adata, key_added, {None: table}, info)
    logg.info("    finished", time=start, deep=f"added\n    .varm['{key_added}_*'] and .uns['{key_added}']")
    return adata if copy else None


def _check_arguments(
    adata: Any, formula: Any, method: str, min_cells: int, varpart_method: str, n_jobs: int | None, copy: bool
) -> None:
    from anndata import AnnData

    if not isinstance(adata, AnnData):
        msg = f"The first argument must be an AnnData, not {type(adata).__name__}."
        raise TypeError(msg)
    if not isinstance(formula, str):
        msg = f"The formula must be a string such as '~ Dx + (1|SubID)', not {type(formula).__name__}."
        raise TypeError(msg)
    for name, value, valid in (("method", method, METHODS), ("varpart_method", varpart_method, VARPART_METHODS)):
        if value not in valid:
            msg = f"{name}={value!r} is not one of {', '.join(map(repr, valid))}."
            raise ValueError(msg)
    if not isinstance(min_cells, int | np.integer) or min_cells < 0:
        msg = f"min_cells must be a whole number, 0 or more, not {min_cells!r}."
        raise ValueError(msg)
    if n_jobs is not None and (not isinstance(n_jobs, int | np.integer) or n_jobs == 0):
        msg = f"n_jobs must be a whole number other than 0 (-1 for all processors) or None, not {n_jobs!r}."
        raise ValueError(msg)
    if adata.n_obs == 0 or adata.n_vars == 0:
        msg = f"`adata` has {adata.n_obs} cells and {adata.n_vars} genes: there is nothing to fit."
        raise ValueError(msg)
    if copy and adata.isbacked:
        msg = (
            "copy=True would read a backed AnnData into memory: write into it (copy=False), or use `adata.to_memory()`."
        )
        raise ValueError(msg)


def _selected_genes(adata: AnnData, mask_var: Any) -> np.ndarray:
    if mask_var is None:
        return np.ones(adata.n_vars, bool)
    name = "mask_var"
    if isinstance(mask_var, str):
        if mask_var not in adata.var:
            listed = near_first(mask_var, adata.var.columns) or "(none)"
            msg = f"mask_var={mask_var!r} is not a column of `adata.var`; the columns are {listed}."
            raise KeyError(msg)
        name = f"adata.var[{mask_var!r}]"
        mask_var = adata.var[mask_var]
    column = pd.Series(np.asarray(mask_var) if not hasattr(mask_var, "dtype") else mask_var)
    if column.isna().any():
        msg = f"{name} is missing (NaN) for {column.isna().sum()} genes: fill them in with True or False."
        raise ValueError(msg)
    mask = column.to_numpy(dtype=bool) if pd.api.types.is_bool_dtype(column.dtype) else column.to_numpy()
    if mask.dtype != bool or mask.shape != (adata.n_vars,):
        found = f"{mask.size} entries of type {column.dtype}"
        hint = " For names of genes: mask_var=adata.var_names.isin(names)." if mask.dtype.kind in "OUT" else ""
        msg = f"{name} must be True or False for each of the {adata.n_vars} genes, and has {found}.{hint}"
        raise ValueError(msg)
    if not mask.any():
        msg = f"{name} selects no gene: there is nothing to fit."
        raise ValueError(msg)
    return mask


def _genes_in_matrix(selected: np.ndarray, source: Source) -> np.ndarray:
    """Find the genes that are selected and have a column in the matrix of counts."""
    found = selected & (source.columns >= 0)
    if not found.any():
        msg = (
            f"None of the {selected.sum()} genes to fit is in {source.name}: gene names there and in `adata` differ "
            "(symbols and identifiers?)."
        )
        raise ValueError(msg)
    return found


def _offset(adata: AnnData, design: Design, summary: Summary, source: Source) -> tuple[np.ndarray, str]:
    """Offset of the cells that are used (natural log), and what it is."""
    if design.offset is not None:
        return design.offset, " + ".join(design.formula.offsets)
    total = summary.cell_total[design.kept]
    if not (total > 0).all():
        msg = (
            f"{(total <= 0).sum()} cells have no counts at all, so the log of their total count cannot be the offset: "
            "remove them (`sc.pp.filter_cells(adata, min_counts=1)`), or give an offset, e.g. `offset(log(libSize))`."
        )
        raise ValueError(msg)
    logg.info("no offset() in the formula: the log of each cell's total count over all genes is the offset")
    n_genes = source.matrix.shape[1]
    if n_genes < FEW_GENES:
        there = "total_counts" in adata.obs
        advice = (
            "`offset(log(total_counts))` uses adata.obs['total_counts']"
            if there
            else ("give the library size of the full data as an obs column: `offset(log(column))`")
        )
        msg = f"The offset is the total count over only {n_genes} genes, which is hardly a library size: {advice}."
        warnings.warn(msg, UserWarning, stacklevel=3)
    return np.log(total), "log(total count)"


def _advise(design: Design) -> None:
    if not design.random:
        msg = (
            "The formula has no random effect, so cells count as independent replicates and p-values are far too small "
            "when cells share donors: add a term such as (1|donor)."
        )
        warnings.warn(msg, UserWarning, stacklevel=3)
    for note in design.notes:
        logg.warning(note)


def _tolerance(summary: Summary) -> float:
    """Relative error of the nodes that keeps the absolute error of every gene's log-likelihood below 1e-4.

    A count contributes at most about log(1 + mu/theta) < 20 to the sums that are interpolated.
    """
    largest = 20.0 * max(1.0, float(summary.gene_total.max()))
    return max(1e-14, min(RELATIVE_ERROR, ABSOLUTE_ERROR / largest))


def _fit(
    source: Source, design: Design, nodes: Nodes, frame: Frame, genes: np.ndarray, method: str, n_jobs: int
) -> GeneFits:
    with tqdm(total=genes.size, unit="gene", disable=int(settings.verbosity) < 1, leave=False) as bar:
        return fit_genes(
            source.matrix,
            np.flatnonzero(design.kept),
            nodes,
            frame,
            source.columns[genes],
            Options(method=method),
            n_jobs=n_jobs,
            max_bytes=TABLE_BYTES,
            progress=bar.update,
        )


def _describe(
    design: Design,
    formula: str,
    method: str,
    nodes: Nodes,
    frame: Frame,
    fit: pd.DataFrame,
    offset: np.ndarray,
    offset_name: str,
    varpart_method: str,
) -> dict[str, Any]:
    """Build what `adata.uns` keeps of the model."""
    return {
        "formula": formula,
        "method": method,
        "family": "nbinom2",
        "offset": offset_name,
        "log_mean_exposure": log_mean_exp(offset),
        "varpart_method": varpart_method,
        "references": design.references,
        "factors": design.factors,
        "groupings": [term.group for term in design.random],
        "random_terms": [f"{' + '.join(term.columns)} | {term.group}" for term in design.random],
        "n_levels": {term.group: term.n_levels for term in frame.terms},
        "n_cells": frame.n_total,
        "n_donors": frame.terms[0].n_levels if frame.terms else 0,
        "n_strata": nodes.n_strata,
        "n_nodes": nodes.size,
        "status_counts": {str(k): int(v) for k, v in fit["status"].value_counts().items() if v},
        "versions": {name: version(name) for name in ("scglmm", "scanpy", "anndata", "numpy", "scipy", "numba")},
    }


def _params(design: Design, method: str, layer: str | None, use_raw: bool) -> dict[str, Any]:
    """Build what scanpy expects beside ranked genes; `groupby` is always a column of obs."""
    groupby = design.first_factor
    if groupby is None and design.random:
        groupby = design.random[0].group.split(":")[0]
    return {
        "groupby": groupby,
        "reference": design.references.get(groupby, "rest"),
        "method": f"nbmm-{method}",
        "use_raw": use_raw,
        "layer": layer,
        "corr_method": "benjamini-hochberg",
    }
