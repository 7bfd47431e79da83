from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import optimize, stats

import scglmm
from scglmm.pl._refit import fitted_cells, refit
from scglmm.results import read_result

FROZEN = Path(__file__).parents[1] / "reference" / "kang18_ranef.csv"
MODELS = {"nested": "stim + (1|ind) + (1|ind:stim)", "slope": "stim + (stim|ind)"}


def refitted(adata, gene):
    return refit(fitted_cells(adata, read_result(adata), None), adata.var_names.get_loc(gene))


@pytest.mark.parametrize(("gene", "model"), [("CD74", "nested"), ("ISG15", "slope")])
def test_modes_are_those_of_glmmTMB(reference, gene, model):
    adata = ad.read_h5ad(reference / "kang18_bcells.h5ad")
    adata.obs["total"] = np.asarray(adata.X.sum(axis=1, dtype=np.float64)).ravel()
    adata = adata[:, [gene]].copy()
    scglmm.tl.nbmm(adata, f"~ offset(log(total)) + {MODELS[model]}", method="ml")
    found = refitted(adata, gene)
    stored = adata.varm["nbmm_fit"].iloc[0]
    assert found.agrees(adata.varm["nbmm_coef"].to_numpy()[0], adata.varm["nbmm_se"].to_numpy()[0], stored)
    frozen = pd.read_csv(FROZEN, dtype={"level": str}).query("gene == @gene")
    ours = pd.concat([table.assign(group=name) for name, table in zip(found.names, found.effects, strict=True)])
    ours["column"] = ours["column"].replace("stim[T.stim]", "stimstim")
    both = ours.merge(frozen, on=["group", "level", "column"], validate="one_to_one", suffixes=("", "_R"))
    assert len(both) == len(frozen) == len(ours)
    np.testing.assert_allclose(both["mode"], both["mode_R"], atol=1e-5)


def test_modes_and_standard_deviations_by_definition(small):
    """The mode of the penalised log-likelihood given the estimates, and the inverse of its numerical Hessian."""
    gene = next(g for g in small.var_names if small.varm["nbmm_fit"].loc[g, "status"] == "ok")
    found = refitted(small, gene)
    fit, coef = small.varm["nbmm_fit"].loc[gene], small.varm["nbmm_coef"].loc[gene]
    obs, y = small.obs, small[:, gene].X.toarray().ravel()
    eta = np.log(obs["libSize"]) + coef["(Intercept)"] + coef["Age"] * obs["Age"]
    eta = (eta + coef["Dx[T.AD]"] * (obs["Dx"] == "AD") + coef["Dx[T.MCI]"] * (obs["Dx"] == "MCI")).to_numpy()
    theta, sd = fit["theta"], np.sqrt(fit["var[SubID]"])
    (table,) = found.effects
    assert table["level"].tolist() == list(obs["SubID"].cat.categories)
    for level, mode, spread in table[["level", "mode", "sd"]].itertuples(index=False):
        own = (obs["SubID"] == level).to_numpy()

        def loss(u, own=own):
            mu = np.exp(eta[own] + u)
            return -stats.nbinom.logpmf(y[own], theta, theta / (theta + mu)).sum() - stats.norm.logpdf(u, 0, sd)

        best = optimize.minimize_scalar(loss, bounds=(-5, 5), method="bounded", options={"xatol": 1e-9}).x
        assert mode == pytest.approx(best, abs=1e-5)
        h = 1e-3
        curvature = (loss(best + h) - 2 * loss(best) + loss(best - h)) / h**2
        assert spread == pytest.approx(curvature**-0.5, rel=1e-4)


def test_caterpillar(small, assert_readable):
    gene = next(g for g in small.var_names if small.varm["nbmm_fit"].loc[g, "status"] == "ok")
    ax = scglmm.pl.ranef(small, gene, color="Dx", show=False)
    assert_readable(ax.get_figure())
    (table,) = refitted(small, gene).effects
    table = table.sort_values("mode")
    (points,) = [c for c in ax.collections if c.get_label() == "modes"]
    np.testing.assert_allclose(points.get_offsets()[:, 0], table["mode"] / np.log(2))
    assert [label.get_text() for label in ax.get_yticklabels()] == table["level"].tolist()
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    sd = np.sqrt(small.varm["nbmm_fit"].loc[gene, "var[SubID]"]) / np.log(2)
    assert texts == ["Control", "AD", "MCI", f"± estimated sd, {sd:.2f}"]


def test_terms(paired, assert_readable):
    ax = scglmm.pl.ranef(paired, "GENE1", term="SubID:stim", color="stim", show=False)
    assert_readable(ax.get_figure())
    assert len(ax.get_yticklabels()) == 12
    assert "SubID:stim" in ax.get_xlabel()


