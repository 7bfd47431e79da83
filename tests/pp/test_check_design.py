"""`scglmm.pp.check_design`, and its warnings in `scglmm.tl.nbmm`."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest

import scglmm


@pytest.fixture(scope="module")
def obs() -> pd.DataFrame:
    donor = np.repeat(np.arange(8), 40)
    return pd.DataFrame(
        {
            "donor": pd.Categorical([f"D{d}" for d in donor]),
            "Dx": np.array(["Control", "AD"])[donor % 2],
            "stim": np.tile(["ctrl", "stim"], 160),
            "quality": np.random.default_rng(0).normal(size=320),
        },
        index=[f"c{i}" for i in range(320)],
    )


def test_advice(obs):
    table = scglmm.pp.check_design(obs, "~ Dx + stim + quality + (1|donor)")
    assert list(table.columns) == ["check", "severity", "what", "what_to_do"]
    assert table["severity"].tolist() == ["warning", "note"]
    assert "(1|donor:stim)" in table.loc[0, "what_to_do"]
    fine = scglmm.pp.check_design(obs, "~ Dx + stim + (1|donor) + (1|donor:stim)")
    assert fine.empty
    assert list(fine.columns) == list(table.columns)


def test_terms(obs):
    table = scglmm.pp.check_design(obs, "~ Dx * stim + quality + (stim|donor)", table="terms").set_index("term")
    assert table["kind"].to_dict() == {"Dx": "factor", "stim": "factor", "Dx:stim": "interaction", "quality": "number"}
    assert table["replicates"].to_dict() == {"Dx": "donor", "stim": "donor", "Dx:stim": "donor", "quality": "cells"}
    assert table["varies_within"].to_dict() == {"Dx": "", "stim": "donor", "Dx:stim": "donor", "quality": "donor"}
    assert table["df"].to_dict() == {"Dx": 6.0, "stim": 6.0, "Dx:stim": 6.0, "quality": np.inf}


def test_levels_and_groups(obs):
    levels = scglmm.pp.check_design(obs, "~ Dx + stim + quality + (1|donor)", table="levels")
    assert levels["variable"].tolist() == ["Dx", "Dx", "stim", "stim"]
    assert levels["n_cells"].tolist() == [160] * 4
    assert levels["n_levels[donor]"].tolist() == [4, 4, 8, 8]
    groups = scglmm.pp.check_design(obs[10:], "~ stim + (1|donor/stim)", table="groups").set_index("group")
    assert groups["n_levels"].to_dict() == {"donor": 8, "donor:stim": 16}
    assert groups.loc["donor", "cells_min"] == 30
    assert groups.loc["donor", "largest"] == "D1"
    assert groups.loc["donor", "share_of_largest"] == 40 / 310


@pytest.mark.parametrize("table", ["advice", "terms", "levels", "groups"])
def test_without_effects(obs, table):
    scglmm.pp.check_design(obs, "~ 1", table=table)
    scglmm.pp.check_design(obs, "~ (1|donor)", table=table)


def test_missing_values(obs):
    obs = obs.assign(quality=obs["quality"].where(obs["donor"] != "D0"))
    with pytest.raises(ValueError, match="missing"):
        scglmm.pp.check_design(obs, "~ quality + (1|donor)")
    levels = scglmm.pp.check_design(obs, "~ Dx + quality + (1|donor)", table="levels", na_action="drop")
    assert levels["n_levels[donor]"].tolist() == [4, 3]


def test_errors(obs):
    with pytest.raises(ValueError, match=r"table='all' is not one of 'advice', 'terms'"):
        scglmm.pp.check_design(obs, "~ Dx + (1|donor)", table="all")
    with pytest.raises(TypeError, match="an AnnData or its obs, not list"):
        scglmm.pp.check_design([1], "~ Dx + (1|donor)")
    with pytest.raises(KeyError, match="Did you mean 'donor'"):
        scglmm.pp.check_design(obs, "~ Dx + (1|Donor)")


def test_the_fit_warns(toy):
    adata = toy.make_adata(n_genes=3, n_cells=240)
    adata.obs["stim"] = np.tile(["ctrl", "stim"], 120)
    with pytest.warns(UserWarning, match=r"'stim' varies within all 12 levels.*\(1\|SubID:stim\)") as caught:
        scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + stim + (1|SubID)")
    assert [w.filename for w in caught] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + stim + (1|SubID) + (1|SubID:stim)")
