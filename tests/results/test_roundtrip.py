"""What is written comes back: h5ad and both Zarr formats, whole and subset by genes, backed."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scglmm.get
from scglmm.results import check_target, read_result, write_results

FORMATS = ["h5ad", "zarr2", "zarr3"]


def write_and_read(adata, path, kind):
    if kind == "h5ad":
        adata.write_h5ad(path / "a.h5ad")
        return ad.read_h5ad(path / "a.h5ad")
    with ad.settings.override(zarr_write_format=int(kind[-1])):
        adata.write_zarr(path / "a.zarr")
    return ad.read_zarr(path / "a.zarr")


def assert_same(a, b, where=""):
    """Equal whatever the container: a list of strings may come back as an array of another string type."""
    if isinstance(a, dict):
        assert set(a) == set(b), where
        for name in a:
            assert_same(a[name], b[name], f"{where}[{name!r}]")
    elif isinstance(a, pd.DataFrame):
        assert list(a.columns) == list(b.columns), where
        assert a.index.tolist() == b.index.tolist(), where
        for column in a.columns:
            assert_same(a[column].to_numpy(), b[column].to_numpy(), f"{where}[{column!r}]")
    elif isinstance(a, np.ndarray) and a.dtype.names:
        assert a.dtype.names == b.dtype.names, where
        for name in a.dtype.names:
            assert a.dtype[name] == b.dtype[name], where
            assert_same(np.asarray(a[name]), np.asarray(b[name]), f"{where}[{name!r}]")
    elif isinstance(a, np.ndarray):
        assert a.shape == b.shape, where
        if a.dtype.kind in "fiub":
            assert a.dtype == b.dtype, where
            np.testing.assert_array_equal(a, b)
        else:
            assert [str(x) for x in a.ravel()] == [str(x) for x in b.ravel()], where
    else:
        assert type(a) is type(b), where
        assert a == b, where


def special(toy):
    """Groups, and names with every awkward character: two results in one object."""
    adata = toy.fitted_groups(n_genes=20)
    table = toy.make_table(
        adata.var_names,
        coefficients=["Intercept", 'C(x, Treatment("b"))[T.α/β]', "Dx[T.AD]:Age", "a|b", "x.y", "__z"],
        sources=["x/y:z", "SubID:Dx", "Residuals"],
    )
    write_results(adata, "ml/1", {None: table}, toy.make_info(empty=[], nothing=None, nested={"a": {"b": ()}}))
    return adata


@pytest.mark.parametrize("kind", FORMATS)
def test_everything_comes_back(toy, tmp_path, kind):
    adata = special(toy)
    back = write_and_read(adata, tmp_path, kind)
    assert_same(dict(adata.uns), dict(back.uns), "uns")
    assert_same(dict(adata.varm), dict(back.varm), "varm")
    for key in ("nbmm", "ml/1"):
        pd.testing.assert_frame_equal(scglmm.get.nbmm_df(adata, key=key), scglmm.get.nbmm_df(back, key=key))
        for name in ("groups", "coefficients", "sources", "fit_columns", "factors"):
            assert getattr(read_result(adata, key), name) == getattr(read_result(back, key), name)


@pytest.mark.parametrize("kind", ["h5ad", "zarr3"])
def test_again_after_reading(toy, tmp_path, kind):
    back = write_and_read(toy.fitted(n_genes=5), tmp_path, kind)
    (tmp_path / "again").mkdir()
    again = write_and_read(back, tmp_path / "again", kind)
    assert_same(dict(back.varm), dict(again.varm))
    assert_same(dict(back.uns), dict(again.uns))


@pytest.mark.parametrize("kind", ["h5ad", "zarr3"])
def test_a_subset_of_genes(toy, tmp_path, kind):
    adata = toy.fitted_groups()
    chosen = [40, 3, 17]
    back = write_and_read(adata[:, chosen].copy(), tmp_path, kind)
    whole = scglmm.get.nbmm_df(adata, "Age", group="T/NK").set_index("gene")
    part = scglmm.get.nbmm_df(back, "Age", group="T/NK").set_index("gene")
    assert sorted(part.index) == sorted(adata.var_names[chosen])
    pd.testing.assert_frame_equal(whole.loc[part.index], part, check_index_type=False)
    np.testing.assert_array_equal(read_result(back).vcov("B|naive"), read_result(adata).vcov("B|naive")[chosen])


@pytest.mark.parametrize("mode", ["r", "r+"])
def test_backed(toy, tmp_path, mode):
    toy.make_adata().write_h5ad(tmp_path / "a.h5ad")
    adata = ad.read_h5ad(tmp_path / "a.h5ad", backed=mode)
    write_results(adata, "nbmm", {None: toy.make_table(adata.var_names)}, toy.make_info())
    assert adata.isbacked
    adata.write_h5ad(tmp_path / "b.h5ad")
    adata.file.close()
    back = ad.read_h5ad(tmp_path / "b.h5ad")
    assert_same(dict(toy.fitted().varm), dict(back.varm))


def test_a_view_of_a_backed_object_is_refused(toy, tmp_path):
    toy.make_adata().write_h5ad(tmp_path / "a.h5ad")
    adata = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    view = adata[:, :10]
    with pytest.raises(ValueError, match=r"view of a backed AnnData.*to_memory"):
        check_target(view, "nbmm")
    with pytest.raises(ValueError, match="view of a backed AnnData"):
        write_results(view, "nbmm", {None: toy.make_table(view.var_names)}, toy.make_info())
    assert "nbmm" not in adata.uns
    adata.file.close()
