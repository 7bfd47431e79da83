"""The main job: a negative binomial mixed model for every gene."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import joblib
import numpy as np
from scanpy import logging as logg

from scglmm.inference.advice import WARNING, Layout, advise
from scglmm.inference.cell_level import Placed
from scglmm.inference.genes import GeneFits, Options, fit_parts
from scglmm.inference.quadrature import INEXACT, is_inexact
from scglmm.results.write import check_target, write_results

from ._checkpoint import Checkpoint
from ._fingerprint import inputs, settings
from ._info import describe_run
from ._moderation import check_moderation, describe_moderation
from ._options import RunOptions, check_arguments
from ._prepare import Run, prepare_run
from ._table import make_tables
from ._workers import effective_jobs, progress_bar

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


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
    family: str = "nbinom2",
    ziformula: str | None = None,
    n_quad: int = 1,
    moderate: bool | None = None,
    min_cells: int = 10,
    na_action: str = "raise",
    varpart_method: str = "trigamma",
    n_jobs: int | None = None,
    max_memory: float | str | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
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
        Raw counts with one row of `obs` per cell: in memory, backed, lazily read, with sparse, dense or dask matrices.
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
    family
        `"nbinom2"`, or `"poisson"`: variance :math:`\mu`, no theta. The variance of single-cell counts is nearly always
        larger, and Poisson tests of effects within donors reject far too often then.
    ziformula
        Zero inflation: fixed effects of the logit of the probability of a structural zero, ``"~ 1"`` or ``"~ x"``. None
        for none. Counts of unique molecules seldom have more zeros than the negative binomial gives them.
    n_quad
        Points of adaptive Gauss–Hermite quadrature over the random effect of each level; 1 is Laplace. More than one
        needs ``method="ml"`` and one random term of one column, such as `(1|donor)`.
    moderate
        Borrow information across genes (REML only): the variances of the random effects are integrated out under a
        prior estimated from all genes instead of being plugged in. Tests hold their level with few donors, and find
        more. None (default) does so wherever it can be done: at least 200 genes to fit, one to three random terms
        of one column each, the negative binomial family and no zero inflation. False gives the REML estimates of each
        gene alone, those of glmmTMB.
    min_cells
        Genes with counts in fewer cells are not fitted (status `too_few_counts`).
    na_action
        `"raise"`, or `"drop"` to leave out cells with a missing value in a column of the formula or in `groupby`.
    varpart_method
        Definition of the distribution-specific variance, see :func:`scglmm.tl.varpart`.
    n_jobs
        Workers; by default what `joblib.parallel_config` says, or `scanpy.settings.n_jobs` where it says nothing.
        Threads, unless `joblib.parallel_config` names processes or a dask cluster.
    max_memory
        Memory to take beside the data: bytes, or text such as ``"2GB"``; by default a quarter of what is free. Where
        the tables of all genes fit, counts that are not in memory are read once (twice without `offset()`, for the
        cells' total counts); otherwise once for sums and once for every block of genes (columns on disk once by all
        blocks). What is read at a time never depends on the number of cells. See docs/large_data.md.
    checkpoint
        Folder in which the fits are kept as they come in. Called again after the process was killed, the same line
        goes on with the genes that are not there, to the same results. It is never removed by this function.
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
        Residuals are 0 for the Poisson family. NaN with zero inflation, for whose zeros these fractions have no place.
    ``adata.varm["nbmm_fit"]``
        DataFrame: theta (inf for the Poisson family), variances of the random effects (and, moderated, their posterior
        means), with `n_quad` above 1 the `quadrature_error` (what four times as many points would add to the
        log-likelihood), coefficients of the zero inflation with their standard errors (``zi[(Intercept)]``,
        ``zi_se[(Intercept)]``, logit), log-likelihood, mean count, numbers of cells and donors with counts, the record
        of the search, and `status`: `ok`; `singular` (a variance is estimated at 0); `poisson_limit` (theta at
        infinity); `zi_boundary` (a zero-inflation probability below 1e-4 or a standard error of its logit above 5: the
        zero inflation cannot be told from none and its coefficients not be tested, everything else is valid);
        `separated` (a coefficient would be infinite, for instance because the gene is absent in one condition);
        `too_few_counts`; `not_converged`; `not_selected`.
    ``adata.varm["nbmm_vcov"]``
        Array, genes × p(p+1)/2: covariance of the coefficients, lower triangle by rows.
    ``adata.varm["nbmm_dvcov"]``
        Array, genes × m × p(p+1)/2 (REML only): its derivatives with respect to the m variance parameters, scaled so
        that a contrast c has ``df = 2 (c'Cc)^2 / sum_k (c'D_k c)^2``; see :func:`scglmm.tl.contrast`.
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
        no gene is left, the checkpoint is of other data, another formula or another version. With `groupby` such a
        design skips the group, and is an error where it skips all of them.
    OSError
        The checkpoint cannot be written, for instance because the disk is full; what is there stays good.
    RuntimeError
        Worker processes were lost again and again.

    Warns
    -----
    UserWarning
        Advice on the design (see :func:`scglmm.pp.check_design`); the points of quadrature are too few for some genes.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :5].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + (1|SubID)")
    >>> scglmm.get.nbmm_df(adata, "Dx[T.AD]").shape
    (5, 10)

    Two groups of cells, each on its own:

    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + (1|SubID)", groupby="Sex")
    >>> adata.uns["nbmm"]["groups"]["status"].to_dict()
    {'F': 'ok', 'M': 'ok'}
    >>> scglmm.get.nbmm_df(adata, "Dx[T.AD]", group="F").shape
    (5, 10)
    """
    options = RunOptions(
        *(layer, use_raw, groupby, padj_across, min_donors, method, min_cells, na_action, varpart_method, moderate),
        *(family, ziformula, n_quad, max_memory),
    )
    check_arguments(adata, formula, options, n_jobs, copy)
    saved = None if checkpoint is None else Checkpoint(checkpoint)
    asked = settings(formula, options)
    if saved is not None:
        saved.compare(asked)
    if copy:
        adata = adata.copy()
    check_target(adata, key_added)
    n_jobs = effective_jobs(n_jobs)
    # workers of a cluster fit; the counts are read here
    threads = min(n_jobs, joblib.cpu_count())
    run = prepare_run(adata, formula, options, mask_var, n_jobs=threads, ahead=True)
    check_moderation(run, options)
    _advise(run, run.obs)
    placed = run.place_nodes()
    nodes = [each.nodes for each in run.by_group(placed)]
    start = logg.info(_announce(formula, run, placed))
    how = Options(method=method, moderate=moderate, family=family, n_quad=int(n_quad))
    if saved is not None:
        found = inputs(run.obs, adata.var_names, run, nodes, options)
        saved.take(asked | found, [share.at.size for share in run.shares])
    fits = _fit(run, placed, how, n_jobs, saved)
    tables = make_tables(adata.var_names, run, fits, options)
    _warn_of_few_points(fits, options.n_quad)
    info = describe_run(formula, options, run, nodes, tables)
    info["moderation"] = describe_moderation(run, fits)
    if covariates := list(dict.fromkeys(name for each in placed for name in each.covariates)):
        info["cell_covariates"] = covariates

    def finish() -> None:
        logg.info("    finished", time=start, deep=f"added\n    .varm['{key_added}_*'] and .uns['{key_added}']")

    write_results(adata, key_added, tables, info, finish=finish)
    return adata if copy else None


