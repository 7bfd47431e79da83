"""Pictures of what may be wrong with a mixed model of one response."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scanpy import settings
from scipy import stats

from scglmm.mixed import GLMMResult, influence, vif
from scglmm.pl._style import (
    FONTSIZE,
    GREY_LINE,
    GREY_POINT,
    OKABE_ITO,
    journal_style,
    label_log_axis,
    open_frame,
)

BLUE, ORANGE, RED = OKABE_ITO["blue"], OKABE_ITO["orange"], OKABE_ITO["vermillion"]
MAX_LABEL = 18
SHOWN_GROUPS = 15


def check_model(
    fit: GLMMResult,
    *,
    panels: str | Sequence[str] | None = None,
    n_sim: int = 50,
    rng: np.random.Generator | int = 0,
    figsize: tuple[float, float] | None = None,
    show: bool | None = None,
    return_fig: bool = False,
) -> Figure | np.ndarray | None:
    """Look at a mixed model from seven sides, as R's `performance::check_model`.

    Parameters
    ----------
    fit
        A fit of :func:`scglmm.glmm`.
    panels
        Which panels, by name; all that apply by default. `"predictive"` (the response against data simulated from the
        model), `"fitted"` (quantile residuals against fitted values), `"scale"` (root of their absolute value against
        fitted values), `"quantile"` (Q–Q of quantile residuals), `"ranef"` (Q–Q of the predicted random effects),
        `"influence"` (Cook's distance of the groups), `"collinearity"` (variance inflation of the fixed terms).
    n_sim
        Simulated data sets in the predictive check.
    rng
        Generator or seed for the simulations and for the quantile residuals of counts.
    figsize
        Width and height in inches.
    show
        Show the figure; `scanpy.settings.autoshow` by default.
    return_fig
        Return the figure.

    Returns
    -------
    The figure with `return_fig`, None after showing it, else the array of axes.

    Examples
    --------
    >>> import numpy as np, pandas as pd, scglmm
    >>> rng = np.random.default_rng(1)
    >>> data = pd.DataFrame({"x": rng.normal(size=120), "g": np.repeat(np.arange(12), 10)})
    >>> data["y"] = rng.poisson(np.exp(1 + 0.3 * data["x"] + rng.normal(size=12)[data["g"]]))
    >>> fit = scglmm.glmm("y ~ x + (1|g)", data, family="nbinom2")
    >>> axes = scglmm.pl.check_model(fit, show=False)
    """
    if not isinstance(fit, GLMMResult):
        msg = f"check_model() draws a fit of scglmm.glmm, not {type(fit).__name__}."
        raise TypeError(msg)
    if not fit.converged or fit.estimates.lost.any():
        msg = f"There is nothing to look at: the fit has status {fit.status!r}, without estimates of all coefficients."
        raise ValueError(msg)
    rng = np.random.default_rng(rng)
    chosen = _chosen(fit, panels)
    n_columns = min(2, len(chosen))
    n_rows = -(-len(chosen) // n_columns)
    residuals = fit.residuals("quantile", rng).to_numpy()
    draws: dict[str, Callable[[Axes], None]] = {
        "predictive": lambda ax: _predictive(ax, fit, n_sim, rng),
        "fitted": lambda ax: _against_fitted(ax, fit, residuals),
        "scale": lambda ax: _scale_location(ax, fit, residuals),
        "quantile": lambda ax: _quantile(ax, residuals, "Quantile residuals", "Sample quantile"),
        "ranef": lambda ax: _random_effects(ax, fit),
        "influence": lambda ax: _influence(ax, fit),
        "collinearity": lambda ax: _collinearity(ax, fit),
    }
    with journal_style():
        fig, grid = plt.subplots(
            n_rows, n_columns, figsize=figsize or (3.5 * n_columns, 2.6 * n_rows), layout="constrained", squeeze=False
        )
        axes = grid.ravel()
        for name, ax in zip(chosen, axes, strict=False):
            draws[name](ax)
            open_frame(ax)
        for ax in axes[len(chosen) :]:
            ax.remove()
    if return_fig:
        return fig
    if settings.autoshow if show is None else show:
        plt.show()
        return None
    return axes[: len(chosen)]


def _chosen(fit: GLMMResult, panels: str | Sequence[str] | None) -> list[str]:
    """Panels to draw, in order."""
    random, n_terms = bool(fit.model.design.random), len(fit.model.design.terms)
    applies = {
        "predictive": True,
        "fitted": True,
        "scale": True,
        "quantile": True,
        "ranef": random and any(np.diag(sigma).max() > 0 for sigma in fit.estimates.sigma),
        "influence": random,
        "collinearity": n_terms > 1,
    }
    if panels is None:
        return [name for name, drawn in applies.items() if drawn]
    wanted = [panels] if isinstance(panels, str) else list(panels)
    for name in wanted:
        if name not in applies:
            msg = f"panels={name!r} is not one of {', '.join(map(repr, applies))}."
            raise ValueError(msg)
        if not applies[name]:
            why = {
                "ranef": "the model has no random effects with a variance above 0",
                "influence": "the model has no random effects",
                "collinearity": "the model has fewer than two fixed terms",
            }[name]
            msg = f"The panel {name!r} cannot be drawn: {why}."
            raise ValueError(msg)
    if not wanted:
        msg = "No panels are asked for."
        raise ValueError(msg)
    return wanted


def _title(ax: Axes, title: str, hint: str) -> None:
    ax.set_title(title, loc="left", fontweight="bold", pad=14)
    ax.text(0, 1.02, hint, transform=ax.transAxes, fontsize=FONTSIZE - 1.5, color=GREY_LINE, va="bottom")


def _predictive(ax: Axes, fit: GLMMResult, n_sim: int, rng: np.random.Generator) -> None:
    """Distribution of the response and of data simulated with the predicted random effects."""
    y = fit.model.y
    simulated = fit.simulate(n_sim, rng, re_form=None).to_numpy()
    _title(ax, "Posterior predictive check", "observed (line) within the simulated (grey)?")
    ax.set_xlabel(fit.model.response)
    if fit.family == "gaussian":
        spread = np.concatenate([y, simulated[:, : min(5, n_sim)].ravel()])
        grid = np.linspace(spread.min(), spread.max(), 200)
        for column in simulated.T:
            ax.plot(grid, stats.gaussian_kde(column)(grid), color=GREY_POINT, lw=0.4, alpha=0.5)
        ax.plot(grid, stats.gaussian_kde(y)(grid), color=BLUE, lw=1.4)
        ax.set_ylabel("Density")
    else:
        top = max(np.quantile(y, 0.99), np.quantile(simulated, 0.99), 5)
        edges = _count_bins(top)
        centres = np.arange(edges.size - 1)
        counts = np.stack([np.histogram(np.minimum(c, edges[-1] - 0.5), edges)[0] for c in simulated.T])
        observed = np.histogram(np.minimum(y, edges[-1] - 0.5), edges)[0]
        low, high = np.quantile(counts, [0.025, 0.975], axis=0)
        ax.bar(centres, high - low, bottom=low, width=0.8, color=GREY_POINT, alpha=0.6, lw=0)
        ax.plot(centres, np.median(counts, axis=0), "_", color=GREY_LINE, ms=5)
        ax.plot(centres, observed, "-o", color=BLUE, ms=2.5, lw=0.8)
        labels = [f"{a:.0f}" if b - a == 1 else f"{a:.0f}–{b - 1:.0f}" for a, b in pairwise(edges)]
        labels[-1] = f"≥{edges[-2]:.0f}"
        step = max(1, -(-len(labels) // 8))
        shown = [i for i in range(len(labels)) if i % step == 0 or i == len(labels) - 1]
        if len(shown) > 1 and shown[-1] - shown[-2] < step:
            del shown[-2]
        ax.set_xticks([centres[i] for i in shown], [labels[i] for i in shown], rotation=30, ha="right")
        ax.set_ylabel("Rows")
    ax.set_ylim(bottom=0)


def _count_bins(top: float) -> np.ndarray:
    """Edges of bins of counts: 0 by itself, then single counts or ever wider bins, the last one open."""
    if top <= 20:
        return np.arange(0, int(np.ceil(top)) + 2, dtype=float)
    inner = np.unique(np.round(np.geomspace(1, top, 16)))
    return np.concatenate([[0.0], inner, [inner[-1] * 2]])


def _fitted(fit: GLMMResult) -> tuple[np.ndarray, str]:
    if fit.family == "gaussian":
        return fit.estimates.eta, "Fitted value"
    return np.exp(fit.estimates.eta), "Fitted mean (log scale)"


def _log_scale(ax: Axes, fit: GLMMResult) -> None:
    """Put fitted means on a logarithmic axis."""
    if fit.family != "gaussian":
        ax.set_xscale("log")
        label_log_axis(ax.xaxis, *ax.get_xlim())


def _points(ax: Axes, x: np.ndarray, y: np.ndarray) -> None:
    size = 6 if x.size < 1000 else 3 if x.size < 10_000 else 1.5
    alpha = float(np.clip(0.6 * np.sqrt(500 / x.size), 0.08, 0.6))
    ax.scatter(x, y, s=size, color=GREY_POINT, alpha=alpha, lw=0, rasterized=x.size > 5000)


def _trend(ax: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """Median of y in groups of rows of like x."""
    order = np.argsort(x, kind="stable")
    parts = [part for part in np.array_split(order, int(np.clip(x.size // 20, 3, 15))) if part.size]
    ax.plot([np.median(x[p]) for p in parts], [np.median(y[p]) for p in parts], color=BLUE, lw=1.3)


def _against_fitted(ax: Axes, fit: GLMMResult, residuals: np.ndarray) -> None:
    x, label = _fitted(fit)
    _points(ax, x, residuals)
    _trend(ax, x, residuals)
    ax.axhline(0, color=GREY_LINE, lw=0.6, ls="--")
    _log_scale(ax, fit)
    ax.set(xlabel=label, ylabel="Quantile residual")
    _title(ax, "Residuals against fitted", "median (line) flat and near 0?")


def _scale_location(ax: Axes, fit: GLMMResult, residuals: np.ndarray) -> None:
    x, label = _fitted(fit)
    root = np.sqrt(np.abs(residuals))
    _points(ax, x, root)
    _trend(ax, x, root)
    # median of the root of |z|
    ax.axhline(np.sqrt(stats.norm.ppf(0.75)), color=GREY_LINE, lw=0.6, ls="--")
    _log_scale(ax, fit)
    ax.set(xlabel=label, ylabel="√|Quantile residual|")
    _title(ax, "Scale–location", "median (line) flat: same spread everywhere?")


def _quantile(
    ax: Axes, values: np.ndarray, title: str, ylabel: str, colour: str = BLUE, label: str | None = None
) -> None:
    """Draw a normal Q–Q plot, with the band within which 95% of the points of a normal sample lie one by one."""
    n = values.size
    ordered = np.sort(values)
    rank = np.arange(1, n + 1)
    theory = stats.norm.ppf((rank - 0.375) / (n + 0.25))
    if label is None:
        low, high = (stats.norm.ppf(stats.beta.ppf(q, rank, n + 1 - rank)) for q in (0.025, 0.975))
        ax.fill_between(theory, low, high, color=GREY_POINT, alpha=0.4, lw=0)
        ax.plot(theory, theory, color=GREY_LINE, lw=0.6, ls="--")
        _title(ax, title, "points on the line, within the band?")
        ax.set(xlabel="Normal quantile", ylabel=ylabel)
    ax.plot(theory, ordered, "o", color=colour, ms=2 if n < 1000 else 1, lw=0, label=label, rasterized=n > 5000)


def _random_effects(ax: Axes, fit: GLMMResult) -> None:
    """Q–Q plot of the predicted random effects, each term in units of its own spread."""
    colours = list(OKABE_ITO.values())
    table = fit.ranef()
    drawn = 0
    reach = 0.0
    for (group, term), part in table.groupby(["group", "term"], sort=False):
        values = part["estimate"].to_numpy()
        spread = np.std(values, ddof=1)
        if not spread > 1e-8 * max(1.0, np.abs(values).max()):
            continue
        scaled = (values - values.mean()) / spread
        name = group if term == "(Intercept)" else f"{group}: {term}"
        name = name if len(name) <= MAX_LABEL else name[: MAX_LABEL - 1] + "…"
        _quantile(ax, scaled, "", "", colours[drawn % len(colours)], name)
        reach = max(reach, stats.norm.ppf(1 - 0.5 / values.size))
        drawn += 1
    ax.plot([-reach, reach], [-reach, reach], color=GREY_LINE, lw=0.6, ls="--", zorder=0)
    for line in ax.get_lines()[:-1]:
        line.set_markersize(3)
    ax.legend(loc="upper left", frameon=False, handletextpad=0.1, borderaxespad=0.1)
    ax.set(xlabel="Normal quantile", ylabel="Random effect (standardised)")
    _title(ax, "Random effects", "on the line: normal between groups?")


def _influence(ax: Axes, fit: GLMMResult) -> None:
    """Cook's distance of the groups, the largest ones."""
    table = influence(fit)
    group, n = table.index.name, len(table)
    table = table.dropna(subset=["cook"]).head(SHOWN_GROUPS)[::-1]
    y = np.arange(len(table))
    bound = 4 / n
    colours = [RED if cook > bound else GREY_LINE for cook in table["cook"]]
    ax.hlines(y, 0, table["cook"], color=colours, lw=0.8)
    ax.scatter(table["cook"], y, color=colours, s=10, zorder=3)
    ax.axvline(bound, color=GREY_LINE, lw=0.6, ls="--")
    names = [str(name) if len(str(name)) <= MAX_LABEL else str(name)[: MAX_LABEL - 1] + "…" for name in table.index]
    ax.set_yticks(y, names, fontsize=5.5 if len(names) > 10 else 6.5)
    ax.set_xlim(left=0)
    ax.set(xlabel="Cook's distance", ylabel=group)
    more = f" the {SHOWN_GROUPS} largest of {n}" if n > SHOWN_GROUPS else ""
    _title(ax, "Influential groups", f"left of 4/{n} (dashed)?{more}")


def _collinearity(ax: Axes, fit: GLMMResult) -> None:
    """Variance inflation of the terms, per column."""
    table = vif(fit)
    values = (table["se_factor"] ** 2).to_numpy()[::-1]
    names = [str(n) if len(str(n)) <= MAX_LABEL else str(n)[: MAX_LABEL - 1] + "…" for n in table.index[::-1]]
    y = np.arange(values.size)
    colours = [RED if v >= 10 else ORANGE if v >= 5 else BLUE for v in values]
    ax.hlines(y, 1, values, color=colours, lw=0.8)
    ax.scatter(values, y, color=colours, s=14, zorder=3)
    for bound in (5, 10):
        ax.axvline(bound, color=GREY_LINE, lw=0.6, ls="--")
    ax.set_xscale("log")
    top = max(12.0, values.max() * 1.3)
    ax.set_xlim(0.9, top)
    ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 1000, 10000) if t <= top]
    ax.set_xticks(ticks, [str(t) for t in ticks])
    ax.minorticks_off()
    ax.set_ylim(-0.7, values.size - 0.3)
    ax.set_yticks(y, names)
    ax.set(xlabel="Variance inflation")
    _title(ax, "Collinearity", "left of 5, at most 10 (dashed)?")
