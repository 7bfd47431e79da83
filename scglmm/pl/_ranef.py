"""`scglmm.pl.ranef`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from scanpy import logging as logg
from scipy import stats

from scglmm.formula.columns import in_memory
from scglmm.pl._docs import document
from scglmm.pl._donor_rates import is_number, levels_of
from scglmm.pl._genes import find_gene
from scglmm.pl._refit import Refit, fitted_cells, refit
from scglmm.pl._style import (
    COLUMN_WIDTH,
    FONTSIZE,
    GREY_LINE,
    OKABE_ITO,
    axes_for,
    category_colours,
    check_level,
    finish,
    journal_style,
    legend_above,
    open_frame,
)
from scglmm.results import read_result
from scglmm.results.names import near_first, readable, storable

_NAMED = 45
"""Largest number of levels whose names are written."""
_MOST_COLOURS = 12
_MISSING = "missing"


@document
def ranef(
    adata: AnnData,
    gene: str,
    *,
    term: str | None = None,
    column: str = "(Intercept)",
    color: str | None = None,
    key: str = "nbmm",
    group: str | None = None,
    level: float = 0.95,
    palette: str | Sequence[str] | Mapping[str, str] | None = None,
    gene_symbols: str | None = None,
    title: str | None = None,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> Figure | Axes | None:
    """Caterpillar plot: the random effects of one gene, sorted, with their intervals.

    The gene is fitted again, since random effects are not stored. Effects are conditional modes, shrunk towards 0 where
    a level has few cells; intervals are conditional on the estimated parameters, mode ± normal quantile × conditional
    standard deviation. A band shows the estimated standard deviation of the term. All of it is the gene's own fit, also
    where the tests are moderated. A level far outside the others is a
    donor to look at, and a bend in the middle says that effects are not normal.

    Parameters
    ----------
    {adata}
    gene
        The gene.
    term
        Grouping factor, as in the formula: "ind" or "ind:stim". By default the first.
    column
        Effect of the term: "(Intercept)", or the covariate of a random slope (per unit).
    color
        Column of `adata.obs`, constant within levels, to colour by.
    {key}
    {group}
    level
        Coverage of the intervals.
    palette
        Colours by level of `color`, a list of colours, or the name of a colormap. By default those that scanpy keeps
        in ``adata.uns["{color}_colors"]``, otherwise Okabe and Ito's.
    gene_symbols
        Column of `adata.var` in which `gene` is looked up as well.
    {figure}

    Returns
    -------
    {returns}

    Raises
    ------
    KeyError
        No such result, group, gene, term, column or `color`, or the model is no longer in `adata.uns`.
    ValueError
        `group` is needed and was not given, the formula has no random effect, the gene was not fitted, `color` is not
        constant within levels, or `level` or `palette` are not valid.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :5].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + (1|SubID)")
    >>> ax = scglmm.pl.ranef(adata, "PTPRG", color="Dx", show=False)
    """
    check_level(level)
    result = read_result(adata, key)
    group = result.only_group() if group is None else result.find_group(group)
    row, label = find_gene(adata, gene, gene_symbols)
    cells = fitted_cells(adata, result, group)
    if not cells.design.random:
        msg = "The formula has no random effect: there is nothing to draw."
        raise ValueError(msg)
    groups = [random.group for random in cells.design.random]
    if term is not None and term not in groups:
        msg = f"No random term {term!r}. Grouping factors: {near_first(term, groups)}."
        raise KeyError(msg)
    term = groups[0] if term is None else term
    columns = [c for random in cells.design.random if random.group == term for c in random.columns]
    if column not in columns:
        if column != "(Intercept)":
            msg = f"The random term of {term!r} has no effect {column!r}. Effects: {near_first(column, columns)}."
            raise KeyError(msg)
        column = columns[0]
    kinds = None if color is None else _kinds(adata, cells.rows, cells.design.formula, term, color)
    order = [result.coefficients_in(group).index(storable(c)) for c in cells.design.columns]
    coef, se = (result.table(name, group).to_numpy()[row][order] for name in ("coef", "se"))
    found = None if np.isnan(coef).all() else refit(cells, row)
    if found is None:
        status = result.column("fit", "status", group).astype(str).iloc[row]
        msg = f"{label} was not fitted (status {status}): it has no random effects."
        raise ValueError(msg)
    if not found.agrees(coef, se, result.table("fit", group).iloc[row]):
        logg.warning(
            f"Fitting {label} again gives other estimates than those in `adata.varm`: the cells, the counts or the "
            "way of fitting are not the same."
        )
    effects, sd = _effects(found, term, column)
    if sd == 0:
        logg.warning(f"The variance of {term!r} is estimated at 0 for {label}: all its effects are 0.")

    with journal_style():
        n = len(effects)
        named = n <= _NAMED
        height = 0.75 + (0.14 * n if named else 2.6)
        fig, ax = axes_for(ax, figsize or (COLUMN_WIDTH, height))
        open_frame(ax)
        colours = {"": OKABE_ITO["blue"]} if kinds is None else _colours(adata, color, kinds, palette)
        _draw(ax, effects, sd, level, colours, kinds)
        ax.set_ylim(-0.7 - 0.01 * n, n - 0.3 + 0.01 * n)
        if named:
            ax.set_yticks(range(n), effects["level"], parse_math=False)
            ax.tick_params(axis="y", length=0)
        else:
            ax.set_yticks([])
            ax.set_ylabel(f"{n:,} levels of {term}", fontsize=FONTSIZE)
        what = "" if column == "(Intercept)" else f" per unit of {column}"
        ax.set_xlabel(f"random effect of {term}{what}, log$_2$ ({100 * level:g}% interval)", fontsize=FONTSIZE)
        if title is None:
            title = label if group is None else f"{label}, {readable(group)}"
        handles = [
            Line2D([], [], color=colours[kind], linewidth=1.0, marker="o", markersize=3.0)
            for kind in colours
            if kind != ""
        ]
        labels = [str(kind) for kind in colours if kind != ""]
        handles.append(Patch(facecolor="#E0E0E0", linewidth=0))
        labels.append(f"± estimated sd, {sd:.2f}")
        legend_above(ax, handles, labels, title or None, handlelength=1.2)
    return finish(fig, ax, show=show, return_fig=return_fig)


def _effects(found: Refit, term: str, column: str) -> tuple[pd.DataFrame, float]:
    """Effects of one column of a term, sorted, and their estimated standard deviation; log2."""
    for name, table, variance in zip(found.names, found.effects, found.variances, strict=True):
        columns = list(dict.fromkeys(table["column"]))
        if name == term and column in columns:
            own = table[table["column"] == column].sort_values("mode", kind="stable")
            own = own.assign(mode=own["mode"] / np.log(2), sd=own["sd"] / np.log(2))
            return own, float(np.sqrt(variance[columns.index(column)]) / np.log(2))
    raise AssertionError


def _kinds(adata: AnnData, rows: np.ndarray, formula: object, term: str, color: str) -> dict[str, object]:
    """Value of an obs column for every level of a grouping factor."""
    obs = in_memory(adata.obs)
    if color not in obs:
        msg = f"No column {color!r} in `adata.obs`. Columns: {near_first(color, obs.columns)}."
        raise KeyError(msg)
    if is_number(obs[color]) and obs[color].nunique() > _MOST_COLOURS:
        msg = f"`color` must be a column of categories, and {color!r} holds {obs[color].nunique()} numbers."
        raise ValueError(msg)
    columns = next(list(random.columns) for random in formula.random if ":".join(random.columns) == term)
    obs = obs.iloc[rows]
    level = obs[columns].astype(str).agg(":".join, axis=1).to_numpy()
    pairs = pd.DataFrame({"level": level, "kind": _known(obs[color])}).drop_duplicates()
    if pairs["level"].duplicated().any():
        mixed = pairs.loc[pairs["level"].duplicated(), "level"].iloc[0]
        msg = f"`color` must be constant within the levels of {term!r}, and {color!r} is not: {mixed!r} has several."
        raise ValueError(msg)
    return dict(zip(pairs["level"], pairs["kind"], strict=True))


def _known(column: pd.Series) -> np.ndarray:
    values = column.to_numpy(dtype=object)
    return np.where(pd.isna(values), _MISSING, values)


def _colours(
    adata: AnnData, color: str, kinds: dict[str, object], palette: str | Sequence[str] | Mapping[str, str] | None
) -> dict[object, str]:
    column = in_memory(adata.obs, [color])[color]
    present = set(kinds.values())
    levels = [level for level in levels_of(column.dropna()) if level in present]
    missing = {_MISSING: "#A6A6A6"} if _MISSING in present and _MISSING not in levels else {}
    return category_colours(adata, color, levels, palette) | missing


def _draw(
    ax: Axes,
    effects: pd.DataFrame,
    sd: float,
    level: float,
    colours: dict[object, str],
    kinds: dict[str, object] | None,
) -> None:
    n = len(effects)
    half = stats.norm.ppf((1 + level) / 2) * effects["sd"].to_numpy()
    mode, at = effects["mode"].to_numpy(), np.arange(n)
    own = [colours[""] if kinds is None else colours[kinds[name]] for name in effects["level"]]
    ax.axvspan(-sd, sd, color="#E6E6E6", linewidth=0, zorder=0)
    ax.axvline(0, color=GREY_LINE, linewidth=0.6, zorder=1)
    thin = float(np.clip(60 / n, 0.45, 1.1))
    ax.hlines(at, mode - half, mode + half, colors=own, linewidth=thin, alpha=0.8 if n > _NAMED else 1.0, zorder=2)
    ax.scatter(mode, at, s=float(np.clip(250 / n, 2.5, 10.0)), c=own, linewidths=0, zorder=3, label="modes")
