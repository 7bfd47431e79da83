"""From a formula and obs to the numbers that a model needs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import formulaic
import numpy as np
import pandas as pd

from .coding import INTERCEPT, Coded, Coder, FixedTerm, check_rank, describe_factors, factor_column
from .columns import Column, clean_column, get_column, recode_column, rows_without_missing
from .errors import DesignError, FormulaError
from .grammar import Formula
from .grouping import RandomDesign, check_same_cells, group_cells, random_design
from .safety import Expression, parse_expression
from .terms import Terms, parse_terms


@dataclass(frozen=True, eq=False)
class Design:
    """A formula on n cells.

    Attributes
    ----------
    formula
        What was coded.
    X
        (n, p) float64, C order: the fixed effects.
    columns
        Names of the columns of X: "(Intercept)", "Dx[T.AD]", ...: formulaic's, except for the intercept.
    terms
        Which columns of X belong to which term.
    offset
        (n,) float64, the sum of the offsets; None where the formula has none.
    random
        The random-effect terms, in the order of the formula.
    references
        Reference level of every treatment-coded factor of the fixed effects. Ordered categories are treatment coded
        too: each level against the first.
    factors
        Levels, in order, of every factor among the fixed effects and the covariates of random effects. The key is the
        obs column, or the expression where a factor is computed.
    kept
        (rows of obs,) bool: the rows in use; all of them unless ``na_action="drop"`` left some out.
    first_factor
        The first obs column among the fixed effects that holds categories, text or booleans; None where there is none.
    notes
        Things worth saying about how the formula was coded that are no error, one sentence or two each.
    spec
        How the fixed effects were coded, for `design_matrix`.
    data
        The clean obs columns of the fixed effects without their rows: an empty array for numbers, an empty Series
        with the categories for a factor.
    others
        The same for the columns that only offsets and effects of random terms use.
    effects
        How the effects of each random term were coded, for `scglmm.formula.newdata`.
    state
        What stateful functions (``scale``, the splines) learned, wherever they stand in the formula.
    """

    formula: Formula
    X: np.ndarray
    columns: list[str]
    terms: list[FixedTerm]
    offset: np.ndarray | None
    random: list[RandomDesign]
    references: dict[str, str]
    factors: dict[str, list[str]]
    kept: np.ndarray
    first_factor: str | None
    notes: tuple[str, ...]
    spec: formulaic.ModelSpec
    data: dict[str, Column]
    others: dict[str, Column] = field(default_factory=dict)
    effects: tuple[Coded, ...] = ()
    state: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Parts:
    """The pieces of a formula, parsed again from their text: a `Formula` can be made by hand."""

    fixed: Terms
    offsets: tuple[Expression, ...]
    effects: tuple[Terms, ...]
    groups: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, formula: Formula) -> _Parts:
        return cls(
            parse_terms(formula.fixed),
            tuple(parse_expression(offset) for offset in formula.offsets),
            tuple(parse_terms(term.effects) for term in formula.random),
            tuple(term.columns for term in formula.random),
        )

    @property
    def columns(self) -> tuple[str, ...]:
        names = [*self.fixed.columns]
        for offset in self.offsets:
            names += offset.columns
        for effects, group in zip(self.effects, self.groups, strict=True):
            names += [*effects.columns, *group]
        return tuple(dict.fromkeys(names))

    @property
    def covariates(self) -> tuple[str, ...]:
        """The columns of offsets and of effects of random terms."""
        names = [name for offset in self.offsets for name in offset.columns]
        names += [name for effects in self.effects for name in effects.columns]
        return tuple(dict.fromkeys(names))

    @property
    def functions(self) -> set[str]:
        terms = [term for part in (self.fixed, *self.effects) for term in part.terms]
        factors = [factor for term in terms for factor in term]
        return {name for expression in (*factors, *self.offsets) for name in expression.functions}


def formula_columns(formula: Formula) -> tuple[str, ...]:
    """Names of the obs columns that a formula uses, its response aside."""
    return _Parts.of(formula).columns


def factor_levels(
    formula: Formula, obs: pd.DataFrame, *, na_action: str = "raise"
) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Give the levels and the reference levels that a formula has on some cells, which need not be able to answer it.

    Parameters
    ----------
    formula, obs, na_action
        As for `build_design`.

    Returns
    -------
    What `Design.factors` and `Design.references` would be.

    Raises
    ------
    DesignError
        A term is constant, infinite or undefined on these cells, or has too many levels.
    KeyError, ValueError
        As `build_design`.
    """
    parts = _Parts.of(formula)
    _check_shadows(parts.functions, obs)
    raw = {name: get_column(obs, name) for name in parts.columns}
    kept = rows_without_missing(raw, len(obs), na_action)
    data = {name: clean_column(column if kept.all() else column[kept], name) for name, column in raw.items()}
    coder = Coder(data, int(kept.sum()), {})
    factors, references = describe_factors(parts.fixed, coder, coder.code(parts.fixed).spec)
    for effects in parts.effects:
        if effects.terms:
            factors = describe_factors(effects, coder, coder.code(effects).spec)[0] | factors
    return factors, references


