"""Formulas: from ``"~ offset(log(libSize)) + Dx + Age + (1|SubID)"`` and obs to the numbers that a model needs.

The lowest layer of the package. It knows nothing of counts, genes or AnnData: text and a data frame come in, plain
arrays with names go out. In the order in which a formula passes through:

``lexer``, ``errors``
    Tokens; errors that point at the place.
``grammar``
    `parse_formula`: lme4's random-effect terms and offsets are taken out, shorthand is expanded.
``terms``
    Wilkinson's algebra of the fixed part and of the effects: which terms a sum of products stands for.
``safety``
    Formulas are not code: what an expression such as ``log(libSize)`` may contain.
``columns``
    The obs columns that are used, made clean: float64 numbers, or categories that all occur.
``evaluate``
    The value of a checked expression, node by node, without Python's `eval`.
``coding``, ``rank``
    Columns of numbers by formulaic; no term is constant, no column aliased.
``grouping``
    Random-effect terms as level numbers, levels and covariates.
``design``
    `build_design` puts it together, `design_matrix` codes new data the same way.
``inflation``
    `parse_inflation`: the formula of a zero inflation.
``newdata``
    `new_rows`: offsets, groups and covariates of random effects of new data as well; `evaluate_response`: the left
    side.
"""

from __future__ import annotations

from .coding import FixedTerm
from .design import Design, build_design, design_matrix, factor_levels, formula_columns
from .errors import DesignError, FormulaError
from .grammar import Formula, RandomTerm, parse_formula
from .grouping import RandomDesign
from .inflation import parse_inflation
from .newdata import NewGroups, NewRows, evaluate_response, new_rows

__all__ = [
    "Design",
    "DesignError",
    "FixedTerm",
    "Formula",
    "FormulaError",
    "NewGroups",
    "NewRows",
    "RandomDesign",
    "RandomTerm",
    "build_design",
    "design_matrix",
    "evaluate_response",
    "factor_levels",
    "formula_columns",
    "new_rows",
    "parse_formula",
    "parse_inflation",
]
