from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scglmm.engine import ldl
from scglmm.engine.structure import analyse


def problem(codes, levels, covariates, n_strata: int, seed: int = 0):
    """A structure, M = Z'HZ + I dense and in the layout of the kernels."""
    rng = np.random.default_rng(seed)
    structure, _ = analyse(codes, levels, covariates, n_strata)
    q, w = structure.starts.shape[1] - 1, structure.z.shape[1]
    h = rng.uniform(0.1, 5, n_strata)
    Z = np.zeros((n_strata, q))
    for a in range(w):
        Z[np.arange(n_strata), structure.z_column[:, a]] += structure.z[:, a]
    values = np.zeros(q + structure.entries.shape[1])
    values[:q] = 1
    pair = 0
    for a in range(w):
        for b in range(a + 1):
            np.add.at(values, structure.place[:, pair], h * structure.z[:, a] * structure.z[:, b])
            pair += 1
    return structure, Z.T @ (h[:, None] * Z) + np.eye(q), values


def check(codes, levels, covariates, n_strata: int, seed: int = 0) -> None:
    """Factor, solutions and selected inverse against dense numpy."""
    structure, M, values = problem(codes, levels, covariates, n_strata, seed)
    starts, entries = structure.starts, structure.entries
    q = M.shape[0]
    column_of = np.repeat(np.arange(q), np.diff(starts[0]))
    work = np.zeros((2, q))

    log_det = ldl.factor(values, starts, entries, work[0])
    assert not work.any()
    assert log_det == pytest.approx(np.linalg.slogdet(M)[1], rel=1e-11, abs=1e-11)
    L = np.eye(q)
    L[entries[0], column_of] = values[q:]
    assert (L * values[:q]) @ L.T == pytest.approx(M, abs=1e-11 * max(1, np.abs(M).max(initial=0)))

    rng = np.random.default_rng(seed)
    b = rng.normal(size=(q, 2))
    x = b.copy()
    ldl.solve_lower(values, starts, entries, x)
    assert L @ x == pytest.approx(b, abs=1e-10)
    ldl.solve_upper(values, starts, entries, x)
    assert M @ x == pytest.approx(b, abs=1e-9)

    inverse = np.full(values.size, np.nan)
    ldl.selected_inverse(values, starts, entries, inverse, work)
    assert not work.any()
    expected = np.linalg.inv(M)
    assert inverse[:q] == pytest.approx(np.diag(expected), rel=1e-9)
    assert inverse[q:] == pytest.approx(expected[entries[0], column_of], abs=1e-10)


RNG = np.random.default_rng(0)
S = 60
ONE, SLOPE, THREE = np.ones((S, 1)), RNG.normal(size=(S, 2)), RNG.normal(size=(S, 3))
A, B, C = RNG.integers(0, 12, S), RNG.integers(0, 9, S), RNG.integers(0, 5, S)
CASES = {
    "no term": ([], [], []),
    "one": ([A], [12], [ONE]),
    "slope": ([A], [12], [SLOPE]),
    "three columns": ([A], [12], [THREE]),
    "uncorrelated": ([A, A], [12, 12], [ONE, SLOPE[:, :1]]),
    "nested": ([A, A * 9 + B], [12, 108], [ONE, ONE]),
    "nested, fine term first": ([A * 9 + B, A], [108, 12], [ONE, SLOPE]),
    "crossed": ([A, B], [12, 9], [ONE, ONE]),
    "crossed slopes": ([A, B], [12, 9], [SLOPE, THREE]),
    "three crossed": ([A, B, C], [12, 9, 5], [ONE, SLOPE, ONE]),
    "crossed and nested": ([A, A * 9 + B, B], [12, 108, 9], [SLOPE, ONE, ONE]),
    "unused levels": ([A * 3, B + 4], [40, 20], [SLOPE, ONE]),
    "one level": ([A * 0, B], [1, 9], [ONE, ONE]),
    "a covariate of zeros": ([A], [12], [np.zeros((S, 2))]),
}


@pytest.mark.parametrize("case", CASES)
def test_against_dense(case):
    check(*CASES[case], S)


def test_one_stratum():
    check([np.zeros(1, int)], [1], [np.ones((1, 2))], 1)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random_codes(data):
    n_strata = data.draw(st.integers(1, 25))
    shapes = data.draw(st.lists(st.tuples(st.integers(1, 7), st.integers(1, 3)), max_size=3))
    seed = data.draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    codes = [
        np.array(data.draw(st.lists(st.integers(0, levels - 1), min_size=n_strata, max_size=n_strata)))
        for levels, _ in shapes
    ]
    covariates = [rng.normal(size=(n_strata, width)) for _, width in shapes]
    check(codes, [levels for levels, _ in shapes], covariates, n_strata, seed)


def test_as_python():
    structure, _, values = problem(*CASES["crossed slopes"], S)
    again = values.copy()
    work = np.zeros((2, structure.starts.shape[1] - 1))
    assert ldl.factor.py_func(values, structure.starts, structure.entries, work[0]) == pytest.approx(
        ldl.factor(again, structure.starts, structure.entries, work[0]), rel=1e-13
    )
    assert values == pytest.approx(again, rel=1e-12)


@pytest.mark.parametrize("bad", [-1.0, 0.0, np.nan])
def test_a_matrix_that_is_not_positive_definite(bad):
    structure, _, values = problem(*CASES["crossed"], S)
    values[7] = bad
    work = np.zeros(structure.starts.shape[1] - 1)
    assert np.isnan(ldl.factor(values, structure.starts, structure.entries, work))
    assert not work.any()  # scratch is clean for the next attempt