def build_design(formula: Formula, obs: pd.DataFrame, *, na_action: str = "raise") -> Design:
    """Code a formula on the cells of `obs`.

    Only the columns that the formula uses are read. Unused categories are dropped; text and booleans are factors with
    sorted levels; categories keep their order, the first is the reference (also of ordered categories, which are
    treatment coded); integers are numbers.

    Parameters
    ----------
    formula
        From `parse_formula`; its response is not looked at.
    obs
        One row per cell.
    na_action
        "raise" (missing values are an error), or "drop" (rows with a missing value in a column that the formula uses
        are left out).

    Raises
    ------
    KeyError
        A column does not exist; near names are listed.
    FormulaError
        The formula asks for something impossible. It is a ValueError.
    DesignError
        These cells cannot answer the formula: a term is constant, columns of X are aliased, a grouping factor has one
        level or as many as there are cells, an offset is infinite. It is a ValueError.
    ValueError
        Values are missing or infinite, or a column is neither number nor text.
    """
    parts = _Parts.of(formula)
    if len(obs) == 0:
        msg = "obs has no rows: there are no cells to fit."
        raise DesignError(msg)
    _check_shadows(parts.functions, obs)
    raw = {name: get_column(obs, name) for name in parts.columns}
    kept = rows_without_missing(raw, len(obs), na_action)
    data = {name: clean_column(column if kept.all() else column[kept], name) for name, column in raw.items()}
    coder = Coder(data, int(kept.sum()), {})

    coded = coder.code(parts.fixed)
    if not coded.names:
        msg = "The fixed part of the formula has no columns: an intercept is needed at least, as in '~ 1'."
        raise FormulaError(msg)
    check_rank(coded, parts.fixed.intercept, "The fixed effects")
    offset = _offset(parts.offsets, coder)
    factors, references = describe_factors(parts.fixed, coder, coded.spec)

    random, effects_coded = [], []
    for term, effects, group in zip(formula.random, parts.effects, parts.groups, strict=True):
        covariates = _covariates(effects, coder, str(term), factors)
        random.append(random_design(term, group_cells(group, data), covariates))
        effects_coded.append(replace(covariates, matrix=covariates.matrix[:0]))
    check_same_cells(list(formula.random), random)
    notes = _overlaps(formula, parts.effects, coder)
    notes += _ordered(parts, raw, data)
    return Design(
        formula=formula,
        X=coded.matrix,
        columns=coded.names,
        terms=coded.terms,
        offset=offset,
        random=random,
        references=references,
        factors=factors,
        kept=kept,
        first_factor=_first_factor(parts.fixed, data),
        notes=tuple(dict.fromkeys(notes)),
        spec=coded.spec,
        data={name: data[name][:0] for name in parts.fixed.columns},
        others={name: data[name][:0] for name in parts.covariates if name not in parts.fixed.columns},
        effects=tuple(effects_coded),
        state=coder.state,
    )


