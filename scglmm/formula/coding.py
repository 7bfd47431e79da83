"""From terms to columns of numbers: expressions are evaluated here, formulaic codes them."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import formulaic
import numpy as np
import pandas as pd
from formulaic.formula import SimpleFormula
from formulaic.materializers import PandasMaterializer
from formulaic.materializers.types import FactorValues
from formulaic.parser.types import Factor, Term
from formulaic.transforms.contrasts import TreatmentContrasts

from .columns import Column, constant_value
from .errors import DesignError, FormulaError, pass_memory_error
from .evaluate import Value, evaluate, listed
from .rank import aliased_columns
from .safety import Expression
from .terms import Terms

INTERCEPT = "(Intercept)"
MAX_LEVELS = 1000
LARGEST = 1e100  # squares of larger numbers, and of the inverse of them, leave the range of numbers


@dataclass(frozen=True)
class FixedTerm:
    """A term of the design and its columns; the intercept is no term.

    Attributes
    ----------
    name
        For instance "Dx", "Dx:Age" or "bs(Age, df=4)".
    columns
        Which columns of X belong to it: "Dx" with three levels -> (1, 2).
    """

    name: str
    columns: tuple[int, ...]


@dataclass(frozen=True)
class Coded:
    """Columns that came of terms.

    Attributes
    ----------
    matrix
        (n, p), float64.
    names
        Names of the columns.
    terms
        Which columns belong to which term.
    spec
        How formulaic coded them, to code new data the same way.
    """

    matrix: np.ndarray
    names: list[str]
    terms: list[FixedTerm]
    spec: formulaic.ModelSpec


class Coder:
    """Code terms on one set of cells.

    Expressions are evaluated once, whichever part of the formula they stand in.

    Parameters
    ----------
    columns
        The clean obs columns.
    n
        Number of cells.
    state
        What stateful functions learned from the data of the fit; empty at the fit itself.
    """

    def __init__(self, columns: Mapping[str, Column], n: int, state: dict[str, Any]) -> None:
        self.columns = columns
        self.n = n
        self.state = state
        self.values: dict[str, Value] = {}

    def evaluate(self, expression: Expression) -> Value:
        """Value of an expression on the cells."""
        if expression.text not in self.values:
            self.values[expression.text] = evaluate(expression.tree, self.columns, self.state)
        return self.values[expression.text]

    def code(self, terms: Terms) -> Coded:
        """Code the terms on the cells of the fit.

        Raises
        ------
        DesignError
            A term is the same for all cells, is infinite or undefined for some, or has too many levels.
        """
        factors = _factors(terms)
        for factor in factors.values():
            self._check_varies(factor)
        self._check_size(terms)
        products = [Term([Factor(factor.name, eval_method="lookup") for factor in term]) for term in terms.terms]
        if terms.intercept:
            # in parentheses, because an obs column may be named "1"
            products.insert(0, Term([Factor("(1)", eval_method="literal")]))
        spec = formulaic.ModelSpec(
            formula=SimpleFormula(products, _ordering="none"), na_action="ignore", output="numpy"
        )
        matrix, spec = self._matrix(spec, factors)
        names: list[str] = []
        fixed: list[FixedTerm] = []
        for term, _, columns in spec.structure:
            if term.degree:
                place = range(len(names), len(names) + len(columns))
                fixed.append(FixedTerm(":".join(factor.expr for factor in term.factors), tuple(place)))
                names += columns
            else:
                names.append(INTERCEPT)
        _check_unique(names)
        self._check_finite(matrix, fixed, factors)
        _check_size_of_values(matrix, fixed)
        spec.transform_state.update(self.state)
        return Coded(matrix, names, fixed, spec)

    def recode(self, terms: Terms, spec: formulaic.ModelSpec, fixed: list[FixedTerm]) -> np.ndarray:
        """Code the same terms on new cells."""
        factors = _factors(terms)
        matrix, _ = self._matrix(spec, factors)
        self._check_finite(matrix, fixed, factors)
        return matrix

    def _matrix(
        self, spec: formulaic.ModelSpec, factors: Mapping[str, Expression]
    ) -> tuple[np.ndarray, formulaic.ModelSpec]:
        """Have formulaic put the columns together."""
        values = {name: self.evaluate(factor) for name, factor in factors.items()}
        materializer = PandasMaterializer(pd.DataFrame(index=pd.RangeIndex(self.n)), context=values)
        try:
            with np.errstate(all="ignore"):  # inf * 0 in a product: `_check_finite` says where
                matrix = materializer.get_model_matrix(spec)
        except Exception as error:
            # formulaic's errors derive from Exception
            pass_memory_error(error)
            msg = f"The terms {', '.join(factors) or '1'} could not be coded: {error}"
            raise DesignError(msg) from error
        return np.ascontiguousarray(matrix, dtype=np.float64), matrix.model_spec

    def _check_varies(self, factor: Expression) -> None:
        """Check that a factor is not the same for all cells."""
        value = self.evaluate(factor)
        constant = None
        if _is_factor(value):
            levels = value.cat.categories
            constant = constant_value(value)
            if len(levels) > MAX_LEVELS:
                msg = (
                    f"{factor.name!r} has {len(levels):,} levels, and would take as many coefficients. A factor with "
                    f"many levels is better a random effect, (1|{factor.text}); a number should be stored as a number."
                )
                raise DesignError(msg)
            _check_levels(levels, factor.name)
        elif isinstance(value, np.ndarray) and not isinstance(value, FactorValues) and value.ndim == 1:
            constant = constant_value(value)
        if constant is None:
            # scale(x) of a constant x is 0/0, which would be reported as undefined
            constants = [constant_value(self.columns[name]) for name in factor.columns]
            constant = constants[0] if None not in constants else None
        if constant is not None:
            msg = (
                f"{factor.name!r} is constant: all {self.n:,} cells have {constant}, so there is no effect to "
                "estimate. Take it out of the formula."
            )
            raise DesignError(msg)

    def _check_size(self, terms: Terms) -> None:
        """Check that interactions of factors do not explode."""
        for term in terms.terms:
            values = [self.evaluate(factor) for factor in term]
            size = np.prod(np.array([len(value.cat.categories) for value in values if _is_factor(value)], float))
            if size > 2 * MAX_LEVELS:
                msg = f"{':'.join(factor.name for factor in term)!r} has {int(size):,} combinations of levels."
                raise DesignError(msg)

    def _check_finite(self, matrix: np.ndarray, terms: list[FixedTerm], factors: Mapping[str, Expression]) -> None:
        """Check that no value is infinite or undefined, as log(0) is."""
        if np.isfinite(matrix).all():
            return
        for term in terms:
            bad = ~np.isfinite(matrix[:, list(term.columns)]).all(axis=1)
            if bad.any():
                columns = [c for name, f in factors.items() if name in term.name.split(":") for c in f.columns]
                raise DesignError(self.undefined(term.name, bad, columns or list(self.columns)))

    def undefined(self, name: str, bad: np.ndarray, columns: list[str]) -> str:
        """Message about values that are infinite or undefined."""
        ranges = [
            f"{column!r} runs from {values.min():g} to {values.max():g}"
            for column in dict.fromkeys(columns)
            if isinstance(values := self.columns[column], np.ndarray)
        ]
        return (
            f"{name!r} is infinite or undefined in {int(bad.sum()):,} of {self.n:,} cells"
            f"{' (' + ', '.join(ranges) + ')' if ranges else ''}. Correct these values or leave the cells out."
        )


def _check_size_of_values(matrix: np.ndarray, terms: list[FixedTerm]) -> None:
    """Check that the columns can be squared and summed."""
    for term in terms:
        for size in np.abs(matrix[:, list(term.columns)]).max(axis=0, initial=0.0):
            if size > LARGEST or 0 < size < 1 / LARGEST:
                msg = (
                    f"{term.name!r} has values up to {size:.3g} in size, which cannot be computed with: give it in "
                    "other units."
                )
                raise DesignError(msg)


def _factors(terms: Terms) -> dict[str, Expression]:
    """Every factor of the terms by its name in the output."""
    factors: dict[str, Expression] = {}
    for factor in (factor for term in terms.terms for factor in term):
        if factors.setdefault(factor.name, factor).text != factor.text:
            msg = f"The formula uses {factor.text!r} and an obs column of the same name: rename the column."
            raise FormulaError(msg)
    return factors


def factor_column(factor: Expression) -> str | None:
    """Name the obs column whose levels a factor has: that of ``Dx`` and of ``C(Dx, ...)``."""
    tree = factor.tree
    if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and tree.func.id in {"C", "I"}:
        tree = tree.args[0]
    return tree.id if isinstance(tree, ast.Name) else None


def describe_factors(
    terms: Terms, coder: Coder, spec: formulaic.ModelSpec
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Levels of every factor in the terms, and the reference level of those that are treatment coded.

    The key is the obs column, or the expression where a factor is computed.
    """
    reduced = {
        factor.factor.expr
        for _, products, _ in spec.structure
        for product in products
        for factor in product.factors
        if factor.reduced
    }
    levels: dict[str, list[str]] = {}
    references: dict[str, str] = {}
    for factor in dict.fromkeys(factor for term in terms.terms for factor in term):
        if not _is_factor(coder.evaluate(factor)):
            continue
        name = factor_column(factor) or factor.name
        state = spec.encoder_state[factor.name][1]["contrasts"]
        levels[name] = [str(level) for level in state.levels]
        if factor.name in reduced and isinstance(state.contrasts, TreatmentContrasts):
            references[name] = str(state.contrasts.get_drop_field(state.levels, reduced_rank=False))
    return levels, references


