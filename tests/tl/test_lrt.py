"""`tl.lrt`: against glmmTMB's anova, under the hypothesis, what is written, and what is refused."""

from __future__ import annotations

import io
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse, stats

import scglmm

FROZEN = Path(__file__).parents[1] / "reference" / "kang18_lrt.csv"
MODELS = {
    "nested": "stim + (1|ind) + (1|ind:stim)",
    "nested_0": "1 + (1|ind) + (1|ind:stim)",
    "intercept": "stim + (1|ind)",
    "intercept_0": "1 + (1|ind)",
    "none": "stim",
    "slope": "stim + (stim|ind)",
    "cluster": "stim + cluster + (1|ind)",
}
PAIRS = {
    ("nested", "nested_0"): "chi2(1)",
    ("nested", "intercept"): "1/2 chi2(0) + 1/2 chi2(1)",
    ("nested", "intercept_0"): "1/2 chi2(1) + 1/2 chi2(2)",
    ("intercept", "none"): "1/2 chi2(0) + 1/2 chi2(1)",
    ("slope", "intercept"): "1/2 chi2(1) + 1/2 chi2(2)",
    ("cluster", "intercept"): "chi2(5)",
}


@pytest.fixture(scope="module")
def kang18(reference: Path) -> ad.AnnData:
    adata = ad.read_h5ad(reference / "kang18_bcells.h5ad")
    adata.obs["total"] = np.asarray(adata.X.sum(axis=1, dtype=np.float64)).ravel()
    return adata[:, pd.read_csv(FROZEN)["gene"].unique()].copy()


# Pairs of models, not sound designs.
@pytest.mark.filterwarnings("ignore:'stim' and 'cluster' vary within all 8 levels:UserWarning")
@pytest.mark.filterwarnings("ignore:O.*cluster:UserWarning")
@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_glmmtmb(kang18, pair):
    """Made by tests/reference/kang18_lrt.R. glmmTMB's log-likelihoods are a little below the maximum on a boundary."""
    frozen = pd.read_csv(FROZEN)
    frozen = frozen[(frozen["full"] == pair[0]) & (frozen["reduced"] == pair[1])].set_index("gene")
    full, reduced = (MODELS[name] for name in pair)
    scglmm.tl.nbmm(kang18, f"~ offset(log(total)) + {full}")
    scglmm.tl.lrt(kang18, f"~ {reduced}")
    assert kang18.uns["nbmm_lrt"]["distribution"] == PAIRS[pair]
    table = kang18.varm["nbmm_lrt"].loc[frozen.index]
    for ours, theirs in (("loglik", "logLik_full"), ("loglik_reduced", "logLik_reduced")):
        # never below glmmTMB's, which has no search for a second maximum
        assert (table[ours] >= frozen[theirs] - 1e-6).all()
    np.testing.assert_allclose(table["loglik_reduced"], frozen["logLik_reduced"], atol=2e-4)
    same = (table["loglik"] - frozen["logLik_full"] < 2e-4) & frozen["chisq"].notna()
    assert same.sum() >= 10
    np.testing.assert_allclose(table.loc[same, "statistic"], frozen.loc[same, "chisq"], atol=5e-4)
    assert (table["df"] == frozen["df"].dropna().iloc[0]).all()
    p = stats.chi2.sf(table["statistic"], table["df"])
    np.testing.assert_allclose(p[same], frozen.loc[same, "p"], rtol=1e-3, atol=1e-4)
    if PAIRS[pair].startswith("1/2"):
        assert (table["pval"] <= p).all() or (table["statistic"] == 0).any()
    else:
        np.testing.assert_allclose(table["pval"], p, rtol=1e-12)


@pytest.fixture(scope="module")
def null() -> ad.AnnData:
    """300 genes of 40 donors that do not differ, and a covariate of cells without effect."""
    rng = np.random.default_rng(3)
    donor = np.repeat(np.arange(40), 25)
    counts = rng.negative_binomial(2, 2 / (2 + 1.5), (1000, 300)).astype(np.float32)
    obs = pd.DataFrame(
        {"donor": pd.Categorical(donor.astype(str)), "x": rng.integers(0, 2, 1000), "one": 1.0},
        index=[f"c{i}" for i in range(1000)],
    )
    return ad.AnnData(sparse.csr_matrix(counts), obs=obs)


@pytest.mark.filterwarnings("ignore:'x' varies within all 40 levels:UserWarning")  # its effect is the same in all
@pytest.mark.parametrize("reduced", ["~ x", "~ (1|donor)", "~ 1"])
def test_p_values_under_the_hypothesis(null, reduced):
    scglmm.tl.nbmm(null, "~ x + offset(log(one)) + (1|donor)", method="ml")
    scglmm.tl.lrt(null, reduced)
    table = null.varm["nbmm_lrt"]
    assert table["pval"].notna().all()
    assert np.mean(table["pval"] < 0.05) == pytest.approx(0.05, abs=3 * np.sqrt(0.05 / 300))
    if reduced == "~ (1|donor)":
        assert np.mean(table["pval"] < 0.25) == pytest.approx(0.25, abs=3 * np.sqrt(0.19 / 300))
    else:  # with 40 donors a variance is 0 more often than half of the time: conservative
        assert 0.12 < np.mean(table["pval"] < 0.25) < 0.3
    if reduced == "~ x":
        assert 0.5 < np.mean(table["statistic"] == 0) < 0.7
        assert (table["statistic"] == 0).equals(null.varm["nbmm_fit"]["var[donor]"] == 0)
    assert table["padj"].min() > 0.01


