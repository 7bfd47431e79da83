from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

from scglmm.results.rank_genes import RANKED, rank_arrays, ranking

GENES = pd.Index(["a", "b", "c", "d"])
STAT = np.array([-1.0, 3.0, np.nan, 3.0])
PVAL = np.array([0.3, 0.01, np.nan, 0.01])
COEF = np.array([-0.5, 1.0, 7.0, 1.0])
PADJ = np.array([0.3, 0.02, np.nan, 0.02])


def test_statistic_descending_ties_in_order_untested_last():
    order, n_tested = ranking(STAT, PVAL)
    assert order.tolist() == [1, 3, 0, 2]
    assert n_tested == 3


def test_arrays_are_laid_out_as_scanpys():
    arrays = rank_arrays(GENES, [(None, "Intercept", *[COEF] * 4), (None, "Dx[T.AD]", COEF, STAT, PVAL, PADJ)])
    assert tuple(arrays) == RANKED
    for name, dtype in zip(RANKED, ("O", "f4", "f4", "f8", "f8"), strict=True):
        assert arrays[name].dtype.names == ("Dx[T.AD]",)
        assert arrays[name].dtype["Dx[T.AD]"] == np.dtype(dtype)
    assert arrays["names"]["Dx[T.AD]"].tolist() == ["b", "d", "a", "c"]
    assert arrays["scores"]["Dx[T.AD]"].tolist() == [3.0, 3.0, -1.0, 0.0]
    np.testing.assert_allclose(
        arrays["logfoldchanges"]["Dx[T.AD]"], np.array([1, 1, -0.5, np.nan]) / np.log(2), rtol=1e-6
    )
    np.testing.assert_array_equal(arrays["pvals"]["Dx[T.AD]"], [0.01, 0.01, 0.3, np.nan])
    np.testing.assert_array_equal(arrays["pvals_adj"]["Dx[T.AD]"], [0.02, 0.02, 0.3, np.nan])


def test_fields_carry_the_group_and_no_forbidden_character():
    arrays = rank_arrays(GENES, [("T/NK", "Dx[T.AD]:Age", COEF, STAT, PVAL, PADJ)])
    assert arrays["names"].dtype.names == ("T∕NK|Dx[T.AD]∶Age",)


def test_a_model_with_an_intercept_only_has_no_arrays():
    assert rank_arrays(GENES, [(None, "(Intercept)", COEF, STAT, PVAL, PADJ)]) == {}


@pytest.mark.parametrize(("n", "written"), [(500, True), (1000, False)])
def test_as_many_fields_as_a_file_holds(n, written, tmp_path):
    name = "Dx[T.a level of some length]"
    arrays = rank_arrays(GENES, [(f"group {i:04d}", name, COEF, STAT, PVAL, PADJ) for i in range(n)])
    assert bool(arrays) is written
    adata = AnnData(np.zeros((2, 4)), uns={"nbmm": arrays})
    adata.write_h5ad(tmp_path / "a.h5ad")
