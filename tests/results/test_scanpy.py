"""scanpy's getter and plots on our results."""

from __future__ import annotations

import numpy as np
import pytest
import scanpy as sc
from matplotlib import pyplot as plt

from scglmm.results import write_results

# scanpy computes a dendrogram where there is none
pytestmark = pytest.mark.filterwarnings("ignore:You’re trying to run this on")


@pytest.fixture(autouse=True)
def _quiet():
    verbosity, sc.settings.verbosity = sc.settings.verbosity, 0
    plt.switch_backend("agg")
    yield
    plt.close("all")
    sc.settings.verbosity = verbosity


@pytest.fixture(params=["fitted", "fitted_groups", "few", "interaction"])
def adata(request, toy):
    if request.param == "few":
        # fewer tested genes than a plot shows
        adata = toy.fitted(share_untested=0.9)
    elif request.param == "interaction":
        adata = toy.fitted(coefficients=["Intercept", "Dx[T.AD]:Age"])
    else:
        adata = getattr(toy, request.param)()
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    return adata


def test_getter(toy):
    adata = toy.fitted()
    table = sc.get.rank_genes_groups_df(adata, "Dx[T.AD]", key="nbmm", gene_symbols="symbol").set_index("names")
    coef, stat = adata.varm["nbmm_coef"]["Dx[T.AD]"], adata.varm["nbmm_stat"]["Dx[T.AD]"]
    pval, padj = adata.varm["nbmm_pval"]["Dx[T.AD]"], adata.varm["nbmm_padj"]["Dx[T.AD]"]
    tested = pval.index[pval.notna()]
    np.testing.assert_allclose(table.loc[tested, "logfoldchanges"], coef[tested] / np.log(2), rtol=1e-6)
    np.testing.assert_allclose(table.loc[tested, "scores"], stat[tested], rtol=1e-6)
    np.testing.assert_array_equal(table.loc[pval.index, "pvals"], pval)
    np.testing.assert_array_equal(table.loc[pval.index, "pvals_adj"], padj)
    assert table["symbol"].str.removeprefix("SYM").tolist() == table.index.str.removeprefix("GENE").tolist()
    assert (np.diff(table["scores"].iloc[: len(tested)]) <= 0).all()
    assert table["pvals"].iloc[len(tested) :].isna().all()


def test_getter_with_cut_offs_drops_untested_genes(toy):
    adata = toy.fitted()
    kept = sc.get.rank_genes_groups_df(adata, None, key="nbmm", pval_cutoff=2, log2fc_min=-1e9)
    assert kept["pvals"].notna().all()
    assert set(kept["group"]) == set(toy.COEFFICIENTS[1:])


def test_ranking_plot(adata):
    for options in ({}, {"gene_symbols": "symbol"}, {"n_genes": adata.n_vars, "sharey": False}):
        axes = sc.pl.rank_genes_groups(adata, key="nbmm", show=False, **options)
        assert len(axes) == len(adata.uns["nbmm"]["names"].dtype.names)
        axes[0].get_figure().canvas.draw()


def draw(plot, adata, **options):
    getattr(sc.pl, f"rank_genes_groups_{plot}")(adata, key="nbmm", show=False, **options)
    plt.gcf().canvas.draw()
    plt.close("all")


def test_expression_plots(adata):
    draw("dotplot", adata)
    draw("heatmap", adata, gene_symbols="symbol", n_genes=3, dendrogram=False)
    draw("matrixplot", adata, n_genes=3)


@pytest.mark.parametrize("plot", ["stacked_violin", "tracksplot"])
def test_slow_expression_plots(toy, plot):
    adata = toy.fitted()
    sc.pp.log1p(adata)
    draw(plot, adata, n_genes=2)


def test_plots_of_the_genes_that_change(toy):
    adata = toy.fitted(n_genes=100)
    sc.pp.log1p(adata)
    for plot in ("dotplot", "heatmap", "matrixplot"):
        draw(plot, adata, groups=["Dx[T.AD]"], min_logfoldchange=0.2, dendrogram=False)
    draw("matrixplot", adata, values_to_plot="logfoldchanges", dendrogram=False)


def test_groupby_of_a_model_without_factors(toy):
    adata = toy.make_adata()
    info = toy.make_info(params={"groupby": "SubID", "reference": "rest", "method": "reml"})
    table = toy.make_table(adata.var_names, coefficients=["Intercept", "Age"])
    write_results(adata, "nbmm", {None: table}, info)
    sc.pp.log1p(adata)
    draw("dotplot", adata)
    sc.pl.rank_genes_groups(adata, key="nbmm", show=False)
