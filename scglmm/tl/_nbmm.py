"""The main job: a negative binomial mixed model for every gene."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import joblib
import numpy as np
from scanpy import logging as logg
from scanpy import settings
from tqdm import tqdm

from scglmm.compression.nodes import Nodes, make_nodes
from scglmm.compression.tables import Part
from scglmm.formula import Design
from scglmm.inference.genes import GeneFits, Options, fit_parts
from scglmm.results.write import check_target, write_results

from ._counts import Source, check_counts, find_counts
from ._groups import Group, check_some_fitted, prepare_groups
from ._info import check_names, describe_run
from ._moderation import check_moderation, describe_moderation
from ._options import RunOptions, check_arguments, genes_in_matrix, parse_right_side, selected_genes
from ._table import adjust_across, make_table

if TYPE_CHECKING:
    from anndata import AnnData

    from scglmm.compression.counts import Summary

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
    groupby: str | None = None,
    padj_across: bool = False,
    min_donors: int = 3,
    method: str = "reml",
    moderate: bool | None = None,
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
    groupby
        Column of `adata.obs`, cell types for instance: each group of cells is fitted on its own, with the numbers that
        a run on its cells alone would give. A group that cannot answer the formula is skipped with a reason.
    padj_across
        Adjust p-values over the genes of all groups together instead of within each group.
    min_donors
        With `groupby`: groups with fewer levels of the first grouping factor are skipped.
    method
        `"reml"`: REML and t tests with Satterthwaite's degrees of freedom, containment degrees of freedom where the
        variance that carries the coefficient is estimated at 0. `"ml"`: maximum likelihood and Wald z tests, as glmmTMB
        does, which reject too often with few donors.
    moderate
        Borrow information across genes (REML only): the variances of the random effects are integrated out under a
        prior estimated from all genes instead of being plugged in. Tests hold their level with few donors, and find
        more. None (default) does so wherever it can be done: at least 200 genes to fit and one to three random terms
        of one column each. False gives the REML estimates of each gene alone, those of glmmTMB.
    min_cells
        Genes with counts in fewer cells are not fitted (status `too_few_counts`).
    na_action
        `"raise"`, or `"drop"` to leave out cells with a missing value in a column of the formula or in `groupby`.
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
        DataFrame: theta, variances of the random effects (and, moderated, their posterior means), log-likelihood,
        mean count, numbers of cells and donors with counts, the record of the search, and `status`: `ok`; `singular`
        (a variance is estimated at 0); `poisson_limit` (theta at infinity); `separated` (a coefficient would be
        infinite, for instance because the gene is absent in one condition); `too_few_counts`; `not_converged`;
        `not_selected`.
    ``adata.varm["nbmm_vcov"]``
        Array, genes × p(p+1)/2: covariance of the coefficients, lower triangle by rows.
    ``adata.uns["nbmm"]``
        The model, `moderation` (its status, the prior and its trend with mean expression), and the arrays of
        `scanpy.tl.rank_genes_groups` (fold changes in log2).

    Moderated, the tables of coefficients hold posterior means, and the scale and degrees of freedom of the t
    distributions that summarise their posteriors; theta, variances, log-likelihood, status and variance fractions are
    those of each gene's own REML fit.

    With `groupby` the columns are ``{group}|{coefficient}`` and so on, ``nbmm_vcov`` is genes × groups × p(p+1)/2, and
    ``adata.uns["nbmm"]["groups"]`` is a DataFrame with the `status` of every group (`ok`, or `skipped:` and why), its
    numbers of cells and donors, and the levels of factors that none of its cells has.

    Raises
    ------
    ValueError, KeyError, TypeError
        Before any work: the matrix does not hold counts, the formula cannot be read, a column is missing or has
        missing values, the design is rank deficient, a grouping factor has one level or one per cell or none to spare,
        no gene is left. With `groupby` such a design skips the group, and is an error where it skips all of them.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :5].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + (1|SubID)")
    >>> scglmm.get.nbmm_df(adata, "Dx[T.AD]").shape
    (5, 10)
    """
    options = RunOptions(
        layer, use_raw, groupby, padj_across, min_donors, method, min_cells, na_action, varpart_method, moderate
    )
    check_arguments(adata, formula, options, n_jobs, copy)
    if copy:
        adata = adata.copy()
    check_target(adata, key_added)
    groups = prepare_groups(parse_right_side(formula), adata.obs, groupby, na_action, min_donors)
    selected = selected_genes(adata, mask_var)
    source = find_counts(adata, layer, use_raw)
    positions = np.flatnonzero(genes_in_matrix(selected, source))
    fitted = [group for group in groups if not group.reason]
    check_names(fitted)
    summaries = _sum_counts(adata, source, fitted)
    offsets, offset_name = _offsets(adata, fitted, summaries, source)
    testable = [summary.gene_cells[source.columns[positions]] >= max(1, min_cells) for summary in summaries]
    if groupby is not None:
        for group, able in zip(fitted, testable, strict=True):
            if not able.any():
                group.skip(f"no gene has counts in min_cells={min_cells} of its cells")
        check_some_fitted(groups, groupby)
        kept = [not group.reason for group in fitted]
        fitted, summaries, offsets, testable = (
            [x for x, keep in zip(each, kept, strict=True) if keep] for each in (fitted, summaries, offsets, testable)
        )
    check_moderation(fitted, [int(able.sum()) for able in testable], moderate, method)
    for group in fitted:
        _advise(group.design, group.name)

    nodes = [
        make_nodes(group.stratum, offset, _tolerance(summary))
        for group, offset, summary in zip(fitted, offsets, summaries, strict=True)
    ]
    n_jobs = joblib.effective_n_jobs(settings.n_jobs if n_jobs is None else n_jobs)
    start = logg.info(_announce(formula, fitted, nodes, testable))
    genes = [source.columns[positions[able]] for able in testable]
    fits = _fit(source, fitted, nodes, genes, Options(method=method, moderate=moderate), n_jobs)
    tables = {
        group.name: make_table(
            adata.var_names, group.design, group.frame, offset, positions, able, fit, summary, source, varpart_method
        )
        for group, offset, able, fit, summary in zip(fitted, offsets, testable, fits, summaries, strict=True)
    }
    if padj_across:
        adjust_across(list(tables.values()))
    info = describe_run(formula, options, groups, offsets, offset_name, nodes, tables)
    moderation = {group.name: describe_moderation(group, fit) for group, fit in zip(fitted, fits, strict=True)}
    info["moderation"] = moderation[None] if groupby is None else moderation
    write_results(adata, key_added, tables, info)
    logg.info("    finished", time=start, deep=f"added\n    .varm['{key_added}_*'] and .uns['{key_added}']")
    return adata if copy else None


