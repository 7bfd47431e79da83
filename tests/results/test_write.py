from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
from anndata import ImplicitModificationWarning
from anndata._core.aligned_mapping import AxisArrays

from scglmm.results import check_target, read_result, write_results
from scglmm.results.write import TABLES


def snapshot(adata):
    return dict(adata.varm), dict(adata.uns)


def assert_untouched(adata, before):
    """The very same objects in the same order."""
    for now, then in zip(snapshot(adata), before, strict=True):
        assert list(now) == list(then)
        assert all(now[name] is then[name] for name in now)


def test_everything_of_the_design_is_there(toy):
    adata = toy.fitted()
    assert list(adata.varm) == [f"nbmm_{suffix}" for suffix in TABLES]
    for suffix in ("coef", "se", "stat", "dof", "pval", "padj"):
        frame = adata.varm[f"nbmm_{suffix}"]
        assert list(frame.columns) == toy.COEFFICIENTS
        assert frame.index.equals(adata.var_names)
        assert (frame.dtypes == np.float64).all()
    assert list(adata.varm["nbmm_varpart"].columns) == toy.SOURCES
    np.testing.assert_allclose(adata.varm["nbmm_varpart"].dropna().sum(axis=1), 1)
    assert adata.varm["nbmm_vcov"].shape == (60, 15)
    assert adata.varm["nbmm_fit"]["status"].dtype == "category"
    assert adata.varm["nbmm_fit"]["n_donors"].dtype == np.int64

    entry = adata.uns["nbmm"]
    assert entry["coefficients"].tolist() == toy.COEFFICIENTS
    assert entry["sources"].tolist() == toy.SOURCES
    assert entry["references"] == {"Dx": "Control", "Sex": "F"}
    assert entry["params"] == {
        "groupby": "Dx",
        "reference": "Control",
        "method": "nbmm-reml",
        "use_raw": False,
        "layer": None,
        "corr_method": "benjamini-hochberg",
    }
    assert entry["names"].dtype.names == tuple(toy.COEFFICIENTS[1:])
    assert "groups" not in entry


def test_params_are_taken_from_the_top_level_as_well(toy):
    adata = toy.make_adata()
    info = toy.make_info(groupby="Dx", reference="Control", layer="counts", use_raw=False)
    del info["params"]
    write_results(adata, "nbmm", {None: toy.make_table(adata.var_names)}, info)
    assert adata.uns["nbmm"]["params"] == {
        "groupby": "Dx",
        "reference": "Control",
        "method": "reml",
        "use_raw": False,
        "layer": "counts",
        "corr_method": "benjamini-hochberg",
    }
    assert adata.uns["nbmm"]["method"] == "reml"
    assert "groupby" not in adata.uns["nbmm"]


def test_groups(toy):
    adata = toy.fitted_groups()
    entry = adata.uns["nbmm"]
    assert entry["groups"]["status"].to_dict() == {
        "T∕NK": "ok",
        "Mono": "skipped: Sex is constant",
        "B|naive": "ok",
    }
    columns = list(adata.varm["nbmm_coef"].columns)
    assert columns[:2] == ["T∕NK|Intercept", "T∕NK|Dx[T.AD]"]
    assert "B|naive|Dx[T.MCI]" not in columns
    vcov = adata.varm["nbmm_vcov"]
    assert vcov.shape == (60, 3, 15)
    assert np.isnan(vcov[:, 1]).all()
    assert not np.isnan(vcov[:, 0]).all()

    result = read_result(adata)
    table = toy.make_table(adata.var_names, seed=1, coefficients=["Intercept", "Dx[T.AD]", "Sex[T.M]", "Age"])
    np.testing.assert_array_equal(result.vcov("B|naive"), table.vcov)
    np.testing.assert_array_equal(result.table("coef", "B|naive").to_numpy(), table.coef)
    np.testing.assert_array_equal(result.table("varpart", "B|naive").to_numpy(), table.varpart.to_numpy())


