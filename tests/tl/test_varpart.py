"""`scglmm.tl.varpart`: other definitions from what a run has stored, and the fractions of `tl.nbmm` themselves."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from scipy.special import polygamma

import scglmm


@pytest.mark.parametrize("method", ["trigamma", "lognormal", "delta"])
def test_the_same_as_asking_for_it_at_once(fitted, adata, formula, method):
    scglmm.tl.nbmm(adata, formula, varpart_method=method)
    before = {name: fitted.varm[name].copy() for name in fitted.varm if name != "nbmm_varpart"}
    assert scglmm.tl.varpart(fitted, method=method) is None
    np.testing.assert_allclose(fitted.varm["nbmm_varpart"], adata.varm["nbmm_varpart"], rtol=1e-12)
    np.testing.assert_allclose(fitted.varm["nbmm_varpart"].sum(axis=1), 1, rtol=1e-12)
    assert list(fitted.varm["nbmm_varpart"].columns) == list(adata.varm["nbmm_varpart"].columns)
    assert fitted.uns["nbmm"]["varpart_method"] == adata.uns["nbmm"]["varpart_method"] == method
    assert fitted.uns["nbmm"]["formula"] == formula
    for name, table in before.items():
        np.testing.assert_array_equal(np.asarray(fitted.varm[name]), np.asarray(table))


def test_there_and_back(fitted):
    before = fitted.varm["nbmm_varpart"].copy()
    for method in ("delta", "lognormal", "trigamma"):
        scglmm.tl.varpart(fitted, method=method)
    np.testing.assert_allclose(fitted.varm["nbmm_varpart"], before, rtol=1e-12)


def test_by_hand(fitted):
    """From coefficients, variances and the cells, as varpart is defined."""
    coef, fit = fitted.varm["nbmm_coef"], fitted.varm["nbmm_fit"]
    obs = fitted.obs
    q = {
        "Dx": coef["Dx[T.AD]"] ** 2 * np.var(obs["Dx"] == "AD", ddof=1),
        "Age": coef["Age"] ** 2 * np.var(obs["Age"], ddof=1),
        "stim": coef["stim[T.stim]"] ** 2 * np.var(obs["stim"] == "stim", ddof=1),
        "SubID": fit["var[SubID]"],
    }
    rate = np.exp(fit["null_intercept"] + fit["null_var"] / 2) * obs["libSize"].mean()
    D = polygamma(1, 1 / (1 / rate + 1 / fit["theta"]))
    D_inf = np.where(np.isinf(fit["theta"]), 0, polygamma(1, fit["theta"]))
    G = fit["var_linpred"]
    for name, part in q.items():
        np.testing.assert_allclose(fitted.varm["nbmm_varpart"][name], G / (G + D) * part / sum(q.values()), rtol=1e-9)
    np.testing.assert_allclose(fitted.varm["nbmm_varpart"]["CountNoise"], (D - D_inf) / (G + D), rtol=1e-9)
    np.testing.assert_allclose(fitted.varm["nbmm_varpart"]["Residuals"], D_inf / (G + D), rtol=1e-9)


def test_slopes_and_terms_of_the_same_factor(adata):
    """A term of several columns is one source; random terms of one grouping factor are added up."""
    adata.obs["Dx"] = adata.obs["Dx"].astype(str).where(adata.obs["SubID"].cat.codes % 3 > 0, "MCI").astype("category")
    formula = "~ offset(log(libSize)) + Dx + stim + (1|SubID) + (0 + quality|SubID)"
    scglmm.tl.nbmm(adata, formula, mask_var="tested")
    varpart = adata.varm["nbmm_varpart"]
    assert list(varpart.columns) == ["Dx", "stim", "SubID", "CountNoise", "Residuals"]
    coef, fit = adata.varm["nbmm_coef"], adata.varm["nbmm_fit"]
    X = np.column_stack([adata.obs["Dx"] == level for level in ("Control", "MCI")]).astype(float)
    beta = coef[["Dx[T.Control]", "Dx[T.MCI]"]].to_numpy()
    q_dx = np.var(X @ beta.T, axis=0, ddof=1)
    q_subject = fit["var[SubID]"] + fit["var[SubID:quality]"] * (adata.obs["quality"] ** 2).mean()
    tested = adata.var["tested"].to_numpy()
    ratio = (varpart["SubID"] / varpart["Dx"])[tested]
    np.testing.assert_allclose(ratio, (q_subject / q_dx)[tested], rtol=1e-9)
    scglmm.tl.varpart(adata, method="lognormal")
    ratio = (adata.varm["nbmm_varpart"]["SubID"] / adata.varm["nbmm_varpart"]["Dx"])[tested]
    np.testing.assert_allclose(ratio, (q_subject / q_dx)[tested], rtol=1e-9)


def test_after_a_subset_and_a_round_trip(fitted, tmp_path):
    whole = fitted.copy()
    scglmm.tl.varpart(whole, method="delta")
    part = fitted[:, 5:12].copy()
    part.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    scglmm.tl.varpart(back, method="delta")
    np.testing.assert_allclose(back.varm["nbmm_varpart"], whole.varm["nbmm_varpart"].iloc[5:12], rtol=1e-12)


def test_another_key(adata, formula):
    scglmm.tl.nbmm(adata, formula, key_added="a/b")
    scglmm.tl.varpart(adata, key="a/b", method="delta")
    np.testing.assert_allclose(adata.varm["a∕b_varpart"].sum(axis=1), 1)


def test_errors(adata, fitted):
    with pytest.raises(KeyError, match=r"No result 'nbmm' in `adata.varm`. Run `scglmm.tl.nbmm` first"):
        scglmm.tl.varpart(adata)
    with pytest.raises(KeyError, match="Results in it: 'nbmm'"):
        scglmm.tl.varpart(fitted, key="nbm")
    before = fitted.varm["nbmm_varpart"].copy()
    with pytest.raises(ValueError, match="method='log' is not one of 'trigamma', 'lognormal', 'delta'"):
        scglmm.tl.varpart(fitted, method="log")
    np.testing.assert_array_equal(fitted.varm["nbmm_varpart"], before)
    del fitted.uns["nbmm"]
    with pytest.raises(KeyError, match=r"no entry 'nbmm'.*run `scglmm\.tl\.nbmm` again"):
        scglmm.tl.varpart(fitted)


def test_a_view(fitted):
    view = fitted[:, :7]
    with pytest.warns(ad.ImplicitModificationWarning, match="Received a view") as caught:
        scglmm.tl.varpart(view, method="delta")
    assert __file__ in {warning.filename for warning in caught}
    assert view.uns["nbmm"]["varpart_method"] == "delta"
    assert fitted.uns["nbmm"]["varpart_method"] == "trigamma"
