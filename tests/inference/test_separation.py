"""Separation against linear programs that ask the question the other way round, and what is left of a gene."""

from __future__ import annotations

import numpy as np
import pytest
from fitting import fit_counts, intercepts
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from scglmm.inference.separation import null_space, separating_direction


def has_maximum(X: np.ndarray, counts: np.ndarray) -> bool:
    """Stiemke's theorem: there is no separating direction exactly when positive weights of the empty strata, and any of
    the others, make X'w = 0.
    """
    empty = counts == 0
    found = linprog(
        np.zeros(X.shape[0]),
        A_eq=X.T,
        b_eq=np.zeros(X.shape[1]),
        bounds=[(1, None) if e else (None, None) for e in empty],
    )
    return found.status == 0


@st.composite
def problems(draw: st.DrawFn):
    n, p = draw(st.integers(2, 9)), draw(st.integers(1, 4))
    entries = st.lists(st.integers(-2, 2), min_size=n, max_size=n)
    X = np.column_stack([np.ones(n), *[draw(entries) for _ in range(p - 1)]]).astype(float)
    if draw(st.booleans()):
        X = np.abs(X) > 1  # factors
    X = X.astype(float)
    assume(np.linalg.matrix_rank(X) == X.shape[1])
    counts = np.array(draw(st.lists(st.sampled_from([0, 0, 1, 7]), min_size=n, max_size=n)), float)
    assume(counts.any())
    return X, counts


@settings(max_examples=300, deadline=None, derandomize=True)
@given(problems())
def test_random_problems(problem):
    X, counts = problem
    Q = np.linalg.qr(X)[0] * np.sqrt(X.shape[0])
    direction = separating_direction(Q, counts)
    assert (direction is None) == has_maximum(X, counts)
    if direction is not None:
        along = Q @ direction
        np.testing.assert_allclose(along[counts > 0], 0, atol=1e-7)
        assert along.max() < 1e-7
        assert along.min() < -1e-4


def test_named_designs():
    one, group = np.ones(6), np.array([0, 0, 0, 1, 1, 1.0])
    X = np.column_stack([one, group])
    assert separating_direction(X, np.array([1, 0, 0, 0, 2, 0.0])) is None
    absent = separating_direction(X, np.array([1, 0, 3, 0, 0, 0.0]))
    np.testing.assert_allclose(absent / absent[1], [0, 1], atol=1e-12)
    assert absent[1] < 0
    present = separating_direction(X, np.array([0, 0, 0, 0, 0, 5.0]))
    np.testing.assert_allclose(present / present[1], [-1, 1], atol=1e-12)
    assert present[0] < 0
    # counts only at one end of a covariate, above all that are empty
    X = np.column_stack([one, np.arange(6.0)])
    assert separating_direction(X, np.array([0, 0, 0, 0, 0, 3.0])) is not None
    assert separating_direction(X, np.array([0, 0, 3.0, 0, 0, 0])) is None
    assert separating_direction(X, np.array([0, 0, 0, 0, 1.0, 1])) is None


@given(st.integers(1, 5), st.integers(1, 8), st.integers(0, 1000))
def test_null_space(p, n, seed):
    rng = np.random.default_rng(seed)
    Q = rng.normal(size=(n, p))
    Q[:, rng.random(p) < 0.3] = 0
    null = null_space(Q)
    assert null.shape == (p, p - np.linalg.matrix_rank(Q))
    np.testing.assert_allclose(Q @ null, 0, atol=1e-3)
    np.testing.assert_allclose(null.T @ null, np.eye(null.shape[1]), atol=1e-12)


# ----------------------------------------------------------------------------------------------- what is left of a gene

