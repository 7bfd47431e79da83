"""`scglmm.pl.qq`."""

from __future__ import annotations

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from scipy import stats

from scglmm.pl._docs import document
from scglmm.pl._style import (
    COLUMN_WIDTH,
    FONTSIZE,
    GREY_LINE,
    STATUS_COLOURS,
    axes_for,
    finish,
    journal_style,
    legend_above,
    open_frame,
)
from scglmm.pl._tested import tested_genes
from scglmm.results.table import STATUSES

_LARGEST = 324.0
"""-log10 of the smallest positive number."""


@document
def qq(
    adata: AnnData,
    coef: str | None = None,
    *,
    key: str = "nbmm",
    group: str | None = None,
    by_status: bool = True,
    ymax: float | None = None,
    title: str | None = None,
    figsize: tuple[float, float] = (COLUMN_WIDTH, 3.1),
    show: bool | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> Figure | Axes | None:
    """Quantile-quantile plot of the p-values of one coefficient, against those of genes without effects.

    Were no gene to differ, points would follow the diagonal, within the band in 95% of all cases (order statistics of
    uniform numbers: Beta(i, n + 1 - i), for all genes together and as if they were independent). Most genes of most
    data do not differ, so the left part of the curve shows whether the test holds its level: above the diagonal it
    rejects too often, below it too seldom. Statuses are drawn apart, each against its own number of genes, since a
    variance estimated at 0 changes what the test does.

    Parameters
    ----------
    {adata}
    {coef}
    {key}
    {group}
    by_status
        Draw the genes of every status apart.
    ymax
        Limit of the observed -log10 p. By default that of the smallest p-value. Genes beyond it (p-values that
        underflow to 0 always are) are triangles at the limit.
    {figure}

    Returns
    -------
    {returns}

    Raises
    ------
    KeyError
        No such result, coefficient or group.
    ValueError
        `coef` or `group` is needed and was not given, or no gene has a p-value.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :5].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Age + Sex + (1|SubID)")
    >>> ax = scglmm.pl.qq(adata, "Sex[T.M]", show=False)
    """
    tested = tested_genes(adata, key, coef, group, None, None)
    pval = tested.table["pval"].to_numpy()
    status = tested.table["status"].to_numpy(dtype=object)
    with np.errstate(divide="ignore"):
        observed = -np.log10(pval)
    finite = observed[np.isfinite(observed)]
    n = len(observed)
    if ymax is None:
        ymax = float(finite.max(initial=1.0)) if finite.size else _LARGEST
        ymax = max(ymax, _expected(n)[0]) * (1.0 if finite.size == n else 1.06)
    parts = {"": np.ones(n, dtype=bool)}
    if by_status:
        known = [s for s in STATUSES if (status == s).any()]
        parts = {s: status == s for s in known + sorted(set(status) - set(known))}

    with journal_style():
        fig, ax = axes_for(ax, figsize)
        open_frame(ax)
        expected = _expected(n)
        rank = np.arange(1, n + 1)
        low, high = (-np.log10(stats.beta.ppf(q, rank, n + 1 - rank)) for q in (0.975, 0.025))
        ax.fill_between(expected, low, np.minimum(high, ymax), color="#E6E6E6", linewidth=0, zorder=0)
        end = min(expected[0], ymax)
        ax.plot([0, end], [0, end], color=GREY_LINE, linewidth=0.6, zorder=1)
        size = float(np.clip(6000 / n, 3.5, 10.0))
        handles, labels = [], []
        # the most frequent status first, so that it hides no other
        for name, rows in sorted(parts.items(), key=lambda part: -part[1].sum()):
            colour = STATUS_COLOURS.get(name, GREY_LINE) if name else STATUS_COLOURS["ok"]
            y = -np.sort(-observed[rows])
            x = _expected(len(y))
            beyond = y > ymax
            style = {"color": colour, "linewidths": 0, "alpha": 0.85, "rasterized": n > 3000, "clip_on": False}
            ax.scatter(x[~beyond], y[~beyond], s=size, zorder=2, label=name or "genes", **style)
            if beyond.any():
                ax.scatter(x[beyond], np.full(beyond.sum(), ymax), s=2.2 * size + 6, marker="^", zorder=3, **style)
            handles.append(Line2D([], [], linestyle="", marker="o", markersize=3.5, markeredgewidth=0, color=colour))
            labels.append(f"{name} {len(y):,}".strip() if name else f"{len(y):,} genes")
        ax.set_xlim(-0.02 * expected[0], expected[0] * 1.04)
        ax.set_ylim(-0.02 * ymax, ymax * 1.04)
        ax.set_xlabel("expected −log$_{10}$ p-value", fontsize=FONTSIZE)
        ax.set_ylabel("observed −log$_{10}$ p-value", fontsize=FONTSIZE)
        title = tested.title if title is None else title
        legend_above(ax, handles, labels, title or None, handlelength=1.0, handletextpad=0.3)
    return finish(fig, ax, show=show, return_fig=return_fig)


def _expected(n: int) -> np.ndarray:
    """-log10 of the expected order statistics of n uniform numbers, the smallest first."""
    return -np.log10(np.arange(1, n + 1) / (n + 1))
