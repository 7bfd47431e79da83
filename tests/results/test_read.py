from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

from scglmm.results import read_result


def test_unknown_result(toy):
    adata = toy.fitted(key="reml")
    with pytest.raises(KeyError, match=r"No result 'nbmm' in `adata.varm`. Results in it: 'reml'"):
        read_result(adata)
    with pytest.raises(KeyError, match=r"Run `scglmm.tl.nbmm` first"):
        read_result(toy.make_adata())


def test_unknown_names(toy):
    result = read_result(toy.fitted())
    with pytest.raises(KeyError, match=r"'Dx' is a factor, not a coefficient.*'Dx\[T.AD\]', 'Dx\[T.MCI\]'"):
        result.find_coefficient("Dx")
    with pytest.raises(KeyError, match=r"No coefficient 'age' in the result 'nbmm'. Coefficients: 'Age'"):
        result.find_coefficient("age")
    with pytest.raises(KeyError, match=r"No source of variance 'sex'.*Sources: 'Sex'"):
        result.find_source("sex")
    with pytest.raises(ValueError, match="was not fitted with `groupby`"):
        result.find_group("T")


def test_unknown_groups(toy):
    result = read_result(toy.fitted_groups())
    assert result.fitted_groups == ["T∕NK", "B|naive"]
    assert result.find_group("T/NK") == "T∕NK"
    with pytest.raises(KeyError, match=r"No group 'T'.*Groups: 'T∕NK'|No group 'T'"):
        result.find_group("T")
    with pytest.raises(ValueError, match="'Mono' was not fitted: skipped: Sex is constant"):
        result.find_group("Mono")
    with pytest.raises(KeyError, match=r"in group 'B\|naive' of the result"):
        result.find_coefficient("Dx[T.MCI]", "B|naive")
    with pytest.raises(ValueError, match="more than one group: choose one with `group`, 'T∕NK'"):
        result.only_group()


def test_the_only_coefficient(toy):
    assert read_result(toy.fitted(coefficients=["Intercept", "Age"])).only_coefficient() == "Age"
    with pytest.raises(ValueError, match=r"choose one with `coef`, 'Dx\[T.AD\]'"):
        read_result(toy.fitted()).only_coefficient()
    with pytest.raises(ValueError, match="none besides the intercept"):
        read_result(toy.fitted(coefficients=["Intercept"])).only_coefficient()


@pytest.mark.parametrize("make", ["fitted", "fitted_groups"])
def test_without_its_entry_in_uns(toy, make):
    adata = getattr(toy, make)()
    other = ad.concat([adata, adata], merge="same", index_unique="-")
    assert "nbmm" not in other.uns
    before, after = read_result(adata), read_result(other)
    assert after.coefficients == before.coefficients
    assert after.sources == before.sources
    if make == "fitted":
        np.testing.assert_array_equal(after.vcov(), before.vcov())
    else:
        assert after.fitted_groups == before.fitted_groups
        for group in after.fitted_groups:
            for table in ("coef", "varpart", "fit"):
                assert after.table(table, group).equals(before.table(table, group))
        with pytest.raises(ValueError, match="order of groups"):
            after.vcov("B|naive")


def test_genes_renamed_since(toy):
    adata = toy.fitted()
    adata.var_names = adata.var["symbol"].to_numpy()
    assert read_result(adata).gene_rows("Age")["gene"].tolist() == adata.var["symbol"].tolist()