def test_genes_of_a_selection_are_put_in_their_place(toy):
    adata = toy.make_adata()
    chosen = adata.var_names[[5, 3, 20]]
    table = toy.make_table(chosen, share_untested=0)
    write_results(adata, "nbmm", {None: table}, toy.make_info())
    coef = adata.varm["nbmm_coef"]
    np.testing.assert_array_equal(coef.loc[chosen].to_numpy(), table.coef)
    assert coef.drop(index=chosen).isna().all(axis=None)
    status = adata.varm["nbmm_fit"]["status"]
    assert (status.drop(index=chosen) == "not_selected").all()
    assert adata.varm["nbmm_fit"]["n_cells"].isna().sum() == 57
    assert np.isnan(adata.varm["nbmm_vcov"]).all(axis=1).sum() == 57
    assert adata.uns["nbmm"]["names"]["Age"][:3].tolist() != adata.var_names[:3].tolist()


def test_duplicated_gene_names(toy):
    adata = toy.make_adata(n_genes=4)
    adata.var_names = ["a", "b", "a", "c"]
    write_results(adata, "nbmm", {None: toy.make_table(adata.var_names)}, toy.make_info())
    assert adata.varm["nbmm_coef"].index.tolist() == ["a", "b", "a", "c"]


def test_slashes_are_stored_and_found(toy):
    adata = toy.make_adata()
    coefficients = ["Intercept", "I(Age / 10)", "Dx[T.a/b]"]
    info = toy.make_info(factors={"a/b": ["x/y"]})
    table = toy.make_table(adata.var_names, coefficients=coefficients, sources=["I(Age / 10)", "Residuals"])
    write_results(adata, "my/key", {None: table}, info)
    assert "my∕key" in adata.uns
    assert not any("/" in str(c) for frame in ("coef", "varpart") for c in adata.varm[f"my∕key_{frame}"].columns)
    assert not any("/" in name for name in adata.uns["my∕key"]["names"].dtype.names)
    assert adata.uns["my∕key"]["factors"]["a∕b"].tolist() == ["x/y"]
    for spelling in ("I(Age / 10)", "I(Age ∕ 10)"):
        assert read_result(adata, "my/key").find_coefficient(spelling) == "I(Age ∕ 10)"
        assert read_result(adata, "my∕key").find_source(spelling) == "I(Age ∕ 10)"


def test_an_earlier_result_of_the_same_name_goes(toy):
    adata = toy.fitted_groups()
    adata.varm["other"] = np.zeros((60, 1))
    adata.varm["nbmm_shrunken"] = np.zeros((60, 1))
    adata.varm["nbmm_mine"] = np.zeros((60, 1))
    adata.uns["nbmm"]["varm_keys"] = np.append(adata.uns["nbmm"]["varm_keys"], ["nbmm_shrunken", "other"])
    write_results(adata, "nbmm", {None: toy.make_table(adata.var_names)}, toy.make_info())
    assert set(adata.varm) == {f"nbmm_{suffix}" for suffix in TABLES} | {"other", "nbmm_mine"}
    assert list(adata.varm["nbmm_coef"].columns) == toy.COEFFICIENTS
    assert "groups" not in adata.uns["nbmm"]


def test_two_results_side_by_side(toy):
    adata = toy.fitted(key="nbmm")
    write_results(adata, "nbmm_2", {None: toy.make_table(adata.var_names, seed=5)}, toy.make_info())
    before = adata.varm["nbmm_2_coef"]
    write_results(adata, "nbmm", {None: toy.make_table(adata.var_names, seed=6)}, toy.make_info())
    assert adata.varm["nbmm_2_coef"] is before


def test_model_with_an_intercept_only(toy):
    adata = toy.fitted(coefficients=["(Intercept)"])
    assert "names" not in adata.uns["nbmm"]
    assert read_result(adata).tested == []


