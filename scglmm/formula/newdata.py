"""New data coded as a design was: offsets, groups and covariates of random effects besides the fixed effects."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import pandas as pd
from formulaic.materializers.types import FactorValues

from .coding import Coder
from .columns import clean_column, get_column, recode_column
from .design import Design, design_matrix
from .errors import FormulaError
from .grouping import group_cells
from .safety import parse_expression
from .terms import parse_terms


@dataclass(frozen=True, eq=False)
class NewGroups:
    """One random-effect term on new rows.

    Attributes
    ----------
    codes
        (rows,) int64: position of the level in the levels of the design; -1 for a level the design does not have.
    covariates
        (rows, effects) float64.
    unseen
        Names of the levels that the design does not have.
    """

    codes: np.ndarray
    covariates: np.ndarray
    unseen: list[str]


@dataclass(frozen=True, eq=False)
class NewRows:
    """New rows, coded.

    Attributes
    ----------
    X
        (rows, p) fixed effects.
    offset
        (rows,) sum of the offsets, 0 where the formula has none.
    random
        For each random term of the design its groups; None where the term was not asked for.
    """

    X: np.ndarray
    offset: np.ndarray
    random: list[NewGroups | None]


def new_rows(design: Design, newdata: pd.DataFrame, terms: Collection[int] | None = None) -> NewRows:
    """Code new data as a design: fixed effects, offsets, and the random terms that are asked for.

    Parameters
    ----------
    design
        From `build_design`.
    newdata
        Rows to code; columns of random terms that are not asked for are not needed.
    terms
        Positions of the random terms that are wanted; all by default.

    Raises
    ------
    KeyError
        A column does not exist.
    ValueError
        Values are missing or infinite, a level of a fixed effect is unknown, or an offset is infinite. Unknown levels
        of a grouping factor are no error: their code is -1.
    """
    wanted = [terms is None or i in terms for i in range(len(design.random))]
    effects = [parse_terms(term.effects) for term in design.formula.random]
    offsets = [parse_expression(offset) for offset in design.formula.offsets]
    needed = {name for offset in offsets for name in offset.columns}
    needed |= {name for term, asked in zip(effects, wanted, strict=True) if asked for name in term.columns}
    like = design.data | design.others
    data = {name: recode_column(get_column(newdata, name), name, like[name]) for name in sorted(needed)}
    coder = Coder(data, len(newdata), design.state)

    offset = np.zeros(len(newdata))
    for expression in offsets:
        value = np.asarray(coder.evaluate(expression), float)
        bad = ~np.isfinite(value)
        if bad.any():
            msg = f"The offset {coder.undefined(expression.text, bad, list(expression.columns))}"
            raise ValueError(msg)
        offset += value
    random: list[NewGroups | None] = []
    for i, asked in enumerate(wanted):
        if not asked:
            random.append(None)
            continue
        if effects[i].terms:
            coded = design.effects[i]
            covariates = coder.recode(effects[i], coded.spec, coded.terms)
        else:
            covariates = np.ones((len(newdata), 1))
        codes, unseen = _codes(design, i, newdata)
        random.append(NewGroups(codes, covariates, unseen))
    return NewRows(design_matrix(design, newdata), offset, random)


def _codes(design: Design, term: int, newdata: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
    """Level numbers of new rows in the levels of the design, -1 where there is none."""
    columns = design.formula.random[term].columns
    data = {}
    for name in columns:
        column = get_column(newdata, name)
        if column.isna().any():
            msg = f"Values of {name!r} are missing (NaN) in {int(column.isna().sum()):,} of {len(column):,} rows."
            raise ValueError(msg)
        data[name] = clean_column(column, name)
    grouping = group_cells(columns, data)
    places = {level: i for i, level in enumerate(design.random[term].levels)}
    found = np.array([places.get(level, -1) for level in grouping.levels], dtype=np.int64)
    unseen = [level for level, place in zip(grouping.levels, found, strict=True) if place < 0]
    return found[grouping.codes], unseen


def evaluate_response(text: str, data: pd.DataFrame) -> np.ndarray:
    """Compute the left side of a formula.

    Parameters
    ----------
    text
        `Formula.response`.
    data
        Rows without missing values in the columns of the response.

    Returns
    -------
    (rows,) float64; values may be infinite or NaN where the expression is undefined.

    Raises
    ------
    KeyError
        A column does not exist.
    FormulaError
        The response is no number.
    """
    expression = parse_expression(text)
    columns = {name: clean_column(get_column(data, name), name) for name in expression.columns}
    value = Coder(columns, len(data), {}).evaluate(expression)
    if isinstance(value, pd.Series):
        msg = (
            f"The response {text!r} is a factor, and a number is needed. For two levels make it 0 and 1; there is no "
            "family for more."
        )
        raise FormulaError(msg)
    if isinstance(value, FactorValues) or np.shape(value) != (len(data),):
        msg = f"The response {text!r} is not one number per row."
        raise FormulaError(msg)
    return np.asarray(value, float)
