"""The design on strata: bases, scales, and that nothing depends on the user's units and codings."""

from __future__ import annotations

import models
import numpy as np
import pytest
from fitting import fit_cells, fit_counts, frame_of, intercepts
from scipy import sparse

from scglmm.inference.frame import null_frame, restrict
from scglmm.inference.genes import Options, fit_genes

CELLS = models.simulate("slope", seed=4, n_donors=12, cells=4, intercept=1.0)
X = CELLS.X


def frame(X: np.ndarray = X, terms=CELLS.terms):
    return frame_of(X, terms)[0]


# ---------------------------------------------------------------------------------------------------------------- frame


def test_strata_are_the_distinct_rows():
    found, nodes = frame_of(X, CELLS.terms, CELLS.offset)
    assert found.n_total == X.shape[0]
    assert nodes.n_strata == found.X.shape[0] == found.n_cells.size == 72
    np.testing.assert_array_equal(found.X[nodes.stratum], X)
    np.testing.assert_array_equal(found.terms[0].codes[nodes.stratum], CELLS.terms[0][0])
    np.testing.assert_array_equal(found.terms[0].covariates[nodes.stratum], CELLS.terms[0][2])


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e9])
def test_basis(scale):
    scaled = X * [1, 1, scale] + [0, 0, 30 * scale]
    found = frame(scaled)
    weight = found.n_cells / found.n_total
    np.testing.assert_allclose((found.Q * weight[:, None]).T @ found.Q, np.eye(3), atol=1e-10)
    np.testing.assert_allclose(found.X @ found.back, found.Q, atol=1e-12)
    R = np.linalg.inv(found.back)
    np.testing.assert_allclose(found.log_det, np.linalg.slogdet(R)[1], rtol=1e-10)
    assert found.has_constant
    np.testing.assert_allclose(found.Q @ found.intercept, 1, atol=1e-10)
    np.testing.assert_allclose(found.covariance, np.cov(scaled, rowvar=False), rtol=1e-9, atol=1e-12 * scale**2)


def test_no_constant():
    without = frame(X[:, 1:])
    assert not without.has_constant
    both = np.column_stack([1 - X[:, 1], X[:, 1]])
    assert frame(both).has_constant


def test_random_terms():
    found = frame()
    term = found.terms[0]
    z = CELLS.terms[0][2]
    np.testing.assert_allclose(term.moment, z.T @ z / len(z), rtol=1e-12)
    np.testing.assert_allclose(term.scale, np.sqrt((z**2).mean(axis=0)), rtol=1e-12)
    assert term.n_levels == 12
    np.testing.assert_allclose(np.sort(found.structure.z[:, 0]), 1)


def test_restrict():
    found = frame()
    strata = found.terms[0].codes < 5
    part = restrict(found, strata, np.array([True, False, True]))
    np.testing.assert_array_equal(part.X, found.X[strata][:, [0, 2]])
    np.testing.assert_array_equal(part.n_cells, found.n_cells[strata])
    assert part.terms[0].n_levels == 5
    kept = np.isin(CELLS.terms[0][0], np.arange(5))
    again = frame(X[kept][:, [0, 2]], [(c[kept], 5, z[kept]) for c, _, z in CELLS.terms])
    np.testing.assert_allclose(part.covariance, again.covariance)
    np.testing.assert_allclose(part.log_det, again.log_det)


def test_null_frame():
    found = null_frame(frame())
    np.testing.assert_array_equal(found.Q, np.ones((72, 1)))
    assert found.terms is not None
    assert found.has_constant
    assert found.log_det == 0


# ------------------------------------------------------------------------------------- what a recoding does to a fit

RECODINGS = {
    "another reference": np.array([[1, 1, 0], [0, -1, 0], [0, 0, 1.0]]),
    "shifted covariate": np.array([[1, 0, 60], [0, 1, 0], [0, 0, 1.0]]),
    "other units": np.diag([1, 1, 1e5]),
    "tiny units": np.diag([1, 1, 1e-7]),
    "interchanged": np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0.0]]),
    "no intercept": np.array([[1, 0, 0], [-1, 1, 0], [0, 0, 1.0]]),
    "mixed": np.array([[1, 0.5, 2], [0.3, -1, 1], [0, 0.2, 3.0]]),
}


@pytest.mark.parametrize("method", ["reml", "ml"])
@pytest.mark.parametrize("recoding", RECODINGS)
def test_recoded_fixed_effects(recoding, method):
    """X A has the coefficients A^-1 beta; the restricted likelihood differs by log|det A|, nothing else changes."""
    A = RECODINGS[recoding]
    one, other = fit_cells(CELLS, method), fit_cells(CELLS, method, X=X @ A)
    back = np.linalg.inv(A)
    np.testing.assert_allclose(other.beta, back @ one.beta, rtol=1e-6, atol=1e-7 * np.abs(back).max())
    expected = back @ one.vcov @ back.T
    size = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    np.testing.assert_allclose(other.vcov / size, expected / size, atol=1e-5)
    np.testing.assert_allclose(other.theta, one.theta, rtol=1e-6)
    np.testing.assert_allclose(other.sigma[0], one.sigma[0], rtol=1e-5)
    np.testing.assert_allclose(other.var_linpred, one.var_linpred, rtol=1e-6)
    np.testing.assert_allclose([other.null_intercept, other.null_var], [one.null_intercept, one.null_var], rtol=1e-5)
    change = np.linalg.slogdet(A)[1] if method == "reml" else 0.0
    np.testing.assert_allclose(other.loglik, one.loglik - change, rtol=1e-10)
    same = np.abs(back - np.eye(3)).sum(axis=1) == 0
    np.testing.assert_allclose(other.df[same], one.df[same], rtol=1e-4)


