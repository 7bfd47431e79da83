"""Groups of cells: each is fitted on its own, or skipped with a reason.

A run without `groupby` is a run of one group, whose name is None: what would skip a group is then an error.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scanpy import logging as logg

from scglmm.formula import Design, DesignError, Formula, build_design, factor_levels, formula_columns
from scglmm.formula.columns import clean_column, get_column, rows_without_missing
from scglmm.inference.containment import constant_within, levels_to_spare
from scglmm.inference.frame import Frame, make_frame, strata_of
from scglmm.inference.inflation import Inflation, make_inflation
from scglmm.results.names import near_first

MAX_GROUPS = 1_000
LISTED = 10  # reasons in the error when no group can be fitted


@dataclass
class Group:
    """Some cells, and the model on them.

    Attributes
    ----------
    name
        None in a run without `groupby`.
    rows
        (n,) rows of `adata` of all its cells, increasing.
    n_donors
        Levels of the first grouping factor among them, 0 without one.
    reason
        Why it is skipped; empty where it is not.
    design, frame, stratum, first
        The model, its strata, the stratum of every cell that is used, and one cell (of those) of every stratum; None
        where the group is skipped.
    dropped
        Levels that no cell of the group has, by factor.
    inflation
        Design of the zero inflation on the strata, which then share its rows too; None without.
    """

    name: str | None
    rows: np.ndarray
    n_donors: int = 0
    reason: str = ""
    design: Design | None = None
    frame: Frame | None = None
    stratum: np.ndarray | None = None
    first: np.ndarray | None = None
    dropped: dict[str, list[str]] = field(default_factory=dict)
    inflation: Inflation | None = None

    @property
    def used(self) -> np.ndarray:
        """Rows of `adata` of the cells that are used."""
        return self.rows if self.design.kept.all() else self.rows[self.design.kept]

    def skip(self, reason: str) -> None:
        """Take the group out of the run, and say so."""
        self.reason = " ".join(reason.split())
        self.design = self.frame = self.stratum = self.first = self.inflation = None
        logg.warning(f"group {self.name!r} is skipped: {self.reason}")


def prepare_groups(
    parsed: Formula,
    obs: pd.DataFrame,
    groupby: str | None,
    na_action: str,
    min_donors: int,
    zi: Formula | None = None,
) -> list[Group]:
    """Code the formula on the cells of every group.

    Parameters
    ----------
    parsed
        The formula.
    obs
        One row per cell.
    groupby
        Column of `obs` that names the groups; None for one group of all cells.
    na_action
        "raise" or "drop": what to do with missing values, in `groupby` too.
    min_donors
        Groups with fewer levels of the first grouping factor are skipped.
    zi
        Formula of the zero inflation.

    Raises
    ------
    KeyError, ValueError
        As `scglmm.formula.build_design`; or `groupby` is no column of groups, is part of the formula, or no group
        can be fitted.
    """
    if groupby is None:
        group = Group(None, np.arange(len(obs)))
        _code(group, parsed, obs, na_action, zi)
        return [group]
    columns = dict.fromkeys([*formula_columns(parsed), *(formula_columns(zi) if zi else ())])
    groups = _split(obs, groupby, columns, na_action)
    grouped = np.zeros(len(obs), bool)
    grouped[np.concatenate([group.rows for group in groups])] = True
    all_cells = obs if grouped.all() else obs[grouped]
    # once for all cells, so that a message counts all cells
    rows_without_missing({name: get_column(all_cells, name) for name in columns}, len(all_cells), na_action)
    try:
        factors, references = factor_levels(parsed, all_cells, na_action=na_action)
    except DesignError:
        factors, references = {}, {}  # each group has its own reason
    for group in groups:
        _prepare(group, parsed, obs.iloc[group.rows], na_action, min_donors, factors, references, zi)
    check_some_fitted(groups, groupby)
    return groups


def check_some_fitted(groups: list[Group], groupby: str | None) -> None:
    """Check that a group is left.

    Raises
    ------
    ValueError
        There is none; the message has the reasons.
    """
    if not all(group.reason for group in groups):
        return
    reasons = [f"{group.name!r}: {group.reason}" for group in groups]
    if len({group.reason for group in groups}) == 1:
        reasons = [f"every group: {groups[0].reason}"]
    more = f"\n    and {len(reasons) - LISTED} more" if len(reasons) > LISTED else ""
    msg = f"No group of {groupby!r} can be fitted:\n    " + "\n    ".join(reasons[:LISTED]) + more
    raise ValueError(msg)


def _split(obs: pd.DataFrame, groupby: str, columns: Collection[str], na_action: str) -> list[Group]:
    """Cells of every group, in the order of the categories (text sorted); groups without cells are no groups."""
    if not isinstance(groupby, str):
        msg = f"groupby must be the name of one column of `adata.obs`, not {groupby!r} ({type(groupby).__name__})."
        raise TypeError(msg)
    if groupby not in obs.columns:
        listed = near_first(groupby, obs.columns) or "(none)"
        msg = f"groupby={groupby!r} is not a column of `adata.obs`; the columns are {listed}."
        raise KeyError(msg)
    if groupby in columns:
        msg = (
            f"groupby={groupby!r} is part of the formula as well, but has one value within each group. Take it out of "
            "the formula, or leave groupby out."
        )
        raise ValueError(msg)
    column = get_column(obs, groupby)
    missing = column.isna().to_numpy(dtype=bool)
    if missing.all():
        msg = f"adata.obs[{groupby!r}] is missing (NaN) for every cell: there is no group to fit."
        raise ValueError(msg)
    if missing.any() and na_action == "raise":
        msg = (
            f"adata.obs[{groupby!r}] is missing (NaN) for {missing.sum():,} of {len(obs):,} cells. Fill it in, or "
            "leave these cells out with na_action='drop'."
        )
        raise ValueError(msg)
    rows = np.flatnonzero(~missing)
    names, codes = _names(clean_column(column[~missing], groupby), groupby)
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(names)))
    return [Group(name, rows[cells]) for name, cells in zip(names, np.split(order, ends[:-1]), strict=True)]


def _names(column: np.ndarray | pd.Series, groupby: str) -> tuple[list[str], np.ndarray]:
    """Names of the groups and the group of every cell, from a clean column."""
    if isinstance(column, np.ndarray):
        codes, values = pd.factorize(column, sort=True)
        if not (values == np.round(values)).all():
            example = values[values != np.round(values)][0]
            msg = (
                f"adata.obs[{groupby!r}] holds numbers such as {example:g}, which name no groups: groupby takes a "
                "column of categories, text, booleans or whole numbers."
            )
            raise ValueError(msg)
        names = [str(int(value)) for value in values]
    else:
        names = [str(level) for level in column.cat.categories]
        codes = column.cat.codes.to_numpy()
    if len(names) > MAX_GROUPS:
        msg = f"adata.obs[{groupby!r}] has {len(names):,} different values: a column such as cell types is meant."
        raise ValueError(msg)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        msg = f"adata.obs[{groupby!r}] has different groups that read the same, {twice!r}: rename one of them."
        raise ValueError(msg)
    return names, np.asarray(codes, np.int64)


def _prepare(
    group: Group,
    parsed: Formula,
    obs: pd.DataFrame,
    na_action: str,
    min_donors: int,
    factors: dict[str, list[str]],
    references: dict[str, str],
    zi: Formula | None,
) -> None:
    """Code the formula on one group, or skip it."""
    if parsed.random:
        columns = list(parsed.random[0].columns)
        group.n_donors = len(obs[columns].dropna().drop_duplicates())
        if _has_few_donors(group, parsed, min_donors):
            return
    try:
        _code(group, parsed, obs, na_action, zi)
    except DesignError as error:
        group.skip(str(error))
        return
    except ValueError as error:
        msg = f"In group {group.name!r}: {error}"
        raise type(error)(msg) from error
    if parsed.random and _has_few_donors(group, parsed, min_donors):  # once cells with missing values are gone
        return
    for name, level in group.design.references.items():
        expected = references.setdefault(name, level)
        if level != expected:
            group.skip(
                f"no cell has the reference level {expected!r} of {name!r}, so that its coefficients would be against "
                f"{level!r}, unlike those of other groups"
            )
            return
    present = group.design.factors
    group.dropped = {
        name: gone
        for name, levels in factors.items()
        if name in present and (gone := [level for level in levels if level not in present[name]])
    }
    if group.dropped:
        logg.info(f"group {group.name!r} has no cells with {spell_levels(group.dropped)}: dropped from its model")


def _has_few_donors(group: Group, parsed: Formula, min_donors: int) -> bool:
    """Skip a group that has too few levels of the first grouping factor, and tell."""
    few = group.n_donors < min_donors
    if few:
        levels = f"{group.n_donors} level{'s' if group.n_donors != 1 else ''} of {':'.join(parsed.random[0].columns)!r}"
        group.skip(f"it has {levels}, fewer than min_donors={min_donors}")
    return few


def spell_levels(levels: dict[str, list[str]]) -> str:
    """Write levels of factors as "Dx: MCI, AD; batch: b3"."""
    return "; ".join(f"{name}: {', '.join(each)}" for name, each in levels.items())


def _code(group: Group, parsed: Formula, obs: pd.DataFrame, na_action: str, zi: Formula | None = None) -> None:
    """Code the formulas on the cells of a group, and check that its variances can be estimated."""
    if zi is not None:
        # Both designs want the same cells: those that one of them cannot use are no cells of the group.
        needed = dict.fromkeys([*formula_columns(parsed), *formula_columns(zi)])
        kept = rows_without_missing({name: get_column(obs, name) for name in needed}, len(obs), na_action)
        if not kept.all():
            group.rows, obs = group.rows[kept], obs[kept]
    design = build_design(parsed, obs, na_action=na_action)
    zi_design = None if zi is None else build_design(zi, obs)
    stratum, first = strata_of(design, [] if zi_design is None else list(zi_design.X.T))
    n_cells = np.bincount(stratum)
    frame = make_frame(design, first, n_cells)
    group.inflation = None if zi_design is None else make_inflation(zi_design, first, n_cells)
    for term, effect in enumerate(design.formula.random):
        if levels_to_spare(frame, term) <= 0:
            raise DesignError(_no_levels_left(design, frame, term, str(effect)))
    group.design, group.frame, group.stratum, group.first = design, frame, stratum, first
    group.n_donors = frame.terms[0].n_levels if frame.terms else 0


def _no_levels_left(design: Design, frame: Frame, term: int, effect: str) -> str:
    """Message about a random term that the fixed effects leave nothing of."""
    between = [name for name, constant in zip(design.columns, constant_within(frame, term), strict=True) if constant]
    own = frame.terms[term]
    return (
        f"No replicate is left to estimate the variance of {effect} from: {own.group!r} has {own.n_levels} levels, and "
        f"{len(between)} coefficients are constant within levels ({', '.join(between)}). More levels (donors) are "
        "needed, or fewer terms in the formula."
    )
