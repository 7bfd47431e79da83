"""Likelihood ratio tests of nested models, by the distribution that fits what is tested.

Twice the difference of two maximised log-likelihoods is chi-square with as many degrees of freedom as the smaller model
has parameters less, where all of them lie inside the parameter space. A variance tested against 0 does not: half of the
time its estimate is 0 under the hypothesis. With one such variance and d parameters in all (itself, its covariances
with the others of its term, fixed effects) the distribution is the mixture

    1/2 chi2(d - 1) + 1/2 chi2(d)

(Self and Liang 1987, doi 10.1080/01621459.1987.10478472, case 5 and 6; Stram and Lee 1994, Biometrics 50:1171-1177):
1/2 chi2(0) + 1/2 chi2(1) for `(1|g)` against nothing, 1/2 chi2(1) + 1/2 chi2(2) for `(x|g)` against `(1|g)`. With more
than one variance the weights depend on the data; chi2(d) is used, which is conservative.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from scglmm.formula import Design
    from scglmm.formula.grouping import RandomDesign

TOLERANCE = 1e-8
SAME = 1e-6  # a statistic below this is the rounding of two log-likelihoods: the models fit alike


@dataclass(frozen=True)
class Comparison:
    """What the smaller of two nested models leaves out.

    Attributes
    ----------
    n_fixed, n_random
        Number of fixed effects, and of variances and covariances.
    n_variances
        How many directions of random effects have no variance in the smaller model.
    """

    n_fixed: int
    n_random: int
    n_variances: int

    @property
    def df(self) -> int:
        """Number of parameters."""
        return self.n_fixed + self.n_random

    @property
    def distribution(self) -> str:
        """Distribution of the statistic under the smaller model."""
        if self.n_variances == 1:
            return f"1/2 chi2({self.df - 1}) + 1/2 chi2({self.df})"
        return f"chi2({self.df})"

    def p_values(self, statistic: np.ndarray) -> np.ndarray:
        """P-values of statistics; NaN stays NaN."""
        p = stats.chi2.sf(statistic, self.df)
        if self.n_variances != 1:
            return p
        # chi2(0) is always 0
        smaller = stats.chi2.sf(statistic, self.df - 1) if self.df > 1 else np.where(statistic > 0, 0.0, 1.0)
        return np.where(np.isnan(statistic), np.nan, (p + smaller) / 2)


def compare(full: Design, reduced: Design) -> Comparison:
    """Check that a model is nested in another on the same cells, and count what it leaves out.

    Raises
    ------
    ValueError
        It is not, or leaves nothing out.
    """
    outside = _outside(reduced.X, full.X)
    if outside.any():
        listed = ", ".join(repr(name) for name, out in zip(reduced.columns, outside, strict=True) if out)
        msg = f"The reduced model is not nested in the full one, whose fixed effects cannot express {listed}."
        raise ValueError(msg)
    inside: list[list[np.ndarray]] = [[] for _ in full.random]
    for term in reduced.random:
        inside[_place(term, full.random)].append(term.covariates)
    n_variances = 0
    for term, parts in zip(full.random, inside, strict=True):
        rank = np.linalg.matrix_rank(_scaled(np.column_stack(parts)), tol=TOLERANCE * len(term.codes)) if parts else 0
        n_variances += term.covariates.shape[1] - int(rank)
    n_random = _n_parameters(full.random) - _n_parameters(reduced.random)
    # both have full rank
    found = Comparison(full.X.shape[1] - reduced.X.shape[1], n_random, n_variances)
    if found.df == 0:
        msg = "The reduced model leaves nothing out: the two models are the same."
        raise ValueError(msg)
    return found


def _place(term: RandomDesign, terms: list[RandomDesign]) -> int:
    """Position of the smallest term in which another one is contained."""
    found = [
        (other.covariates.shape[1], i)
        for i, other in enumerate(terms)
        if _same_levels(term.codes, other.codes) and not _outside(term.covariates, other.covariates).any()
    ]
    if found:
        return min(found)[1]
    written = f"({' + '.join('1' if c == '(Intercept)' else c for c in term.columns)} | {term.group})"
    msg = (
        f"The reduced model is not nested in the full one: it has the random effects {written}, which no term of the "
        "full one contains."
    )
    raise ValueError(msg)


def _same_levels(one: np.ndarray, two: np.ndarray) -> bool:
    """Whether two grouping factors are the same but for the names of their levels."""
    n_pairs = np.unique(np.stack([one, two]), axis=1).shape[1]
    return n_pairs == np.unique(one).size == np.unique(two).size


def _outside(X: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Which columns of X are no linear combination of the columns of another matrix."""
    X, basis = _scaled(X), np.linalg.qr(_scaled(of))[0]
    return np.abs(X - basis @ (basis.T @ X)).max(axis=0) > TOLERANCE * np.abs(X).max(axis=0)


def _scaled(X: np.ndarray) -> np.ndarray:
    size = np.abs(X).max(axis=0)
    return X / np.where(size > 0, size, 1.0)


def _n_parameters(terms: list[RandomDesign]) -> int:
    return sum(c * (c + 1) // 2 for c in (term.covariates.shape[1] for term in terms))
