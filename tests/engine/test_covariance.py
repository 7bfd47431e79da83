from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import compile_model, roots, simulate

from scglmm.engine.covariance import null_space, reduced_root, root_of, term_parameters

SMALL = 0.03


def entries_of(root: np.ndarray) -> np.ndarray:
    return np.concatenate([root[j:, j] for j in range(root.shape[0])])


def sigma_of(psi: np.ndarray, c: int) -> np.ndarray:
    root = root_of(psi, c)
    return root @ root.T


@pytest.mark.parametrize("first", [0, 3])
def test_where_the_parameters_are(first):
    terms = term_parameters(compile_model(simulate("several")).structure, first)
    assert [term.slot for term in terms] == [0, 2, 3]
    assert [term.c for term in terms] == [2, 1, 1]
    assert [(term.entries - first).tolist() for term in terms] == [[0, 1, 2], [3], [4]]
    assert [term.column.tolist() for term in terms] == [[0, 0, 1], [0], [0]]
    assert [term.diagonal.tolist() for term in terms] == [[True, False, True], [True], [True]]
    assert term_parameters(compile_model(simulate("none")).structure, first) == []


@given(st.integers(1, 4), st.integers(0, 1000))
def test_root(c, seed):
    psi = np.random.default_rng(seed).normal(size=c * (c + 1) // 2)
    root = root_of(psi, c)
    assert (root == roots(psi, [c])[0]).all()
    assert (entries_of(root) == psi).all()


@given(st.integers(1, 3), st.integers(0, 1000))
def test_a_regular_matrix_keeps_its_root(c, seed):
    rng = np.random.default_rng(seed)
    root = np.tril(rng.normal(0, 0.2, (c, c)), -1) + np.diag(rng.uniform(0.3, 1, c))
    psi = entries_of(root)
    new, zero = reduced_root(psi, c, SMALL)
    assert not zero.any()
    assert (new == psi).all()


@given(st.integers(2, 4), st.data())
def test_a_singular_matrix_keeps_its_value(c, data):
    # Whatever the direction in which it is singular, and however small the first row of the root: rank r has a root
    # with c - r columns of zeros, and nothing is lost.
    rank = data.draw(st.integers(0, c - 1))
    half = np.random.default_rng(data.draw(st.integers(0, 1000))).normal(0, 0.5, (c, rank))
    half[0] *= data.draw(st.sampled_from([1.0, 0.1, 0.01, 0.0]))
    if rank and np.linalg.svd(half, compute_uv=False)[-1] < 2 * SMALL:
        return
    root = np.zeros((c, c))
    root[:, :rank] = np.linalg.qr(half.T)[1].T if rank else 0.0
    psi = entries_of(root)
    new, zero = reduced_root(psi, c, SMALL)
    assert zero.sum() == c - rank
    assert not root_of(new, c)[:, zero].any()
    assert sigma_of(new, c) == pytest.approx(sigma_of(psi, c), abs=1e-12)


def test_what_is_dropped_is_small():
    psi = np.array([0.5, 0.2, 0.01])
    new, zero = reduced_root(psi, 2, SMALL)
    assert zero.sum() == 1
    assert np.abs(sigma_of(new, 2) - sigma_of(psi, 2)).max() <= SMALL**2
    new, zero = reduced_root(np.array([0.01]), 1, SMALL)
    assert new.tolist() == [0.0]
    assert zero.tolist() == [True]


@given(st.integers(1, 4), st.data())
def test_null_space(c, data):
    rank = data.draw(st.integers(0, c))
    half = np.random.default_rng(data.draw(st.integers(0, 1000))).normal(0, 0.5, (c, rank))
    if rank and np.linalg.svd(half, compute_uv=False)[-1] < 0.01:
        return
    root = np.zeros((c, c))
    root[:, :rank] = np.linalg.qr(half.T)[1].T if rank else 0.0
    null = null_space(entries_of(root), c)
    assert null.shape == (c, c - rank)
    assert null.T @ null == pytest.approx(np.eye(c - rank), abs=1e-12)
    assert root.T @ null == pytest.approx(np.zeros((c, c - rank)), abs=1e-6)
