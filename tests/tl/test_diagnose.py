"""`scglmm.tl.diagnose`: the numbers are those of fits without the cell or the donor, and the reasons are true."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

import scglmm
from scglmm.inference.leave_out import Study
from scglmm.inference.one_step import OneStep
from scglmm.tl._cells import largest

FORMULA = "~ offset(log(libSize)) + Dx + stim + (1|SubID)"
CELL, DONOR, ONE_DONOR, ONE_CELL = "g20", "g21", "g2", "g1"


def spoil(adata: ad.AnnData) -> ad.AnnData:
    """Genes with an effect of Dx that one cell, or one donor, has made; and genes with all counts in one."""
    X = adata.X.toarray()
    ad_cells = np.flatnonzero(adata.obs["Dx"] == "AD")
    donor = (adata.obs["SubID"] == "D03").to_numpy()
    X[:, 20] = np.random.default_rng(1).poisson(0.4, adata.n_obs)
    X[ad_cells[4], 20] = 400
    X[:, 21] = np.random.default_rng(2).poisson(1.0 + 30 * donor)
    X[:, 2] = np.where(donor, np.arange(adata.n_obs) % 3, 0)
    X[:, 1] = 0
    X[ad_cells[:30], 1] = 1
    X[ad_cells[7], 1] = 60
    adata.X = sparse.csr_matrix(X)
    return adata


@pytest.fixture(scope="module")
def _spoiled(_simulated: ad.AnnData) -> ad.AnnData:
    adata = spoil(_simulated.copy())
    scglmm.tl.nbmm(adata, FORMULA)
    mask = adata.var_names.isin([CELL, DONOR, ONE_CELL, ONE_DONOR, "g10", "g28"])
    scglmm.tl.diagnose(adata, mask_var=mask)
    return adata


@pytest.fixture
def spoiled(_spoiled: ad.AnnData) -> ad.AnnData:
    """A result that has been looked at, some genes whether they are significant or not."""
    return _spoiled.copy()


def reasons(adata: ad.AnnData, gene: str, key: str = "nbmm") -> set[str]:
    text = str(adata.varm[f"{key}_diagnose"].loc[gene, "reasons"])
    return set(text.split("; ")) - {""}


def test_reasons(spoiled):
    assert "one_cell" in reasons(spoiled, CELL)
    assert reasons(spoiled, DONOR) == {"one_donor"}
    assert {"counts_in_one_donor", "separated"} <= reasons(spoiled, ONE_DONOR)
    assert "counts_in_one_cell" in reasons(spoiled, ONE_CELL)
    assert not {"one_cell", "one_donor"} & reasons(spoiled, "g28")  # an effect of 1.5 in every donor


def test_the_table_says_it(spoiled):
    table = scglmm.get.diagnose_df(spoiled)
    row = table[(table["gene"] == CELL) & (table["reason"] == "one_cell") & (table["coef"] == "Dx[T.AD]")].iloc[0]
    cell = spoiled.obs_names[np.argmax(spoiled[:, CELL].X.toarray())]
    assert row["name"] == cell
    assert row["text"] == (
        f"Dx[T.AD] is {row['effect']:.2f} (p = {row['pval']:.2g}); without the cell {cell!r} it is "
        f"{row['effect_without']:.2f} (p = {row['pval_without']:.2g})"
    )
    assert abs(row["effect_without"]) < abs(row["effect"]) / 2
    row = table[(table["gene"] == ONE_DONOR) & (table["reason"] == "counts_in_one_donor")].iloc[0]
    assert (row["name"], row["share"], row["coef"]) == ("D03", 1.0, "")
    assert row["text"] == "all counts are in one donor: 'D03' has 100%"
    only = scglmm.get.diagnose_df(spoiled, ["one_donor"])
    assert set(only["reason"]) == {"one_donor"}
    assert DONOR in set(only["gene"])
    assert list(table["reason"].cat.codes) == sorted(table["reason"].cat.codes)


@pytest.mark.parametrize("gene", [CELL, DONOR, "g28"])
def test_numbers_are_those_of_fits_without(spoiled, gene):
    table = spoiled.varm["nbmm_diagnose"].loc[gene]
    for coef in ("Dx[T.AD]", "stim[T.stim]"):
        for what, names in (("cell", spoiled.obs_names), ("donor", spoiled.obs["SubID"].astype(str))):
            left = spoiled[np.asarray(names) != table[f"{coef}|{what}"], [gene]].copy()
            assert 0 < spoiled.n_obs - left.n_obs < 100
            scglmm.tl.nbmm(left, FORMULA, min_cells=1)
            now = scglmm.get.nbmm_df(left, coef).iloc[0]
            for name, number in (("effect", "log_fc"), ("pval", "pval")):
                assert table[f"{coef}|{name}_without_{what}"] == pytest.approx(now[number], rel=1e-5, abs=1e-9)
        with_all = scglmm.get.nbmm_df(spoiled, coef).set_index("gene").loc[gene]
        assert table[f"{coef}|effect"] == pytest.approx(with_all["log_fc"], rel=1e-9)
        assert table[f"{coef}|pval"] == pytest.approx(with_all["pval"], rel=1e-6)


def study_of(adata: ad.AnnData, genes: list[str]) -> Study:
    from scglmm.formula import build_design, parse_formula
    from scglmm.inference.genes import Options

    design = build_design(parse_formula(FORMULA), adata.obs)
    counts = sparse.csc_array(adata[:, genes].X, dtype=float)
    return Study(design, None, design.offset, counts, Options(null=False))


@pytest.mark.parametrize("gene", [CELL, DONOR, "g28"])
def test_first_order_finds_what_all_fits_find(spoiled, gene):
    """The cell and the donor that take most of an effect away are those of the fits without each of them."""
    study = study_of(spoiled, [gene])
    base, moves = study.fit(np.array([0])), OneStep(study).moves(0)
    codes = study.design.random[0].codes
    for c in (1, 2):
        sign = np.sign(base.beta[0, c])
        without = np.array([study.fit(np.array([0]), codes != level).beta[0, c] for level in range(12)])
        assert (
            spoiled.varm["nbmm_diagnose"].loc[gene, f"{study.design.columns[c]}|donor"]
            == (study.design.random[0].levels[np.argmin(without * sign)])
        )
        change = (without - base.beta[0, c]) * sign
        assert np.corrcoef(change, moves.donors[:, c] * sign)[0, 1] > 0.9
        # every cell would take long: those that are foremost by size of counts or to first order, and some others
        some = np.unique(
            [*np.argsort(moves.cells[:, c] * sign)[:15], *np.argsort(-study.counts.toarray().ravel())[:15]]
        )
        some = np.unique([*some, *range(0, study.offset.size, 48)])
        rows = np.arange(study.offset.size)
        without = np.array([study.fit(np.array([0]), rows != cell).beta[0, c] for cell in some])
        least = spoiled.varm["nbmm_diagnose"].loc[gene, f"{study.design.columns[c]}|effect_without_cell"]
        assert least * sign <= (without * sign).min() + 1e-6 + 0.02 * abs(base.beta[0, c])


def test_without_the_only_donor_of_a_level_there_is_no_effect(adata):
    """The effect rests on one donor where no other has the level."""
    adata = adata[~adata.obs["SubID"].isin(["D01", "D05", "D07", "D09", "D11"])].copy()
    with pytest.warns(UserWarning, match="Dx"):
        scglmm.tl.nbmm(adata, FORMULA)
    scglmm.tl.diagnose(adata, mask_var=adata.var_names == "g25", coef="Dx[T.AD]")
    row = scglmm.get.diagnose_df(adata, "one_donor").iloc[0]
    assert (row["gene"], row["name"]) == ("g25", "D03")
    assert np.isnan(row["effect_without"])
    assert row["text"].endswith("without the donor 'D03' there is nothing to estimate it from")


def test_by_default_what_is_significant(fitted):
    scglmm.tl.diagnose(fitted, coef="stim[T.stim]")
    table = fitted.varm["nbmm_diagnose"]
    significant = (fitted.varm["nbmm_padj"]["stim[T.stim]"] < 0.05).to_numpy()
    assert significant.any()
    np.testing.assert_array_equal(table["stim[T.stim]|effect"].notna(), significant)
    np.testing.assert_array_equal(table["stim[T.stim]|effect_without_donor"].notna(), significant)
    assert "Age|effect" not in table
    assert fitted.uns["nbmm"]["diagnose"]["n_genes"] == significant.sum()
    assert not table["cell_share"].isna().any()


def test_shares(spoiled):
    X = spoiled.X.toarray()
    table = spoiled.varm["nbmm_diagnose"]
    known = table["cell_share"].notna().to_numpy()
    np.testing.assert_allclose(table["cell_share"][known], (X.max(axis=0) / X.sum(axis=0))[known])
    by_donor = np.stack([X[spoiled.obs["SubID"] == d].sum(axis=0) for d in spoiled.obs["SubID"].cat.categories])
    np.testing.assert_allclose(table["donor_share"][known], (by_donor.max(axis=0) / X.sum(axis=0))[known])
    assert list(table["cell"][known]) == list(spoiled.obs_names[X.argmax(axis=0)[known]])


@pytest.mark.parametrize("make", [sparse.csr_matrix, sparse.csc_matrix, np.asarray])
def test_largest_in_blocks(make, monkeypatch):
    rng = np.random.default_rng(0)
    X = rng.poisson(0.3, (50, 7))
    rows, codes = np.flatnonzero(rng.random(50) < 0.8), rng.integers(0, 3, 50)
    monkeypatch.setattr("scglmm.tl._cells.BLOCK", 7)
    monkeypatch.setattr("scglmm.compression.chunks.CHUNK_BYTES", 240)
    cell, count, level, of_level, total = largest(make(X), rows, codes[rows], 3)
    own = X[rows]
    sums = np.stack([own[codes[rows] == k].sum(axis=0) for k in range(3)])
    for found, expected in ((cell, own.argmax(axis=0)), (count, own.max(axis=0)), (level, sums.argmax(axis=0)),
                            (of_level, sums.max(axis=0)), (total, own.sum(axis=0))):  # fmt: skip
        np.testing.assert_array_equal(found, expected)


def test_groups(adata):
    adata.obs["type"] = np.where(np.arange(adata.n_obs) % 2, "T/NK", "B")
    adata = spoil(adata)
    scglmm.tl.nbmm(adata, FORMULA, groupby="type", key_added="by/type")
    scglmm.tl.diagnose(adata, key="by/type", mask_var=adata.var_names.isin([CELL, DONOR]))
    table = scglmm.get.diagnose_df(adata, key="by/type")
    cell = adata.obs_names[np.argmax(adata[:, CELL].X.toarray())]
    group = str(adata.obs.loc[cell, "type"]).replace("/", "∕")
    driven = table[(table["reason"] == "one_cell") & (table["gene"] == CELL)]
    assert set(driven["group"]) == {group}
    assert set(driven["name"]) == {cell}
    one = scglmm.get.diagnose_df(adata, key="by/type", group="B")
    assert set(one["group"]) == {"B"}


@pytest.mark.parametrize(
    "how", [{"family": "poisson"}, {"ziformula": "~ 1"}, {"method": "ml", "n_quad": 15}, {"method": "ml"}]
)
def test_other_models(adata, how):
    adata = spoil(adata)[:, [10, 21]].copy()
    scglmm.tl.nbmm(adata, FORMULA, **how)
    scglmm.tl.diagnose(adata, mask_var=[False, True], coef="Dx[T.AD]")
    found = adata.varm["nbmm_diagnose"].loc[DONOR]
    assert found["Dx[T.AD]|effect"] == pytest.approx(adata.varm["nbmm_coef"].loc[DONOR, "Dx[T.AD]"], rel=1e-6)
    assert found["Dx[T.AD]|donor"] == "D03"
    left = adata[adata.obs["SubID"] != "D03", [DONOR]].copy()
    scglmm.tl.nbmm(left, FORMULA, **how)
    now = scglmm.get.nbmm_df(left, "Dx[T.AD]").iloc[0]
    assert found["Dx[T.AD]|effect_without_donor"] == pytest.approx(now["log_fc"], rel=1e-5)
    assert found["Dx[T.AD]|pval_without_donor"] == pytest.approx(now["pval"], rel=1e-4)


@pytest.mark.filterwarnings("ignore:.*random effect:UserWarning")
def test_without_random_effects(adata):
    adata = spoil(adata)
    scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx")
    scglmm.tl.diagnose(adata)
    assert "one_cell" in reasons(adata, CELL)
    assert not scglmm.get.diagnose_df(adata)["reason"].isin(["one_donor", "counts_in_one_donor"]).any()


def test_workers_copy_subset_and_file(spoiled, tmp_path, assert_untouched):
    mask = spoiled.var_names.isin([CELL, DONOR, "g28"])
    before = spoiled.copy()
    one = scglmm.tl.diagnose(spoiled, mask_var=mask, n_jobs=1, copy=True)
    assert_untouched(spoiled, before)
    two = scglmm.tl.diagnose(spoiled, mask_var=mask, n_jobs=2, copy=True)
    assert_untouched(one, two)
    two.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    subset = back[:, [DONOR, "g5"]].copy()
    assert scglmm.get.diagnose_df(subset, "one_donor")["gene"].tolist().count(DONOR) >= 1
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    try:
        scglmm.tl.diagnose(backed, mask_var=mask)
        assert backed.varm["nbmm_diagnose"].equals(two.varm["nbmm_diagnose"])
    finally:
        backed.file.close()


def test_the_next_run_of_the_result_removes_it(spoiled):
    scglmm.tl.nbmm(spoiled, FORMULA, mask_var=np.arange(30) > 25)
    assert "nbmm_diagnose" not in spoiled.varm
    with pytest.raises(KeyError, match=r"has not been looked at. Run `scglmm.tl.diagnose` first"):
        scglmm.get.diagnose_df(spoiled)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"key": "other"}, KeyError, "No result 'other'"),
        ({"coef": "Dx"}, KeyError, "'Dx' is a factor, not a coefficient"),
        ({"alpha": 0}, ValueError, "alpha must be a probability, above 0 and at most 1, not 0"),
        ({"alpha": "0.1"}, ValueError, "not '0.1'"),
        ({"mask_var": "nothing"}, KeyError, "mask_var='nothing' is not a column"),
        ({"n_jobs": 0}, ValueError, "n_jobs must be a whole number"),
    ],
)
def test_arguments(fitted, arguments, error, said, assert_untouched):
    before = fitted.copy()
    with pytest.raises(error) as caught:
        scglmm.tl.diagnose(fitted, **arguments)
    assert said in str(caught.value.args[0])
    assert_untouched(fitted, before)


def test_other_data_than_those_of_the_result(fitted, assert_untouched):
    def refused(adata: ad.AnnData) -> str:
        before = adata.copy()
        with pytest.raises(ValueError, match=r"run `scglmm\.tl\.nbmm` again") as caught:
            scglmm.tl.diagnose(adata)
        assert_untouched(adata, before)
        return str(caught.value)

    assert "has 100 cells" in refused(fitted[:100].copy())
    changed = fitted.copy()
    changed.X = changed.X * 2
    assert "The cells or counts are not those" in refused(changed)


def test_an_unknown_reason(spoiled):
    with pytest.raises(KeyError, match=r"There is no reason 'cells'\. Reasons: 'one_cell'"):
        scglmm.get.diagnose_df(spoiled, "cells")
