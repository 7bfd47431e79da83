"""Hypotheses as text: ``"Dx[T.AD] - Dx[T.MCI]"``, ``'cond(Dx="AD") - cond(Dx="Control")'``, ``"Days = 10"``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np

from scglmm.formula.combination import Form, Values, parse_equation
from scglmm.results.names import near_first


def parse_hypothesis(
    text: str, coefficients: Sequence[str], condition: Callable[[Values], np.ndarray]
) -> tuple[np.ndarray, float]:
    """Read a hypothesis.

    Parameters
    ----------
    text
        A linear combination, tested against 0 or against what stands after ``=``.
    coefficients
        Names of the coefficients.
    condition
        What ``cond(...)`` stands for: the row of the design with these values.

    Returns
    -------
    Weights (p,) and the value under the hypothesis.

    Raises
    ------
    ValueError
        It cannot be read; a caret stands under the place.
    KeyError
        A name is no coefficient; near ones are listed.
    """
    names = list(coefficients)

    def find(name: str) -> NoReturn:
        msg = f"{name!r} is not a coefficient (in {text!r}); the coefficients are {near_first(name, names)}."
        raise KeyError(msg)

    def row(values: Values) -> Form:
        return dict(zip(names, condition(values).tolist(), strict=True))

    form, value = parse_equation(text, {name: name for name in names}, find, row)
    return np.array([form.get(name, 0.0) for name in names]), value


def as_weights(value: Any, p: int) -> np.ndarray:
    """Check a vector of weights.

    Raises
    ------
    ValueError
        It has not p finite numbers, or is 0 everywhere.
    """
    weights = np.asarray(value, dtype=np.float64)
    if weights.shape != (p,) or not np.isfinite(weights).all():
        msg = f"A vector of weights has one finite number per coefficient, {p} in all; this one is {value!r}."
        raise ValueError(msg)
    if not weights.any():
        msg = "All weights of the contrast are 0: there is nothing to test."
        raise ValueError(msg)
    return weights
