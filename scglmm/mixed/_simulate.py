"""Responses drawn from the fitted model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from ._result import GLMMResult


def simulate(result: GLMMResult, n: int, rng: np.random.Generator | int | None, re_form: bool | None) -> pd.DataFrame:
    """Simulate; see `GLMMResult.simulate`."""
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        msg = f"n must be a whole number of data sets, 1 or more, not {n!r}."
        raise ValueError(msg)
    if re_form is not None and re_form is not False:
        msg = f"re_form must be False (new random effects) or None (the predicted ones), not {re_form!r}."
        raise ValueError(msg)
    if not result.converged:
        msg = "The fit has not converged, so there is no model to simulate from."
        raise ValueError(msg)
    rng = np.random.default_rng(rng)
    draws = np.empty((result.nobs, n))
    for i in range(n):
        eta = result.estimates.eta if re_form is None else result.estimates.eta_fixed + _new_effects(result, rng)
        draws[:, i] = result.distribution(eta).sample(rng)
    return pd.DataFrame(draws, index=result.model.frame.index, columns=[f"sim_{i + 1}" for i in range(n)])


def _new_effects(result: GLMMResult, rng: np.random.Generator) -> np.ndarray:
    """Sum of new random effects on the rows."""
    total = np.zeros(result.nobs)
    for term, root in zip(result.model.design.random, result.joint.roots, strict=True):
        effects = rng.normal(size=(len(term.levels), root.shape[0])) @ root.T
        total += np.einsum("ij,ij->i", term.covariates, effects[term.codes])
    return total
