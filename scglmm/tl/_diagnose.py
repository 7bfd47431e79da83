"""Suspicious genes, and why: what a look at the numbers behind every significant result would find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scanpy import logging as logg

from scglmm.results.read import StoredResult, read_result
from scglmm.results.writable import strings
from scglmm.results.write import assign, check_target

from ._look import Look
from ._options import selected_genes
from ._workers import effective_jobs, progress_bar

if TYPE_CHECKING:
    from anndata import AnnData


def diagnose(
    adata: AnnData,
    *,
    key: str = "nbmm",
    coef: str | Sequence[str] | None = None,
    mask_var: np.ndarray | Sequence[bool] | str | None = None,
    alpha: float = 0.05,
    n_jobs: int | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Find suspicious genes, and say why: one cell or one donor drives the effect, all counts are in one donor, ...

    Sums of the counts and what is stored of the fits are looked at for every gene. Effects that are significant are
    estimated again without single cells and without single donors (levels of the first grouping factor): those that
    would move it most to first order (Pregibon 1981, doi 10.1214/aos/1176345513) or have the most counts. One *drives*
    the effect that leaves nothing to estimate it from; or moves it by more than a standard error, and takes more than
    half of it away, turns its sign, or takes the p-value from below to above `alpha` with more than half of the
    statistic.

    A gene that is listed is not wrong: it is worth a look (:func:`scglmm.pl.donors`) before it is believed.

    Parameters
    ----------
    adata
        With a result of :func:`scglmm.tl.nbmm`, and the counts that it was fitted to.
    key
        Name of the result.
    coef
        One coefficient or several; by default all but the intercept.
    mask_var
        Genes whose effects are estimated again, significant or not: a boolean array over `adata.var_names` or the name
        of a boolean column of `adata.var`. By default those that are significant.
    alpha
        Adjusted p-value below which an effect is significant.
    n_jobs
        Workers; `scanpy.settings.n_jobs` by default.
    copy
        Return a copy with the results instead of writing to `adata`.

    Returns
    -------
    None, or the copy. Written, nothing of it unless the whole call succeeded:

    ``adata.varm["nbmm_diagnose"]``
        DataFrame, one row per gene. `reasons` (empty for most genes): `one_cell`, `one_donor`, `counts_in_one_donor`,
        `counts_in_one_cell` (more than half of them), `separated`, `not_converged`, `huge_effect` (above 10, natural
        log, over the range of the covariate), `huge_variance` (of random effects, above 9), `tiny_theta` (below 0.01).
        The `cell` and `donor` with the most counts of the gene, and their shares (`cell_share`, `donor_share`). For
        each coefficient ``{coef}|effect`` (natural log), ``|pval``, ``|cell``, ``|effect_without_cell``,
        ``|pval_without_cell``, ``|one_cell``, and the same for the donor.
        :func:`scglmm.get.diagnose_df` makes it a list of genes and reasons.
    ``adata.uns["nbmm"]["diagnose"]``
        `alpha`, the coefficients, the grouping factor whose levels were left out, the number of genes estimated again.

    Effects and p-values are those of each gene's own fit, also where the result is moderated.

    Raises
    ------
    KeyError
        No such result or coefficient, or columns or counts that the model needs are gone.
    ValueError
        The cells or counts are not those of the result, or `alpha` is no probability.

    Notes
    -----
    An effect that is the same without every single cell and donor may still rest on two of them. With few donors every
    one of them matters: an effect between 3 and 3 donors that loses half of its size without one is no surprise.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :20].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + (1|SubID)")
    >>> scglmm.tl.diagnose(adata)
    >>> list(scglmm.get.diagnose_df(adata).columns[:3])
    ['gene', 'reason', 'coef']
    """
    check_target(adata, key, "key")
    result = read_result(adata, key)
    entry = _check(adata, result, alpha, n_jobs, copy)
    coefficients = _coefficients(result, coef)
    mask = None if mask_var is None else selected_genes(adata, mask_var)
    looks = [Look(adata, result, entry, group, coefficients, mask, alpha) for group in result.fitted_groups]
    if copy:
        adata = adata.copy()
        entry = adata.uns[result.key]
    total = sum(look.n_genes for look in looks)
    start = logg.info(f"looking at {total} genes with cells and donors left out")
    columns: dict[str, Any] = {}
    with progress_bar(total) as bar:
        for look in looks:
            columns |= look.columns(effective_jobs(n_jobs), bar.update)
    table = f"{result.key}_diagnose"
    entry = dict(entry)
    entry["diagnose"] = {
        "alpha": float(alpha),
        "coefficients": strings(coefficients),
        "grouping": looks[0].grouping,
        "n_genes": total,
    }
    # so that the next run of the result removes it
    entry["varm_keys"] = strings(dict.fromkeys([*np.atleast_1d(entry["varm_keys"]), table]))
    new = pd.DataFrame(columns, index=adata.var_names.copy())
    found = np.unique(np.concatenate([np.flatnonzero(look.reasons != "") for look in looks])).size

    def finish() -> None:
        logg.info(f"    finished: {found} suspicious genes", time=start, deep=f"added\n    .varm['{table}']")

    assign(adata, {table: new}, result.key, entry, finish=finish)
    return adata if copy else None


def _check(adata: AnnData, result: StoredResult, alpha: Any, n_jobs: Any, copy: bool) -> Mapping[str, Any]:
    number = isinstance(alpha, int | float | np.number) and not isinstance(alpha, bool)
    if not number or not 0 < alpha <= 1:
        msg = f"alpha must be a probability, above 0 and at most 1, not {alpha!r}."
        raise ValueError(msg)
    if n_jobs is not None and (not isinstance(n_jobs, int | np.integer) or n_jobs == 0):
        msg = f"n_jobs must be a whole number other than 0 (-1 for all processors) or None, not {n_jobs!r}."
        raise ValueError(msg)
    if copy and adata.isbacked:
        msg = "copy=True would read a backed AnnData into memory: use copy=False, or `adata.to_memory()`."
        raise ValueError(msg)
    entry = adata.uns.get(result.key)
    if not isinstance(entry, Mapping) or "formula" not in entry or "varm_keys" not in entry:
        msg = (
            f"`adata.uns` has no entry {result.key!r}, which knows the formula of the run: run `scglmm.tl.nbmm` again."
        )
        raise KeyError(msg)
    if "source" in entry:
        msg = f"{result.key!r} holds contrasts of the result {entry['source']!r}: give key={entry['source']!r}."
        raise ValueError(msg)
    return entry


def _coefficients(result: StoredResult, coef: str | Sequence[str] | None) -> list[str]:
    asked = result.tested if coef is None else [coef] if isinstance(coef, str) else list(coef)
    return list(dict.fromkeys(result.find_coefficient(name) for name in asked))
