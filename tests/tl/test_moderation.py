"""`tl.nbmm(moderate=)`: when it happens, what is written, and that the rest is as before."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scglmm

FORMULA = "~ offset(log(libSize)) + Dx + (1|SubID)"


def simulate(n_genes: int = 220, n_donors: int = 8, seed: int = 0) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(n_donors), 30)
    lib_size = np.round(rng.lognormal(8, 0.3, donor.size))
    sd = 0.4 * np.exp(rng.normal(0, 0.4, n_genes))
    rate = np.exp(rng.uniform(-1.5, 1.5, n_genes)) / 3000
    mu = lib_size[:, None] * rate * np.exp((rng.normal(size=(n_donors, n_genes)) * sd)[donor])
    counts = rng.poisson(mu * rng.gamma(2.0, 0.5, mu.shape))
    obs = pd.DataFrame(
        {
            "SubID": pd.Categorical([f"D{d}" for d in donor]),
            "Dx": pd.Categorical(np.array(["Control", "AD"])[donor % 2], categories=["Control", "AD"]),
            "libSize": lib_size,
            "quality": rng.normal(size=donor.size),
            "type": pd.Categorical(np.array(["A", "B"])[np.arange(donor.size) % 2]),
        },
        index=[f"c{i}" for i in range(donor.size)],
    )
    var = pd.DataFrame(index=[f"g{i}" for i in range(n_genes)])
    return ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)), obs=obs, var=var)


@pytest.fixture(scope="module")
def _moderated() -> ad.AnnData:
    adata = simulate()
    scglmm.tl.nbmm(adata, FORMULA)
    scglmm.tl.nbmm(adata, FORMULA, moderate=False, key_added="plain")
    return adata


@pytest.fixture
def moderated(_moderated) -> ad.AnnData:
    return _moderated.copy()


def test_default_is_moderated(moderated):
    info = moderated.uns["nbmm"]["moderation"]
    assert info["status"] == "ok"
    assert info["n_genes"] == 220
    fit = moderated.varm["nbmm_fit"]
    assert (fit["moderated_var[SubID]"] > 0).all()
    # Shrunken: the posterior means vary less than the estimates, and none is 0.
    assert fit["moderated_var[SubID]"].std() < fit["var[SubID]"].std()
    assert (fit.loc[fit["status"] == "singular", "var[SubID]"] == 0).all()
    assert "moderated_var[SubID]" not in moderated.varm["plain_fit"]
    assert moderated.uns["plain"]["moderation"]["status"] == "off: moderate=False"


def test_degrees_of_freedom_grow(moderated):
    df, plain = (moderated.varm[f"{key}_dof"]["Dx[T.AD]"] for key in ("nbmm", "plain"))
    assert df.median() > 6.0
    assert (df > plain).mean() > 0.9


def test_the_reml_fit_stays(moderated):
    for name in ("theta", "var[SubID]", "loglik", "status", "null_var"):
        pd.testing.assert_series_equal(moderated.varm["nbmm_fit"][name], moderated.varm["plain_fit"][name])


def test_the_table_is_consistent(moderated):
    coef, se, stat, dof = (moderated.varm[f"nbmm_{name}"]["Dx[T.AD]"] for name in ("coef", "se", "stat", "dof"))
    np.testing.assert_allclose(stat, coef / se)
    np.testing.assert_allclose(moderated.varm["nbmm_vcov"][:, 2], se**2, rtol=1e-6)
    assert np.isfinite(dof).all()


def test_trend(moderated):
    trend = moderated.uns["nbmm"]["moderation"]["trend"]
    assert set(trend) == {"mean", "var[SubID]", "var[SubID] 10%", "var[SubID] 90%"}
    assert (trend["var[SubID] 10%"] < trend["var[SubID]"]).all()
    # Simulated with a median standard deviation of 0.4.
    assert 0.2 < np.median(trend["var[SubID]"]) < 0.6


@pytest.mark.parametrize("write", ["write_h5ad", "write_zarr"])
def test_round_trip(moderated, write, tmp_path):
    getattr(moderated, write)(tmp_path / "a")
    back = (ad.read_h5ad if write == "write_h5ad" else ad.read_zarr)(tmp_path / "a")
    pd.testing.assert_frame_equal(back.varm["nbmm_fit"], moderated.varm["nbmm_fit"])
    stored = back.uns["nbmm"]["moderation"]
    np.testing.assert_array_equal(
        stored["weights"]["var[SubID]"], moderated.uns["nbmm"]["moderation"]["weights"]["var[SubID]"]
    )


def test_few_genes_are_not_moderated():
    adata = simulate(n_genes=60)
    scglmm.tl.nbmm(adata, FORMULA)
    assert adata.uns["nbmm"]["moderation"]["status"] == "off: only 60 genes are tested, fewer than 200"
    scglmm.tl.nbmm(adata, FORMULA, moderate=True, key_added="asked")
    assert adata.uns["asked"]["moderation"]["status"] == "ok"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"moderate": "yes"}, "moderate must be True, False or None"),
        ({"moderate": True, "method": "ml"}, "method='ml' is never moderated"),
        ({"moderate": True, "mask_var": np.arange(220) < 20}, "only 20 genes are tested, fewer than 50"),
    ],
)
def test_what_cannot_be(arguments, match):
    adata = simulate()
    with pytest.raises(ValueError, match=match):
        scglmm.tl.nbmm(adata, FORMULA, **arguments)
    assert not adata.uns


def test_correlated_slopes_cannot_be():
    adata = simulate()
    with pytest.raises(ValueError, match="correlated effects"):
        scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + quality + (quality|SubID)", moderate=True)


def test_maximum_likelihood_is_never_moderated():
    adata = simulate()
    scglmm.tl.nbmm(adata, FORMULA, method="ml")
    assert adata.uns["nbmm"]["moderation"]["status"] == "off: maximum likelihood"


def test_groups_have_their_own_prior():
    adata = simulate()
    scglmm.tl.nbmm(adata, FORMULA, groupby="type")
    info = adata.uns["nbmm"]["moderation"]
    assert {name: each["status"] for name, each in info.items()} == {"A": "ok", "B": "ok"}
    one = adata[adata.obs["type"] == "A"].copy()
    scglmm.tl.nbmm(one, FORMULA, key_added="alone")
    np.testing.assert_allclose(
        adata.varm["nbmm_pval"]["A|Dx[T.AD]"], one.varm["alone_pval"]["Dx[T.AD]"], rtol=1e-9, equal_nan=True
    )


def test_workers_and_order(moderated):
    """The prior is the same whatever the number of workers or the order of the genes."""
    again = simulate()
    scglmm.tl.nbmm(again, FORMULA, n_jobs=2)
    pd.testing.assert_frame_equal(again.varm["nbmm_pval"], moderated.varm["nbmm_pval"])
    other = simulate()[:, ::-1].copy()
    scglmm.tl.nbmm(other, FORMULA)
    pd.testing.assert_frame_equal(
        other[:, moderated.var_names].varm["nbmm_pval"], moderated.varm["nbmm_pval"], rtol=1e-9
    )


def test_separated_genes_keep_their_own():
    adata = simulate()
    X = adata.X.toarray()
    X[adata.obs["Dx"] == "AD", 0] = 0
    adata.X = sparse.csr_matrix(X)
    scglmm.tl.nbmm(adata, FORMULA)
    fit = adata.varm["nbmm_fit"].iloc[0]
    assert fit["status"] == "separated"
    assert np.isnan(fit["moderated_var[SubID]"])
    assert np.isnan(adata.varm["nbmm_pval"]["Dx[T.AD]"].iloc[0])
