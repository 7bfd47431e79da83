"""Mixed models of one response: what :func:`scglmm.glmm` returns, and what can be asked of it.

In dependency order:

`_wording`, `_data`
    One response with its designs, from a data frame or a gene of an AnnData; messages in the words of a data frame.
`_distribution`
    Moments, probabilities and random numbers of the families.
`_joint`
    Random and fixed effects as one least-squares problem at the fit.
`_effects`, `_tidy`
    Variance components and effects of the levels; everything in one table.
`_predict`, `_residuals`, `_simulate`
    What the model says about rows, old and new.
`_hypothesis`, `_tests`, `_confint`, `_lrt`
    Contrasts as text; tests and intervals; nested models.
`_variance`
    Fractions of variance, R², intraclass correlation.
`_checks`, `_influence`
    What may be wrong with a fit, in numbers and sentences.
`_format`, `_summary`
    The summary.
`_result`, `_fit`
    `GLMMResult` and `glmm`.
"""

from __future__ import annotations

from ._checks import (
    Check,
    check,
    check_collinearity,
    check_convergence,
    check_overdispersion,
    check_singular,
    check_zeroinflation,
    vif,
)
from ._fit import glmm
from ._influence import influence
from ._lrt import lrt
from ._result import GLMMResult
from ._variance import ICC, R2

__all__ = [
    "ICC",
    "R2",
    "Check",
    "GLMMResult",
    "check",
    "check_collinearity",
    "check_convergence",
    "check_overdispersion",
    "check_singular",
    "check_zeroinflation",
    "glmm",
    "influence",
    "lrt",
    "vif",
]
