from __future__ import annotations

import itertools

import numpy as np
import pytest
import scanpy as sc
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import scglmm
from scglmm.pl._labels import PointLabels
from scglmm.results import write_results


def labels_of(ax):
    (labels,) = [artist for artist in ax.get_children() if isinstance(artist, PointLabels)]
    return labels


def drawn(ax):
    """Points by class and place, as offsets."""
    return {c.get_label(): np.asarray(c.get_offsets()) for c in ax.collections if c.get_label()[0] != "_"}


@pytest.mark.parametrize(("n_genes", "n_labels"), [(60, 10), (400, 10), (7000, 15)])
def test_points_names_and_legend(toy, n_genes, n_labels):
    adata = toy.fitted(n_genes, seed=1)
    ax = scglmm.pl.volcano(adata, "Dx[T.AD]", n_labels=n_labels, show=False)
    fig = ax.get_figure()
    fig.canvas.draw()
    table = scglmm.get.nbmm_df(adata, "Dx[T.AD]").dropna(subset="pval").set_index("gene")
    up = (table["padj"] < 0.05) & (table["log2_fc"] > 0)
    down = (table["padj"] < 0.05) & (table["log2_fc"] < 0)

    points = drawn(ax)
    for kind, number in {"up": up.sum(), "down": down.sum(), "not significant": (~up & ~down).sum()}.items():
        assert sum(len(xy) for name, xy in points.items() if name.startswith(f"{kind},")) == number
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert texts == [f"down {down.sum():,}", f"up {up.sum():,}", f"n.s. {(~up & ~down).sum():,}", "FDR 0.05"]
    assert ax.get_legend().get_title().get_text() == "Dx[T.AD]"

    labels = labels_of(ax)
    assert [note.get_text() for note in labels.notes] == table.index[: min(n_labels, (up | down).sum())].tolist()
    for note in labels.notes:
        row = table.loc[note.get_text()]
        np.testing.assert_allclose(note.xy, [row["log2_fc"], -np.log10(row["pval"])])
    assert labels.left_out == []
    frame = ax.get_window_extent()
    extents = [note.get_window_extent() for note in labels.notes]
    assert all(frame.x0 <= e.x0 and e.x1 <= frame.x1 and frame.y0 <= e.y0 and e.y1 <= frame.y1 for e in extents)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(extents, 2))


def test_everything_is_within_the_figure(toy):
    adata = toy.make_adata()
    name = "C(Diagnosis, Treatment('Control'))[T.Alzheimer]:C(Sex, Treatment('F'))[T.M]"
    table = toy.make_table(adata.var_names, coefficients=["Intercept", name])
    write_results(adata, "nbmm", {None: table}, toy.make_info())
    fig = scglmm.pl.volcano(adata, return_fig=True)
    fig.canvas.draw()
    ax = fig.axes[0]
    for artist in (ax.get_legend(), ax.xaxis.label, ax.yaxis.label):
        extent = artist.get_window_extent()
        assert extent.x0 >= -1
        assert extent.x1 <= fig.bbox.x1 + 1
        assert extent.y1 <= fig.bbox.y1 + 1
    assert ax.get_window_extent().width > 0.7 * fig.bbox.width
    assert ax.get_legend().get_title().get_text().split() == [
        "C(Diagnosis,",
        "Treatment('Control'))[T.Alzheimer]:",
        "C(Sex,",
        "Treatment('F'))[T.M]",
    ]


def test_p_values_of_zero_are_triangles_at_the_top(toy):
    adata = toy.fitted(400, seed=1)
    best = scglmm.get.nbmm_df(adata, "Dx[T.AD]")["gene"][:3].tolist()
    adata.varm["nbmm_pval"].loc[best, "Dx[T.AD]"] = 0.0
    ax = scglmm.pl.volcano(adata, "Dx[T.AD]", show=False)
    points = drawn(ax)
    top = np.vstack([xy for name, xy in points.items() if name.endswith(", top")])
    assert len(top) == 3
    assert len(np.unique(top[:, 1])) == 1
    others = np.vstack([xy for name, xy in points.items() if not name.endswith(", top")])
    assert np.isfinite(others).all()
    assert top[0, 1] > others[:, 1].max()
    assert top[0, 1] < ax.get_ylim()[1]


def test_all_p_values_zero(toy):
    adata = toy.fitted(20)
    adata.varm["nbmm_pval"]["Age"] = 0.0
    ax = scglmm.pl.volcano(adata, "Age", show=False)
    ax.get_figure().canvas.draw()
    assert all(name.endswith(", top") for name in drawn(ax))