def check_rank(coded: Coded, intercept: bool, what: str) -> None:
    """Check that no column is a combination of the others.

    Raises
    ------
    DesignError
        One is; the message names it, what it is made of, and what to do.
    """
    n, p = coded.matrix.shape
    if p >= n:
        msg = f"{what} take {p:,} coefficients, and there are no more than {n:,} cells."
        raise DesignError(msg)
    aliased = aliased_columns(coded.matrix, intercept)
    if not aliased:
        return
    owner = {column: term.name for term in coded.terms for column in term.columns}
    lines, involved, empty = [], [], []
    for j, parts in list(aliased.items())[:10]:
        involved += [owner[i] for i in (*parts, j) if i in owner]
        if parts:
            lines.append(f"{coded.names[j]} = {_sum(parts, coded.names)}")
        else:
            empty.append(coded.names[j])
            lines.append(f"{coded.names[j]} = 0 in every cell")
    more = f"\n    and {len(aliased) - 10} more" if len(aliased) > 10 else ""
    terms = list(dict.fromkeys(involved))
    msg = (
        f"{what} cannot be told apart: {len(aliased)} of {p} columns of the design add nothing to the others:\n    "
        + "\n    ".join(lines)
        + f"{more}\n{_advice(terms, bool(empty), intercept)}"
    )
    raise DesignError(msg)


