"""`tl.shrink`: what is written beside the unshrunken, what stays, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from anndata import AnnData

import scglmm
from scglmm.inference.ash import adjusted_se, fit_prior, posterior


@pytest.fixture
def results(toy) -> AnnData:
    """Results of 200 genes."""
    return toy.fitted(n_genes=200)


def test_numbers(results):
    before = {name: results.varm[name].copy() for name in results.varm}
    scglmm.tl.shrink(results, "Dx[T.AD]")
    for name, table in before.items():
        if isinstance(table, pd.DataFrame):
            pd.testing.assert_frame_equal(results.varm[name], table)
        else:
            np.testing.assert_array_equal(results.varm[name], table)
    coef, se, dof = (results.varm[f"nbmm_{s}"]["Dx[T.AD]"].to_numpy() for s in ("coef", "se", "dof"))
    known = np.isfinite(coef)
    assert 0 < known.sum() < 200
    adjusted = adjusted_se(coef[known], se[known], dof[known])
    prior = fit_prior(coef[known], adjusted)
    found = posterior(coef[known], adjusted, prior)
    table = results.varm["nbmm_shrunken"]
    assert list(table.columns) == [f"Dx[T.AD]|{n}" for n in ("log_fc", "sd", "lfsr", "svalue", "lfdr")]
    for name, values in (("log_fc", found.mean), ("sd", found.sd), ("lfsr", found.lfsr), ("lfdr", found.lfdr)):
        np.testing.assert_array_equal(table.loc[known, f"Dx[T.AD]|{name}"], values)
        assert table.loc[~known, f"Dx[T.AD]|{name}"].isna().all()
    stored = results.uns["nbmm"]["shrunken"]["Dx[T.AD]"]
    np.testing.assert_array_equal(stored["weight"], prior.weight)
    assert stored["n_genes"] == known.sum()


def test_several_coefficients_and_again(results):
    scglmm.tl.shrink(results, "Dx[T.AD]")
    first = results.varm["nbmm_shrunken"]["Dx[T.AD]|log_fc"].copy()
    scglmm.tl.shrink(results, ["Age", "Dx[T.MCI]"])
    table = results.varm["nbmm_shrunken"]
    assert table.shape == (200, 15)
    pd.testing.assert_series_equal(table["Dx[T.AD]|log_fc"], first)
    scglmm.tl.shrink(results, "Dx[T.AD]", null_weight=1)
    again = results.varm["nbmm_shrunken"]
    assert again.shape == (200, 15)
    assert not again["Dx[T.AD]|log_fc"].equals(first)
    assert set(results.uns["nbmm"]["shrunken"]) == {"Dx[T.AD]", "Age", "Dx[T.MCI]"}
    lfdr = "Dx[T.AD]|lfdr"
    assert again[lfdr].mean() < table[lfdr].mean()
    scglmm.tl.shrink(results)
    assert results.varm["nbmm_shrunken"].shape == (200, 20)  # all but the intercept


def test_reading(results, tmp_path):
    scglmm.tl.shrink(results, "Dx[T.AD]")
    table = scglmm.get.shrunken_df(results, "Dx[T.AD]")
    plain = scglmm.get.nbmm_df(results, "Dx[T.AD]").set_index("gene").loc[table["gene"]]
    np.testing.assert_array_equal(table["unshrunken_log_fc"], plain["log_fc"])
    np.testing.assert_array_equal(table["pval"], plain["pval"])
    assert table["lfsr"].dropna().is_monotonic_increasing
    assert table["svalue"].dropna().is_monotonic_increasing
    done = table.dropna(subset="lfsr")
    assert (done["log_fc"].abs() <= done["unshrunken_log_fc"].abs()).all()
    np.testing.assert_allclose(done["log2_fc"] * np.log(2), done["log_fc"])
    results.write_h5ad(tmp_path / "a.h5ad")
    again = sc.read_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(scglmm.get.shrunken_df(again, "Dx[T.AD]"), table)
    assert len(scglmm.get.shrunken_df(again[:, :20], "Dx[T.AD]")) == 20
    few = again[:, :20].copy()
    scglmm.tl.refresh(few)
    assert "Dx[T.AD]" in few.uns["nbmm"]["shrunken"]


def test_a_new_fit_removes_it(fitted, formula):
    with pytest.warns(UserWarning, match=r"Only [23]. genes have an estimate for 'Dx"):
        scglmm.tl.shrink(fitted, "Dx[T.AD]")
    assert "nbmm_shrunken" in fitted.varm
    scglmm.tl.nbmm(fitted, formula)
    assert "nbmm_shrunken" not in fitted.varm
    assert "shrunken" not in fitted.uns["nbmm"]


def test_contrasts(fitted):
    scglmm.tl.contrast(fitted, {"sum": "Dx[T.AD] + stim[T.stim]"})
    with pytest.warns(UserWarning, match="how effects are distributed is hardly known"):
        scglmm.tl.shrink(fitted, "sum", key="nbmm_contrast")
    assert scglmm.get.shrunken_df(fitted, "sum", key="nbmm_contrast")["lfsr"].notna().sum() > 20


def test_groups(toy):
    adata = toy.fitted_groups(n_genes=200)
    scglmm.tl.shrink(adata, ["Dx[T.AD]", "Dx[T.MCI]"])
    columns = adata.varm["nbmm_shrunken"].columns
    assert "T∕NK|Dx[T.MCI]|lfsr" in columns
    assert "B|naive|Dx[T.AD]|lfsr" in columns
    assert len(columns) == 15
    assert set(adata.uns["nbmm"]["shrunken"]) == {"T∕NK|Dx[T.AD]", "T∕NK|Dx[T.MCI]", "B|naive|Dx[T.AD]"}
    one, two = (scglmm.get.shrunken_df(adata, "Dx[T.AD]", group=g) for g in ("T/NK", "B|naive"))
    assert not one["log_fc"].equals(two["log_fc"])
    with pytest.raises(KeyError, match=r"'Age' of the result 'nbmm' has not been shrunken. Shrunken are 'Dx"):
        scglmm.get.shrunken_df(adata, "Age", group="T/NK")
    other = toy.fitted_groups(n_genes=200)
    scglmm.tl.shrink(other, "Dx[T.AD]", group="T/NK")
    assert len(other.varm["nbmm_shrunken"].columns) == 5


def test_copy(results, assert_untouched):
    before = results.copy()
    copied = scglmm.tl.shrink(results, "Age", copy=True)
    assert_untouched(results, before)
    assert "nbmm_shrunken" in copied.varm


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"coef": "Agee"}, KeyError, "No coefficient 'Agee'"),
        ({"coef": "Dx"}, KeyError, "'Dx' is a factor"),
        ({"coef": "Intercept"}, ValueError, "'Intercept' is the intercept"),
        ({"coef": []}, ValueError, "`coef` is empty"),
        ({"coef": "Age", "key": "nbm"}, KeyError, "No result 'nbm'"),
        ({"coef": "Age", "group": "B"}, ValueError, "was not fitted with `groupby`"),
        ({"coef": "Age", "null_weight": 0.5}, ValueError, "null_weight must be a number, 1 .* not 0.5"),
        ({"coef": "Age", "null_weight": "10"}, ValueError, "null_weight must be a number"),
        ({"coef": "Age", "null_weight": np.nan}, ValueError, "null_weight must be a number"),
    ],
)
def test_bad_input(results, assert_untouched, arguments, error, message):
    before = results.copy()
    with pytest.raises(error, match=message):
        scglmm.tl.shrink(results, **arguments)
    assert_untouched(results, before)


def test_nothing_to_shrink(results):
    with pytest.raises(KeyError, match=r"has not been shrunken. Run `scglmm.tl.shrink` first"):
        scglmm.get.shrunken_df(results, "Age")
    results.varm["nbmm_se"]["Age"] = np.nan
    with pytest.raises(ValueError, match="No gene has an estimate, a standard error and degrees of freedom for 'Age'"):
        scglmm.tl.shrink(results, "Age")
    del results.uns["nbmm"]
    with pytest.raises(KeyError, match="no entry 'nbmm', where the priors are to be kept"):
        scglmm.tl.shrink(results, "Dx[T.AD]")
