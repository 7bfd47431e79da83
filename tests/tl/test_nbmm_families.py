"""Families, zero inflation and quadrature gene by gene: glmmTMB's numbers, and those of one response."""

from __future__ import annotations

import math
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.stats import norm

import scglmm

HERE = Path(__file__).parent.parent / "reference"
FORMULA = "~ offset(log(libSize)) + Dx + stim + (1|donor)"
GENES = ["pois", "nb", "zip", "zinb"]

pytestmark = pytest.mark.filterwarnings(r"ignore:(Groups? .*)?'stim' varies within all .* levels:UserWarning")


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    table = pd.read_csv(HERE / "nbmm_families_cells.csv")
    obs = table.drop(columns=GENES)
    obs.index = obs.index.astype(str)
    obs["Dx"] = pd.Categorical(obs["Dx"], ["Control", "AD"])
    obs["half"] = pd.Categorical(np.where(np.arange(len(obs)) % 2, "odd", "even"))
    return ad.AnnData(sparse.csr_matrix(table[GENES].to_numpy(float)), obs=obs, var=pd.DataFrame(index=GENES))


def crowd() -> ad.AnnData:
    """Strata of hundreds of cells, whose nodes are fewer than the cells."""
    rng = np.random.default_rng(5)
    n = 6_000
    donor = rng.integers(0, 8, n)
    size = np.round(rng.lognormal(8, 0.35, n))
    mu = np.exp(np.log(size) - 8 + 0.4 * (donor % 2) + rng.normal(0, 0.4, 8)[donor])
    y = np.stack(
        [rng.poisson(mu), rng.poisson(mu) * (rng.random(n) > 0.3), rng.poisson(40 * mu * rng.gamma(2, 0.5, n))]
    )
    y[2] *= rng.random(n) > 0.2
    obs = pd.DataFrame(
        {"donor": donor.astype(str), "Dx": np.array(["a", "b"])[donor % 2], "libSize": size},
        index=[f"c{i}" for i in range(n)],
    )
    return ad.AnnData(sparse.csc_matrix(y.T.astype(np.float32)), obs=obs, var=pd.DataFrame(index=["g0", "g1", "g2"]))


@pytest.mark.parametrize("method", ["ml", "reml"])
@pytest.mark.parametrize("zi", ["", "~ 1", "~ stim"])
@pytest.mark.parametrize("family", ["poisson", "nbinom2"])
def test_glmmtmb(cells, family, zi, method):
    """Estimates within 1e-4 standard errors, standard errors within 2e-4; without zero inflation REML leaves out what
    the estimation of the variances adds, as documented."""
    frozen = pd.read_csv(HERE / "nbmm_families.csv", keep_default_na=False)
    frozen = frozen[(frozen["family"] == family) & (frozen["zi"] == zi) & (frozen["method"] == method)]
    assert len(frozen) >= 7
    result = scglmm.tl.nbmm(cells, FORMULA, family=family, ziformula=zi or None, method=method, copy=True)
    coef, se, fit = (result.varm[f"nbmm_{name}"] for name in ("coef", "se", "fit"))
    for _, (gene, name, expected, error) in frozen[["gene", "name", "estimate", "se"]].iterrows():
        expected = float(expected)
        if name == "loglik":
            assert fit.loc[gene, name] == pytest.approx(expected, abs=2e-5)
        elif name.startswith("var["):
            assert fit.loc[gene, name] == pytest.approx(expected, rel=4e-4)
        elif name == "theta":
            at_limit = expected > 1e5
            assert fit.loc[gene, name] == (math.inf if at_limit else pytest.approx(expected, rel=1e-4))
        else:
            inflation = name.startswith("zi[")
            found = fit.loc[gene, name] if inflation else coef.loc[gene, name]
            own = fit.loc[gene, f"zi_se{name.removeprefix('zi')}"] if inflation else se.loc[gene, name]
            assert found == pytest.approx(expected, abs=1e-4 * float(error))
            assert own == pytest.approx(float(error), rel=1e-3 if method == "reml" and not zi else 5e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"family": "poisson", "method": "ml"},
        {"family": "poisson", "method": "reml"},
        {"family": "poisson", "method": "ml", "n_quad": 7},
        {"method": "ml", "n_quad": 7},
        {"method": "ml", "ziformula": "~ 1"},
        {"method": "ml", "ziformula": "~ Dx", "family": "poisson"},
        {"method": "ml", "ziformula": "~ 1", "family": "poisson", "n_quad": 5},
        {"method": "reml", "ziformula": "~ 1"},
    ],
)
def test_one_response(options):
    """The numbers of `scglmm.glmm`, for large strata."""
    adata = crowd()
    formula = "~ offset(log(libSize)) + Dx + (1|donor)"
    result = scglmm.tl.nbmm(adata, formula, copy=True, **options)
    if "ziformula" not in options:
        assert result.uns["nbmm"]["n_nodes"] < 30 * result.uns["nbmm"]["n_strata"]
    how = {"family": "nbinom2"} | {k: v for k, v in options.items() if k != "method"}
    for gene in adata.var_names:
        one = scglmm.glmm(f"{gene} {formula}", adata, reml=options["method"] == "reml", **how)
        table, fit = one.coef_table, result.varm["nbmm_fit"].loc[gene]
        se = result.varm["nbmm_se"].loc[gene]
        assert fit["loglik"] == pytest.approx(one.loglik, abs=1e-4)
        error = table["se"].to_numpy()
        assert np.abs((result.varm["nbmm_coef"].loc[gene] - table["estimate"]) / error).max() < 1e-4
        assert fit["var[donor]"] == pytest.approx(one.varcorr()["vcov"].iloc[0], rel=1e-4)
        assert fit["theta"] == pytest.approx(one.theta, rel=1e-4)
        if options["method"] == "reml" and "ziformula" not in options:
            continue  # glmm counts the estimation of the variances in
        np.testing.assert_allclose(se, error, rtol=2e-4)
        if options["method"] == "reml":
            np.testing.assert_allclose(result.varm["nbmm_dof"].loc[gene], table["df"], rtol=1e-3)