def design_matrix(design: Design, newdata: pd.DataFrame) -> np.ndarray:
    """Code new data as the fixed effects of a design.

    Parameters
    ----------
    design
        From `build_design`: levels, means of ``scale()``, knots of splines are taken from there.
    newdata
        Rows to code, with every obs column that the fixed part uses.

    Returns
    -------
    (rows, p) float64, in the order of `Design.columns`.

    Raises
    ------
    KeyError
        A column does not exist.
    ValueError
        Values are missing or infinite, or a level is unknown to the design: the message names the column, the level
        and the valid ones.
    """
    data = {name: recode_column(get_column(newdata, name), name, like) for name, like in design.data.items()}
    terms = parse_terms(design.formula.fixed)
    return Coder(data, len(newdata), design.spec.transform_state).recode(terms, design.spec, design.terms)


def _check_shadows(functions: set[str], obs: pd.DataFrame) -> None:
    """Check that no function of the formula is the name of an obs column as well."""
    for name in sorted(functions):
        if name in obs.columns:
            msg = (
                f"The formula calls {name + ('.' if name == 'np' else '()')}, and obs has a column named {name!r} as "
                f"well. Rename the column: adata.obs = adata.obs.rename(columns={{{name!r}: '{name}_'}})."
            )
            raise FormulaError(msg)


def _offset(offsets: tuple[Expression, ...], coder: Coder) -> np.ndarray | None:
    """Sum of the offsets."""
    if not offsets:
        return None
    total = np.zeros(coder.n)
    for expression in offsets:
        value = coder.evaluate(expression)
        if not isinstance(value, np.ndarray) or value.shape != (coder.n,):
            msg = f"The offset {expression.text!r} is not one number per cell."
            raise FormulaError(msg)
        bad = ~np.isfinite(value)
        if bad.any():
            zero = [
                name
                for name in expression.columns
                if isinstance(column := coder.columns[name], np.ndarray) and not column[bad].any()
            ]
            if zero:
                msg = (
                    f"The offset {expression.text!r} is infinite in {int(bad.sum()):,} of {coder.n:,} cells, because "
                    f"{zero[0]!r} is 0 there. Remove these cells first: adata = adata[adata.obs[{zero[0]!r}] > 0]."
                )
            else:
                msg = f"The offset {coder.undefined(expression.text, bad, list(expression.columns))}"
            raise DesignError(msg)
        total += value
    return total


def _covariates(effects: Terms, coder: Coder, term: str, factors: dict[str, list[str]]) -> Coded:
    """Covariates of a random-effect term."""
    if not effects.terms:
        return Coded(np.ones((coder.n, 1)), [INTERCEPT], [], formulaic.ModelSpec(formula=[]))
    coded = coder.code(effects)
    check_rank(coded, effects.intercept, f"The effects of {term}")
    for name, levels in describe_factors(effects, coder, coded.spec)[0].items():
        factors.setdefault(name, levels)
    return coded


def _overlaps(formula: Formula, effects: tuple[Terms, ...], coder: Coder) -> list[str]:
    """Note a factor coded by all its levels beside a random intercept of the same group."""
    notes = []
    intercepts = {frozenset(term.columns): term for term, e in zip(formula.random, effects, strict=True) if e.intercept}
    for term, e in zip(formula.random, effects, strict=True):
        other = intercepts.get(frozenset(term.columns))
        factors = [f.name for product in e.terms for f in product if isinstance(coder.evaluate(f), pd.Series)]
        if other is not None and other is not term and factors:
            notes.append(
                f"{term} has an effect for every level of {factors[0]!r}, and {other} one that all levels share: "
                f"these variances overlap. Usually ({factors[0]}|{term.group}) is meant."
            )
    return notes


def _ordered(parts: _Parts, raw: dict[str, pd.Series], data: dict[str, Column]) -> list[str]:
    """Note ordered categories among the effects."""
    notes = []
    for name in dict.fromkeys(c for terms in (parts.fixed, *parts.effects) for c in terms.columns):
        dtype = raw[name].dtype
        if isinstance(dtype, pd.CategoricalDtype) and dtype.ordered:
            first = data[name].cat.categories[0]
            notes.append(
                f"{name!r} is an ordered category; it is coded as any other, each level against the first ({first!r})."
            )
    return notes


def _first_factor(terms: Terms, data: dict[str, Column]) -> str | None:
    for term in terms.terms:
        for factor in term:
            column = factor_column(factor)
            if column is not None and isinstance(data[column], pd.Series):
                return column
    return None
