"""What a user wants tested: texts, mappings, numbers and lists of them become weights of coefficients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from scglmm.formula.combination import parse_combination
from scglmm.inference.contrasts import independent_rows
from scglmm.results.names import INTERCEPTS, check_distinct, field, readable, storable
from scglmm.results.read import StoredResult

Row = dict[str, float]


@dataclass(frozen=True)
class Hypothesis:
    """One test.

    Attributes
    ----------
    name
        As it is stored.
    rows
        Contrasts: stored coefficient -> weight; linearly independent.
    joint
        Whether it is a joint test, which it may be with one row only.
    partial
        Whether rows of coefficients that a group lacks are left out: a term has in a group what levels occur there.
    """

    name: str
    rows: list[Row]
    joint: bool
    partial: bool = False

    def rows_for(self, coefficients: Sequence[str]) -> list[Row]:
        """Rows that can be tested with these coefficients; none where the hypothesis cannot."""
        possible = [row for row in self.rows if row.keys() <= set(coefficients)]
        return possible if self.partial or len(possible) == len(self.rows) else []


def find_hypotheses(contrasts: Any, result: StoredResult) -> list[Hypothesis]:
    """Read what is to be tested; see :func:`scglmm.tl.contrast` for what is understood and what is raised."""
    if isinstance(contrasts, str):
        contrasts = {contrasts: contrasts}
    if not isinstance(contrasts, Mapping):
        msg = (
            "Contrasts are a mapping of names to contrasts, such as {'AD - MCI': 'Dx[T.AD] - Dx[T.MCI]'}, or a text, "
            f"not {type(contrasts).__name__}."
        )
        raise TypeError(msg)
    if not contrasts:
        msg = "There are no contrasts to test."
        raise ValueError(msg)
    reader = _Reader(result)
    found = []
    for name, spec in contrasts.items():
        if not isinstance(name, str):
            msg = f"The name of a contrast must be a text, not {name!r} ({type(name).__name__})."
            raise TypeError(msg)
        if not name.strip() or name in INTERCEPTS:
            msg = f"A contrast cannot be named {name!r}: choose another name."
            raise ValueError(msg)
        found.append(reader.hypothesis(name, spec))
    check_distinct([h.name for h in found], None if result.groups is None else list(result.groups))
    if impossible := [h for h in found if not any(h.rows_for(result.coefficients_in(g)) for g in result.fitted_groups)]:
        msg = f"No group has all coefficients of the contrast {impossible[0].name!r}."
        raise ValueError(msg)
    return found


class _Reader:
    """Reads contrasts of the coefficients of a result."""

    def __init__(self, result: StoredResult) -> None:
        self.result = result
        self.coefficients = result.coefficients
        self.terms: dict[str, list[str]] = {}
        for coefficient, term in result.terms.items():
            if coefficient not in INTERCEPTS:
                self.terms.setdefault(term, []).append(coefficient)
        self.spelled = {
            spelling: c for c in reversed(self.coefficients) for spelling in (field(c), readable(c), c)
        }  # what is stored comes last, and so before what is spelled otherwise

    def hypothesis(self, name: str, spec: Any) -> Hypothesis:
        """Read one of the values that the user gave."""
        if isinstance(spec, str):
            if (term := self._term(spec)) is not None:
                return Hypothesis(name, [{c: 1.0} for c in term], joint=True, partial=True)
            return Hypothesis(name, [self._text(name, spec)], joint=False)
        if isinstance(spec, Mapping) or _has_mapping(spec):
            return Hypothesis(name, [self._mapping(name, dict(spec.items()))], joint=False)
        if isinstance(spec, np.ndarray) or _is_sequence(spec):
            if _is_numbers(spec):
                return Hypothesis(name, [self._vector(name, spec)], joint=False)
            return Hypothesis(name, self._independent(self._rows(name, list(spec))), joint=True)
        msg = (
            f"The contrast {name!r} is a {type(spec).__name__}: it must be a text such as 'Dx[T.AD] - Dx[T.MCI]', a "
            "mapping of coefficients to weights, a list of weights, or a list of those for a joint test."
        )
        raise TypeError(msg)

    def _rows(self, name: str, specs: list[Any]) -> list[Row]:
        if not specs:
            msg = f"The contrast {name!r} is an empty list."
            raise ValueError(msg)
        rows: list[Row] = []
        for spec in specs:
            if _is_sequence(spec) and not _is_numbers(spec):
                msg = f"The joint test {name!r} has a list within its list: every entry must be a single contrast."
                raise TypeError(msg)
            rows += self.hypothesis(name, spec).rows
        return rows

    def _independent(self, rows: list[Row]) -> list[Row]:
        L = np.array([[row.get(c, 0.0) for c in self.coefficients] for row in rows])
        kept = independent_rows(L)
        return [{c: w for c, w in zip(self.coefficients, row, strict=True) if w} for row in kept.tolist()]

    def _term(self, text: str) -> list[str] | None:
        """Coefficients of a term; None where the text is none, or is the name of a coefficient as well."""
        found = storable(text.strip())
        return None if found in self.coefficients else self.terms.get(found)

    def _text(self, name: str, text: str) -> Row:
        row = parse_combination(text, self.spelled, self.result.find_coefficient)
        return self._not_zero(name, row)

    def _mapping(self, name: str, spec: dict[Any, Any]) -> Row:
        row: Row = {}
        for coefficient, weight in spec.items():
            found = self.spelled.get(coefficient) or self.result.find_coefficient(str(coefficient))
            row[found] = row.get(found, 0.0) + self._number(name, weight)
        return self._not_zero(name, row)

    def _vector(self, name: str, spec: Any) -> Row:
        weights = [self._number(name, weight) for weight in spec]
        if len(weights) != len(self.coefficients):
            msg = (
                f"The contrast {name!r} has {len(weights)} weights for {len(self.coefficients)} coefficients: "
                f"{', '.join(map(repr, self.coefficients))}."
            )
            raise ValueError(msg)
        return self._not_zero(name, dict(zip(self.coefficients, weights, strict=True)))

    def _number(self, name: str, weight: Any) -> float:
        if not isinstance(weight, Real | np.bool_):
            msg = f"A weight of the contrast {name!r} is {weight!r} ({type(weight).__name__}): weights are numbers."
            raise TypeError(msg)
        if not np.isfinite(float(weight)):
            msg = f"A weight of the contrast {name!r} is {weight}: weights are finite."
            raise ValueError(msg)
        return float(weight)

    def _not_zero(self, name: str, row: Row) -> Row:
        row = {c: w for c, w in row.items() if w != 0}
        if not row:
            msg = f"All weights of the contrast {name!r} are 0: there is nothing to test."
            raise ValueError(msg)
        return row


def _is_sequence(spec: Any) -> bool:
    return isinstance(spec, Sequence | np.ndarray) and not isinstance(spec, str | bytes)


def _is_numbers(spec: Any) -> bool:
    """Whether this is a list of weights rather than a list of contrasts."""
    if isinstance(spec, np.ndarray):
        return spec.ndim == 1 and spec.dtype.kind in "biuf"
    return _is_sequence(spec) and len(spec) > 0 and all(isinstance(x, Real | np.bool_) for x in spec)


def _has_mapping(spec: Any) -> bool:
    """Whether this is a pandas Series: weights under the names of coefficients."""
    return hasattr(spec, "items") and hasattr(spec, "index") and getattr(spec, "ndim", 0) == 1
