"""The penalised least squares problem at the fit: random and fixed effects together.

At the mode the model behaves as the linear one with the weights W of a Fisher scoring step and B = [Z Lambda, X],

    precision of (v, beta) = B'W B + diag(I, 0)        v = Lambda^-1 u spherical, so that variances may be 0

(Bates et al. 2015, doi 10.18637/jss.v067.i01, section 3). Its inverse gives standard errors of predictions, and its
solution with a group left out the influence of that group.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import SuperLU, splu

if TYPE_CHECKING:
    from ._result import GLMMResult

ROWS = 4096
DENSE = 3000  # up to this size the inverse is cheaper than solving for every row


class Joint:
    """Joint precision of spherical random effects and fixed effects of a fit.

    Parameters
    ----------
    result
        The fit.
    """

    def __init__(self, result: GLMMResult) -> None:
        design, fit = result.model.design, result.estimates
        self.kept = ~fit.lost
        self.roots = [_root(sigma) for sigma in fit.sigma]
        self.levels = [len(term.levels) for term in design.random]
        groups = [(term.codes, term.covariates) for term in design.random]
        self.B = self.rows(design.X, groups)
        self.q = self.B.shape[1] - int(self.kept.sum())
        self.weights = _fisher_weights(result)
        penalty = sparse.diags_array(np.repeat([1.0, 0.0], [self.q, self.B.shape[1] - self.q]))
        weighted = self.B * self.weights[:, None]
        self.precision = sparse.csc_array(self.B.T @ weighted + penalty)

    def rows(self, X: np.ndarray, groups: list[tuple[np.ndarray, np.ndarray] | None]) -> sparse.csr_array:
        """Rows of [Z Lambda, X] with the given fixed effects, and codes (-1 for none) and covariates of each term."""
        n = X.shape[0]
        blocks = []
        for group, root, n_levels in zip(groups, self.roots, self.levels, strict=True):
            c = root.shape[0]
            if group is None:
                blocks.append(sparse.csr_array((n, n_levels * c)))
                continue
            codes, covariates = group
            values = covariates @ root
            known = codes >= 0
            at = codes[known, None].astype(np.int64) * c + np.arange(c)
            place = np.repeat(np.flatnonzero(known), c), at.ravel()
            blocks.append(sparse.csr_array((values[known].ravel(), place), shape=(n, n_levels * c)))
        return sparse.csr_array(sparse.hstack([*blocks, sparse.csr_array(X[:, self.kept])]))

    @cached_property
    def factor(self) -> SuperLU:
        """Factor of the precision."""
        return splu(self.precision)

    def variances(self, rows: sparse.csr_array) -> np.ndarray:
        """Variance of ``rows @ (v, beta)``."""
        result = np.empty(rows.shape[0])
        size = rows.shape[1]
        inverse = self.factor.solve(np.eye(size)) if size <= min(DENSE, rows.shape[0]) else None
        for start in range(0, rows.shape[0], ROWS):
            part = rows[start : start + ROWS]
            half = self.factor.solve(part.T.toarray()).T if inverse is None else part @ inverse
            result[start : start + ROWS] = np.asarray(part.multiply(half).sum(axis=1)).ravel()
        return result


def _root(sigma: np.ndarray) -> np.ndarray:
    """Find L with L L' = Sigma, which may be singular."""
    values, vectors = np.linalg.eigh(sigma)
    return vectors * np.sqrt(np.maximum(values, 0.0))


def _fisher_weights(result: GLMMResult) -> np.ndarray:
    """Get the expected curvature in the linear predictor; structural zeros count by their probability to be none."""
    distribution = result.distribution()
    if result.family == "gaussian":
        return np.full(result.nobs, 1 / result.estimates.residual_sd**2)
    weights = distribution.mu / (1 + distribution.mu / distribution.theta)
    if result.model.zi_design is None:
        return weights
    zero = np.where(result.model.y == 0, distribution.pi / distribution.zero, 0.0)
    return weights * (1 - zero)
