"""`tl.nbmm` on 249 donors and 60,275 cells against glmmTMB (maximum likelihood, Laplace)."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scglmm

COEFFICIENTS = {"(Intercept)": "Intercept", "Dx[T.AD]": "DxAD", "Age_s": "Age_s", "Sex[T.M]": "SexM"}


@pytest.fixture(scope="module")
def psychad40(reference: Path) -> ad.AnnData:
    adata = ad.read_h5ad(reference / "psychad40.h5ad")
    adata.obs["Age_s"] = (adata.obs["Age"] - adata.obs["Age"].mean()) / adata.obs["Age"].std(ddof=1)
    scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + Age_s + Sex + (1|SubID)", method="ml")
    return adata


def test_glmmtmb(psychad40, reference):
    expected = pd.read_csv(reference / "psychad40_glmmTMB.csv").set_index("gene")
    expected = expected[expected["convergence"] == 0]
    assert len(expected) == 11
    coef, se, fit = (psychad40.varm[f"nbmm_{name}"].loc[expected.index] for name in ("coef", "se", "fit"))
    for ours, theirs in COEFFICIENTS.items():
        error = expected[f"se_{theirs}"]
        np.testing.assert_array_less(np.abs(coef[ours] - expected[f"logFC_{theirs}"]) / error, 0.002)
        np.testing.assert_allclose(se[ours], error, rtol=0.002)
    np.testing.assert_allclose(fit["var[SubID]"], expected["sigma2_subject"], rtol=0.001)
    np.testing.assert_allclose(1 / fit["theta"], 1 / expected["theta"], rtol=0.001, atol=2e-5)
    np.testing.assert_allclose(fit["loglik"], expected["logLik"], rtol=0, atol=0.01)
    assert (fit["status"] == "ok").all()


def test_where_glmmtmb_does_not_converge(psychad40):
    """G40, 99.5% zeros: theta goes to infinity, and only the log-likelihood can be compared."""
    fit = psychad40.varm["nbmm_fit"].loc["G40"]
    assert fit["loglik"] >= -1839.27
    assert fit["status"] in {"ok", "poisson_limit"}


def test_all_genes(psychad40):
    fit = psychad40.varm["nbmm_fit"]
    assert set(fit["status"]) <= {"ok", "singular", "poisson_limit"}
    assert psychad40.uns["nbmm"]["n_strata"] == 249
    assert psychad40.uns["nbmm"]["n_cells"] == 60_275
    assert fit["grad"].max() < 1e-5
    # the truth lies within what standard errors allow
    truth, coef, se = psychad40.var, psychad40.varm["nbmm_coef"], psychad40.varm["nbmm_se"]
    for ours, theirs in {"Dx[T.AD]": "beta_DxAD", "Sex[T.M]": "beta_SexM"}.items():
        z = (coef[ours] - truth[theirs]) / se[ours]
        assert (z.abs() < 4).all()
        assert 0.5 < z.std() < 1.5