def _advise(run: Run, obs: pd.DataFrame) -> None:
    """Advice on the designs; what several groups of cells have in common is said once."""
    said: dict[tuple[str, str], list[str]] = {}
    for group in run.fitted:
        cells = obs if group.rows.size == len(obs) else obs.iloc[group.rows]
        for advice in advise(Layout(group.design, cells, group.frame, group.first)):
            said.setdefault((advice.severity, str(advice)), []).append(group.name)
    for (severity, text), names in said.items():
        where = "" if names[0] is None else f"Group{'s' if len(names) > 1 else ''} {', '.join(map(repr, names))}: "
        if severity == WARNING:
            warnings.warn(where + text, UserWarning, stacklevel=3)
        else:
            logg.hint(where + text)


def _warn_of_few_points(fits: list[GeneFits], n_quad: int) -> None:
    """Say where the points of quadrature are too few."""
    inexact = sum(int(is_inexact(each.column("quadrature_error")).sum()) for each in fits)
    if inexact:
        msg = (
            f"n_quad={n_quad} points are too few for {inexact} of {sum(len(each.fits) for each in fits)} genes: four "
            f"times as many would change their log-likelihood by more than {INEXACT:g} (column 'quadrature_error' of "
            "the fit). Use more, or n_quad=1 for Laplace's approximation, as glmmTMB does."
        )
        warnings.warn(msg, UserWarning, stacklevel=3)


def _announce(formula: str, run: Run, placed: list[Placed]) -> str:
    nodes = [each.nodes for each in run.by_group(placed)]
    cells, strata, size = np.sum([(each.stratum.size, each.n_strata, each.size) for each in nodes], axis=0)
    what = (
        f"{run.n_fits} genes"
        if run.fitted[0].name is None
        else f"the genes of {len(run.fitted)} groups ({run.n_fits} fits)"
    )
    return f"fitting {formula} to {what}: {cells} cells, {strata} strata, {size} nodes{explain_nodes(placed)}"


def explain_nodes(placed: list[Placed]) -> str:
    """Say which covariates of the cells have nodes of their own, and for which effects."""
    names = dict.fromkeys(name for each in placed for name in each.covariates)
    if not names:
        return ""
    bound = min(each.bound for each in placed)
    differ = "differs" if len(names) == 1 else "differ"
    return (
        f" ({', '.join(names)} {differ} between the cells of a stratum: nodes along it for log fold changes up to "
        f"{bound:g} per standard deviation; genes with larger ones are fitted again)"
    )


def _fit(run: Run, placed: list[Placed], how: Options, n_jobs: int, saved: Checkpoint | None) -> list[GeneFits]:
    matrix, max_bytes = run.counts(placed)
    with progress_bar(run.n_fits) as bar, nullcontext() if saved is None else saved:
        return fit_parts(
            matrix,
            run.parts(placed),
            [each.frame for each in placed],
            how,
            n_jobs=n_jobs,
            max_bytes=max_bytes,
            progress=bar.update,
            inflations=run.inflations,
            finer=[each.finer for each in placed],
            saved=saved,
            shares=[(share.group, share.at) for share in run.shares],
        )
