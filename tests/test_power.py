"""`scglmm.power`: arguments, solving, and parameters of genes that were fitted."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from hypothesis import given, settings
from hypothesis import strategies as st

import scglmm

GENE = {"mean": 0.5, "theta": 1.0, "var_donor": 0.2}
WITHIN = GENE | {"design": "within", "var_effect": 0.1}


def test_table():
    table = scglmm.power(log_fc=[0.5, 1.0], n_donors=[6, 12, 20], n_cells=200, **GENE)
    assert len(table) == 6
    assert table.attrs["solved_for"] == "power"
    assert table["n_donors"].tolist() == [6, 12, 20] * 2
    assert table["n_donors"].dtype == np.int64
    np.testing.assert_allclose(table["log2_fc"], table["log_fc"] / np.log(2))
    np.testing.assert_allclose(table["n_cells_effective"], 200 / (1 + 199 * table["rho"]))
    assert table["power"].between(0.05, 1).all()
    assert (table.groupby("log_fc")["power"].diff().dropna() > 0).all()
    assert (table.groupby("n_donors")["power"].diff().dropna() > 0).all()
    assert "target_power" not in table


def test_log2():
    two = scglmm.power(log2_fc=1, n_donors=8, n_cells=100, **GENE)
    natural = scglmm.power(log_fc=np.log(2), n_donors=8, n_cells=100, **GENE)
    pd.testing.assert_frame_equal(two, natural)


@pytest.mark.parametrize("gene", [GENE, WITHIN], ids=["between", "within"])
def test_solutions_are_the_least_sufficient(gene):
    asked = {"log2_fc": 1.0, "power": [0.5, 0.8, 0.95]}
    donors = scglmm.power(n_cells=[30, 300], **asked, **gene)
    assert (donors["power"] >= donors["target_power"]).all()
    for row in donors.itertuples():
        less = scglmm.power(log2_fc=1, n_donors=row.n_donors - 1, n_cells=row.n_cells, **gene)
        assert less["power"][0] < row.target_power
    cells = scglmm.power(n_donors=40, **asked, **gene)
    for row in cells.itertuples():
        assert row.power >= row.target_power
        if row.n_cells > 1:
            less = scglmm.power(log2_fc=1, n_donors=40, n_cells=row.n_cells - 1, **gene)
            assert less["power"][0] < row.target_power
    effect = scglmm.power(n_donors=10, n_cells=100, power=[0.5, 0.8, 0.95], **gene)
    np.testing.assert_allclose(effect["power"], effect["target_power"], atol=1e-6)
    assert (effect["log_fc"].diff().dropna() > 0).all()


def test_what_cannot_be_reached():
    cells = scglmm.power(log2_fc=1, n_donors=[4, 30], power=0.8, **GENE)
    assert cells["n_cells"].tolist()[0] == np.inf
    assert np.isfinite(cells["n_cells"][1])
    assert cells["power"][0] < 0.8  # as high as it gets
    donors = scglmm.power(log2_fc=0, n_cells=100, power=0.8, **GENE)
    assert donors["n_donors"].tolist() == [np.inf]
    none_left = scglmm.power(log2_fc=1, n_donors=4, n_cells=100, n_covariates=2, **GENE)
    assert none_left["df"][0] == none_left["power"][0] == 0


def test_within_donors_is_more_powerful_and_less_where_the_effect_varies():
    between = scglmm.power(log_fc=0.5, n_donors=8, n_cells=200, **GENE)["power"][0]
    within = scglmm.power(log_fc=0.5, n_donors=8, n_cells=200, **(WITHIN | {"var_effect": [0.0, 0.1, 0.5]}))["power"]
    assert between < within[2] < within[1] < within[0]


def test_moderation_adds_degrees_of_freedom():
    table = scglmm.power(log_fc=1, n_donors=6, n_cells=200, prior_df=[0, 4], **GENE)
    np.testing.assert_allclose(table["df"].diff()[1], 4)
    assert table["power"].is_monotonic_increasing


@settings(max_examples=40, deadline=None)
@given(
    st.floats(-3, 3), st.integers(2, 60), st.floats(1, 5000), st.floats(0.001, 50), st.floats(0.01, 1000),
    st.floats(0, 4), st.floats(0, 2), st.floats(0, 2), st.floats(0.05, 0.95), st.sampled_from(["between", "within"]),
)  # fmt: skip
def test_any_study(log_fc, n_donors, n_cells, mean, theta, var_donor, var_effect, cells_cv, fraction, design):
    table = scglmm.power(
        log_fc=log_fc, n_donors=n_donors, n_cells=n_cells, mean=mean, theta=theta, var_donor=var_donor,
        var_effect=var_effect if design == "within" else None, cells_cv=cells_cv, fraction=fraction, design=design,
    )  # fmt: skip
    row = table.iloc[0]
    assert 0 <= row["power"] <= 1
    assert row["se"] > 0
    assert np.isfinite(row["se"])
    assert 0 <= row["rho"] < 1
    assert 0 < row["n_cells_effective"] <= n_cells * (1 + 1e-12)


# -------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"n_donors": 8}, ValueError, "exactly one is left out, .*; log_fc and n_cells and power are missing"),
        ({"n_donors": 8, "n_cells": 10, "log_fc": 1, "power": 0.8}, ValueError, "all four are given"),
        ({"n_donors": 8, "n_cells": 10, "log_fc": 1, "log2_fc": 1}, ValueError, "give one of them"),
        ({"n_donors": 8.5, "n_cells": 10, "log_fc": 1}, ValueError, "n_donors must be a whole number from 2 to"),
        ({"n_donors": 1, "n_cells": 10, "log_fc": 1}, ValueError, "n_donors must be .*, not 1"),
        ({"n_donors": 8, "n_cells": 0, "log_fc": 1}, ValueError, "n_cells must be a number from 1"),
        ({"n_donors": 8, "n_cells": "many", "log_fc": 1}, TypeError, "n_cells must be a number or several, not 'many'"),
        ({"n_donors": 8, "n_cells": [], "log_fc": 1}, ValueError, "sequence of numbers, and has the shape"),
        (
            {"n_donors": 8, "n_cells": 9, "log_fc": np.nan},
            ValueError,
            "log_fc must be a number from -20 to 20, not nan",
        ),
        ({"n_donors": 8, "n_cells": 9, "log_fc": 1, "theta": 0}, ValueError, "theta must be a number above 0, not 0"),
        ({"n_donors": 8, "n_cells": 9, "log_fc": 1, "var_donor": -1}, ValueError, "var_donor must be .*, not -1"),
        ({"n_donors": 8, "n_cells": 9, "power": 1.0}, ValueError, "power must be a number between 0 and 1, not 1"),
        ({"n_donors": 8, "n_cells": 9, "power": 0.05}, ValueError, "is not above alpha=0.05"),
        ({"n_donors": 8, "n_cells": 9, "log_fc": 1, "design": "paired"}, ValueError, "neither 'between' nor 'within'"),
        ({"n_donors": 8, "n_cells": 9, "log_fc": 1, "design": "within"}, ValueError, "var_effect is needed"),
        (
            {"n_donors": 8, "n_cells": 9, "log_fc": 1, "var_effect": 0.1},
            ValueError,
            "with design='between' there is none",
        ),
        ({"n_donors": 8, "n_cells": 9, "log_fc": 1, "gene": "g1"}, ValueError, "`gene` needs an AnnData"),
        ({"n_donors": 8, "n_cells": 9, "log_fc": 1, "adata": [1]}, TypeError, "must be an AnnData, not list"),
    ],
)
def test_errors(arguments, error, said):
    with pytest.raises(error, match=said):
        scglmm.power(**(GENE | arguments))


def test_missing_parameters():
    with pytest.raises(ValueError, match="mean, theta are needed: give numbers, or an AnnData"):
        scglmm.power(log_fc=1, n_donors=8, n_cells=10, var_donor=0.2)


# --------------------------------------------------------------------------------------------------- genes of a result


@pytest.fixture(scope="module")
def fitted(toy):
    before, sc.settings.verbosity = sc.settings.verbosity, 0
    adata = toy.make_adata(n_genes=8, n_cells=600)
    adata.obs["stim"] = np.tile(["ctrl", "stim"], 300)
    formulas = {
        "plain": "Dx + (1|SubID)",
        "nested": "stim + (1|SubID) + (1|SubID:stim)",
        "slope": "stim + (stim|SubID)",
    }
    for key, formula in formulas.items():
        scglmm.tl.nbmm(adata, f"~ offset(log(libSize)) + {formula}", key_added=key)
    sc.settings.verbosity = before
    return adata


@pytest.fixture(autouse=True)
def _quiet():
    before, sc.settings.verbosity = sc.settings.verbosity, 0
    yield
    sc.settings.verbosity = before


def test_parameters_of_fitted_genes(fitted):
    fit = fitted.varm["plain_fit"]
    table = scglmm.power(fitted, log_fc=0.5, n_donors=[8, 16], n_cells=100, key="plain")
    assert table["gene"].tolist() == np.repeat(fitted.var_names, 2).tolist()
    row = table[table["gene"] == "GENE3"].iloc[0]
    for ours, theirs in {"mean": "mean", "theta": "theta", "var_donor": "var[SubID]"}.items():
        assert row[ours] == fit.loc["GENE3", theirs]
    cells = fitted.obs["SubID"].value_counts()
    np.testing.assert_allclose(table["cells_cv"], cells.std() / cells.mean())
    by_hand = scglmm.power(
        log_fc=0.5, n_donors=8, n_cells=100, **row[["mean", "theta", "var_donor", "cells_cv"]].astype(float).to_dict()
    )
    np.testing.assert_allclose(row["power"], by_hand["power"][0], rtol=1e-12)
    one = scglmm.power(fitted, "GENE3", log_fc=0.5, n_donors=8, n_cells=100, key="plain", var_donor=[0.1, 0.4])
    assert one["var_donor"].tolist() == [0.1, 0.4]


def test_variance_of_the_effect(fitted):
    nested, slope = (fitted.varm[f"{key}_fit"] for key in ("nested", "slope"))
    asked = {"log_fc": 0.5, "n_donors": 8, "n_cells": 100, "design": "within"}
    table = scglmm.power(fitted, key="nested", **asked).set_index("gene")
    np.testing.assert_allclose(table["var_effect"], 2 * nested["var[SubID:stim]"])
    np.testing.assert_allclose(table["var_donor"], nested["var[SubID]"])
    table = scglmm.power(fitted, key="slope", **asked).set_index("gene")
    np.testing.assert_allclose(table["var_effect"], slope["var[SubID:stim[T.stim]]"])
    both = slope["var[SubID:(Intercept)]"] + slope["cov[SubID:(Intercept),stim[T.stim]]"]
    np.testing.assert_allclose(table["var_donor"], both.clip(lower=0))
    between = scglmm.power(fitted, key="nested", **(asked | {"design": "between"})).set_index("gene")
    np.testing.assert_allclose(between["var_donor"], nested["var[SubID]"] + nested["var[SubID:stim]"])
    with pytest.raises(ValueError, match=r"no variance of the effect between donors.*\(1\|donor:x\)"):
        scglmm.power(fitted, key="plain", **asked)
    assert len(scglmm.power(fitted, key="plain", var_effect=0.1, **asked)) == 8


def test_errors_of_fitted_genes(fitted):
    asked = {"log_fc": 0.5, "n_donors": 8, "n_cells": 100, "key": "plain"}
    with pytest.raises(KeyError, match=r"No gene 'GENE33'.*GENE3"):
        scglmm.power(fitted, "GENE33", **asked)
    with pytest.raises(KeyError, match="No result 'other'"):
        scglmm.power(fitted, **(asked | {"key": "other"}))
    with pytest.raises(KeyError, match=r"donor='Dx' is not a grouping factor.*'SubID'"):
        scglmm.power(fitted, donor="Dx", **asked)
    rare = fitted.copy()
    rare.varm["plain_fit"].loc["GENE2", ["theta", "var[SubID]"]] = np.nan
    with pytest.raises(ValueError, match="'GENE2' has no estimates"):
        scglmm.power(rare, ["GENE1", "GENE2"], **asked)
    assert "GENE2" not in set(scglmm.power(rare, **asked)["gene"])


def test_a_result_whose_entry_is_lost(fitted):
    """As after `anndata.concat`, and after a round trip through a file."""
    asked = {"log_fc": 0.5, "n_donors": 8, "n_cells": 100, "design": "within", "key": "nested"}
    lost = fitted.copy()
    del lost.uns["nested"]
    pd.testing.assert_frame_equal(scglmm.power(lost, **asked), scglmm.power(fitted, **asked))


def test_a_result_read_from_a_file(fitted, tmp_path):
    asked = {"log_fc": 0.5, "n_donors": 8, "n_cells": 100, "key": "slope"}
    fitted.write_h5ad(tmp_path / "a.h5ad")
    back = scglmm.power(ad.read_h5ad(tmp_path / "a.h5ad"), **asked)
    pd.testing.assert_frame_equal(back, scglmm.power(fitted, **asked), check_dtype=False)
