"""The heatmap and the dot plot."""

from __future__ import annotations

import numpy as np
import pytest

import scglmm
from scglmm.pl._grid import similar_together

PLOTS = [scglmm.pl.heatmap, scglmm.pl.dotplot]


def names(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.parametrize("swap_axes", [False, True])
def test_genes_and_contrasts(toy, assert_readable, plot, swap_axes):
    adata = toy.fitted_groups()
    ax = plot(adata, ["GENE7", "GENE2", "GENE9"], coef=["Age", "Dx[T.AD]"], swap_axes=swap_axes, show=False)
    assert_readable(ax.get_figure())
    genes, contrasts = (ax.xaxis, ax.yaxis) if swap_axes else (ax.yaxis, ax.xaxis)
    assert names(genes) == ["GENE7", "GENE2", "GENE9"]
    assert [" ".join(name.split()) for name in names(contrasts)] == [
        "T/NK: Age",
        "B|naive: Age",
        "T/NK: Dx[T.AD]",
        "B|naive: Dx[T.AD]",
    ]


@pytest.mark.parametrize("plot", PLOTS)
@pytest.mark.parametrize(("n_genes", "coef"), [(1, "Age"), (4, None), (40, ["Dx[T.AD]", "Dx[T.MCI]"])])
def test_sizes(toy, assert_readable, plot, n_genes, coef):
    ax = plot(toy.fitted(100), n_genes=n_genes, coef=coef, show=False)
    assert_readable(ax.get_figure())
    assert len(names(ax.yaxis)) == n_genes


def test_heatmap_colours_and_stars(toy):
    adata = toy.fitted(60)
    lost = adata.var_names[adata.varm["nbmm_coef"]["Age"].isna()][0]
    genes = ["GENE3", lost, "GENE4"]
    adata.varm["nbmm_padj"].loc[["GENE3", "GENE4"], ["Dx[T.AD]", "Sex[T.M]"]] = [[0.0005, 0.2], [0.04, 0.005]]
    ax = scglmm.pl.heatmap(adata, genes, coef=["Dx[T.AD]", "Sex[T.M]"], show=False)
    mesh = ax.collections[0]
    expected = adata.varm["nbmm_coef"].loc[genes, ["Dx[T.AD]", "Sex[T.M]"]] / np.log(2)
    np.testing.assert_allclose(mesh.get_array().filled(np.nan), expected)
    assert mesh.norm.vmin == -mesh.norm.vmax
    stars = {text.xy: text.get_text() for text in ax.texts}
    assert stars == {(0, 0): "***", (0, 2): "*", (1, 2): "**"}
    assert ax.get_xlabel().split("\n") == ["* FDR < 0.05", "** FDR < 0.01", "*** FDR < 0.001", "grey: no estimate"]
    plain = scglmm.pl.heatmap(adata, ["GENE3", "GENE4"], coef="Age", stars=(), show=False)
    assert not plain.texts
    assert plain.get_xlabel() == ""


def test_dots(toy):
    adata = toy.fitted(60)
    lost = adata.var_names[adata.varm["nbmm_coef"]["Age"].isna()][0]
    adata.varm["nbmm_padj"].loc[["GENE3", "GENE4", "GENE5"], "Age"] = [1e-30, 1e-10, 1.0]
    ax = scglmm.pl.dotplot(adata, ["GENE3", "GENE4", "GENE5", lost], coef="Age", show=False)
    dots = {c.get_label(): c for c in ax.collections}
    np.testing.assert_allclose(dots["significant"].get_sizes(), [75, 75])
    np.testing.assert_allclose(dots["not significant"].get_sizes(), [3])
    np.testing.assert_array_equal(dots["not tested"].get_offsets(), [[0, 3]])
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(texts) == ["< 0.05", "FDR 1", "≤ 1e-10"]


def test_limit_of_the_colours(toy):
    adata = toy.fitted(60)
    ax = scglmm.pl.heatmap(adata, coef="Dx[T.AD]", vmax=0.1, show=False)
    assert ax.collections[0].norm.vmax == 0.1
    bar = ax.get_figure().axes[1]
    assert bar.get_ylabel() == "log$_2$ fold change"


def test_similar_genes_together():
    rng = np.random.default_rng(0)
    kind = rng.permutation(np.repeat([-1.0, 0.0, 2.0], 5))
    values = kind[:, None] + rng.normal(0, 0.1, (15, 3))
    values[0, 0] = np.nan
    order = similar_together(values)
    assert sorted(order) == list(range(15))
    assert np.count_nonzero(np.diff(kind[order])) == 2
    assert kind[order][0] < kind[order][-1]
    assert similar_together(np.array([[1.0], [-1.0]])).tolist() == [1, 0]


def test_ax_is_used(toy):
    from matplotlib import pyplot as plt

    for plot in PLOTS:
        _, ax = plt.subplots(layout="constrained")
        assert plot(toy.fitted(), coef="Age", ax=ax, show=False) is ax


@pytest.mark.parametrize(
    ("plot", "arguments", "error", "message"),
    [
        ("heatmap", {"cmap": "x"}, ValueError, "`cmap` 'x' is not the name of a colormap"),
        ("heatmap", {"vmax": 0}, ValueError, "`vmax` must be above 0, not 0"),
        ("heatmap", {"stars": (0.05, 2)}, ValueError, "`stars` must be adjusted p-values between 0 and 1, not 2"),
        ("dotplot", {"padj_min": 0}, ValueError, "`padj_min` must be between 0 and 1, not 0"),
        ("dotplot", {"coef": "x"}, KeyError, "No coefficient 'x'"),
        ("dotplot", {"genes": "x"}, KeyError, "No gene 'x'"),
        ("heatmap", {"group": "x"}, ValueError, "not fitted with `groupby`"),
    ],
)
def test_errors(toy, plot, arguments, error, message):
    with pytest.raises(error, match=message):
        getattr(scglmm.pl, plot)(toy.fitted(), **arguments)


def test_model_without_coefficients(toy):
    with pytest.raises(ValueError, match="No coefficient besides the intercept"):
        scglmm.pl.heatmap(toy.fitted(coefficients=["Intercept"]))
