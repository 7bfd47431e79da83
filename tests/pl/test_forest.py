from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_hex
from scipy import stats

import scglmm
from scglmm.pl._forest import _limits
from scglmm.results import write_results


def points(ax):
    """Label -> estimate, and whether it is filled."""
    return {
        line.get_label(): (line.get_xdata()[0], to_hex(line.get_markerfacecolor()) != "#ffffff")
        for line in ax.lines
        if ": " in str(line.get_label())
    }


def intervals(ax):
    return np.array(
        [line.get_xdata() for line in ax.lines if len(line.get_xdata()) == 2 and line.get_marker() == "None"]
    )


def test_estimates_and_intervals(toy, assert_readable):
    adata = toy.fitted(100, dof=7.0)
    genes = ["GENE3", "GENE8", "GENE5"]
    ax = scglmm.pl.forest(adata, genes, coef=["Dx[T.AD]", "Sex[T.M]"], level=0.9, show=False)
    assert_readable(ax.get_figure())
    assert [label.get_text() for label in ax.get_yticklabels()] == genes
    table = scglmm.get.nbmm_df(adata, ["Dx[T.AD]", "Sex[T.M]"]).set_index(["gene", "coef"])
    shown = points(ax)
    assert len(shown) == 6
    ends = []
    for gene in genes:
        for coef in ("Dx[T.AD]", "Sex[T.M]"):
            row = table.loc[(gene, coef)]
            assert shown[f"{gene}: {coef}"] == (pytest.approx(row["log2_fc"]), row["padj"] < 0.05)
            half = stats.t.ppf(0.95, 7.0) * row["se"] / np.log(2)
            ends.append([row["log2_fc"] - half, row["log2_fc"] + half])
    # the first line is that at 0
    np.testing.assert_allclose(intervals(ax)[1:], ends)
    assert "90% interval" in ax.get_xlabel()


def test_default_is_the_best_genes_of_every_contrast(toy, assert_readable):
    adata = toy.fitted(100)
    ax = scglmm.pl.forest(adata, coef=["Dx[T.AD]", "Sex[T.M]"], n_genes=6, show=False)
    assert_readable(ax.get_figure())
    shown = {label.get_text() for label in ax.get_yticklabels()}
    assert len(shown) == 6
    for coef in ("Dx[T.AD]", "Sex[T.M]"):
        best = scglmm.get.nbmm_df(adata, coef)["gene"][:3].tolist()
        assert set(best[:2]) <= shown


def test_groups_and_their_colours(toy, assert_readable):
    adata = toy.fitted_groups()
    adata.obs["cell_type"] = np.resize(np.array(["T/NK", "Mono", "B|naive"]), adata.n_obs)
    adata.obs["cell_type"] = adata.obs["cell_type"].astype("category")
    adata.uns["nbmm"]["groupby"] = "cell_type"
    adata.uns["cell_type_colors"] = ["#111111", "#222222", "#333333"]  # B|naive, Mono, T/NK
    ax = scglmm.pl.forest(adata, ["GENE3", "GENE4"], coef="Age", show=False)
    assert_readable(ax.get_figure())
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["T/NK", "B|naive"]
    assert ax.get_legend().get_title().get_text() == "Age"
    assert {to_hex(line.get_color()) for line in ax.get_legend().get_lines()} == {"#333333", "#111111"}
    single = scglmm.pl.forest(adata, "GENE3", coef="Age", show=False)
    assert_readable(single.get_figure())
    assert [label.get_text() for label in single.get_yticklabels()] == ["T/NK", "B|naive"]
    assert single.get_title(loc="left") == "GENE3: Age"
    with pytest.raises(ValueError, match="several coefficients in several groups: choose with `coef`, 'Dx"):
        scglmm.pl.forest(adata)


def test_no_estimate_is_said(toy, assert_readable):
    adata = toy.fitted(60)
    lost = adata.var_names[adata.varm["nbmm_coef"]["Age"].isna()][0]
    status = adata.varm["nbmm_fit"]["status"][lost]
    ax = scglmm.pl.forest(adata, [lost, "GENE3"], coef="Dx[T.AD]", show=False)
    assert_readable(ax.get_figure())
    assert [text.get_text() for text in ax.texts] == [status]
    with pytest.raises(ValueError, match="None of these genes has a p-value"):
        scglmm.pl.forest(adata, lost)


def test_arrows_only_where_an_interval_goes_on(toy):
    adata = toy.fitted(60)
    markers = lambda ax: [line.get_marker() for line in ax.lines if line.get_marker() in "<>"]  # noqa: E731
    assert markers(scglmm.pl.forest(adata, ["GENE3"], coef="Dx[T.AD]", show=False)) == []
    adata.varm["nbmm_se"].loc["GENE3", "Dx[T.AD]"] = 50.0
    ax = scglmm.pl.forest(adata, [f"GENE{i}" for i in range(3, 20)], coef="Dx[T.AD]", show=False)
    assert markers(ax) == ["<", ">"]
    assert np.ptp(ax.get_xlim()) < 20
    clipped = scglmm.pl.forest(adata, ["GENE3"], coef="Dx[T.AD]", xmax=0.5, show=False)
    assert markers(clipped) == ["<", ">"]


def test_many_groups_with_long_names(toy, assert_readable):
    adata = toy.make_adata(n_genes=30)
    names = [f"Excitatory intratelencephalic neurons of layer {i}" for i in range(9)]
    tables = {name: toy.make_table(adata.var_names, seed=i, share_untested=0.0) for i, name in enumerate(names)}
    write_results(adata, "nbmm", tables, toy.make_info(groups=dict.fromkeys(names, "ok")))
    for plot, options in ((scglmm.pl.forest, {"genes": "GENE3"}), (scglmm.pl.heatmap, {}), (scglmm.pl.dotplot, {})):
        assert_readable(plot(adata, coef="Dx[T.AD]", return_fig=True, **options))
    assert_readable(scglmm.pl.forest(adata, ["GENE3", "GENE4"], coef="Age", return_fig=True))
    assert_readable(scglmm.pl.status(adata, return_fig=True))


def test_limits():
    nan = np.nan
    assert _limits(np.array([nan]), np.array([nan])) == (-1.0, 1.0)
    low, high = _limits(np.array([2.0, 3.0]), np.array([0.1, 0.1]))
    assert (low, high) == (pytest.approx(-0.3), pytest.approx(3.1))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"level": 95}, ValueError, "`level` must be between 0 and 1, not 95"),
        ({"n_genes": 0}, ValueError, "`n_genes` must be at least 1, not 0"),
        ({"coef": "Dx"}, KeyError, "is a factor"),
        ({"genes": "GEN3"}, KeyError, "No gene 'GEN3'"),
        ({"coef": ["Age", "Dx[T.AD]"], "palette": ["red"]}, ValueError, "1 colours for 2 names"),
        ({"gene_symbols": "x"}, KeyError, "No column 'x'"),
    ],
)
def test_errors(toy, arguments, error, message):
    with pytest.raises(error, match=message):
        scglmm.pl.forest(toy.fitted(), **arguments)
