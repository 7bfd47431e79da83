from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from scipy import stats

import scglmm
from scglmm.pl._style import GREYS, OKABE_ITO, source_colours, wrap
from scglmm.pl._varpart import _density


def rows(ax):
    return [label.get_text() for label in ax.get_yticklabels()]


def widths(ax):
    """Widths of the bars, genes × sources."""
    return np.array([[bar.get_width() for bar in container] for container in ax.containers]).T


def assert_nothing_is_cut_or_overlaps(fig, ax):
    fig.canvas.draw()
    texts = [*ax.get_yticklabels(), *ax.get_xticklabels(), ax.xaxis.label, *ax.texts]
    for text in texts:
        extent = text.get_window_extent()
        assert extent.x0 >= -1, text
        assert extent.x1 <= fig.bbox.x1 + 1, text
        assert extent.y0 >= -1, text
        assert extent.y1 <= fig.bbox.y1 + 1, text
    for labels in (ax.get_yticklabels(), ax.get_xticklabels()):
        extents = [label.get_window_extent() for label in labels]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(extents, 2))


@pytest.mark.parametrize("n_genes", [30, 400, 7000])
@pytest.mark.parametrize("scale", ["sqrt", "linear"])
def test_distributions(toy, n_genes, scale):
    adata = toy.fitted(n_genes)
    fractions = adata.varm["nbmm_varpart"].dropna()
    ax = scglmm.pl.varpart(adata, scale=scale, show=False)
    fig = ax.get_figure()
    assert_nothing_is_cut_or_overlaps(fig, ax)
    assert rows(ax) == toy.SOURCES
    assert ax.yaxis_inverted()
    assert f"{len(fractions):,} genes" in ax.get_xlabel()
    violins = {c.get_label(): c for c in ax.collections}
    assert list(violins) == toy.SOURCES
    assert to_hex(violins["CountNoise"].get_facecolor()[0]) == GREYS["CountNoise"].lower()
    for source, violin in violins.items():
        x = violin.get_paths()[0].vertices[:, 0]
        assert fractions[source].min() - 0.01 <= x.min()
        assert x.max() <= fractions[source].max() + 0.01
    boxes = ax.patches
    for source, box in zip(toy.SOURCES, boxes, strict=True):
        np.testing.assert_allclose(
            [box.get_x(), box.get_x() + box.get_width()], fractions[source].quantile([0.25, 0.75])
        )
    medians = [text.get_text() for text in ax.texts if text.get_text() != "median"]
    assert len(medians) == len(toy.SOURCES)
    assert medians[4] == f"{100 * fractions['CountNoise'].median():.0f}%"


def test_long_names_leave_room(toy):
    sources = ["C(Dx, Treatment('Control'))", "bs(Age, df=4)", "Dx:Sex", "SubID:Batch", "CountNoise", "Residuals"]
    adata = toy.fitted(50, sources=sources)
    for options in ({}, {"n_genes": 8}):
        fig = scglmm.pl.varpart(adata, return_fig=True, **options)
        ax = fig.axes[0]
        assert_nothing_is_cut_or_overlaps(fig, ax)
        assert ax.get_window_extent().width > 0.4 * fig.bbox.width


def test_sources_sorted_by_median(toy):
    adata = toy.fitted(200)
    ax = scglmm.pl.varpart(adata, sort_by="median", show=False)
    medians = adata.varm["nbmm_varpart"].median()
    assert rows(ax)[-2:] == ["CountNoise", "Residuals"]
    assert medians[rows(ax)[:-2]].is_monotonic_decreasing


def test_bars_of_named_genes(toy):
    adata = toy.fitted(100)
    fractions = adata.varm["nbmm_varpart"]
    status = adata.varm["nbmm_fit"]["status"]
    lost = fractions.index[fractions["Dx"].isna()][0]
    genes = ["GENE7", lost, "GENE2"]
    ax = scglmm.pl.varpart(adata, genes=genes, show=False)
    fig = ax.get_figure()
    assert_nothing_is_cut_or_overlaps(fig, ax)
    assert rows(ax) == genes
    np.testing.assert_allclose(widths(ax), fractions.loc[genes].fillna(0))
    np.testing.assert_allclose(widths(ax).sum(axis=1), [1, 0, 1])
    assert [text.get_text() for text in ax.texts] == [f"not fitted: {status[lost]}"]
    legend = ax.get_legend()
    assert sorted(text.get_text() for text in legend.get_texts()) == sorted(toy.SOURCES)
    extent = legend.get_window_extent()
    assert extent.x1 <= fig.bbox.x1 + 1
    assert extent.y1 <= fig.bbox.y1 + 1
    assert not extent.overlaps(ax.get_window_extent())


def test_bars_sorted_by_a_source(toy):
    adata = toy.fitted(100)
    fractions = adata.varm["nbmm_varpart"]
    ax = scglmm.pl.varpart(adata, genes=["GENE7", "GENE2", "GENE9"], sort_by="SubID", show=False)
    assert fractions.loc[rows(ax), "SubID"].is_monotonic_decreasing
    top = scglmm.pl.varpart(adata, n_genes=5, sort_by="Sex", show=False)
    assert rows(top) == fractions["Sex"].sort_values(ascending=False).index[:5].tolist()
    default = scglmm.pl.varpart(adata, kind="bar", show=False)
    assert rows(default) == fractions["Dx"].sort_values(ascending=False).index[:20].tolist()


