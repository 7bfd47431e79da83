"""`scglmm.tl.nbmm`: what is written."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import stats

import scglmm

COEFFICIENTS = ["(Intercept)", "Dx[T.AD]", "Age", "stim[T.stim]"]
PER_COEFFICIENT = ("coef", "se", "stat", "dof", "pval", "padj")


@pytest.mark.parametrize("name", PER_COEFFICIENT)
def test_tables_per_coefficient(fitted, name):
    table = fitted.varm[f"nbmm_{name}"]
    assert isinstance(table, pd.DataFrame)
    assert list(table.columns) == COEFFICIENTS
    assert table.index.equals(fitted.var_names)
    assert (table.dtypes == np.float64).all()
    assert table.notna().all(axis=None)


def test_statistics_agree_with_each_other(fitted):
    coef, se, stat, dof, pval, padj = (fitted.varm[f"nbmm_{name}"].to_numpy() for name in PER_COEFFICIENT)
    np.testing.assert_allclose(stat, coef / se, rtol=1e-14)
    np.testing.assert_allclose(pval, 2 * stats.t.sf(np.abs(stat), dof), rtol=1e-12)
    for j in range(len(COEFFICIENTS)):
        np.testing.assert_allclose(padj[:, j], stats.false_discovery_control(pval[:, j]), rtol=1e-14)
    assert (dof > 0).all()


def test_covariances(fitted):
    vcov = fitted.varm["nbmm_vcov"]
    assert isinstance(vcov, np.ndarray)
    assert vcov.shape == (fitted.n_vars, 10)
    assert vcov.dtype == np.float64
    se = fitted.varm["nbmm_se"].to_numpy()
    np.testing.assert_allclose(np.sqrt(vcov[:, [0, 2, 5, 9]]), se, rtol=1e-14)
    for values in vcov:
        full = np.zeros((4, 4))
        full[np.tril_indices(4)] = values
        full = full + np.tril(full, -1).T
        assert (np.linalg.eigvalsh(full / np.sqrt(np.outer(np.diag(full), np.diag(full)))) > 0).all()


def test_fit_table(fitted):
    fit = fitted.varm["nbmm_fit"]
    record = ["theta", "var[SubID]", "loglik", "mean", "n_cells", "n_donors", "n_eval", "grad", "status"]
    assert list(fit.columns) == [*record, "null_intercept", "null_var", "var_linpred"]
    counts = fitted.X.toarray()
    np.testing.assert_allclose(fit["mean"], counts.mean(axis=0))
    np.testing.assert_array_equal(fit["n_cells"], (counts > 0).sum(axis=0))
    donors = [fitted.obs["SubID"][column > 0].nunique() for column in counts.T]
    np.testing.assert_array_equal(fit["n_donors"], donors)
    assert fit["n_cells"].dtype == fit["n_donors"].dtype == np.int64
    assert isinstance(fit["status"].dtype, pd.CategoricalDtype)
    assert {"ok", "singular"} <= set(fit["status"]) <= {"ok", "singular", "poisson_limit"}
    np.testing.assert_array_equal(fit["var[SubID]"] == 0, fit["status"] == "singular")
    assert fit["grad"].max() < 1e-5
    assert (fit["theta"] > 0).all()


def test_degrees_of_freedom_of_singular_genes(fitted):
    """12 donors and 3 coefficients of donors, the intercept among them; stim varies within donors."""
    singular = (fitted.varm["nbmm_fit"]["status"] == "singular").to_numpy()
    dof = fitted.varm["nbmm_dof"]
    assert singular.any()
    assert (dof.loc[singular, ["(Intercept)", "Dx[T.AD]", "Age"]] == 9).all(axis=None)
    assert (dof.loc[~singular, ["(Intercept)", "Dx[T.AD]", "Age"]] < 12).all(axis=None)


def test_variance_fractions(fitted):
    varpart = fitted.varm["nbmm_varpart"]
    assert list(varpart.columns) == ["Dx", "Age", "stim", "SubID", "CountNoise", "Residuals"]
    assert varpart.index.equals(fitted.var_names)
    assert ((varpart >= 0) & (varpart <= 1)).all(axis=None)
    np.testing.assert_allclose(varpart.sum(axis=1), 1, rtol=1e-12)
    singular = fitted.varm["nbmm_fit"]["status"] == "singular"
    assert (varpart.loc[singular, "SubID"] == 0).all()
    assert varpart.loc["g29", "stim"] > 0.1 > varpart.loc["g20", "stim"]


def test_uns(fitted, formula):
    entry = fitted.uns["nbmm"]
    assert entry["formula"] == formula
    assert entry["method"] == "reml"
    assert entry["family"] == "nbinom2"
    assert list(entry["coefficients"]) == COEFFICIENTS
    assert dict(entry["references"]) == {"Dx": "Control", "stim": "ctrl"}
    assert list(entry["factors"]["Dx"]) == ["Control", "AD"]
    assert entry["n_cells"] == fitted.n_obs
    assert entry["n_donors"] == 12
    assert entry["n_strata"] == 24
    assert entry["offset"] == "log(libSize)"
    assert sum(entry["status_counts"].values()) == fitted.n_vars
    assert {"scglmm", "numpy"} <= set(entry["versions"])
    assert entry["params"]["groupby"] == "Dx"
    assert entry["params"]["reference"] == "Control"
    assert list(entry["names"].dtype.names) == COEFFICIENTS[1:]
    assert fitted.uns["note"] == {"source": "simulated"}
    assert fitted.varm["loadings"].shape == (30, 2)


def test_scanpy_reads_it(fitted):
    table = sc.get.rank_genes_groups_df(fitted, "stim[T.stim]", key="nbmm")
    ours = scglmm.get.nbmm_df(fitted, "stim[T.stim]").set_index("gene").loc[table["names"]]
    np.testing.assert_allclose(table["logfoldchanges"], ours["log2_fc"], rtol=1e-6)
    np.testing.assert_allclose(table["scores"], ours["statistic"], rtol=1e-6)
    np.testing.assert_array_equal(table["pvals"], ours["pval"])
    np.testing.assert_array_equal(table["pvals_adj"], ours["padj"])
    assert set(table["names"][:6]) == {f"g{i}" for i in range(24, 30)}
    both = sc.get.rank_genes_groups_df(fitted, None, key="nbmm")
    assert len(both) == 3 * fitted.n_vars


def test_effects_are_found(fitted):
    table = scglmm.get.nbmm_df(fitted, "stim[T.stim]")
    assert set(table["gene"][:6]) == {f"g{i}" for i in range(24, 30)}
    assert (table["log_fc"][:6].sub(1.5).abs() < 4 * table["se"][:6]).all()
    assert (table["padj"][:6] < 1e-10).all()
    dx = scglmm.get.nbmm_df(fitted, "Dx[T.AD]", sort_by=None)
    assert dx["log_fc"][24:].mean() > 0.4 > abs(dx["log_fc"][:24].mean())


def test_maximum_likelihood_tests_with_z(adata, formula, fitted):
    scglmm.tl.nbmm(adata, formula, method="ml", key_added="ml")
    assert np.isposinf(adata.varm["ml_dof"]).all(axis=None)
    np.testing.assert_allclose(adata.varm["ml_pval"], 2 * stats.norm.sf(np.abs(adata.varm["ml_stat"])), rtol=1e-12)
    assert adata.uns["ml"]["method"] == "ml"
    assert adata.uns["ml"]["params"]["method"] == "nbmm-ml"
    # REML takes the degrees of freedom of the fixed effects into account: larger variances, another likelihood
    ml, reml = adata.varm["ml_fit"], fitted.varm["nbmm_fit"]
    assert (ml["var[SubID]"] <= reml["var[SubID]"] + 1e-8).mean() > 0.9
    assert not np.allclose(ml["loglik"], reml["loglik"], atol=0.1)
    np.testing.assert_allclose(adata.varm["ml_coef"], fitted.varm["nbmm_coef"], atol=0.1)


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_round_trip(fitted, tmp_path, kind, assert_same):
    path = tmp_path / f"a.{kind}"
    getattr(fitted, f"write_{kind}")(path)
    back = getattr(ad, f"read_{kind}")(path)
    assert_same(fitted, back)
    for name in PER_COEFFICIENT:
        assert list(back.varm[f"nbmm_{name}"].columns) == COEFFICIENTS
    assert back.uns["nbmm"]["formula"] == fitted.uns["nbmm"]["formula"]
    pd.testing.assert_frame_equal(
        sc.get.rank_genes_groups_df(back, "Dx[T.AD]", key="nbmm"),
        sc.get.rank_genes_groups_df(fitted, "Dx[T.AD]", key="nbmm"),
        check_dtype=False,
    )
    pd.testing.assert_frame_equal(scglmm.get.nbmm_df(back, "Age"), scglmm.get.nbmm_df(fitted, "Age"), check_dtype=False)
    scglmm.tl.varpart(back, method="delta")


def test_two_results_side_by_side(fitted, formula, assert_same):
    before = fitted.copy()
    scglmm.tl.nbmm(fitted, "~ offset(log(libSize)) + Dx + (1|SubID)", key_added="small")
    assert_same(before, fitted)
    assert list(fitted.varm["small_coef"].columns) == ["(Intercept)", "Dx[T.AD]"]
    scglmm.tl.nbmm(fitted, formula, key_added="small")
    assert list(fitted.varm["small_coef"].columns) == COEFFICIENTS


def test_names_with_a_slash(adata, tmp_path):
    adata.obs["a/b"] = adata.obs["quality"]
    adata.obs["Dx"] = adata.obs["Dx"].cat.rename_categories({"AD": "AD/MCI"})
    scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + `a/b` + I(Age / 10) + (1|SubID)", mask_var="tested")
    del adata.obs["a/b"]
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    for coefficient in ("Dx[T.AD/MCI]", "a/b", "I(Age / 10)"):
        assert scglmm.get.nbmm_df(back, coefficient)["pval"].notna().sum() == adata.var["tested"].sum()


def test_covariance_matrix_of_many_columns(recwarn):
    """The table of the fits has a column for each of its 120 entries, and is in one piece."""
    rng = np.random.default_rng(0)
    level = np.tile(np.arange(15), 60)
    obs = pd.DataFrame(
        {
            "donor": np.repeat([f"d{i}" for i in range(6)], 150),
            "type": pd.Categorical(level),
            "size": rng.uniform(1, 2, 900),
        },
        index=[f"c{i}" for i in range(900)],
    )
    counts = rng.poisson(1.0, (900, 2))
    counts[:, 1] = 0
    counts[:3, 1] = 1  # of one gene there is no fit
    adata = ad.AnnData(counts.astype(np.float32), obs=obs)
    scglmm.tl.nbmm(adata, "~ offset(log(size)) + (type|donor)", n_jobs=1)
    fit = adata.varm["nbmm_fit"]
    assert fit.columns.str.startswith(("var[", "cov[")).sum() == 120
    assert list(fit["status"]) == [fit["status"].iloc[0], "too_few_counts"]
    assert not [w for w in recwarn if issubclass(w.category, pd.errors.PerformanceWarning)]