def test_poisson_is_the_limit(adata, formula):
    """Genes whose theta is at infinity have the same fit, and are `ok` as Poisson."""
    nb = scglmm.tl.nbmm(adata, formula, copy=True, moderate=False)
    poisson = scglmm.tl.nbmm(adata, formula, copy=True, family="poisson")
    limit = (nb.varm["nbmm_fit"]["status"] == "poisson_limit").to_numpy()
    assert limit.any()
    for name in ("coef", "se", "dof", "varpart"):
        np.testing.assert_allclose(
            poisson.varm[f"nbmm_{name}"][limit], nb.varm[f"nbmm_{name}"][limit], rtol=1e-3, atol=1e-4
        )
    assert np.isinf(poisson.varm["nbmm_fit"]["theta"].dropna()).all()
    assert "poisson_limit" not in set(poisson.varm["nbmm_fit"]["status"])
    assert (poisson.varm["nbmm_varpart"]["Residuals"].dropna() == 0).all()
    np.testing.assert_allclose(poisson.varm["nbmm_varpart"].dropna().sum(axis=1), 1)
    assert poisson.uns["nbmm"]["family"] == "poisson"
    assert poisson.uns["nbmm"]["moderation"]["status"].startswith("off:")


def test_quadrature_against_integration():
    """The log-likelihood is the integral over the effect of every donor."""
    adata = crowd()[:300, :1].copy()
    result = scglmm.tl.nbmm(
        adata, "~ offset(log(libSize)) + Dx + (1|donor)", family="poisson", method="ml", n_quad=25, copy=True
    )
    beta, sd = result.varm["nbmm_coef"].iloc[0], math.sqrt(result.varm["nbmm_fit"]["var[donor]"].iloc[0])
    eta = beta["(Intercept)"] + beta["Dx[T.b]"] * (adata.obs["Dx"] == "b") + np.log(adata.obs["libSize"])
    y, x = adata.X.toarray()[:, 0], np.linspace(-9, 9, 2_001)
    total = 0.0
    for donor in adata.obs["donor"].unique():
        own = (adata.obs["donor"] == donor).to_numpy()
        logs = eta.to_numpy()[own, None] + sd * x
        values = (y[own, None] * logs - np.exp(logs) - np.array([math.lgamma(k + 1) for k in y[own]])[:, None]).sum(
            axis=0
        )
        total += np.log(np.sum(np.exp(values - values.max()) * norm.pdf(x)) * (x[1] - x[0])) + values.max()
    assert result.varm["nbmm_fit"]["loglik"].iloc[0] == pytest.approx(total, abs=1e-6)