def test_random_slope(toy):
    adata = toy.make_adata(n_genes=3, n_cells=480)
    adata.obs["z"] = np.random.default_rng(0).normal(size=480).round(1)
    scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + z + (z|SubID)")
    ax = scglmm.pl.ranef(adata, "GENE1", column="z", show=False)
    assert "per unit of z" in ax.get_xlabel()
    with pytest.raises(KeyError, match=r"has no effect 'y'. Effects: '\(Intercept\)', 'z'"):
        scglmm.pl.ranef(adata, "GENE1", column="y")


def test_color_with_missing_values(small):
    adata = small.copy()
    adata.obs["batch"] = adata.obs["SubID"].map({"D00": "one", "D01": "two"}).astype(object)
    ax = scglmm.pl.ranef(adata, "GENE2", color="batch", show=False)
    assert [text.get_text() for text in ax.get_legend().get_texts()][:3] == ["one", "two", "missing"]
    adata.obs["number"] = np.arange(adata.n_obs)
    with pytest.raises(ValueError, match="`color` must be a column of categories, and 'number' holds 240 numbers"):
        scglmm.pl.ranef(adata, "GENE2", color="number")


def test_many_levels_are_not_named(toy, assert_readable):
    adata = toy.make_adata(n_genes=3, n_cells=480, n_donors=60)
    scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + (1|SubID)")
    ax = scglmm.pl.ranef(adata, "GENE1", show=False)
    assert_readable(ax.get_figure())
    assert ax.get_ylabel() == "60 levels of SubID"


def test_changed_data_are_noticed(small, log):
    adata = small.copy()
    adata.X.data[: adata.X.nnz // 3] += 1
    scglmm.pl.ranef(adata, "GENE2", show=False)
    assert "Fitting GENE2 again gives other estimates than those in `adata.varm`" in log.getvalue()


def test_moderated_fits_are_known_again(toy, log):
    adata = toy.make_adata(n_genes=220, n_cells=180, n_donors=9, seed=4)
    scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + (1|SubID)", n_jobs=1)
    assert adata.uns["nbmm"]["moderation"]["status"] == "ok"
    coef, se, fit = (adata.varm[f"nbmm_{name}"] for name in ("coef", "se", "fit"))
    other = fit.assign(theta=1.1 * fit["theta"])
    moved = 0
    for gene in fit.index[fit["status"] == "ok"][:10]:
        found = refitted(adata, gene)
        moved += (np.abs(found.beta - coef.loc[gene]) > 0.05 * se.loc[gene]).any()
        assert found.agrees(coef.loc[gene].to_numpy(), se.loc[gene].to_numpy(), fit.loc[gene]), gene
        assert not found.agrees(coef.loc[gene].to_numpy() + 1, se.loc[gene].to_numpy(), other.loc[gene]), gene
    assert moved
    log.truncate(0)
    scglmm.pl.ranef(adata, gene, show=False)
    assert "again" not in log.getvalue()


def test_variance_of_zero(small, log, assert_readable):
    gene = next(g for g in small.var_names if small.varm["nbmm_fit"].loc[g, "status"] == "singular")
    ax = scglmm.pl.ranef(small, gene, show=False)
    assert_readable(ax.get_figure())
    assert f"The variance of 'SubID' is estimated at 0 for {gene}" in log.getvalue()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"gene": "x"}, KeyError, "No gene 'x'"),
        ({"level": 0}, ValueError, "`level` must be between 0 and 1"),
        ({"term": "donor"}, KeyError, "No random term 'donor'. Grouping factors: 'SubID', 'SubID:stim'"),
        ({"color": "x"}, KeyError, "No column 'x' in `adata.obs`"),
        ({"color": "stim"}, ValueError, "`color` must be constant within the levels of 'SubID', and 'stim' is not"),
        ({"gene": "GENE3"}, ValueError, r"GENE3 was not fitted \(status separated\)"),
    ],
)
def test_errors(paired, arguments, error, message):
    with pytest.raises(error, match=message):
        scglmm.pl.ranef(paired, **({"gene": "GENE1"} | arguments))


def test_other_families(small):
    adata = small.copy()
    adata.uns["nbmm"]["family"] = "zinb"
    with pytest.raises(ValueError, match=r"for the family nbinom2 by .* only; this result has zinb"):
        scglmm.pl.ranef(adata, "GENE2")
    scglmm.pl.donors(adata, "GENE2", show=False)


def test_no_random_effects(toy):
    adata = toy.make_adata(n_genes=3)
    with pytest.warns(UserWarning, match="no random effect"):
        scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx")
    with pytest.raises(ValueError, match="The formula has no random effect"):
        scglmm.pl.ranef(adata, "GENE1")
