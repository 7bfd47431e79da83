"""Which matrix holds the counts, and what is said when it does not."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scglmm.tl._counts import check_counts, find_counts


def broken(adata: ad.AnnData, value: float) -> ad.AnnData:
    """One number of X replaced, X itself kept as a layer."""
    X = adata.X.toarray()
    X[5, 3] = value
    adata.X = sparse.csr_matrix(X)
    return adata


def message(adata: ad.AnnData, **how: object) -> str:
    source = find_counts(adata, how.get("layer"), how.get("use_raw", False))
    with pytest.raises(ValueError, match="contains") as caught:
        check_counts(adata, source, np.zeros(adata.n_obs, int), 1)
    return str(caught.value)


def test_sums(adata):
    used = np.arange(adata.n_obs) % 3 > 0
    (summary,), _ = check_counts(adata, find_counts(adata, None, False), np.where(used, 0, -1), 1)
    X = adata.X.toarray()
    np.testing.assert_array_equal(summary.cell_total, X.sum(axis=1))
    np.testing.assert_array_equal(summary.gene_total, X[used].sum(axis=0))
    np.testing.assert_array_equal(summary.gene_cells, (X[used] > 0).sum(axis=0))


def test_what_is_picked(adata):
    adata.layers["counts"] = adata.X * 2
    adata.raw = adata[:, ::-1].copy()
    for layer, use_raw, name, first in (
        (None, False, "adata.X", 0),
        ("counts", False, "adata.layers['counts']", 0),
        (None, True, "adata.raw.X", adata.n_vars - 1),
    ):
        source = find_counts(adata, layer, use_raw)
        assert source.name == name
        assert source.columns[0] == first
    # in memory there is no copy
    assert np.shares_memory(find_counts(adata, None, False).matrix.data, adata.X.data)


def test_genes_that_raw_lacks(adata):
    adata.raw = adata[:, 5:].copy()
    columns = find_counts(adata, None, True).columns
    np.testing.assert_array_equal(columns, [-1] * 5 + list(range(25)))


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (-2, "adata.X contains the negative value -2 (gene 'g3', cell 'c5'): it is not counts"),
        (0.25, "adata.X contains the fractional value 0.25 (gene 'g3', cell 'c5'): it is not raw counts"),
        (np.nan, "adata.X contains NaN (gene 'g3', cell 'c5'): counts must be finite"),
        (np.inf, "adata.X contains inf (gene 'g3', cell 'c5'): counts must be finite"),
    ],
)
def test_not_counts(adata, value, said):
    text = message(broken(adata, value))
    assert said in text
    assert "nothing else in `adata` (X, layers, raw) looks like them" in text
    assert ("round counts that a correction for ambient RNA" in text) is (value == 0.25)


def test_the_layer_that_looks_like_counts_is_named(adata):
    adata.layers["umi"] = adata.X.copy()
    adata.layers["scaled"] = sparse.csr_matrix(adata.X - 0.5 * (adata.X > 0))
    adata.raw = adata.copy()
    adata.X = adata.X.log1p()
    text = message(adata)
    assert "this looks like them: layer='umi' or use_raw=True." in text
    text = message(adata, layer="scaled")
    assert "adata.layers['scaled'] contains the fractional value" in text
    assert "layer='umi' or use_raw=True." in text
    assert "X" not in text.split("this looks like them")[1]


def test_x_is_named_when_a_layer_is_wrong(adata):
    adata.layers["lognorm"] = adata.X.log1p()
    text = message(adata, layer="lognorm")
    assert "this looks like them: `adata.X` (the default, without layer= or use_raw=)." in text
    adata.raw = adata.copy()
    adata.raw.X.data[:] = 0.5
    text = message(adata, use_raw=True)
    assert text.startswith("adata.raw.X contains the fractional value 0.5")
    assert "`adata.X`" in text
    assert "use_raw=True" not in text


def test_layers(adata):
    with pytest.raises(KeyError, match=r"no layer 'counts': `adata` has no layers\. Leave layer= out"):
        find_counts(adata, "counts", False)
    adata.layers["counts"] = adata.X
    adata.layers["scaled"] = adata.X
    with pytest.raises(
        KeyError, match=r"no layer 'count': the layers are 'counts', 'scaled'\. Did you mean 'counts'\?"
    ):
        find_counts(adata, "count", False)
    with pytest.raises(ValueError, match=r"layer='counts' and use_raw=True exclude each other"):
        find_counts(adata, "counts", True)
    with pytest.raises(ValueError, match=r"use_raw=True, but `adata\.raw` is not set"):
        find_counts(adata, None, True)


def test_no_x(adata):
    del adata.X
    with pytest.raises(ValueError, match=r"`adata\.X` is None.*\(no layer, no raw\)"):
        find_counts(adata, None, False)
    adata.layers["umi"] = sparse.csr_matrix(np.ones(adata.shape))
    with pytest.raises(ValueError, match=r"`adata\.X` is None\. Say where the counts are: layer= one of 'umi'\."):
        find_counts(adata, None, False)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_names_are_not_unique_and_raw_is_asked_for(adata):
    adata.raw = adata.copy()
    adata.var_names = [f"g{i // 2}" for i in range(adata.n_vars)]
    with pytest.raises(ValueError, match=r"names of `adata` are not unique.*var_names_make_unique"):
        find_counts(adata, None, True)


@pytest.mark.parametrize("dtype", [complex, str])
def test_not_numbers(adata, dtype):
    adata.layers["odd"] = adata.X.toarray().astype(dtype)
    with pytest.raises(TypeError, match=r"adata\.layers\['odd'\] holds values of type .*: counts must be numbers"):
        find_counts(adata, "odd", False)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_names_in_raw_are_not_unique(adata):
    var = pd.DataFrame(index=["g0", "g1", "g1"])
    adata.raw = ad.AnnData(adata.X[:, :3], obs=adata.obs, var=var)
    with pytest.raises(ValueError, match=r"`adata\.raw` are not unique \(for instance 'g1'\)"):
        find_counts(adata, None, True)


def test_cells_that_are_not_used_may_hold_anything(adata):
    broken(adata, np.nan)
    used = np.arange(adata.n_obs) != 5
    (summary,), _ = check_counts(adata, find_counts(adata, None, False), np.where(used, 0, -1), 1)
    assert np.isfinite(summary.gene_total).all()
    assert np.isnan(summary.cell_total[5])


def test_backed(adata, tmp_path):
    broken(adata, 0.5).write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    try:
        assert "fractional value 0.5" in message(backed)
    finally:
        backed.file.close()