def test_too_few_points_are_said():
    """Donors with few counts that differ by far: twelve genes, for most of which two points are not enough."""
    rng = np.random.default_rng(3)
    donor = np.repeat(np.arange(30), 4)
    mu = np.exp(-1.5 + rng.normal(0, 2, (30, 12)))[donor]
    obs = pd.DataFrame({"donor": donor.astype(str)}, index=np.arange(donor.size).astype(str))
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(mu).astype(float)), obs=obs)
    adata.obs["size"] = 1.0
    how = {"formula": "~ offset(log(size)) + (1|donor)", "family": "poisson", "method": "ml", "copy": True}
    with pytest.warns(UserWarning, match=r"n_quad=2 points are too few for \d+ of 12 genes") as said:
        few = scglmm.tl.nbmm(adata, n_quad=2, **how).varm["nbmm_fit"]
    error = few["quadrature_error"]
    assert f"{int((error.abs() > 1e-3).sum())} of 12" in str(said[0].message)
    many = scglmm.tl.nbmm(adata, n_quad=40, **how).varm["nbmm_fit"]
    assert many["quadrature_error"].abs().max() < 1e-3 < few["quadrature_error"].abs().median()
    assert "quadrature_error" not in scglmm.tl.nbmm(adata, **how).varm["nbmm_fit"]

    table = obs.assign(count=adata.X[:, [0]].toarray())
    with pytest.warns(UserWarning, match="n_quad=2 points are too few: four times as many change"):
        fit = scglmm.glmm("count ~ 1 + (1|donor)", table, family="poisson", n_quad=2)
    assert fit.estimates.quadrature_error == pytest.approx(error.iloc[0], rel=1e-6)
    check = scglmm.mixed.check_convergence(fit)
    assert not check.ok
    assert check.values["quadrature_error"] == fit.estimates.quadrature_error


def test_groups_of_cells(cells):
    """Each group is the run on its cells, with its own zero inflation; missing values leave both designs alike."""
    adata = cells.copy()
    adata.obs["quality"] = np.arange(adata.n_obs) / adata.n_obs
    adata.obs.loc[adata.obs_names[:7], "quality"] = np.nan
    options = {"family": "poisson", "ziformula": "~ quality", "method": "ml", "na_action": "drop"}
    scglmm.tl.nbmm(adata, FORMULA, groupby="half", **options)
    assert adata.uns["nbmm"]["n_cells"] == adata.n_obs - 7
    alone = adata[adata.obs["half"] == "odd"].copy()
    scglmm.tl.nbmm(alone, FORMULA, key_added="alone", **options)
    for name in ("zi[quality]", "zi_se[quality]", "loglik", "theta"):
        expected = alone.varm["alone_fit"][name].to_numpy()
        np.testing.assert_allclose(adata.varm["nbmm_fit"][f"odd|{name}"], expected, rtol=1e-9)
    with pytest.raises(ValueError, match="missing"):
        scglmm.tl.nbmm(adata, FORMULA, **(options | {"na_action": "raise"}))


def test_backed_and_workers(cells, tmp_path):
    """Row chunks from disk and threads give the same tables."""
    options = {"ziformula": "~ stim", "method": "ml"}
    expected = scglmm.tl.nbmm(cells, FORMULA, copy=True, **options).varm["nbmm_fit"].drop(columns="status")
    cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    scglmm.tl.nbmm(backed, FORMULA, n_jobs=2, **options)
    np.testing.assert_array_equal(backed.varm["nbmm_fit"].drop(columns="status"), expected)
    backed.file.close()


