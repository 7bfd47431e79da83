from __future__ import annotations

import numpy as np
import pytest
from models import KINDS, compile_model, one_sided, roots, simulate

from scglmm.engine.boundary import variance_derivative

FIXED = [0.6, 0.5, -0.3]
BOTH = pytest.mark.parametrize("joint", [False, True], ids=["ml", "reml"])


def evaluate_at(model, psi, joint: bool) -> float:
    return model.evaluate(np.r_[[] if joint else FIXED, psi, 0.5], joint=joint, beta=FIXED)[0]


def slots_of(cells) -> list[int]:
    return np.concatenate([[0], np.cumsum(cells.widths)]).tolist()


@BOTH
@pytest.mark.parametrize("others", [0.0, 1.0], ids=["others zero", "others nonzero"])
@pytest.mark.parametrize(
    ("kind", "term"),
    [("one", 0), ("nested", 0), ("nested", 1), ("crossed", 0), ("crossed", 1), ("uncorrelated", 0), ("uncorrelated", 1),
     ("several", 1), ("several", 2)],
)  # fmt: skip
def test_scalar_terms(kind, term, others, joint):
    cells = simulate(kind, 1)
    model = compile_model(cells)
    psi = np.array(KINDS[kind]) * others
    at = np.flatnonzero(model.structure.psi_at[2] == term)
    psi[at] = 0.0

    def value(variance: float) -> float:
        there = psi.copy()
        there[at] = np.sqrt(variance)
        return evaluate_at(model, there, joint)

    expected = one_sided(value, 4e-3)
    evaluate_at(model, psi, joint)
    found = variance_derivative(model.structure, model.X, joint, slots_of(cells)[term], 1, model.work)
    assert found.shape == (1, 1)
    assert found[0, 0] == pytest.approx(expected, rel=1e-5, abs=1e-5)


def root_of(sigma: np.ndarray) -> np.ndarray:
    """Lower triangular root of a matrix that may be singular, as entries of psi."""
    c = sigma.shape[0]
    values, vectors = np.linalg.eigh(sigma)
    r = np.linalg.qr((vectors * np.sqrt(np.maximum(values, 0))).T)[1].T
    return np.concatenate([r[j:, j] for j in range(c)])


@BOTH
@pytest.mark.parametrize(
    ("kind", "rank"),
    [("slope", 0), ("slope", 1), ("three columns", 0), ("three columns", 1), ("three columns", 2), ("several", 1)],
)
def test_vector_terms_in_any_direction(kind, rank, joint):
    cells = simulate(kind, 2)
    model = compile_model(cells)
    c = cells.widths[0]
    rng = np.random.default_rng(rank)
    half = rng.normal(0, 0.5, (c, rank))
    sigma = half @ half.T
    rest = np.array(KINDS[kind])[c * (c + 1) // 2 :]
    null = np.linalg.svd(half, full_matrices=True)[0][:, rank:] if rank else np.eye(c)

    evaluate_at(model, np.r_[root_of(sigma), rest], joint)
    found = variance_derivative(model.structure, model.X, joint, 0, c, model.work)
    assert found == pytest.approx(found.T)
    for direction in (null @ rng.normal(size=null.shape[1]), null[:, 0], rng.normal(size=c)):
        u = direction / np.linalg.norm(direction)

        def value(variance: float, u=u) -> float:
            return evaluate_at(model, np.r_[root_of(sigma + variance * np.outer(u, u)), rest], joint)

        assert u @ found @ u == pytest.approx(one_sided(value, 4e-3), rel=1e-5, abs=1e-4)


@BOTH
def test_sign_tells_whether_there_is_variance(joint):
    derivative = []
    for psi in (0.0, 0.8):
        cells = simulate("one", 3, psi=[psi], n_donors=30)
        model = compile_model(cells)
        evaluate_at(model, [0.0], joint)
        derivative.append(variance_derivative(model.structure, model.X, joint, 0, 1, model.work)[0, 0])
    assert derivative[0] < derivative[1]
    assert derivative[1] > 0


@BOTH
def test_with_levels_that_do_not_occur(joint):
    cells = simulate("crossed", 4)
    codes, levels, covariates = cells.terms[0]
    wide = type(cells)(cells.y, cells.offset, cells.X, [(2 * codes + 1, 30, covariates), cells.terms[1]], cells.stratum)
    found = []
    for each in (cells, wide):
        model = compile_model(each)
        evaluate_at(model, [0.0, 0.4], joint)
        found.append(variance_derivative(model.structure, model.X, joint, 0, 1, model.work)[0, 0])
    assert levels < 30
    assert found[1] == pytest.approx(found[0], rel=1e-10)


def test_roots_are_what_the_engine_takes():
    sigma = np.array([[0.5, 0.2], [0.2, 0.3]])
    (root,) = roots(root_of(sigma), [2])
    assert root @ root.T == pytest.approx(sigma)
