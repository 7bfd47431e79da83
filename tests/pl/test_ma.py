from __future__ import annotations

import numpy as np
import pytest

import scglmm
from scglmm.pl._labels import PointLabels


def drawn(ax):
    return {c.get_label(): c.get_offsets() for c in ax.collections if ", " in c.get_label()}


@pytest.mark.parametrize("n_genes", [30, 400, 4000])
def test_points_names_and_legend(toy, assert_readable, n_genes):
    adata = toy.fitted(n_genes, seed=1)
    ax = scglmm.pl.ma(adata, "Dx[T.AD]", n_labels=5, show=False)
    assert_readable(ax.get_figure())
    table = scglmm.get.nbmm_df(adata, "Dx[T.AD]").dropna(subset="pval")
    up, down = ((table["padj"] < 0.05) & (sign * table["log2_fc"] > 0) for sign in (1, -1))
    points = drawn(ax)
    for kind, number in {"up": up.sum(), "down": down.sum(), "not significant": (~up & ~down).sum()}.items():
        assert sum(len(xy) for name, xy in points.items() if name.startswith(f"{kind},")) == number
    inside = np.vstack([xy for name, xy in points.items() if name.endswith("inside")])
    expected = table[["mean", "log2_fc"]].to_numpy()
    assert {tuple(xy) for xy in np.round(inside, 9)} <= {tuple(xy) for xy in np.round(expected, 9)}
    labels = next(child for child in ax.get_children() if isinstance(child, PointLabels))
    assert [note.get_text() for note in labels.notes] == table["gene"][up | down][:5].tolist()
    assert ax.get_xscale() == "log"


def test_limit_and_cut_off(toy):
    ax = scglmm.pl.ma(toy.fitted(400, seed=1), "Dx[T.AD]", ymax=0.3, log2fc_cutoff=0.2, show=False)
    points = drawn(ax)
    assert {name.split(", ")[1] for name in points} == {"inside", "top", "bottom"}
    assert np.abs(np.vstack(list(points.values()))[:, 1]).max() <= 0.3
    assert sorted(line.get_ydata()[0] for line in ax.lines) == [-0.2, 0, 0.2]


def test_genes_symbols_groups(toy):
    ax = scglmm.pl.ma(toy.fitted_groups(), "Age", group="T/NK", genes="SYM3", gene_symbols="symbol", show=False)
    assert ax.get_legend().get_title().get_text() == "T/NK: Age"
    labels = next(child for child in ax.get_children() if isinstance(child, PointLabels))
    assert [note.get_text() for note in labels.notes] == ["SYM3"]
    with pytest.raises(KeyError, match="No gene 'x'"):
        scglmm.pl.ma(toy.fitted(), "Age", genes="x")
