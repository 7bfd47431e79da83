from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scglmm.results.table import triangle_positions, triangle_size


def test_shapes_are_checked(toy):
    table = toy.make_table(pd.Index(["a", "b", "c"]))
    parts = {name: getattr(table, name) for name in table.__dataclass_fields__}
    with pytest.raises(ValueError, match=r"`se` has shape \(3, 2\); 3 genes and 5 coefficients need \(3, 5\)"):
        type(table)(**parts | {"se": np.zeros((3, 2))})
    with pytest.raises(ValueError, match=r"`vcov` has shape"):
        type(table)(**parts | {"vcov": np.zeros((3, 14))})
    with pytest.raises(ValueError, match="`varpart` has 2 rows for 3 genes"):
        type(table)(**parts | {"varpart": table.varpart.iloc[:2]})
    with pytest.raises(ValueError, match="no column 'status'"):
        type(table)(**parts | {"fit": table.fit.drop(columns="status")})
    with pytest.raises(ValueError, match="`positions` has 1 entries"):
        type(table)(**parts | {"positions": np.array([0])})


def test_rows_follow_the_names_of_a_selection(toy):
    table = toy.make_table(pd.Index(["c", "a"]))
    assert table.rows(pd.Index(["a", "b", "c"])).tolist() == [1, -1, 0]
    with pytest.raises(ValueError, match="1 genes of the result are not in `adata`, among them 'c'"):
        table.rows(pd.Index(["a", "b"]))


def test_duplicated_names_need_positions(toy):
    table = toy.make_table(pd.Index(["a", "a"]))
    assert table.rows(pd.Index(["a", "a"])).tolist() == [0, 1]
    with pytest.raises(ValueError, match="not unique"):
        table.rows(pd.Index(["a", "a", "b"]))
    table.positions = np.array([2, 0])
    assert table.rows(pd.Index(["a", "b", "a"])).tolist() == [1, -1, 0]


@pytest.mark.parametrize("subset", [[0], [2], [0, 2], [2, 0], [3, 1, 2]])
def test_triangle_positions(subset):
    full = np.arange(16.0).reshape(4, 4)
    full = full + full.T
    packed = full[np.tril_indices(4)]
    small = packed[triangle_positions(subset)]
    assert small.size == triangle_size(len(subset))
    np.testing.assert_array_equal(small, full[np.ix_(subset, subset)][np.tril_indices(len(subset))])
