"""`scglmm.pl.ma`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from scglmm.pl._docs import document
from scglmm.pl._points import (
    CUT_OFF_STYLE,
    check_adjust_text,
    class_legend,
    classify,
    draw_points,
    name_points,
    point_size,
    reach,
)
from scglmm.pl._style import (
    COLUMN_WIDTH,
    FONTSIZE,
    axes_for,
    finish,
    journal_style,
    label_log_axis,
    log_limits,
    open_frame,
)
from scglmm.pl._tested import tested_genes


@document
def ma(
    adata: AnnData,
    coef: str | None = None,
    *,
    key: str = "nbmm",
    group: str | None = None,
    n_labels: int = 10,
    genes: str | Sequence[str] | None = None,
    padj_cutoff: float = 0.05,
    log2fc_cutoff: float = 0.0,
    gene_symbols: str | None = None,
    ymax: float | None = None,
    size: float | None = None,
    adjust_text: bool = False,
    title: str | None = None,
    figsize: tuple[float, float] = (COLUMN_WIDTH, 2.8),
    show: bool | None = None,
    ax: Axes | None = None,
    return_fig: bool = False,
) -> Figure | Axes | None:
    """MA plot: log2 fold change against the mean count per cell, a point per tested gene.

    Shows whether fold changes depend on the abundance of the gene, as they do when the offset is wrong, and how
    abundant a gene has to be before an effect of a given size is seen. Colours and triangles are those of
    :func:`scglmm.pl.volcano`.

    Parameters
    ----------
    {adata}
    {coef}
    {key}
    {group}
    {named_genes}
    {padj_cutoff}
    log2fc_cutoff
        Absolute log2 fold change that significant genes must exceed. Dotted lines are drawn at it.
    {gene_symbols}
    ymax
        Limit of the absolute log2 fold change. By default all genes are within, except a few (0.5% at most)
        without significance whose fold changes are far beyond those of the others.
    size
        Area of a point in square points. By default smaller for more genes.
    {adjust_text}
    {figure}

    Returns
    -------
    {returns}

    Raises
    ------
    KeyError
        No such result, coefficient, group, `gene_symbols` or gene.
    ValueError
        `coef` or `group` is needed and was not given, or no gene has a p-value.
    ImportError
        `adjust_text` was asked for, and adjustText is not installed.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :5].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + Age + (1|SubID)")
    >>> ax = scglmm.pl.ma(adata, "Dx[T.AD]", genes="PTPRG", show=False)
    """
    check_adjust_text(adjust_text)
    tested = tested_genes(adata, key, coef, group, genes, gene_symbols)
    table = tested.table
    log2_fc, x = table["log2_fc"].to_numpy(), table["mean"].to_numpy(dtype=float)
    significant = tested.significant(padj_cutoff, log2fc_cutoff)
    kind = classify(log2_fc, significant)
    limit = reach(np.abs(log2_fc), significant) if ymax is None else ymax
    y = np.clip(log2_fc, -limit, limit)
    place = np.select([log2_fc > limit, log2_fc < -limit], ["top", "bottom"], "inside")
    size = point_size(len(x), size)

    with journal_style():
        fig, ax = axes_for(ax, figsize)
        open_frame(ax)
        ax.set_xscale("log")
        ax.set_xlim(log_limits(x))
        margin = 0.05 * np.ptp(y) + 0.02 * limit
        ax.set_ylim(y.min() - margin, y.max() + margin)
        draw_points(ax, x, y, kind, place, size)
        ax.axhline(0, color="#D9D9D9", linewidth=0.6, zorder=0)
        if 0 < log2fc_cutoff < limit:
            for at in (-log2fc_cutoff, log2fc_cutoff):
                ax.axhline(at, linestyle=(0, (1, 2)), **CUT_OFF_STYLE)
        label_log_axis(ax.xaxis, *ax.get_xlim())
        ax.set_xlabel("mean count per cell", fontsize=FONTSIZE)
        ax.set_ylabel("log$_2$ fold change", fontsize=FONTSIZE)
        class_legend(ax, kind, tested.title if title is None else title)
        chosen = tested.to_name(significant, n_labels)
        names = [str(name) for name in table["label"].to_numpy()[chosen]]
        name_points(ax, x, y, chosen, names, significant, size, adjust_text=adjust_text)
    return finish(fig, ax, show=show, return_fig=return_fig)
