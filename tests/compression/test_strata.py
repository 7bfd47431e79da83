from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from scglmm.compression.strata import find_strata


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.sampled_from([-1.5, 0.0, 2.25])), min_size=1))
def test_strata_are_the_distinct_rows(rows):
    columns = np.array(rows).T
    stratum, first = find_strata(list(columns), len(rows))
    seen = list(dict.fromkeys(rows))  # distinct rows by first appearance
    assert stratum.dtype == first.dtype == np.int64
    assert stratum.tolist() == [seen.index(row) for row in rows]
    assert first.tolist() == [rows.index(row) for row in seen]


def test_no_columns_is_one_stratum():
    stratum, first = find_strata([], 5)
    assert stratum.tolist() == [0] * 5
    assert first.tolist() == [0]


def test_constant_columns_split_nothing():
    stratum, first = find_strata([np.ones(4), np.array(["a"] * 4, object)], 4)
    assert stratum.tolist() == [0] * 4
    assert first.tolist() == [0]


def test_minus_zero_is_zero():
    assert find_strata([np.array([0.0, -0.0, 1.0])], 3)[0].tolist() == [0, 0, 1]


def test_a_covariate_of_cells_makes_every_cell_a_stratum():
    rng = np.random.default_rng(0)
    n = 3000
    columns = [np.ones(n), np.arange(n) % 7, rng.normal(size=n), rng.normal(size=n)]
    stratum, first = find_strata(columns, n)
    assert stratum.tolist() == list(range(n))
    assert first.tolist() == list(range(n))


def test_columns_of_many_values_do_not_overflow_the_pair():
    n = 60_000
    column = np.arange(n) // 2
    stratum, _ = find_strata([column, n - column, column * 3.5], n)
    assert stratum.tolist() == column.tolist()
