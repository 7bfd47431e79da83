from __future__ import annotations

import re

import numpy as np
import pytest
import scipy.sparse as sp

from scglmm.compression import chunks
from scglmm.compression.chunks import Chunk, is_in_memory_sparse
from scglmm.compression.counts import (
    NotCountsError,
    Sums,
    canonical,
    looks_like_counts,
    numbers,
    summarise,
    summarise_groups,
)

FORMS = {
    "csr": sp.csr_array,
    "csc": sp.csc_array,
    "csr matrix": sp.csr_matrix,
    "csc matrix": sp.csc_matrix,
    "dense": np.asarray,
}


class Lazy:
    """A matrix that is read in slices of rows and computed, as dask's are."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape, self.dtype = values, values.shape, values.dtype

    def __getitem__(self, rows: slice) -> Lazy:
        return Lazy(self.values[rows])

    def compute(self) -> np.ndarray:
        return self.values


class Backed(Lazy):
    """A matrix on disk, as anndata's are: slices come as sparse matrices."""

    def __getitem__(self, rows: slice) -> sp.csr_matrix:
        return sp.csr_matrix(self.values[rows])


def example(dtype: type = np.float64) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.poisson(0.7, (30, 8)).astype(dtype)


def check(summary, dense: np.ndarray, used: np.ndarray) -> None:
    assert summary.cell_total.tolist() == dense.sum(axis=1).tolist()
    assert summary.gene_total.tolist() == dense[used].sum(axis=0).tolist()
    assert summary.gene_cells.tolist() == (dense[used] > 0).sum(axis=0).tolist()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8, np.bool_])
def test_sums(form, dtype):
    dense = example(dtype)
    used = np.arange(30) % 3 > 0
    check(summarise(canonical(FORMS[form](dense)), used), dense.astype(float), used)


@pytest.mark.parametrize("wrap", [np.asarray, Lazy, Backed])
def test_sums_over_row_chunks(wrap, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 400)
    dense, used = example(), np.arange(30) > 12
    check(summarise(wrap(dense), used), dense, used)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.nan, "contains NaN (row 17, column 5): counts must be finite"),
        (np.inf, "contains inf (row"),
        (-np.inf, "contains -inf (row"),
        (-3.0, "contains the negative value -3 (row 17, column 5): it is not counts"),
        (0.5, "contains the fractional value 0.5 (row 17, column 5): it is not raw counts"),
        (1.0986123, "the fractional value 1.09861 (row"),
    ],
)
def test_what_is_not_counts(form, bad, message):
    dense = example()
    dense[17, 5] = bad
    matrix = canonical(FORMS[form](dense))
    with pytest.raises(NotCountsError, match=re.escape(message)) as caught:
        summarise(matrix, np.ones(30, bool))
    assert (caught.value.row, caught.value.column) == (17, 5)
    # Cells that are not used may hold anything.
    summary = summarise(matrix, np.arange(30) != 17)
    others = np.delete(dense, 17, axis=0)
    assert summary.gene_total.tolist() == others.sum(axis=0).tolist()


@pytest.mark.parametrize("form", FORMS)
def test_groups_are_summed_in_one_pass(form, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 128)
    dense = example()
    label = np.arange(30) % 4 - 1
    found = summarise_groups(canonical(FORMS[form](dense)), label, 3)
    for k, summary in enumerate(found):
        check(summary, dense.astype(float), label == k)


@pytest.mark.parametrize("bad", [np.nan, 0.5])
def test_the_place_is_that_in_the_whole_matrix(bad, monkeypatch):
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 128)
    dense = example()
    dense[17, 5] = bad
    with pytest.raises(NotCountsError) as caught:
        summarise(dense, np.ones(30, bool))
    assert (caught.value.row, caught.value.column) == (17, 5)


def test_not_counts_is_a_value_error():
    assert issubclass(NotCountsError, ValueError)


