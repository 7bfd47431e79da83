"""Advice on designs: every rule on a design that breaks it, and silence where all is fine."""

from __future__ import annotations

import re
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import scglmm
from scglmm.formula import build_design, parse_formula
from scglmm.inference.advice import NOTE, WARNING, Advice, Layout, advise
from scglmm.inference.frame import make_frame, strata_of


def cells(n_donors: int = 12, per_donor: int = 40, seed: int = 0) -> pd.DataFrame:
    """A sound study: donors of two diagnoses, every donor with treated and untreated cells."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(n_donors), per_donor)
    obs = pd.DataFrame(
        {
            "donor": [f"D{d:02d}" for d in donor],
            "Dx": np.array(["Control", "AD"])[donor % 2],
            "Sex": np.array(["F", "M"])[donor // 2 % 2],
            "Age": rng.uniform(50, 90, n_donors).round(1)[donor],
            "stim": np.tile(["ctrl", "stim"], donor.size // 2),
            "batch": np.array(["b1", "b2", "b3"])[np.arange(donor.size) % 3],
            "mito": rng.uniform(0, 10, donor.size),
            "n": donor,
        }
    )
    return obs.astype({"Dx": pd.CategoricalDtype(["Control", "AD"])})


OBS = cells()


def layout_of(obs: pd.DataFrame, formula: str) -> Layout:
    design = build_design(parse_formula(formula), obs)
    stratum, first = strata_of(design)
    return Layout(design, obs, make_frame(design, first, np.bincount(stratum)), first)


def advice(formula: str, obs: pd.DataFrame = OBS) -> list[Advice]:
    return advise(layout_of(obs, formula))


def only(formula: str, obs: pd.DataFrame = OBS, severity: str = WARNING) -> Advice:
    """The one thing that is said."""
    found = advice(formula, obs)
    assert [one.severity for one in found] == [severity], [str(one) for one in found]
    return found[0]


def recode(name: str, where: np.ndarray | pd.Series, value: object, obs: pd.DataFrame = OBS) -> pd.DataFrame:
    return obs.assign(**{name: obs[name].astype(object).mask(where, value)})


# ---------------------------------------------------------------------------------------------------------- all is fine


@pytest.mark.parametrize(
    "formula",
    [
        "~ Dx + (1|donor)",
        "~ Dx + Age + Sex + (1|donor)",
        "~ Dx * Sex + (1|donor)",
        "~ Dx * Age + I(Age**2) + (1|donor)",
        "~ bs(Age, df=4) + Dx + (1|donor)",
        "~ stim + (1|donor) + (1|donor:stim)",
        "~ stim + (1|donor/stim)",
        "~ stim + (stim|donor)",
        "~ stim + (0 + stim|donor)",
        "~ Dx * stim + (1|donor) + (1|donor:stim)",
        "~ Dx * stim + (stim|donor)",
        "~ mito + (mito|donor)",
        "~ (1|donor)",
        "~ I(Age > 70) + (1|donor)",
    ],
)
def test_silence(formula):
    assert advice(formula) == []


def test_silence_on_the_bundled_data():
    adata = scglmm.datasets.psychad()
    assert scglmm.pp.check_design(adata, "~ offset(log(libSize)) + Dx + Age + Sex + (1|SubID)").empty


@pytest.mark.parametrize("effects", ["(1|ind) + (1|ind:stim)", "(stim|ind)"])
def test_silence_on_real_data(reference, effects):
    import anndata as ad

    adata = ad.read_h5ad(reference / "kang18_bcells.h5ad", backed="r")
    assert scglmm.pp.check_design(adata, f"~ stim + {effects}").empty
    said = scglmm.pp.check_design(adata, "~ stim + (1|ind)")
    assert said["check"].tolist() == ["varies_within"]
    assert "all 8 levels of 'ind'" in said["what"][0]
    adata.file.close()


# -------------------------------------------------------------------------------------------- effects within the donors


def test_a_treatment_within_donors():
    said = only("~ offset(log(n + 1)) + stim + Dx + (1|donor)")
    assert said.check == "varies_within"
    assert "'stim' varies within all 12 levels of 'donor'" in said.what
    formula = "~ offset(log(n + 1)) + stim + Dx + (1|donor) + (1|donor:stim)"
    assert f"write `{formula}`, or (stim|donor) in place of (1|donor)" in said.what_to_do
    assert advice(formula) == []
    assert str(said).endswith(".")


def test_the_formula_that_is_named_is_sound():
    """What the advice says can be copied, several treatments at once and odd names included."""
    obs = OBS.assign(**{"my drug": np.repeat(["a", "b"], 10).tolist() * 24})
    said = only("~ stim + `my drug` + (1|donor)", obs)
    assert "'stim' and 'my drug' vary within" in said.what
    formula = re.search("write `(.*)`, or", said.what_to_do)[1]
    assert formula == "~ stim + `my drug` + (1|donor) + (1|donor:stim) + (1|donor:`my drug`)"
    assert advice(formula, obs) == []
    slope = re.search(r"or (\(.*\)) in place", said.what_to_do)[1]
    assert [one.check for one in advice(f"~ stim + `my drug` + {slope}", obs)] == []


def test_a_dose_is_a_treatment():
    obs = OBS.assign(dose=np.tile([0.0, 1.0, 10.0, 100.0], len(OBS) // 4))
    assert only("~ dose + (1|donor)", obs).check == "varies_within"
    assert advice("~ dose + (dose|donor)", obs) == []


@pytest.mark.parametrize(("name", "added"), [("batch", "(1|donor:batch)"), ("mito", "(0 + mito|donor)")])
def test_what_is_only_adjusted_for_is_a_note(name, added):
    said = only(f"~ Dx + {name} + (1|donor)", severity=NOTE)
    assert said.check == "varies_within"
    assert added in said.what_to_do


def test_samples_within_donors_carry_a_treatment():
    obs = OBS.assign(sample=OBS["donor"] + OBS["stim"])
    assert advice("~ stim + (1|donor) + (1|sample)", obs) == []


def test_no_random_effect():
    assert only("~ Dx + stim").check == "no_random_effect"


# ------------------------------------------------------------------------------------------- names shared by two donors


def test_the_same_names_in_two_studies():
    obs = OBS.assign(study=np.where(OBS["n"] < 6, "A", "B"), donor=(OBS["n"] % 6).astype(str), Dx=OBS["Sex"])
    said = only("~ study + (1|donor)", obs)
    assert said.check == "shared_names"
    assert "All 6 levels of 'donor' occur in more than one level of 'study' ('0', '1', '2', ...)" in said.what
    assert "different donors there, write (1|study:donor) in place of (1|donor)" in said.what_to_do
    assert advice("~ study + (1|study:donor)", obs) == []
    assert advice("~ study + (1|donor) + (1|donor:study)", obs) == []


def test_some_names_in_two_levels():
    """Without a telling name: a treatment is given to most donors, not to two of twelve."""
    mixed = OBS["donor"].isin(["D00", "D03"]) & (np.arange(len(OBS)) % 2 == 0)
    said = only(
        "~ Dx + (1|donor)", recode("Dx", mixed, "AD").assign(Dx=lambda o: o["Dx"].where(o["n"] != 3, "Control"))
    )
    assert said.check == "shared_names" or said.check == "varies_within"
    obs = recode("Dx", mixed & (OBS["n"] == 0), "AD")
    said = only("~ Dx + (1|donor)", obs)
    assert said.check == "shared_names"
    assert "1 of 12 levels of 'donor' occurs in more than one level of 'Dx' ('D00')" in said.what


def test_two_sexes_under_one_name():
    obs = OBS.assign(cohort=np.where(OBS["n"] < 6, "A", "B"), donor=(OBS["n"] % 6).astype(str))
    said = [one for one in advice("~ Sex + cohort + (1|donor)", obs) if one.check == "shared_names"]
    assert len(said) == 1
    assert "more than one level of 'Sex' and 'cohort'" in said[0].what
    assert "(1|cohort:donor)" in said[0].what_to_do
    assert advice("~ Sex + cohort + (1|cohort:donor)", obs) == []


def test_batches_hold_people_of_both_sexes():
    obs = cells(32, 10)
    obs["batch"] = (obs["n"] // 4).astype(str)
    assert advice("~ Dx + Sex + (1|donor) + (1|batch)", obs) == []


# ----------------------------------------------------------------------------------------------------------- replicates


def test_fewer_than_three_donors_in_a_group():
    obs = OBS[OBS["donor"].isin(["D00", "D02", "D04", "D06", "D01", "D03"])]
    said = only("~ Dx + (1|donor)", obs)
    assert said.check == "few_replicates"
    assert "Of the 6 levels of 'donor' only 2 have Dx = 'AD' ('D01', 'D03')" in said.what
    assert "fewer than 3" in said.what_to_do
    said = only("~ Dx + (1|donor)", obs[obs["donor"] != "D03"])
    assert "only 1 has Dx = 'AD' ('D01')" in said.what
    assert "single replicate" in said.what_to_do
    said = advice("~ Dx + (1|donor)", obs[obs["n"] < 4])[0]
    assert "only 2 have Dx = 'Control' ('D00', 'D02') and 2 have Dx = 'AD' ('D01', 'D03')" in said.what
    assert advice("~ Dx + (1|donor)", OBS[OBS["n"] < 6]) == []


@pytest.mark.parametrize("effects", ["(1|donor) + (1|donor:stim)", "(0 + stim|donor)"])
def test_hardly_any_donor_has_both_treatments(effects):
    one_arm = (OBS["n"] > 1) & (OBS["stim"] != np.where(OBS["n"] % 2, "stim", "ctrl"))
    said = [one for one in advice(f"~ stim + {effects}", OBS[~one_arm]) if one.severity == WARNING]
    assert [one.check for one in said] == ["few_replicates"]
    assert "Only 2 of 12 levels of 'donor' have more than one level of 'stim' ('D00', 'D01')" in said[0].what


def test_no_degrees_of_freedom():
    few = OBS[OBS["n"] < 6]
    said = only("~ Dx + Age + I(Age**2) + (1|donor)", few)
    assert said.check == "few_df"
    assert "Only 2 degrees of freedom are left to test 'Dx', 'Age' and 'I(Age ** 2)', with the 6 levels" in said.what
    assert "No degree of freedom is left" in " ".join(map(str, advice("~ bs(Age, df=5) + (1|donor)", few)))


def test_a_factor_with_a_level_for_every_donor():
    said = only("~ C(n) + (1|donor)")
    assert said.check == "confounded"
    assert "'n' has a level for each of the 12 levels of 'donor'" in said.what


def test_rare_levels():
    few = np.arange(len(OBS)) % 40 == 3
    obs = recode("stim", few, "other")
    said = only("~ stim + (stim|donor)", obs)
    assert said.check == "rare_level"
    assert "Only 12 of 480 cells have stim = 'other'" in said.what
    assert "`separated`" in said.what
    said = [one for one in advice("~ Dx * stim + (stim|donor)", obs) if one.severity == WARNING]
    assert [one.check for one in said] == ["rare_level"]  # not once more for its combinations
    kept = OBS[(OBS["Dx"] == "AD") | (OBS["stim"] == "stim") | (np.arange(len(OBS)) % 40 == 6)]
    said = [one for one in advice("~ Dx * stim + (1|donor) + (1|donor:stim)", kept) if one.check == "rare_level"]
    assert len(said) == 1
    assert "Only 6 of 366 cells have Dx = 'Control' and stim = 'ctrl'" in said[0].what


# --------------------------------------------------------------------------------------------------------- collinearity


def test_collinear_terms():
    rng = np.random.default_rng(1)
    age = np.where(np.arange(12) % 2, 80.0, 60.0) + rng.normal(0, 1.5, 12)
    obs = OBS.assign(Age=age[OBS["n"]])
    said = only("~ Dx + Age + Sex + (1|donor)", obs)
    assert said.check == "collinear"
    x = pd.get_dummies(obs.groupby("n")[["Dx", "Age", "Sex"]].first(), drop_first=True).astype(float)
    inflation = np.linalg.inv(np.corrcoef(x.to_numpy().T))[[0, 1], [0, 1]].max()
    assert f"multiplies the variance of its estimate by {inflation:.0f}" in said.what
    assert f"{1 - 1 / inflation:.1%} of the variance" in said.what
    assert "between the levels of 'donor'" in said.what
    assert {"'Dx'", "'Age'"} == set(re.findall(r"'(?:Dx|Age|Sex)'", said.what))


def test_collinear_within_donors():
    rng = np.random.default_rng(2)
    stim = (OBS["stim"] == "stim").to_numpy()
    obs = OBS.assign(score=stim + rng.normal(0, 0.1, len(OBS)))
    said = [one for one in advice("~ stim + score + (stim|donor)", obs) if one.severity == WARNING]
    assert [one.check for one in said] == ["collinear"]
    assert "between the levels" not in said[0].what


# ------------------------------------------------------------------------------------------------------- random effects


@pytest.mark.parametrize(
    ("term", "shown"),
    [("(Dx|donor)", "Dx[T.AD] is"), ("(0 + Dx|donor)", "Dx[Control] and Dx[AD] are"), ("(0 + Age|donor)", "Age is")],
)
def test_slopes_that_no_donor_shows(term, shown):
    said = only(f"~ Dx + Age + {term}")
    assert said.check == "constant_slope"
    assert f"{shown} constant within every level of 'donor'" in said.what
    assert "(1|donor)" in said.what_to_do


def test_few_levels_of_a_grouping_factor():
    assert only("~ Age + (1|donor) + (1|Sex)").check == "few_levels"
    assert "has only 2 levels" in only("~ Age + (1|donor) + (1|Sex)").what
    assert only("~ Age + (1|donor) + (1|batch)", severity=NOTE).check == "few_levels"
    said = [one for one in advice("~ batch + (batch|donor)", OBS[OBS["n"] < 6]) if one.check == "few_levels"]
    assert "(batch|donor) asks for 6 variances and covariances of 6 levels" in said[0].what
    assert said[0].what_to_do == "write (1|donor) + (1|donor:batch)"


def test_a_donor_with_most_cells():
    others = (OBS["n"] > 0) & (np.arange(len(OBS)) % 4 > 0) & (np.arange(len(OBS)) % 40 > 0)
    obs = pd.concat([OBS[~others], *[OBS[OBS["n"] == 0]] * 3], ignore_index=True)
    said = only("~ Dx + (1|donor)", obs)
    assert said.check == "dominant_level"
    assert f"The level 'D00' of 'donor' has 160 of {len(obs)} cells ({160 / len(obs):.0%})" in said.what


def test_donors_with_few_cells():
    obs = OBS[(OBS["n"] > 0) | (np.arange(len(OBS)) < 4)]
    assert only("~ Dx + (1|donor)", obs, NOTE).check == "small_groups"


def test_numbers():
    obs = OBS.assign(batch_id=OBS["n"] % 4, seconds=OBS["Age"] * 3.2e7)
    assert only("~ batch_id + (1|donor)", obs, NOTE).check == "number_as_factor"
    assert advice("~ C(batch_id) + (1|donor)", obs) == []
    said = only("~ seconds + (1|donor)", obs, NOTE)
    assert said.check == "scale"
    assert advice("~ scale(seconds) + (1|donor)", obs) == []


def test_notes_of_the_formula_are_kept():
    said = only("~ stim + (stim||donor)")
    assert said.check == "coding"
    assert str(said).endswith("these variances overlap: usually (stim|donor) is meant.")
    obs = OBS.assign(Dx=pd.Categorical(OBS["Dx"], ["Control", "AD"], ordered=True))
    said = only("~ Dx + (1|donor)", obs, NOTE)
    assert said.check == "coding"
    assert "ordered category" in said.what


# ----------------------------------------------------------------------------------------------------------- the whole


def test_every_advice_is_one_sentence():
    formulas = ["~ Dx + stim + (1|donor)", "~ Dx", "~ Dx + (Dx|donor)", "~ Age + (1|Sex)", "~ mito + (1|donor)"]
    for formula in formulas:
        for one in advice(formula):
            assert not re.search(r"[.!?] [A-Z]", str(one)), str(one)
            assert str(one)[0].isupper() or str(one)[0] == "'"
            assert str(one).endswith(".")
            assert not str(one).endswith("..")


def test_warnings_come_first():
    found = [one.severity for one in advice("~ mito + stim + (1|donor)")]
    assert found == [WARNING, NOTE]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_design_that_can_be_built_is_judged(data):
    """Small random studies: nothing but a design error stops the advice, and every warning names something there is."""
    n = data.draw(st.integers(4, 30))
    column = st.lists(st.sampled_from(["a", "b", "c"]), min_size=n, max_size=n)
    obs = pd.DataFrame({name: data.draw(column) for name in ("donor", "study", "stim")})
    obs["x"] = data.draw(st.lists(st.floats(-3, 3).map(lambda v: round(v, 1)), min_size=n, max_size=n))
    fixed = data.draw(st.sampled_from(["stim", "x", "stim * x", "study + stim", "stim:study", "C(x > 0)", "1"]))
    random = data.draw(
        st.sampled_from(
            [
                "(1|donor)",
                "(stim|donor)",
                "(x||donor)",
                "(1|donor/stim)",
                "(0 + x|study:donor)",
                "(1|study) + (1|donor)",
            ]
        )
    )
    try:
        layout = layout_of(obs, f"~ {fixed} + {random}")
    except (ValueError, KeyError):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for one in advise(layout):
            assert one.what
            assert one.what_to_do
        for table in (layout.terms(), layout.levels(), layout.grouping()):
            assert isinstance(table, pd.DataFrame)