def test_the_larger_model_is_that_of_the_result(fitted, formula):
    """Whatever its method: both models are fitted by maximum likelihood."""
    scglmm.tl.lrt(fitted, "~ Dx + Age + (1|SubID)")
    scglmm.tl.nbmm(fitted, formula, method="ml", key_added="ml")
    scglmm.tl.nbmm(fitted, "~ offset(log(libSize)) + Dx + Age + (1|SubID)", method="ml", key_added="small")
    table = fitted.varm["nbmm_lrt"]
    tested = table["pval"].notna()
    assert tested.sum() > 20
    for column, key in (("loglik", "ml"), ("loglik_reduced", "small")):
        expected = fitted.varm[f"{key}_fit"]["loglik"]
        np.testing.assert_allclose(table.loc[tested, column], expected[tested], rtol=1e-8)
    np.testing.assert_allclose(table["statistic"], 2 * (table["loglik"] - table["loglik_reduced"]), atol=1e-5)
    np.testing.assert_allclose(
        table.loc[tested, "padj"], stats.false_discovery_control(table.loc[tested, "pval"]), rtol=1e-12
    )
    status = fitted.varm["ml_fit"]["status"].astype(str)
    assert (table["status"].astype(str) == status)[tested].all()
    assert table.loc[status == "too_few_counts", "pval"].isna().all()
    scglmm.tl.lrt(fitted, "~ Dx + Age + (1|SubID)", key="ml", key_added="again")
    pd.testing.assert_frame_equal(fitted.varm["again"], table)


def test_a_gene_that_is_absent_in_one_condition(adata):
    """A Wald test has nothing to say there; the likelihood has a limit."""
    treated = (adata.obs["stim"] == "stim").to_numpy()
    X = adata.X.toarray()
    X[~treated, 28:] = 0
    adata.X = sparse.csr_matrix(X)
    scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + stim + (1|SubID)")
    assert (adata.varm["nbmm_fit"]["status"].iloc[28:] == "separated").all()
    scglmm.tl.lrt(adata, "~ (1|SubID)")
    table = adata.varm["nbmm_lrt"].iloc[28:]
    assert (table["status"] == "separated").all()
    assert (table["pval"] < 1e-10).all()
    # the limit: a coefficient so large that it makes no difference how large
    adata.obs["size"] = np.log(adata.obs["libSize"].to_numpy(float)) - 25.0 * ~treated
    scglmm.tl.nbmm(adata, "~ offset(size) + (1|SubID)", method="ml", key_added="limit")
    np.testing.assert_allclose(table["loglik"], adata.varm["limit_fit"]["loglik"].iloc[28:], rtol=1e-7)


def test_genes_that_were_not_fitted(adata):
    scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + stim + (1|SubID)", mask_var="tested")
    scglmm.tl.lrt(adata, "~ (1|SubID)")
    table = adata.varm["nbmm_lrt"]
    outside = ~adata.var["tested"].to_numpy()
    assert table.loc[outside, "pval"].isna().all()
    assert set(table.loc[outside, "status"]) == {"not_selected"}
    assert table.loc[~outside, "pval"].notna().sum() > 10


def test_layers_raw_and_missing_values(adata, tmp_path):
    formula = "~ offset(log(libSize)) + stim + (1|SubID)"
    scglmm.tl.nbmm(adata, formula)
    scglmm.tl.lrt(adata, "~ (1|SubID)")
    expected = adata.varm["nbmm_lrt"]
    other = adata.copy()
    other.layers["counts"] = other.X.copy()
    other.raw = other.copy()
    sc.pp.log1p(other)
    for options in ({"layer": "counts"}, {"use_raw": True}):
        scglmm.tl.nbmm(other, formula, **options)
        other.write_h5ad(tmp_path / "a.h5ad")
        again = sc.read_h5ad(tmp_path / "a.h5ad")
        scglmm.tl.lrt(again, "~ offset(log(libSize)) + (1|SubID)")
        pd.testing.assert_frame_equal(again.varm["nbmm_lrt"], expected)
    adata.obs.loc[adata.obs_names[:30], "quality"] = np.nan
    scglmm.tl.nbmm(adata, formula + " + quality", na_action="drop")
    scglmm.tl.lrt(adata, "~ stim + (1|SubID)")
    assert adata.uns["nbmm_lrt"]["n_cells"] == 450