def _advice(terms: list[str], empty: bool, intercept: bool) -> str:
    """Say what to do about aliased columns."""
    splines = [term for term in terms if term.startswith(("cr(", "cs(", "cc(")) and "constraints" not in term]
    if splines:
        other = "the intercept does" if intercept else "the columns of a factor do without an intercept"
        return (
            f"The columns of this spline add up to 1, as {other}. Write "
            f"{splines[0].removesuffix(')')}, constraints='center'), or use bs() in its place."
        )
    if empty:
        return (
            "No cell has this combination of levels. Write '+' for '*', or make one obs column of the combinations "
            "that occur."
        )
    if len(terms) > 1:
        return f"Take one of {', '.join(terms)} out of the formula, or part of it."
    return f"Take {terms[0]} out of the formula or make it simpler."


def _sum(parts: Mapping[int, float], names: list[str], most: int = 6) -> str:
    """Spell a linear combination out."""
    text = ""
    for count, (i, coefficient) in enumerate(parts.items()):
        if count == most:
            return f"{text} + {len(parts) - most} more"
        size = abs(coefficient)
        times = "" if abs(size - 1) < 1e-6 else f"{size:.4g} "
        sign = ("-" if coefficient < 0 else "") if not text else (" - " if coefficient < 0 else " + ")
        text += f"{sign}{times}{names[i]}"
    return text


def _is_factor(value: Value) -> bool:
    """Whether a value is coded by its levels; formulaic's `FactorValues` passes for what it wraps."""
    return isinstance(value, pd.Series) and isinstance(value.dtype, pd.CategoricalDtype)


def _check_unique(names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        msg = f"Columns of the design would have the same name: {', '.join(twice)}. Rename an obs column or a level."
        raise DesignError(msg)


def _check_levels(levels: pd.Index, name: str) -> None:
    """Check that levels stay apart as text, and that none has a name that formulaic skips over."""
    names = [str(level) for level in levels]
    if len(set(names)) < len(names):
        twice = sorted({level for level in names if names.count(level) > 1})
        msg = f"{name!r} has different levels that read the same: {listed(twice)}. Rename them."
        raise ValueError(msg)
    hidden = [level for level in names if level.startswith("__")]
    if hidden:
        msg = f"Levels must not begin with two underscores: {listed(hidden)} of {name!r}. Rename them."
        raise ValueError(msg)
