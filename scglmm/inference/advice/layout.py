"""How a design lies on the levels of its grouping factors: who varies within whom, and how many levels each group has.

Everything is counted on the strata with their numbers of cells, so it costs next to nothing however many cells there
are. Two questions come up again and again:

*Does a variable vary within the levels of a grouping factor?* A diagnosis does not vary within donors, a treatment
given to half of each donor's cells does.

*Which random term carries it?* The coarsest grouping factor within whose levels the variable is constant, or one that
has a random effect of it: the levels of that factor, not the cells, are the replicates of its test.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from scglmm.formula import Design
from scglmm.formula.coding import factor_column
from scglmm.formula.columns import clean_column, get_column
from scglmm.formula.safety import Expression
from scglmm.formula.terms import parse_terms
from scglmm.inference.containment import find_carrier
from scglmm.inference.frame import Frame, RandomTerm

FEW_VALUES = 10  # a number with no more values than this is like a factor: a dose, a 0/1 treatment


@dataclass(frozen=True, eq=False)
class Variable:
    """One variable of the fixed effects on the strata.

    Attributes
    ----------
    name
        obs column, or expression.
    codes
        (S,) which of `levels`; of a number, which of its values.
    levels
        Names of levels; values of a number.
    is_factor
        Whether it is coded as a factor.
    """

    name: str
    codes: np.ndarray
    levels: list[str]
    is_factor: bool

    @property
    def is_discrete(self) -> bool:
        """Whether it is a factor, or a number with few values."""
        return self.is_factor or len(self.levels) <= FEW_VALUES


class Layout:
    """A design on its strata.

    Parameters
    ----------
    design
        On the cells.
    obs
        What the design was made of.
    frame
        The design on the strata.
    first
        (S,) one cell of every stratum, numbered as the rows of `design`.
    """

    def __init__(self, design: Design, obs: pd.DataFrame, frame: Frame, first: np.ndarray) -> None:
        self.design = design
        self.frame = frame
        self.n_cells = frame.n_cells
        self.n_total = frame.n_total
        self._rows = np.flatnonzero(design.kept)[first]
        self._obs = obs
        products = parse_terms(design.formula.fixed).terms
        self.variables = {v.name: v for v in (self._variable(f) for p in products for f in p) if v is not None}
        self.products = {
            ":".join(f.name for f in p): [v for f in p if (v := _name(f)) in self.variables] for p in products
        }
        self.columns_of = {term.name: list(term.columns) for term in design.terms}

    def _variable(self, factor: Expression) -> Variable | None:
        """Values of one factor of a product; None for one that is only part of products, such as ``bs(x):Dx``."""
        name = _name(factor)
        if name in self.design.factors and name in self._obs.columns:
            column = clean_column(get_column(self._obs, name).iloc[self._rows], name)
            column = column if isinstance(column, pd.Series) else pd.Series(pd.Categorical(column))
            return Variable(name, column.cat.codes.to_numpy(), [str(x) for x in column.cat.categories], True)
        term = next((t for t in self.design.terms if t.name == factor.name), None)
        if term is None:
            return None
        x = self.frame.X[:, list(term.columns)]
        values, codes = np.unique(x, axis=0, return_inverse=True)
        levels = [f"{row[0]:g}" if len(row) == 1 else f"value {i + 1}" for i, row in enumerate(values)]
        return Variable(name, codes.ravel(), levels, name in self.design.factors)

    # ------------------------------------------------------------------------------------------------------ grouping

    @cached_property
    def groups(self) -> dict[str, RandomTerm]:
        """Grouping factors by name, in the order of the formula."""
        found: dict[str, RandomTerm] = {}
        for term in self.frame.terms:
            found.setdefault(term.group, term)
        return found

    def level_names(self, group: str) -> list[str]:
        """Names of the levels of a grouping factor."""
        return next(r.levels for r in self.design.random if r.group == group)

    def cells_per_level(self, group: str) -> np.ndarray:
        """(levels,) numbers of cells."""
        term = self.groups[group]
        return np.bincount(term.codes, self.n_cells, term.n_levels)

    def mixed(self, codes: np.ndarray, group: str) -> np.ndarray:
        """Levels of a grouping factor within which something varies."""
        term = self.groups[group]
        one = np.zeros(term.n_levels, codes.dtype)
        one[term.codes] = codes
        return np.unique(term.codes[one[term.codes] != codes])

    def carrier(self, variable: Variable) -> tuple[str, bool] | None:
        """Find the grouping factor that carries a variable, and whether by a random effect of it."""
        constant = [g for g in self.groups if not self.mixed(variable.codes, g).size]
        slopes = [
            r.group
            for r, term in zip(self.design.random, self.design.formula.random, strict=True)
            if any(_name(f) == variable.name for p in parse_terms(term.effects).terms for f in p)
        ]
        found = [(self.groups[g].n_levels, g, g not in constant) for g in dict.fromkeys([*constant, *slopes])]
        return min(found)[1:] if found else None

    def groups_per_level(self, variable: Variable, group: str) -> list[np.ndarray]:
        """For every level of a variable the levels of a grouping factor that have it."""
        codes = self.groups[group].codes
        return [np.unique(codes[variable.codes == i]) for i in range(len(variable.levels))]

    # -------------------------------------------------------------------------------------------------------- tables

    @cached_property
    def term_df(self) -> dict[str, tuple[float, str | None]]:
        """Containment degrees of freedom of every fixed term, and the grouping factor that carries it."""
        found = {}
        unit = np.eye(self.frame.X.shape[1])
        for name, columns in self.columns_of.items():
            carriers = [find_carrier(self.frame, unit[j]) for j in columns]
            known = [(c.df, self.frame.terms[c.term].group) for c in carriers if c is not None]
            found[name] = min(known) if known else (np.inf, None)
        return found

    def terms(self) -> pd.DataFrame:
        """Tabulate the fixed terms."""
        rows = []
        for name, columns in self.columns_of.items():
            parts = self.products.get(name, [])
            kind = (
                "interaction"
                if len(parts) > 1
                else "factor"
                if parts and self.variables[parts[0]].is_factor
                else "number"
            )
            df, group = self.term_df[name]
            x = self.frame.X[:, columns]
            within = [g for g, t in self.groups.items() if not _constant_within(x, t)]
            rows.append(
                {
                    "term": name,
                    "kind": kind,
                    "n_coefficients": len(columns),
                    "varies_within": ", ".join(within),
                    "replicates": "cells" if group is None else group,
                    "df": df,
                }
            )
        names = ["term", "kind", "n_coefficients", "varies_within", "replicates", "df"]
        return pd.DataFrame(rows, columns=names)

    def levels(self) -> pd.DataFrame:
        """Tabulate the levels of factors, with the levels of every grouping factor that have them."""
        rows = []
        for variable in self.variables.values():
            if not variable.is_discrete:
                continue
            cells = np.bincount(variable.codes, self.n_cells, len(variable.levels))
            counts = {g: self.groups_per_level(variable, g) for g in self.groups}
            for i, level in enumerate(variable.levels):
                row = {"variable": variable.name, "level": level, "n_cells": int(cells[i])}
                rows.append(row | {f"n_levels[{g}]": have[i].size for g, have in counts.items()})
        columns = ["variable", "level", "n_cells", *(f"n_levels[{g}]" for g in self.groups)]
        return pd.DataFrame(rows, columns=columns)

    def grouping(self) -> pd.DataFrame:
        """Tabulate the grouping factors."""
        rows = []
        for group, term in self.groups.items():
            cells = self.cells_per_level(group)
            rows.append(
                {
                    "group": group,
                    "n_levels": term.n_levels,
                    "cells_min": int(cells.min()),
                    "cells_median": float(np.median(cells)),
                    "cells_max": int(cells.max()),
                    "largest": self.level_names(group)[int(cells.argmax())],
                    "share_of_largest": float(cells.max() / self.n_total),
                }
            )
        columns = ["group", "n_levels", "cells_min", "cells_median", "cells_max", "largest", "share_of_largest"]
        return pd.DataFrame(rows, columns=columns)


def _name(factor: Expression) -> str:
    """Name the variable behind a factor of a product: the obs column of ``Dx`` and ``C(Dx)``, else the expression."""
    return factor_column(factor) or factor.name


def _constant_within(x: np.ndarray, term: RandomTerm) -> bool:
    one = np.zeros((term.n_levels, x.shape[1]))
    one[term.codes] = x
    return np.array_equal(one[term.codes], x)