def test_limits_that_are_given(toy):
    adata = toy.fitted(400, seed=1)
    ax = scglmm.pl.volcano(adata, "Dx[T.AD]", xmax=0.5, ymax=5, show=False)
    table = scglmm.get.nbmm_df(adata, "Dx[T.AD]").dropna(subset="pval")
    points = drawn(ax)
    right = sum(len(xy) for name, xy in points.items() if name.endswith((", right", ", left")))
    above = table["pval"] < 1e-5
    assert right == ((table["log2_fc"].abs() > 0.5) & ~above).sum()
    assert np.abs(np.vstack(list(points.values()))[:, 0]).max() <= 0.5


def test_a_few_wild_genes_do_not_take_the_room(toy):
    adata = toy.fitted(1000, seed=1)
    table = scglmm.get.nbmm_df(adata, "Dx[T.AD]").dropna(subset="pval")
    adata.varm["nbmm_coef"].loc[table["gene"].iloc[-2:], "Dx[T.AD]"] = [25.0, -25.0]
    ax = scglmm.pl.volcano(adata, "Dx[T.AD]", show=False)
    assert ax.get_xlim()[1] < 10
    assert {"not significant, left", "not significant, right"} <= set(drawn(ax))


def test_genes_that_are_named_on_request(toy):
    adata = toy.fitted(100)
    fit = adata.varm["nbmm_fit"]["status"]
    lost = fit.index[fit == "not_converged"][0]
    genes = ["GENE3", "SYM5", lost, "GENE3"]
    ax = scglmm.pl.volcano(adata, "Age", genes=genes, gene_symbols="symbol", show=False)
    assert {note.get_text() for note in labels_of(ax).notes} == {"SYM3", "SYM5"}
    assert len(labels_of(scglmm.pl.volcano(adata, "Age", genes="GENE3", show=False)).notes) == 1
    assert labels_of(scglmm.pl.volcano(adata, "Age", n_labels=0, show=False)).notes == []


def test_cut_off_of_the_fold_change(toy):
    adata = toy.fitted(400, seed=1)
    ax = scglmm.pl.volcano(adata, "Dx[T.AD]", log2fc_cutoff=0.8, padj_cutoff=0.01, show=False)
    table = scglmm.get.nbmm_df(adata, "Dx[T.AD]")
    number = ((table["padj"] < 0.01) & (table["log2_fc"].abs() > 0.8)).sum()
    assert sum(len(xy) for name, xy in drawn(ax).items() if not name.startswith("not")) == number
    verticals = [line.get_xdata()[0] for line in ax.lines if len(set(line.get_xdata())) == 1]
    assert sorted(verticals) == [-0.8, 0, 0.8]


def test_nothing_significant(toy):
    adata = toy.fitted(60, share_significant=0.0)
    adata.varm["nbmm_padj"][:] = 1.0
    ax = scglmm.pl.volcano(adata, "Age", show=False)
    ax.get_figure().canvas.draw()
    assert labels_of(ax).notes == []


def test_groups(toy):
    adata = toy.fitted_groups()
    ax = scglmm.pl.volcano(adata, "Age", group="T/NK", show=False)
    assert ax.get_legend().get_title().get_text() == "T/NK: Age"
    with pytest.raises(ValueError, match="more than one group"):
        scglmm.pl.volcano(adata, "Age")


def test_what_is_returned(toy, monkeypatch):
    adata = toy.fitted()
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    assert isinstance(scglmm.pl.volcano(adata, "Age", show=False), Axes)
    assert isinstance(scglmm.pl.volcano(adata, "Age", return_fig=True), Figure)
    assert shown == []
    assert scglmm.pl.volcano(adata, "Age", show=True) is None
    assert shown == [1]
    autoshow = sc.settings.autoshow
    try:
        sc.settings.autoshow = False
        assert isinstance(scglmm.pl.volcano(adata, "Age"), Axes)
        sc.settings.autoshow = True
        assert scglmm.pl.volcano(adata, "Age") is None
    finally:
        sc.settings.autoshow = autoshow
    _, ax = plt.subplots()
    assert scglmm.pl.volcano(adata, "Age", ax=ax, show=False) is ax


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, ValueError, r"choose one with `coef`, 'Dx\[T.AD\]'"),
        ({"coef": "Dx"}, KeyError, "is a factor"),
        ({"coef": "Age", "genes": ["GEN3"]}, KeyError, "No gene 'GEN3'.*Near names: 'GENE3"),
        ({"coef": "Age", "gene_symbols": "x"}, KeyError, r"No column 'x' in `adata.var`"),
        ({"coef": "Age", "key": "x"}, KeyError, "No result 'x'"),
    ],
)
def test_errors(toy, arguments, error, message):
    with pytest.raises(error, match=message):
        scglmm.pl.volcano(toy.fitted(), **arguments)
    assert plt.get_fignums() == []


def test_nothing_was_tested(toy):
    with pytest.raises(ValueError, match="No gene has a p-value for 'Age'"):
        scglmm.pl.volcano(toy.fitted(share_untested=1.0), "Age")