class TestNothingIsLeftHalfDone:
    @pytest.fixture
    def adata(self, toy):
        adata = toy.fitted(seed=3)
        adata.varm["PCs"] = np.zeros((60, 2))
        adata.uns["other"] = {"a": 1}
        return adata

    @pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, ValueError])
    @pytest.mark.parametrize("key", ["nbmm", "new"])
    def test_failing_uns(self, toy, adata, error, key):
        class Failing(dict):
            armed = True

            def __setitem__(self, name, value):
                if self.armed:
                    self.armed = False
                    raise error
                super().__setitem__(name, value)

        adata.uns = Failing(adata.uns)
        before = snapshot(adata)
        with pytest.raises(error):
            write_results(adata, key, {None: toy.make_table(adata.var_names)}, toy.make_info())
        assert_untouched(adata, before)

    @pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
    def test_uns_fails_after_it_was_set(self, toy, adata, error):
        class Failing(dict):
            armed = True

            def __setitem__(self, name, value):
                super().__setitem__(name, value)
                if self.armed:
                    self.armed = False
                    raise error

        adata.uns = Failing(adata.uns)
        before = snapshot(adata)
        for key in ("nbmm", "new"):
            adata.uns.armed = True
            with pytest.raises(error):
                write_results(adata, key, {None: toy.make_table(adata.var_names)}, toy.make_info())
            assert_untouched(adata, before)

    @pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
    @pytest.mark.parametrize("step", [0, 4, 9])
    def test_failing_varm(self, toy, adata, monkeypatch, error, step):
        validate = AxisArrays._validate_value
        before = snapshot(adata)
        calls = iter(range(10_000))

        def failing(self, value, key):
            if key.startswith("new_") and next(calls) == step % 9:
                raise error
            return validate(self, value, key)

        monkeypatch.setattr(AxisArrays, "_validate_value", failing)
        with pytest.raises(error):
            write_results(adata, "new", {None: toy.make_table(adata.var_names)}, toy.make_info())
        assert_untouched(adata, before)

    @pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
    def test_failing_while_building(self, toy, adata, monkeypatch, error):
        def failing(*_args):
            raise error

        before = snapshot(adata)
        monkeypatch.setattr("scglmm.results.write.rank_arrays", failing)
        with pytest.raises(error):
            write_results(adata, "nbmm", {None: toy.make_table(adata.var_names)}, toy.make_info())
        assert_untouched(adata, before)

    def test_bad_input(self, toy, adata):
        before = snapshot(adata)
        table = toy.make_table(adata.var_names)
        with pytest.raises(TypeError, match=r"info\['x'\] is a object"):
            write_results(adata, "nbmm", {None: table}, toy.make_info(x=object()))
        with pytest.raises(ValueError, match="not in `adata`"):
            write_results(adata, "nbmm", {None: toy.make_table(pd.Index(["q"]))}, toy.make_info())
        with pytest.raises(ValueError, match="no table to write"):
            write_results(adata, "nbmm", {}, toy.make_info())
        with pytest.raises(ValueError, match="a result has either"):
            write_results(adata, "nbmm", {None: table, "T": table}, toy.make_info())
        with pytest.raises(ValueError, match="lacks the group 'T'"):
            write_results(adata, "nbmm", {"T": table}, toy.make_info(groups={"B": "ok"}))
        with pytest.raises(ValueError, match="both be stored"):
            write_results(adata, "nbmm", {"T/1": table, "T∕1": table}, toy.make_info())
        assert_untouched(adata, before)


def test_the_input_is_not_changed(toy):
    adata = toy.make_adata()
    table, info = toy.make_table(adata.var_names), toy.make_info()
    before = copy.deepcopy(info), copy.deepcopy(table)
    write_results(adata, "nbmm", {None: table}, info)
    adata.varm["nbmm_coef"].iloc[0, 0] = 99.0
    adata.varm["nbmm_vcov"][0, 0] = 99.0
    assert info == before[0]
    np.testing.assert_array_equal(table.coef, before[1].coef)
    np.testing.assert_array_equal(table.vcov, before[1].vcov)


def test_a_view_becomes_an_object_of_its_own(toy):
    parent = toy.make_adata()
    view = parent[:, 10:30]
    with pytest.warns(ImplicitModificationWarning, match="Received a view"):
        write_results(view, "nbmm", {None: toy.make_table(view.var_names)}, toy.make_info())
    assert not view.is_view
    assert view.varm["nbmm_coef"].shape == (20, 5)
    assert "nbmm" not in parent.uns
    assert not list(parent.varm)


def test_target_is_checked(toy):
    adata = toy.make_adata()
    check_target(adata, "nbmm")
    with pytest.raises(TypeError, match="must be a string, not 3"):
        check_target(adata, 3)
    with pytest.raises(ValueError, match="cannot be ''"):
        check_target(adata, "")
