"""Shrunken effects: what the effects of all genes say about each of them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scanpy import logging as logg

from scglmm.inference.ash import Prior, adjusted_se, fit_prior, posterior
from scglmm.results.names import INTERCEPTS, compose
from scglmm.results.read import StoredResult, read_result
from scglmm.results.shrunken import SHRUNKEN, shrunken_column
from scglmm.results.writable import strings, writable
from scglmm.results.write import assign, check_target

if TYPE_CHECKING:
    from anndata import AnnData

FEW_GENES = 50


def shrink(
    adata: AnnData,
    coef: str | Sequence[str] | None = None,
    *,
    key: str = "nbmm",
    group: str | Sequence[str] | None = None,
    null_weight: float = 10.0,
    copy: bool = False,
) -> AnnData | None:
    r"""Shrink the effects of all genes towards 0, by as much as the data say: adaptive shrinkage.

    The true effects of the genes are taken to have a common distribution that is symmetric and unimodal at 0, a mixture
    :math:`\sum_k \pi_k N(0, \sigma_k^2)` over a grid that includes :math:`\sigma = 0`, whose weights are estimated from
    the estimates and standard errors of all genes by marginal likelihood (Stephens 2017, doi
    10.1093/biostatistics/kxw041). Each gene then has a posterior distribution: estimates with large errors are shrunken
    a lot, precise ones hardly. Standard errors are enlarged where degrees of freedom are few, to what a normal test
    needs for the p-value of the t test (Lu and Stephens 2019, arXiv:1901.10679).

    Parameters
    ----------
    adata
        With a result of :func:`scglmm.tl.nbmm` or :func:`scglmm.tl.contrast`.
    coef
        One coefficient or several, ``"Dx[T.AD]"``. By default all but the intercept. Each has a prior of its own.
    key
        Name of the result.
    group
        One group or several, for results with `groupby`. By default all. Each has priors of its own.
    null_weight
        How much the prior prefers effects of exactly 0 when the data do not say: as if so many genes less one were
        known to have none. 1 is no preference; more makes the local false discovery and sign rates larger.
    copy
        Return a copy with the results instead of writing to `adata`.

    Returns
    -------
    None, or the copy. Written beside the unshrunken, which stay as they are:

    ``adata.varm["nbmm_shrunken"]``
        DataFrame, columns ``"{coef}|log_fc"`` (posterior mean, natural log), ``|sd`` (posterior standard deviation),
        ``|lfsr`` (local false sign rate: the posterior probability that the effect is 0 or has the other sign),
        ``|svalue`` (the mean lfsr of the genes with at most this lfsr: the rate of wrong signs among them), ``|lfdr``
        (posterior probability that the effect is 0). Coefficients shrunken before stay.
        :func:`scglmm.get.shrunken_df` reads it.
    ``adata.uns["nbmm"]["shrunken"]``
        For each coefficient the prior: `scale` (natural log), `weight`, its marginal log-likelihood, and the number of
        genes.

    Raises
    ------
    KeyError
        No such result, coefficient or group, or the entry of the result in `adata.uns` is gone.
    ValueError
        The coefficient is the intercept, no gene has an estimate, or `null_weight` is below 1.

    Notes
    -----
    The genes are those with an estimate, a standard error and degrees of freedom. Effects are per unit of a covariate,
    and exchangeable between rare and frequent genes.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :60].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + (1|SubID)")
    >>> scglmm.tl.shrink(adata, "Dx[T.AD]")
    >>> scglmm.get.shrunken_df(adata, "Dx[T.AD]").shape
    (60, 14)
    """
    check_target(adata, key)
    result = read_result(adata, key)
    entry = _check(adata, result, null_weight, copy)
    groups = _groups(result, group)
    coefficients = _coefficients(result, coef, groups)
    columns: dict[str, np.ndarray] = {}
    priors: dict[str, dict[str, Any]] = {}
    for g in groups:
        for name in coefficients:
            if name in result.coefficients_in(g):
                numbers, prior, n = _shrink(result, name, g, null_weight)
                columns |= {shrunken_column(g, name, number): numbers[number] for number in SHRUNKEN}
                priors[compose(g, name)] = _describe(prior, n)
    if copy:
        adata = adata.copy()
        entry = adata.uns[result.key]
    table = f"{result.key}_shrunken"
    new = pd.DataFrame(columns, index=adata.var_names.copy())
    if table in adata.varm:
        old = pd.DataFrame(adata.varm[table])
        new = pd.concat([old.drop(columns=[c for c in old.columns if c in columns]), new], axis=1)
    entry = dict(entry)
    entry["shrunken"] = dict(entry.get("shrunken", {})) | writable(priors)
    # so that the next run of the result removes it
    entry["varm_keys"] = strings(dict.fromkeys([*np.atleast_1d(entry["varm_keys"]), table]))

    def finish() -> None:
        logg.info(f"shrunk {len(priors)} coefficients", deep=f"added\n    .varm['{table}']")

    assign(adata, {table: new}, result.key, entry, finish=finish)
    return adata if copy else None


def _shrink(
    result: StoredResult, coef: str, group: str | None, null_weight: float
) -> tuple[dict[str, np.ndarray], Prior, int]:
    """Posterior of one coefficient in one group, its prior, and the number of genes."""
    estimate, se, df = (result.column(name, coef, group).to_numpy(float) for name in ("coef", "se", "dof"))
    known = np.isfinite(estimate) & np.isfinite(se) & (se > 0) & (df > 0)
    n = int(known.sum())
    label = repr(coef) if group is None else f"{coef!r} of group {group!r}"
    if n == 0:
        msg = f"No gene has an estimate, a standard error and degrees of freedom for {label}: nothing can be shrunken."
        raise ValueError(msg)
    if n < FEW_GENES:
        msg = f"Only {n} genes have an estimate for {label}: how effects are distributed is hardly known from so few."
        warnings.warn(msg, UserWarning, stacklevel=3)
    b, s = estimate[known], adjusted_se(estimate[known], se[known], df[known])
    prior = fit_prior(b, s, null_weight=null_weight)
    found = posterior(b, s, prior)
    numbers = {name: np.full(estimate.size, np.nan) for name in SHRUNKEN}
    for name, values in zip(SHRUNKEN, (found.mean, found.sd, found.lfsr, found.svalue, found.lfdr), strict=True):
        numbers[name][known] = values
    return numbers, prior, n


def _describe(prior: Prior, n: int) -> dict[str, Any]:
    return {"scale": prior.scale, "weight": prior.weight, "loglik": prior.loglik, "n_genes": n}


def _check(adata: AnnData, result: StoredResult, null_weight: Any, copy: bool) -> Mapping[str, Any]:
    number = isinstance(null_weight, int | float | np.number) and not isinstance(null_weight, bool)
    if not number or not np.isfinite(null_weight) or null_weight < 1:
        msg = f"null_weight must be a number, 1 (no preference for effects of 0) or more, not {null_weight!r}."
        raise ValueError(msg)
    if copy and adata.isbacked:
        msg = "copy=True would read a backed AnnData into memory: use copy=False, or `adata.to_memory()`."
        raise ValueError(msg)
    entry = adata.uns.get(result.key)
    if not isinstance(entry, Mapping) or "varm_keys" not in entry:
        msg = f"`adata.uns` has no entry {result.key!r}, where the priors are to be kept: run `scglmm.tl.nbmm` again."
        raise KeyError(msg)
    return entry


def _groups(result: StoredResult, group: str | Sequence[str] | None) -> list[str | None]:
    if group is None:
        return result.fitted_groups
    asked = [group] if isinstance(group, str) else list(group)
    return list(dict.fromkeys(result.find_group(g) for g in asked))


def _coefficients(result: StoredResult, coef: str | Sequence[str] | None, groups: list[str | None]) -> list[str]:
    within = groups[0] if len(groups) == 1 else None
    asked = result.tested if coef is None else [coef] if isinstance(coef, str) else list(coef)
    found = list(dict.fromkeys(result.find_coefficient(c, within) for c in asked))
    if not found:
        msg = f"There is no coefficient to shrink: {'`coef` is empty' if coef is not None else 'only an intercept'}."
        raise ValueError(msg)
    for name in found:
        if name in INTERCEPTS:
            msg = f"{name!r} is the intercept: it is no effect that could be 0, and is not shrunken."
            raise ValueError(msg)
    return found