@pytest.mark.parametrize("form", ["csr", "csc"])
def test_explicit_zeros_are_no_counts(form):
    dense = example()
    matrix = FORMS[form](dense + 1)
    matrix.data -= 1
    assert matrix.nnz == dense.size
    check(summarise(matrix, np.ones(30, bool)), dense, np.ones(30, bool))


@pytest.mark.parametrize("form", ["csr", "csc"])
def test_duplicate_entries_are_added_up_in_a_copy(form):
    row, column = np.array([0, 0, 2, 0]), np.array([1, 1, 3, 1])
    major, minor = (row, column) if form == "csr" else (column, row)
    by_major = np.argsort(major, kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(major, minlength=4))])
    matrix = FORMS[form]((np.array([1.0, 2.0, 5.0, 4.0])[by_major], minor[by_major], indptr), shape=(4, 4))
    before = matrix.data.copy()
    clean = canonical(matrix)
    dense = np.zeros((4, 4))
    dense[0, 1], dense[2, 3] = 7, 5
    assert clean.nnz == 2
    check(summarise(clean, np.ones(4, bool)), dense, np.ones(4, bool))
    assert (matrix.data == before).all()
    assert matrix.nnz == 4


def test_unsorted_columns_are_sorted_in_a_copy():
    matrix = sp.csc_array((np.array([1.0, 2.0, 3.0]), np.array([2, 0, 1]), np.array([0, 2, 3])), shape=(3, 2))
    clean = canonical(matrix)
    assert clean.indices.tolist() == [0, 2, 1]
    assert matrix.indices.tolist() == [2, 0, 1]


@pytest.mark.parametrize("form", ["csr", "csc"])
def test_good_matrices_are_not_copied(form):
    matrix = FORMS[form](example())
    assert canonical(matrix) is matrix
    assert is_in_memory_sparse(matrix)


def test_other_sparse_forms_become_rows():
    dense = example()
    clean = canonical(sp.coo_array(dense))
    assert clean.format == "csr"
    assert (clean.toarray() == dense).all()
    assert not is_in_memory_sparse(dense)
    assert not is_in_memory_sparse(sp.coo_array(dense))


def test_numbers_numba_can_read():
    dense = example()
    for dtype, expected in [(np.bool_, np.uint8), (np.float32, np.float32), (np.int8, np.int8), (np.uint16, np.uint16)]:
        assert numbers(sp.csr_array(dense.astype(dtype))).dtype == expected


@pytest.mark.parametrize("dtype", [np.float16, ">f8"])
def test_odd_dense_types(dtype):
    dense = example()
    check(summarise(canonical(dense.astype(dtype)), np.ones(30, bool)), dense, np.ones(30, bool))


def test_looks_like_counts():
    dense = example()
    assert looks_like_counts(dense)
    assert looks_like_counts(sp.csr_matrix(dense))
    assert looks_like_counts(Lazy(dense))
    assert not looks_like_counts(np.log1p(dense))
    assert not looks_like_counts(-dense)
    assert not looks_like_counts(np.where(dense > 1, np.nan, dense))
    late = dense.copy()
    late[-1, 0] = 0.5
    assert looks_like_counts(late, n_rows=10)


@pytest.mark.parametrize("bad", [None, (3, 4), (1500, 0), (1999, 5)])
def test_rows_on_several_threads(bad):
    """The sums that one thread gives, and the first value that is no count, wherever it is."""
    dense = np.random.default_rng(0).poisson(2.0, (2000, 6)).astype(float)
    if bad is not None:
        dense[bad], dense[1999, 5] = 0.5, 0.5
    label = np.arange(2000) % 3 - 1
    label[[3, 1500, 1999]] = 0
    chunk = Chunk(100, 0, sp.csr_array(dense))
    one, several = (Sums((2100, 6), np.concatenate([np.full(100, -1), label]), 2) for _ in range(2))
    found = several.find(chunk, 3)
    assert found == one.find(chunk)
    if bad is None:
        for name in ("cell_total", "gene_total", "gene_cells"):
            np.testing.assert_array_equal(getattr(several, name), getattr(one, name))
    else:
        assert (found[2], found[3]) == (100 + bad[0], bad[1])