N_DONORS, N_CELLS = 16, 20
DONOR = np.repeat(np.arange(N_DONORS), N_CELLS)
GROUP = DONOR % 4
AGE = np.round(np.random.default_rng(0).normal(0, 1, N_DONORS), 2)[DONOR]
STIM = np.tile([0.0, 1.0], DONOR.size // 2)
OFFSET = np.random.default_rng(1).normal(0, 0.4, DONOR.size)
ONE = np.ones(DONOR.size)


def draw(seed: int = 2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mu = np.exp(0.5 + OFFSET + 0.3 * AGE + 0.5 * STIM + rng.normal(0, 0.4, N_DONORS)[DONOR])
    return rng.poisson(mu * rng.gamma(2, 0.5, mu.size)).astype(float)


def indicators(*levels: int) -> list[np.ndarray]:
    return [(level == GROUP).astype(float) for level in levels]


def fit_one(counts: np.ndarray, X: list[np.ndarray], cells: np.ndarray = ONE > 0, method: str = "reml"):
    return fit_counts(counts[cells, None], OFFSET[cells], np.column_stack(X)[cells], intercepts(DONOR[cells]), method)[
        0
    ]


def assert_same(fitted, smaller, ours: list[int], theirs: list[int]) -> None:
    """Estimates, errors, degrees of freedom and covariances of the coefficients that have them, variances, theta."""
    for name in ("beta", "se", "df"):
        np.testing.assert_allclose(getattr(fitted, name)[ours], getattr(smaller, name)[theirs], rtol=1e-5, atol=1e-7)
    a, b = fitted.vcov[np.ix_(ours, ours)], smaller.vcov[np.ix_(theirs, theirs)]
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9)
    np.testing.assert_allclose(fitted.theta, smaller.theta, rtol=1e-5)
    np.testing.assert_allclose(fitted.sigma[0], smaller.sigma[0], rtol=1e-4, atol=1e-8)
    lost = [j for j in range(fitted.beta.size) if j not in ours]
    for name in ("beta", "se", "df"):
        assert np.isnan(getattr(fitted, name)[lost]).all()
    assert np.isnan(fitted.vcov[lost]).all()
    assert np.isnan(fitted.vcov[:, lost]).all()
    assert fitted.status == "separated"


@pytest.mark.parametrize("method", ["reml", "ml"])
def test_a_gene_that_is_absent_in_one_group(method):
    """Coefficients that have no part in it equal those of a fit without that group."""
    counts = draw() * (GROUP != 2)
    fitted = fit_one(counts, [ONE, *indicators(1, 2, 3), AGE, STIM], method=method)
    smaller = fit_one(counts, [ONE, *indicators(1, 3), AGE, STIM], GROUP != 2, method)
    assert_same(fitted, smaller, [0, 1, 3, 4, 5], [0, 1, 2, 3, 4])


def test_a_gene_that_is_absent_in_the_reference_group():
    """The intercept and all comparisons with the reference go; the others stay."""
    counts = draw() * (GROUP != 0)
    fitted = fit_one(counts, [ONE, *indicators(1, 2, 3), AGE, STIM])
    smaller = fit_one(counts, [ONE, *indicators(2, 3), AGE, STIM], GROUP != 0)
    assert_same(fitted, smaller, [4, 5], [3, 4])


@pytest.mark.parametrize(("present", "ours"), [([0], [0, 4, 5]), ([1], [4, 5]), ([0, 3], [0, 3, 4, 5])])
def test_a_gene_that_is_absent_in_several_groups(present, ours):
    """More than one direction at once."""
    counts = draw() * np.isin(GROUP, present)
    fitted = fit_one(counts, [ONE, *indicators(1, 2, 3), AGE, STIM])
    others = indicators(*present[1:])
    smaller = fit_one(counts, [ONE, *others, AGE, STIM], np.isin(GROUP, present))
    theirs = {4: -2, 5: -1, 0: 0, 3: 1}
    assert_same(fitted, smaller, ours, [theirs[j] for j in ours])


def test_one_direction_after_another():
    """Without group 2 the gene is still absent where the others are treated."""
    counts = draw() * (GROUP != 2) * (STIM == 0)
    fitted = fit_one(counts, [ONE, *indicators(1, 2, 3), AGE, STIM])
    kept = (GROUP != 2) & (STIM == 0)
    smaller = fit_one(counts, [ONE, *indicators(1, 3), AGE], kept)
    assert_same(fitted, smaller, [0, 1, 3, 4], [0, 1, 2, 3])


def test_an_interaction():
    """Absent in treated cells of one group."""
    counts = draw() * ~((GROUP == 2) & (STIM == 1))
    two, three = indicators(2, 3)
    X = [ONE, two, three, STIM, two * STIM, three * STIM]
    fitted = fit_one(counts, X)
    smaller = fit_one(counts, [*X[:4], X[5]], ~((GROUP == 2) & (STIM == 1)))
    assert_same(fitted, smaller, [0, 1, 2, 3, 5], [0, 1, 2, 3, 4])


def test_nothing_is_left():
    counts = draw() * (STIM == 0)
    fitted = fit_one(counts, [ONE, STIM])
    assert fitted.status == "separated"
    assert np.isnan(fitted.beta).all()
    assert np.isnan(fitted.loglik)


def test_one_cell_with_counts():
    counts = np.zeros(DONOR.size)
    counts[7] = 4
    fitted = fit_one(counts, [ONE, *indicators(1, 2, 3), AGE, STIM])
    assert fitted.status in {"separated", "not_converged"}
    assert np.isnan(fitted.se[1:]).all()


@pytest.mark.parametrize("shift", [0.0, 500.0, -500.0])
def test_large_offsets(shift):
    counts = draw() * (GROUP != 2)
    X = [ONE, *indicators(1, 2, 3), AGE]
    fitted, moved = (
        fit_counts(counts[:, None], OFFSET + s, np.column_stack(X), intercepts(DONOR))[0] for s in (0.0, shift)
    )
    np.testing.assert_allclose(moved.beta, fitted.beta - [shift, 0, 0, 0, 0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(moved.loglik, fitted.loglik, rtol=1e-8)