@pytest.mark.parametrize("method", ["reml", "ml"])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scaled_slopes(scale, method):
    """The standard deviation of a slope goes with one over the unit of its covariate."""
    D = np.diag([1, scale])
    scaled = [(codes, levels, z @ D) for codes, levels, z in CELLS.terms]
    one = fit_cells(CELLS, method)
    other = fit_counts(CELLS.y[:, None], CELLS.offset, X, scaled, method)[0]
    np.testing.assert_allclose(D @ other.sigma[0] @ D, one.sigma[0], rtol=1e-6)
    np.testing.assert_allclose(other.loglik, one.loglik, rtol=1e-11)
    np.testing.assert_allclose(other.beta, one.beta, rtol=1e-7)
    np.testing.assert_allclose(other.df, one.df, rtol=1e-5)


@pytest.mark.parametrize("method", ["reml", "ml"])
def test_shifted_slopes(method):
    """z - m has the intercepts a + m b: another covariance matrix of the same effects, and the same likelihood."""
    m = 2.5
    A = np.array([[1, -m], [0, 1.0]])
    shifted = [(codes, levels, z @ A) for codes, levels, z in CELLS.terms]
    one = fit_cells(CELLS, method)
    other = fit_counts(CELLS.y[:, None], CELLS.offset, X, shifted, method)[0]
    np.testing.assert_allclose(A @ other.sigma[0] @ A.T, one.sigma[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(other.loglik, one.loglik, rtol=1e-10)
    np.testing.assert_allclose(other.beta, one.beta, rtol=1e-5)


def test_levels_and_rows_may_be_in_any_order():
    rng = np.random.default_rng(0)
    rows, names = rng.permutation(len(X)), rng.permutation(12)
    terms = [(names[codes][rows], levels, z[rows]) for codes, levels, z in CELLS.terms]
    one = fit_cells(CELLS)
    other = fit_counts(CELLS.y[rows, None], CELLS.offset[rows], X[rows], terms)[0]
    for name in ("beta", "vcov", "theta", "loglik", "df"):
        np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=1e-6, err_msg=name)


# --------------------------------------------------------------------------------------------------------------- offset


@pytest.mark.parametrize("method", ["reml", "ml"])
@pytest.mark.parametrize("shift", [np.log(10.0), -7.0, 500.0, -500.0])
def test_a_shift_of_the_offset_moves_the_intercept(shift, method):
    """Counts per ten thousand or per million: only the intercept knows. exp(500) would overflow."""
    one = fit_cells(CELLS, method)
    other = fit_counts(CELLS.y[:, None], CELLS.offset + shift, X, CELLS.terms, method)[0]
    np.testing.assert_allclose(other.beta, one.beta - [shift, 0, 0], rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(other.null_intercept, one.null_intercept - shift, rtol=1e-6)
    for name in ("vcov", "df", "theta", "loglik", "var_linpred", "null_var"):
        np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(other.sigma[0], one.sigma[0], rtol=1e-5)


def test_a_shift_without_an_intercept():
    """The constant is in the span of indicators of all groups, whose coefficients all move."""
    groups = X @ RECODINGS["no intercept"]
    one = fit_cells(CELLS, X=groups)
    other = fit_counts(CELLS.y[:, None], CELLS.offset + 500, groups, CELLS.terms)[0]
    np.testing.assert_allclose(other.beta, one.beta - [500, 500, 0], rtol=1e-6, atol=1e-6)


def test_genes_in_many_blocks():
    """Whatever fits in memory at once."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(np.exp(CELLS.offset)[:, None] * np.linspace(0.2, 4, 40))
    found, nodes = frame_of(X[:, :2], intercepts(CELLS.terms[0][0]), CELLS.offset)
    seen = []
    results = [
        fit_genes(
            sparse.csr_array(counts),
            np.arange(len(X)),
            nodes,
            found,
            np.arange(40)[::step],
            Options(),
            n_jobs=n_jobs,
            max_bytes=max_bytes,
            progress=seen.append,
        )
        for max_bytes, n_jobs, step in ((1e9, 1, 1), (1.0, 1, 1), (2e5, 2, 1), (1e9, 1, -1))
    ]
    assert sum(seen) == 160
    for result in results:
        for name in ("beta", "vcov", "df", "theta", "loglik", "n_eval"):
            values = result.column(name)[np.argsort(result.genes)]
            np.testing.assert_array_equal(values, results[0].column(name), err_msg=name)
    np.testing.assert_array_equal(results[0].donors, 12)
