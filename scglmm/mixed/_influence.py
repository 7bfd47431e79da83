"""How much the fixed effects hang on one group of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.sparse.linalg import splu

from scglmm.results.names import near_first

if TYPE_CHECKING:
    from ._result import GLMMResult


def influence(result: GLMMResult, group: str | None = None) -> pd.DataFrame:
    """Influence of every level of a grouping factor on the fixed effects.

    Each level is left out in turn, with variances and theta as they are and one Fisher scoring step from the estimates:
    exact for Gaussian models at fixed variances, a good approximation for counts (Pregibon 1981, doi
    10.1214/aos/1176345513; Demidenko and Stukel 2005, doi 10.1002/sim.1974).

    Parameters
    ----------
    result
        A fit with random effects.
    group
        The grouping factor; by default the one with the fewest levels.

    Returns
    -------
    DataFrame, levels × (`cook`, `rows`, and the change of every coefficient when the level is left out), largest Cook's
    distance first. `cook` is d'V^-1 d / p for the change d and the covariance V of the p coefficients; above 4 over the
    number of levels is worth a look. NaN where the coefficients cannot be estimated without the level.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:2000]
    >>> fit = scglmm.glmm("PTPRG ~ offset(log(libSize)) + Dx + Age + (1|SubID)", adata, family="nbinom2")
    >>> scglmm.mixed.influence(fit).shape[0] == adata.obs["SubID"].nunique()
    True
    """
    design, fit = result.model.design, result.estimates
    if not design.random:
        msg = f"The model {result.formula!r} has no random effects, so there are no groups to leave out."
        raise ValueError(msg)
    if not result.converged or fit.lost.any():
        msg = f"Influence needs finite estimates of all coefficients; the status of this fit is {result.status!r}."
        raise ValueError(msg)
    terms = {term.group: term for term in design.random}
    if group is None:
        group = min(terms, key=lambda name: len(terms[name].levels))
    if group not in terms:
        msg = f"There is no grouping factor {group!r}; they are {near_first(group, terms)}."
        raise KeyError(msg)
    term, joint = terms[group], result.joint
    p = len(design.columns)
    V = joint.factor.solve(np.eye(joint.B.shape[1])[:, -p:])[-p:]
    score = joint.weights * _working_residual(result)
    order = np.argsort(term.codes, kind="stable")
    starts = np.searchsorted(term.codes[order], np.arange(len(term.levels) + 1))
    changes = np.full((len(term.levels), p), np.nan)
    for level in range(len(term.levels)):
        rows = order[starts[level] : starts[level + 1]]
        B = joint.B[rows]
        without = sparse.csc_array(joint.precision - B.T @ (B * joint.weights[rows, None]))
        try:
            # at the mode the whole score is 0, so that without these rows is minus theirs
            changes[level] = splu(without).solve(-(B.T @ score[rows]))[-p:]
        except RuntimeError:  # a coefficient rests on this level alone
            continue
    cook = np.einsum("gi,ij,gj->g", changes, np.linalg.inv(V), changes) / p
    bad = ~(np.isfinite(cook) & (cook < 1e8))
    cook[bad], changes[bad] = np.nan, np.nan
    table = pd.DataFrame(
        {"cook": cook, "rows": np.diff(starts), **dict(zip(design.columns, changes.T, strict=True))},
        index=pd.Index(term.levels, name=group),
    )
    return table.sort_values("cook", ascending=False, kind="stable")


def _working_residual(result: GLMMResult) -> np.ndarray:
    """Residual on the scale of the linear predictor."""
    distribution = result.distribution()
    if result.link == "identity":
        return result.model.y - distribution.mu
    # with zero inflation the weights hold the probability that a zero is none of the structural ones
    return (result.model.y - distribution.mu) / distribution.mu
