"""What is refused before one response is fitted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .compressed import CODES
from .quadrature import MAX_QUAD

if TYPE_CHECKING:
    from scglmm.formula import Design

GAUSSIAN = "gaussian"


def check_response(
    design: Design, y: np.ndarray, family: str, zi_design: Design | None, reml: bool, n_quad: int
) -> np.ndarray:
    """Check what the user gave; returns y as numbers.

    Raises
    ------
    ValueError
        As `scglmm.inference.response.fit_response`, whose arguments these are.
    """
    if family not in CODES:
        msg = f"family={family!r} is not known; it is one of {', '.join(map(repr, CODES))}."
        raise ValueError(msg)
    y = np.asarray(y, float)
    n = design.X.shape[0]
    if y.shape != (n,):
        msg = f"The response has shape {y.shape}, the design {n:,} rows: one number for each row is needed."
        raise ValueError(msg)
    bad = ~np.isfinite(y)
    if bad.any():
        msg = (
            f"The response is missing or infinite in {int(bad.sum()):,} of {n:,} rows, the first of them row "
            f"{int(bad.argmax())}. Leave these rows out."
        )
        raise ValueError(msg)
    if family != GAUSSIAN:
        wrong = (y < 0) | (y != np.round(y))
        if wrong.any():
            first = int(wrong.argmax())
            msg = (
                f"family={family!r} needs counts, and the response is {y[first]:g} in row {first} (negative or "
                f"fractional in {int(wrong.sum()):,} of {n:,} rows). Use raw counts, or family='gaussian'."
            )
            raise ValueError(msg)
    if n_quad != 1:
        _check_quadrature(design, reml, n_quad)
    if zi_design is not None:
        _check_inflation(design, family, zi_design)
    if family == GAUSSIAN:
        for term in design.random:
            q = len(np.unique(term.codes)) * term.covariates.shape[1]
            if q >= n:
                msg = (
                    f"The random effects of {term.group!r} are {q:,} for {n:,} rows: their variance and the residual "
                    "variance cannot be told apart. Take random slopes out, or a grouping factor with fewer levels."
                )
                raise ValueError(msg)
    return y


def _check_quadrature(design: Design, reml: bool, n_quad: int) -> None:
    if int(n_quad) != n_quad or not 1 <= n_quad <= MAX_QUAD:
        msg = f"n_quad={n_quad!r} is not a number of quadrature points: give an integer from 1 (Laplace) to {MAX_QUAD}."
        raise ValueError(msg)
    effects = [f"({' + '.join(term.columns)}|{term.group})".replace("(Intercept)", "1") for term in design.random]
    if len(effects) != 1 or design.random[0].covariates.shape[1] != 1:
        msg = (
            f"n_quad={n_quad} needs exactly one random term with one column, such as (1|donor); this model has "
            f"{', '.join(effects) or 'none'}. Use n_quad=1 (Laplace)."
        )
        raise ValueError(msg)
    if reml:
        msg = f"n_quad={n_quad} is for maximum likelihood only: use reml=False, or n_quad=1 (Laplace) for REML."
        raise ValueError(msg)


def _check_inflation(design: Design, family: str, zi_design: Design) -> None:
    if family == GAUSSIAN:
        msg = "Zero inflation is a model of counts: family='gaussian' has none. Use family='poisson' or 'nbinom2'."
        raise ValueError(msg)
    if zi_design.random:
        msg = "Random effects in the zero-inflation formula are not supported: use fixed effects only."
        raise ValueError(msg)
    if zi_design.X.shape[0] != design.X.shape[0]:
        msg = (
            f"The zero-inflation design has {zi_design.X.shape[0]:,} rows, the design {design.X.shape[0]:,}: both are "
            "built from the same rows."
        )
        raise ValueError(msg)