def test_separated_and_boundary(cells):
    """A gene that is absent in a condition, and one without more zeros than its family has."""
    adata = cells.copy()
    dense = adata.X.toarray()
    dense[(adata.obs["Dx"] == "AD").to_numpy(), 2] = 0
    adata.X = sparse.csr_matrix(dense)
    scglmm.tl.nbmm(adata, FORMULA, family="poisson", ziformula="~ 1", method="ml")
    fit, coef = adata.varm["nbmm_fit"], adata.varm["nbmm_coef"]
    assert fit.loc["zip", "status"] == "separated"
    assert np.isnan(coef.loc["zip", "Dx[T.AD]"])
    assert np.isfinite(coef.loc["zip", "stim[T.stim]"])
    with pytest.warns(UserWarning, match="infinity"):
        alone = scglmm.glmm(f"zip {FORMULA}", adata, family="poisson", ziformula="~ 1")
    np.testing.assert_allclose(coef.loc["zip"], alone.coef_table["estimate"], rtol=1e-6)
    np.testing.assert_allclose(adata.varm["nbmm_se"].loc["zip"], alone.coef_table["se"], rtol=1e-5)
    one = scglmm.tl.nbmm(cells, FORMULA, family="poisson", ziformula="~ 1", method="ml", copy=True)
    assert fit.loc["pois", "status"] == one.varm["nbmm_fit"].loc["pois", "status"] == "zi_boundary"
    plain = scglmm.tl.nbmm(cells, FORMULA, family="poisson", method="ml", copy=True)
    assert 0 <= fit.loc["pois", "loglik"] - plain.varm["nbmm_fit"].loc["pois", "loglik"] < 0.01
    assert adata.varm["nbmm_varpart"].isna().all(axis=None)


def test_what_comes_after(cells):
    """Functions that work on a result are right, or say why they are not for it."""
    poisson = scglmm.tl.nbmm(cells, FORMULA, family="poisson", copy=True)
    before = poisson.varm["nbmm_varpart"].copy()
    scglmm.tl.varpart(poisson)
    np.testing.assert_allclose(poisson.varm["nbmm_varpart"], before, rtol=1e-10)
    scglmm.tl.lrt(poisson, "~ stim + (1|donor)")
    full, small = (
        scglmm.glmm(f"pois ~ offset(log(libSize)) + {more}stim + (1|donor)", cells, family="poisson")
        for more in ("Dx + ", "")
    )
    assert poisson.varm["nbmm_lrt"].loc["pois", "statistic"] == pytest.approx(
        2 * (full.loglik - small.loglik), abs=1e-5
    )
    with pytest.raises(ValueError, match="fits the gene again"):
        scglmm.pl.ranef(poisson, "pois", show=False)
    inflated = scglmm.tl.nbmm(cells, FORMULA, ziformula="~ 1", copy=True)
    assert inflated.uns["nbmm"]["ziformula"] == "~ 1"
    for call in (
        lambda: scglmm.tl.varpart(inflated),
        lambda: scglmm.pl.varpart(inflated, show=False),
        lambda: scglmm.tl.lrt(inflated, "~ stim + (1|donor)"),
        lambda: scglmm.pl.ranef(inflated, "nb", show=False),
    ):
        with pytest.raises(ValueError, match=r"zero inflation"):
            call()
    scglmm.tl.contrast(inflated, {"difference": "Dx[T.AD] - stim[T.stim]"})
    quadrature = scglmm.tl.nbmm(cells, FORMULA, method="ml", n_quad=9, copy=True)
    with pytest.raises(ValueError, match="n_quad=9"):
        scglmm.tl.lrt(quadrature, "~ stim + (1|donor)")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"family": "gaussian"}, ValueError, "scglmm.glmm"),
        ({"family": "nb"}, ValueError, "'nbinom2', 'poisson'"),
        ({"ziformula": 3}, TypeError, "must be a string"),
        ({"ziformula": "y ~ 1"}, ValueError, "left side"),
        ({"ziformula": "~ (1|donor)"}, ValueError, "fixed effects only"),
        ({"ziformula": "~ nothing"}, KeyError, "'nothing'"),
        ({"n_quad": 0}, ValueError, "whole number"),
        ({"n_quad": 5}, ValueError, "method='ml'"),
        (
            {"n_quad": 5, "method": "ml", "formula": "~ Dx + (1|donor) + (1|stim)"},
            ValueError,
            r"\(1\|donor\) \+ \(1\|stim\)",
        ),
        ({"family": "poisson", "moderate": True}, ValueError, "not moderated"),
        ({"ziformula": "~ 1", "moderate": True}, ValueError, "not moderated"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_bad_input(cells, options, error, message):
    adata = cells.copy()
    with pytest.raises(error, match=message):
        scglmm.tl.nbmm(adata, options.pop("formula", FORMULA) if "formula" in options else FORMULA, **options)
    assert not adata.uns
    assert not adata.varm
