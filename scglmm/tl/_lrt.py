"""Likelihood ratio test of every gene: the model of a result against a smaller one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scanpy import logging as logg

from scglmm.compression.tables import Part
from scglmm.formula import Design, build_design, formula_columns, parse_formula
from scglmm.formula.columns import in_memory
from scglmm.inference.cell_level import place_models
from scglmm.inference.frame import Frame, make_frame, strata_of
from scglmm.inference.gene import NOT_CONVERGED
from scglmm.inference.genes import Options, fit_parts
from scglmm.inference.lrt import SAME, Comparison, compare
from scglmm.inference.varpart import log_mean_exp
from scglmm.inference.wald import benjamini_hochberg
from scglmm.results.names import storable
from scglmm.results.read import StoredResult, has_inflation, read_result
from scglmm.results.table import NOT_SELECTED, STATUSES
from scglmm.results.writable import writable
from scglmm.results.write import assign, check_target

from ._counts import Source, check_counts, find_counts
from ._precision import share_genes
from ._prepare import singularity
from ._reading import TABLE_BYTES
from ._table import TOO_FEW_COUNTS
from ._workers import effective_jobs, progress_bar

if TYPE_CHECKING:
    from anndata import AnnData

    from scglmm.compression.counts import Summary
    from scglmm.inference.genes import GeneFits

LOWER = 1e-3  # a statistic below minus this: the search for the larger model ended at a lower maximum


def lrt(
    adata: AnnData,
    reduced: str,
    *,
    key: str = "nbmm",
    n_jobs: int | None = None,
    key_added: str | None = None,
    copy: bool = False,
) -> AnnData | None:
    r"""Likelihood ratio test of the model of a result against a smaller one, for every gene.

    Both models are fitted by maximum likelihood to the same counts and cells, whatever the method of the result, by
    Laplace's approximation and with the family of the result. Under
    the smaller model, with d parameters less, twice the difference of the log-likelihoods is

    * :math:`\chi^2_d` where fixed effects (or covariances) are left out,
    * :math:`\frac12\chi^2_{d-1} + \frac12\chi^2_d` where a single variance is among what is left out, since a variance
      cannot be negative (Self and Liang 1987, doi 10.1080/01621459.1987.10478472; Stram and Lee 1994, Biometrics
      50:1171–1177): :math:`\frac12\chi^2_0 + \frac12\chi^2_1` for `(1|donor:stim)` against nothing,
      :math:`\frac12\chi^2_1 + \frac12\chi^2_2` for `(stim|donor)` against `(1|donor)`,
    * taken as :math:`\chi^2_d` where several variances are left out, which is conservative.

    These hold for many donors. With few, tests of fixed effects between donors reject too often, as all tests by
    maximum likelihood do (use the t tests of REML), and tests of variances too seldom.

    Parameters
    ----------
    adata
        With a result of :func:`scglmm.tl.nbmm`, and the counts that it was fitted to.
    reduced
        Formula of the smaller model, ``"~ Age + (1|SubID)"``. Its offset is that of the result, repeated or left out.
    key
        Name of the result. Its formula is the larger model, its genes those that are tested.
    n_jobs
        Workers; `scanpy.settings.n_jobs` by default.
    key_added
        Name of what is written, `"{key}_lrt"` by default.
    copy
        Return a copy with the results instead of writing to `adata`.

    Returns
    -------
    None, or the copy. Written, nothing of it unless the whole call succeeded:

    ``adata.varm["nbmm_lrt"]``
        DataFrame, one row per gene: `loglik`, `loglik_reduced` (maximum likelihood, natural log, all constants),
        `statistic` (twice their difference), `df` (d), `pval`, `padj` (Benjamini and Hochberg 1995, over the genes with
        both fits) and `status`, that of the fit of the larger model. :func:`scglmm.get.lrt_df` reads it. A separated
        gene, of which Wald tests can say nothing, is tested with the limit of its likelihood.
    ``adata.uns["nbmm_lrt"]``
        Both formulas, and the distribution under the smaller model.

    Raises
    ------
    KeyError
        There is no such result, or its entry in `adata.uns` is gone.
    ValueError
        The formula cannot be read, the models are not nested or have different offsets, the cells or counts are not
        those of the result, or the result has groups, zero inflation or ``n_quad`` above 1.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :5].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + Age + (1|SubID)")
    >>> scglmm.tl.lrt(adata, "~ (1|SubID)")  # Dx and Age together
    >>> adata.uns["nbmm_lrt"]["distribution"]
    'chi2(2)'
    >>> scglmm.tl.lrt(adata, "~ Dx + Age", key_added="donor_variance")
    >>> adata.uns["donor_variance"]["distribution"]
    '1/2 chi2(0) + 1/2 chi2(1)'
    """
    result = read_result(adata, key)
    key_added = f"{result.key}_lrt" if key_added is None else key_added
    check_target(adata, key_added)
    entry = _check_result(adata, result, key_added, reduced, n_jobs, copy)
    model = _Models(adata, result, entry, reduced)
    positions = np.flatnonzero(~result.column("fit", "status").astype(str).isin([TOO_FEW_COUNTS, NOT_SELECTED]))
    if not positions.size:
        msg = f"The result {key!r} has no gene that was fitted."
        raise ValueError(msg)
    if copy:
        adata = adata.copy()
    start = logg.info(
        f"testing {entry['formula']} against {reduced} for {positions.size} genes: {model.comparison.distribution}"
    )
    larger, smaller = model.fit(positions, effective_jobs(n_jobs))
    table = _table(adata, positions, larger, smaller, model.comparison)
    info = {
        "formula": str(entry["formula"]),
        "reduced_formula": reduced,
        "source": result.key,
        "family": model.family,
        "distribution": model.comparison.distribution,
        "df": model.comparison.df,
        "n_variances": model.comparison.n_variances,
        "n_cells": model.frames[0].n_total,
    }
    name = storable(key_added)

    def finish() -> None:
        logg.info("    finished", time=start, deep=f"added\n    .varm['{name}'] and .uns['{name}']")

    assign(adata, {name: table}, name, writable(info), finish=finish)
    return adata if copy else None


def _check_result(
    adata: AnnData, result: StoredResult, key_added: str, reduced: Any, n_jobs: int | None, copy: bool
) -> Mapping[str, Any]:
    """Find out what the result says of its model."""
    if not isinstance(reduced, str):
        msg = f"The reduced formula must be a string such as '~ 1 + (1|SubID)', not {type(reduced).__name__}."
        raise TypeError(msg)
    if n_jobs is not None and (not isinstance(n_jobs, int | np.integer) or n_jobs == 0):
        msg = f"n_jobs must be a whole number other than 0 (-1 for all processors) or None, not {n_jobs!r}."
        raise ValueError(msg)
    if copy and adata.isbacked:
        msg = "copy=True would read a backed AnnData into memory: use copy=False, or `adata.to_memory()`."
        raise ValueError(msg)
    if storable(key_added) == result.key:
        msg = f"key_added={key_added!r} would replace the result that is tested: choose another name."
        raise ValueError(msg)
    entry = adata.uns.get(result.key)
    if not isinstance(entry, Mapping) or "formula" not in entry:
        msg = (
            f"`adata.uns` has no entry {result.key!r}, which knows the formula of the run: run `scglmm.tl.nbmm` again."
        )
        raise KeyError(msg)
    if "source" in entry:
        msg = f"{result.key!r} holds contrasts of the result {entry['source']!r}: give key={entry['source']!r}."
        raise ValueError(msg)
    inflated = has_inflation(adata, result.key)
    if inflated or int(entry.get("n_quad", 1)) > 1:
        what = "zero inflation" if inflated else f"quadrature (n_quad={int(entry['n_quad'])})"
        msg = (
            f"The result {result.key!r} was fitted with {what}, which this test does not know: fit both models of a "
            "gene by `scglmm.glmm` and compare them by `scglmm.lrt`, or test a result without it."
        )
        raise ValueError(msg)
    if result.groups is not None:
        msg = (
            f"The result {result.key!r} was fitted by groups of cells, which a likelihood ratio test does not know: "
            "take the cells of one group, fit them, and test that."
        )
        raise ValueError(msg)
    return entry


class _Models:
    """The larger and the smaller model on the same cells, nodes and strata."""

    def __init__(self, adata: AnnData, result: StoredResult, entry: Mapping[str, Any], reduced: str) -> None:
        formula = str(entry["formula"])
        parsed = parse_formula(reduced)
        if parsed.response is not None:
            msg = f"The formula {reduced!r} has a left side ({parsed.response!r}): start it with '~'."
            raise ValueError(msg)
        full = parse_formula(formula)
        obs = in_memory(adata.obs, [*formula_columns(full), *formula_columns(parsed)])
        self.full = build_design(full, obs, na_action="drop")
        if int(self.full.kept.sum()) != int(entry["n_cells"]):
            msg = (
                f"`adata` has {int(self.full.kept.sum())} cells with all columns of {formula!r}, but the result "
                f"{result.key!r} was fitted to {int(entry['n_cells'])}: run `scglmm.tl.nbmm` again."
            )
            raise ValueError(msg)
        smaller = build_design(parsed, obs[self.full.kept])
        self.comparison = compare(self.full, smaller)
        params = entry["params"]
        self.source = find_counts(adata, params["layer"], bool(params["use_raw"]))
        (summary,), _ = check_counts(adata, self.source, np.where(self.full.kept, 0, -1), 1)
        offset = self._offset(summary, entry, result.key)
        if smaller.offset is not None and not np.allclose(smaller.offset, offset, rtol=1e-9, atol=1e-9):
            msg = (
                f"The offset of the reduced formula, {' + '.join(parsed.offsets)}, is not that of the result, "
                f"{entry['offset']}: leave it out, and that of the result is used."
            )
            raise ValueError(msg)
        self._check_counts(result, summary)
        # The smaller model on the strata of the larger: the same nodes, so that what interpolation errs by cancels.
        stratum, first = strata_of(self.full)
        self.family = str(entry.get("family", "nbinom2"))
        designs = [self.full, smaller]
        self.frames: list[Frame] = [make_frame(design, first, np.bincount(stratum)) for design in designs]
        self.summary = summary
        self.place = partial(place_models, designs, self.frames, stratum, offset, singularity=singularity(self.family))

    def _offset(self, summary: Summary, entry: Mapping[str, Any], key: str) -> np.ndarray:
        design: Design = self.full
        offset = design.offset
        if offset is None:
            with np.errstate(divide="ignore"):
                offset = np.log(summary.cell_total[design.kept])
        if not np.isclose(log_mean_exp(offset), float(entry["log_mean_exposure"]), rtol=1e-9, atol=1e-9):
            what = "a column of obs changed" if design.offset is not None else "genes were left out, or counts changed"
            msg = f"The offset is not that of the result {key!r}: {what}. Run `scglmm.tl.nbmm` again."
            raise ValueError(msg)
        return offset

    def _check_counts(self, result: StoredResult, summary: Summary) -> None:
        mean = result.column("fit", "mean").to_numpy(float)
        columns = self.source.columns
        known = (columns >= 0) & ~np.isnan(mean)
        now = summary.gene_total[columns[known]] / self.full.kept.sum()
        if not np.allclose(now, mean[known], rtol=1e-9, atol=0):
            msg = (
                f"The counts in {self.source.name} are not those that the result {result.key!r} was fitted to: run "
                "`scglmm.tl.nbmm` again."
            )
            raise ValueError(msg)

    def fit(self, positions: np.ndarray, n_jobs: int) -> list[GeneFits]:
        """Fit both models to some genes."""
        source: Source = self.source
        rows, columns = np.flatnonzero(self.full.kept), source.columns[positions]
        shares = share_genes(0, self.summary.gene_total[columns])
        placed = [self.place(tolerance=share.tolerance) for share in shares]
        with progress_bar(2 * positions.size) as bar:
            fits = []
            for models in zip(*placed, strict=True):
                fits += fit_parts(
                    source.matrix,
                    [Part(rows, each.nodes, columns[share.at]) for each, share in zip(models, shares, strict=True)],
                    [each.frame for each in models],
                    Options(method="ml", null=False, limit=True, family=self.family),
                    n_jobs=n_jobs,
                    max_bytes=TABLE_BYTES,
                    progress=bar.update,
                    finer=[each.finer for each in models],
                    shares=[(0, share.at) for share in shares],
                )
        return fits


def _table(
    adata: AnnData, positions: np.ndarray, larger: GeneFits, smaller: GeneFits, comparison: Comparison
) -> pd.DataFrame:
    """Arrange the tests of the fitted genes among all."""
    full, reduced = larger.column("loglik").astype(float), smaller.column("loglik").astype(float)
    statistic = 2 * (full - reduced)
    failed = np.isnan(statistic) | (statistic < -LOWER)
    statistic = np.where(failed, np.nan, np.where(statistic < SAME, 0.0, statistic))
    pval = comparison.p_values(statistic)
    found = {
        "loglik": full,
        "loglik_reduced": reduced,
        "statistic": statistic,
        "df": np.where(failed, np.nan, float(comparison.df)),
        "pval": pval,
        "padj": benjamini_hochberg(pval[:, None])[:, 0],
    }
    table = pd.DataFrame(np.nan, index=adata.var_names.copy(), columns=list(found))
    table.iloc[positions] = np.column_stack(list(found.values()))
    status = np.full(adata.n_vars, NOT_SELECTED, dtype=object)
    status[positions] = np.where(failed, NOT_CONVERGED, larger.column("status").astype(object))
    table["status"] = pd.Categorical(status, categories=[s for s in STATUSES if (status == s).any()])
    return table