def _sum_counts(adata: AnnData, source: Source, groups: list[Group]) -> list[Summary]:
    """Check the counts of all groups, and sum each group."""
    label = np.full(adata.n_obs, -1, np.int64)
    for k, group in enumerate(groups):
        label[group.used] = k
    return check_counts(adata, source, label, len(groups))


def _offsets(
    adata: AnnData, groups: list[Group], summaries: list[Summary], source: Source
) -> tuple[list[np.ndarray], str]:
    """Offsets of the cells that are used in every group (natural log), and what they are."""
    if groups[0].design.offset is not None:
        return [group.design.offset for group in groups], " + ".join(groups[0].design.formula.offsets)
    totals = [summary.cell_total[group.used] for group, summary in zip(groups, summaries, strict=True)]
    empty = sum(int((total <= 0).sum()) for total in totals)
    if empty:
        msg = (
            f"{empty} cells have no counts at all, so the log of their total count cannot be the offset: "
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
    return [np.log(total) for total in totals], "log(total count)"


def _advise(design: Design, group: str | None = None) -> None:
    if not design.random:
        msg = (
            "The formula has no random effect, so cells count as independent replicates and p-values are far too small "
            "when cells share donors: add a term such as (1|donor)."
        )
        warnings.warn(msg, UserWarning, stacklevel=3)
    for note in design.notes:
        logg.warning(note if group is None else f"group {group!r}: {note}")


def _tolerance(summary: Summary) -> float:
    """Relative error of the nodes that keeps the absolute error of every gene's log-likelihood below 1e-4.

    A count contributes at most about log(1 + mu/theta) < 20 to the sums that are interpolated.
    """
    largest = 20.0 * max(1.0, float(summary.gene_total.max()))
    return max(1e-14, min(RELATIVE_ERROR, ABSOLUTE_ERROR / largest))


def _announce(formula: str, groups: list[Group], nodes: list[Nodes], testable: list[np.ndarray]) -> str:
    cells, strata, size = (
        sum(each) for each in zip(*((n.stratum.size, n.n_strata, n.size) for n in nodes), strict=True)
    )
    what = (
        f"{testable[0].sum()} genes"
        if groups[0].name is None
        else f"the genes of {len(groups)} groups ({sum(int(able.sum()) for able in testable)} fits)"
    )
    return f"fitting {formula} to {what}: {cells} cells, {strata} strata, {size} nodes"


def _fit(
    source: Source, groups: list[Group], nodes: list[Nodes], genes: list[np.ndarray], options: Options, n_jobs: int
) -> list[GeneFits]:
    parts = [Part(group.used, n, g) for group, n, g in zip(groups, nodes, genes, strict=True)]
    with tqdm(total=sum(g.size for g in genes), unit="gene", disable=int(settings.verbosity) < 1, leave=False) as bar:
        return fit_parts(
            source.matrix,
            parts,
            [group.frame for group in groups],
            options,
            n_jobs=n_jobs,
            max_bytes=TABLE_BYTES,
            progress=bar.update,
        )
