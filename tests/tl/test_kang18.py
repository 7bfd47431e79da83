"""`tl.nbmm` on real data, B cells of 8 patients before and after interferon-beta, against glmmTMB and biology."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scglmm
from scglmm.inference.genes import Options

FROZEN = Path(__file__).parents[1] / "reference" / "kang18_glmmTMB.csv"
MODELS = {
    "intercept": "stim + (1|ind)",
    "nested": "stim + (1|ind) + (1|ind:stim)",
    "slope": "stim + (stim|ind)",
    "crossed": "stim + (1|ind) + (1|cluster)",
    "cell_covariate": "stim + z + (1|ind)",
}
COEFFICIENTS = {"(Intercept)": "Intercept", "stim[T.stim]": "stim", "z": "z"}
VARIANCES = {
    "var[ind]": "var_ind",
    "var[ind:stim]": "var_ind_stim",
    "var[cluster]": "var_cluster",
    "var[ind:(Intercept)]": "var_ind",
    "var[ind:stim[T.stim]]": "var_slope",
    "cov[ind:(Intercept),stim[T.stim]]": "cov_slope",
}
INTERFERON = ["ISG15", "ISG20", "IFIT1", "IFIT2", "IFIT3", "IFI6", "IFI35", "IFI44L", "OASL", "OAS1", "MX1", "IRF7"]


@pytest.fixture(scope="module")
def kang18(reference: Path) -> ad.AnnData:
    adata = ad.read_h5ad(reference / "kang18_bcells.h5ad")
    total = np.asarray(adata.X.sum(axis=1, dtype=np.float64)).ravel()
    adata.obs["total"] = total
    adata.obs["z"] = np.round((np.log(total) - np.log(total).mean()) / np.log(total).std(ddof=1), 6)
    return adata


@pytest.mark.parametrize("method", ["ml", "reml"])
@pytest.mark.parametrize("model", MODELS)
def test_glmmtmb(kang18, model, method, monkeypatch):
    """Fifteen genes from very frequent to very rare, on the boundary and inside.

    glmmTMB was started from several points and reaches our optimum each time. At a variance of 0 or a correlation of 1
    its own optimum is at infinity: its log-likelihood is up to 1e-6 lower there, and its standard errors count only
    where its Hessian is positive definite. For REML it reports C + J S J'; ours is C unless asked.
    """
    expected = pd.read_csv(FROZEN)
    expected = expected[(expected["model"] == model) & (expected["REML"] == (method == "reml"))].set_index("gene")
    adata = kang18[:, list(expected.index)].copy()
    monkeypatch.setattr("scglmm.tl._nbmm.Options", lambda method, **_: Options(method=method, adjust_se=True))
    scglmm.tl.nbmm(adata, f"~ offset(log(total)) + {MODELS[model]}", method=method)
    coef, se, fit = (adata.varm[f"nbmm_{name}"] for name in ("coef", "se", "fit"))

    assert set(fit["status"]) <= {"ok", "singular"}
    np.testing.assert_allclose(fit["loglik"], expected["logLik"], rtol=0, atol=2e-6)
    for ours, theirs in COEFFICIENTS.items():
        if ours in coef:
            np.testing.assert_array_less(np.abs(coef[ours] - expected[f"beta_{theirs}"]) / se[ours], 0.001)
            exact = expected["pdHess"] & expected[f"se_{theirs}"].notna()
            np.testing.assert_allclose(se.loc[exact, ours], expected.loc[exact, f"se_{theirs}"], rtol=0.001)
    for ours, theirs in VARIANCES.items():
        if ours in fit:
            np.testing.assert_allclose(fit[ours], expected[theirs], rtol=0.001, atol=2e-5)
            if ours.startswith("var"):
                zero = expected[theirs] < 1e-6
                assert (fit.loc[zero, ours] == 0).all()
    inside = expected["theta"] < 1e3
    np.testing.assert_allclose(fit.loc[inside, "theta"], expected.loc[inside, "theta"], rtol=0.001)


def test_every_gene(kang18):
    """The paired design on all genes: each has a status, and the interferon response is on top."""
    adata = kang18.copy()
    scglmm.tl.nbmm(adata, "~ stim + (1|ind) + (1|ind:stim)", moderate=False, n_jobs=2)
    fit, pval = adata.varm["nbmm_fit"], adata.varm["nbmm_pval"]
    status = fit["status"].astype(str)
    assert status.notna().all()
    assert set(status) <= {"ok", "singular", "poisson_limit", "separated", "too_few_counts", "not_converged"}
    assert (status == "too_few_counts").sum() == (fit["n_cells"] < 10).sum()
    assert (status == "not_converged").sum() == 0
    fitted = status.isin(["ok", "singular", "poisson_limit"]).to_numpy()
    for name in ("coef", "se", "stat", "dof", "pval", "padj", "varpart"):
        assert adata.varm[f"nbmm_{name}"][fitted].notna().all(axis=None), name
    assert pval.loc[status == "separated", "stim[T.stim]"].isna().all()

    table = scglmm.get.nbmm_df(adata, "stim[T.stim]").set_index("gene")
    found = [gene for gene in INTERFERON if gene in table.index]
    assert len(found) > 9
    assert (table.loc[found, "log_fc"] > 1).all()
    assert (table.loc[found, "padj"] < 1e-3).sum() >= len(found) - 1
    assert {"IFIT3", "IFIT2", "IFI35", "OASL"} <= set(table.index[:10])
    by_statistic = scglmm.get.nbmm_df(adata, "stim[T.stim]", sort_by="statistic")
    assert {"ISG15", "IFIT3"} <= set(by_statistic["gene"][:20])
    # a test within donors has at most as many degrees of freedom as there are differences, where its variance is 0
    zero = (fit["var[ind:stim]"] == 0).to_numpy()
    np.testing.assert_array_equal(adata.varm["nbmm_dof"].loc[zero & fitted, "stim[T.stim]"], 7)


def test_every_gene_moderated(kang18):
    """The same with what the other genes say: the interferon response is found, and more of it."""
    adata = kang18.copy()
    adata = adata[:, ::3].copy()
    names = [gene for gene in INTERFERON if gene in kang18.var_names and gene not in adata.var_names]
    adata = ad.concat([adata, kang18[:, names]], axis=1, merge="first")
    formula = "~ offset(log(total_counts)) + stim + (1|ind) + (1|ind:stim)"
    scglmm.tl.nbmm(adata, formula, n_jobs=2)
    scglmm.tl.nbmm(adata, formula, moderate=False, n_jobs=2, key_added="plain")
    assert adata.uns["nbmm"]["moderation"]["terms"].keys() == {"var[ind]", "var[ind:stim]"}
    table, plain = (scglmm.get.nbmm_df(adata, "stim[T.stim]", key=key).set_index("gene") for key in ("nbmm", "plain"))
    found = [gene for gene in INTERFERON if gene in table.index]
    assert (table.loc[found, "padj"] < 1e-3).all()
    assert {"IFIT1", "IFIT2", "IFIT3"} <= set(table.index[:10])
    assert (table["padj"] < 0.05).sum() > (plain["padj"] < 0.05).sum()