def test_violins_of_named_genes_and_symbols(toy):
    adata = toy.fitted(100)
    ax = scglmm.pl.varpart(adata, genes=[f"GENE{i}" for i in range(40)], kind="violin", show=False)
    assert "genes" in ax.get_xlabel()
    named = scglmm.pl.varpart(adata, genes="SYM2", gene_symbols="symbol", show=False)
    assert rows(named) == ["SYM2"]
    alone = scglmm.pl.varpart(adata, genes="GENE2", kind="violin", show=False)
    assert "(1 gene)" in alone.get_xlabel()


def test_variances_at_zero(toy):
    adata = toy.fitted(50)
    fractions = adata.varm["nbmm_varpart"]
    fractions["CountNoise"] += fractions["SubID"]
    fractions["SubID"] = np.where(fractions["SubID"].isna(), np.nan, -1e-18)
    ax = scglmm.pl.varpart(adata, show=False)
    ax.get_figure().canvas.draw()
    assert ax.texts[3].get_text() == "0%"


def test_groups(toy):
    adata = toy.fitted_groups()
    ax = scglmm.pl.varpart(adata, group="T/NK", show=False)
    assert ax.get_title(loc="left") == "T/NK"
    bars = scglmm.pl.varpart(adata, group="T/NK", n_genes=3, show=False)
    assert bars.get_legend().get_title().get_text() == "T/NK"
    with pytest.raises(ValueError, match="more than one group"):
        scglmm.pl.varpart(adata)


def test_what_is_returned(toy, monkeypatch):
    adata = toy.fitted()
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(1))
    assert isinstance(scglmm.pl.varpart(adata, show=False), Axes)
    assert isinstance(scglmm.pl.varpart(adata, return_fig=True), Figure)
    assert scglmm.pl.varpart(adata, show=True) is None
    assert shown == [1]
    _, ax = plt.subplots()
    assert scglmm.pl.varpart(adata, ax=ax, show=False) is ax
    assert tuple(scglmm.pl.varpart(adata, figsize=(5, 2), return_fig=True).get_size_inches()) == (5, 2)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kind": "pie"}, ValueError, "`kind` must be 'violin' or 'bar', not 'pie'"),
        ({"scale": "log"}, ValueError, "`scale` must be 'sqrt' or 'linear', not 'log'"),
        ({"genes": []}, ValueError, "`genes` is empty"),
        ({"genes": "GEN1"}, KeyError, "No gene 'GEN1'"),
        ({"n_genes": 0}, ValueError, "`n_genes` must be at least 1"),
        ({"sort_by": "Dx"}, ValueError, "sorted by 'median' only"),
        ({"n_genes": 3, "sort_by": "dx"}, KeyError, "No source of variance 'dx'.*Sources: 'Dx'"),
        ({"palette": ["red"]}, ValueError, "1 colours for 4 names: Dx, Age, Sex, SubID"),
        ({"palette": {"Dx": "no colour"}}, ValueError, "'Dx' the colour 'no colour'"),
        ({"palette": "no map"}, ValueError, "'no map' is not the name of a colormap"),
        ({"key": "x"}, KeyError, "No result 'x'"),
        ({"gene_symbols": "x"}, KeyError, r"No column 'x' in `adata.var`"),
    ],
)
def test_errors(toy, arguments, error, message):
    with pytest.raises(error, match=message):
        scglmm.pl.varpart(toy.fitted(), **arguments)


def test_nothing_was_fitted(toy):
    adata = toy.fitted()
    adata.varm["nbmm_varpart"][:] = np.nan
    with pytest.raises(ValueError, match="None of these genes was fitted"):
        scglmm.pl.varpart(adata)


def test_colours():
    sources = ["Dx", "Age", "CountNoise", "Residuals"]
    blue, orange = list(OKABE_ITO.values())[:2]
    assert source_colours(sources, None) == {"Dx": blue.lower(), "Age": orange.lower()} | {
        name: colour.lower() for name, colour in GREYS.items()
    }
    assert source_colours(sources, {"Age": "red"})["Age"] == "#ff0000"
    assert source_colours(sources, {"Age": "red"})["Dx"] == blue.lower()
    assert source_colours(sources, ["k", "w"])["Age"] == "#ffffff"
    assert source_colours(sources, "tab10")["Age"] == "#ff7f0e"
    many = source_colours([f"s{i}" for i in range(14)], None)
    assert len(set(many.values())) == 14


def test_wrap():
    assert wrap("Dx[T.AD]", 5) == "Dx[T.AD]"
    assert wrap("C(Dx, Treatment('Control'))", 20) == "C(Dx,\nTreatment('Control'))"
    assert wrap("a:b:c", 3) == "a:\nb:c"


def test_density_is_a_reflected_kernel_density():
    rng = np.random.default_rng(0)
    values = rng.beta(1, 6, 500)
    grid = np.linspace(0, 1, 512)
    spread = min(values.std(), stats.iqr(values) / 1.34)
    bandwidth = 0.9 * spread * 500**-0.2
    ours = _density(values, grid)
    expected = sum(
        stats.norm.pdf(grid[:, None], centre, bandwidth).sum(axis=1) for centre in (values, -values, 2 - values)
    )
    np.testing.assert_allclose(ours / ours.max(), expected / expected.max(), atol=0.01)