def test_without_an_offset(adata):
    with pytest.warns(UserWarning, match="hardly a library size"):
        scglmm.tl.nbmm(adata, "~ stim + (1|SubID)")
    scglmm.tl.lrt(adata, "~ (1|SubID)")
    assert adata.varm["nbmm_lrt"]["pval"].notna().any()
    few = adata[:, 5:].copy()
    with pytest.raises(ValueError, match="The offset is not that of the result 'nbmm': genes were left out"):
        scglmm.tl.lrt(few, "~ (1|SubID)")


def test_reading(fitted, tmp_path):
    scglmm.tl.lrt(fitted, "~ Dx + Age + (1|SubID)")
    fitted.write_h5ad(tmp_path / "a.h5ad")
    again = sc.read_h5ad(tmp_path / "a.h5ad")
    table = scglmm.get.lrt_df(again)
    assert list(table.columns[:3]) == ["gene", "statistic", "df"]
    assert table["pval"].dropna().is_monotonic_increasing
    pd.testing.assert_frame_equal(table, scglmm.get.lrt_df(fitted))
    assert again.uns["nbmm_lrt"]["reduced_formula"] == "~ Dx + Age + (1|SubID)"
    assert len(scglmm.get.lrt_df(again[:, :7])) == 7
    with pytest.raises(KeyError, match=r"No likelihood ratio test 'lrt' in `adata.varm`. Results in it: 'nbmm_lrt'"):
        scglmm.get.lrt_df(again, "lrt")
    del again.varm["nbmm_lrt"]
    with pytest.raises(KeyError, match=r"Run `scglmm.tl.lrt` first"):
        scglmm.get.lrt_df(again)


def test_copy_and_messages(fitted, log: io.StringIO, assert_untouched):
    sc.settings.verbosity = 3
    before = fitted.copy()
    copied = scglmm.tl.lrt(fitted, "~ Dx + Age + (1|SubID)", copy=True, key_added="a/b")
    assert_untouched(fitted, before)
    assert "a∕b" in copied.varm
    assert "for 30 genes: chi2(1)" in log.getvalue() or "genes: chi2(1)" in log.getvalue()


@pytest.mark.parametrize(
    ("reduced", "options", "error", "message"),
    [
        (
            "~ Dx + quality + (1|SubID)",
            {},
            ValueError,
            "not nested in the full one, whose fixed effects cannot.*'quality'",
        ),
        ("~ Dx + (1|stim)", {}, ValueError, r"has the random effects \(1 \| stim\)"),
        ("~ Dx + Age + stim + (1|SubID)", {}, ValueError, "leaves nothing out"),
        ("~ offset(log(quality + 100)) + Dx + (1|SubID)", {}, ValueError, r"The offset of the reduced formula, log\("),
        ("~ Dxx + (1|SubID)", {}, KeyError, "Dxx"),
        ("~ Dx +", {}, ValueError, "term is missing"),
        ("y ~ Dx", {}, ValueError, "has a left side"),
        (3, {}, TypeError, "must be a string such as"),
        ("~ Dx", {"key": "nbm"}, KeyError, "No result 'nbm'"),
        ("~ Dx", {"key_added": "nbmm"}, ValueError, "would replace the result"),
        ("~ Dx", {"n_jobs": 0}, ValueError, "n_jobs must be a whole number other than 0"),
    ],
)
def test_bad_input(fitted, assert_untouched, reduced, options, error, message):
    before = fitted.copy()
    with pytest.raises(error, match=message):
        scglmm.tl.lrt(fitted, reduced, **options)
    assert_untouched(fitted, before)


def test_results_that_do_not_fit_the_data(fitted, toy):
    with pytest.raises(ValueError, match=r"has 400 cells.*was fitted to 480"):
        scglmm.tl.lrt(fitted[:400].copy(), "~ Dx + Age + (1|SubID)")
    other = fitted.copy()
    other.X = other.X * 2
    with pytest.raises(ValueError, match=r"The counts in adata.X are not those that the result 'nbmm' was fitted to"):
        scglmm.tl.lrt(other, "~ Dx + Age + (1|SubID)")
    other = fitted.copy()
    other.obs["libSize"] *= 2
    with pytest.raises(ValueError, match="The offset is not that of the result 'nbmm': a column of obs changed"):
        scglmm.tl.lrt(other, "~ Dx + Age + (1|SubID)")
    scglmm.tl.contrast(fitted, "Age")
    with pytest.raises(ValueError, match="holds contrasts of the result 'nbmm': give key='nbmm'"):
        scglmm.tl.lrt(fitted, "~ Dx", key="nbmm_contrast")
    del fitted.uns["nbmm"]
    with pytest.raises(KeyError, match="no entry 'nbmm', which knows the formula"):
        scglmm.tl.lrt(fitted, "~ Dx")
    with pytest.raises(ValueError, match="was fitted by groups of cells"):
        scglmm.tl.lrt(toy.fitted_groups(), "~ Dx")
