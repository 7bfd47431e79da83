"""Contrasts and joint tests: against lmerTest, against formulas written out, and where a variance is 0."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import pandas as pd
import pytest
from fitting import fit_cells, fit_counts
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from scglmm.inference.contrasts import combine_df, contrast, f_test, independent_rows, joint
from scglmm.inference.wald import two_sided

REFERENCE = Path(__file__).parents[1] / "reference"
KINDS = {"one": 3, "nested": 3, "crossed": 3, "slope": 3, "uncorrelated": 1}  # seeds at which no variance is 0
LINEAR = {
    "C-B": [[0, -1, 1, 0]],
    "mean": [[0, 0.5, 0.5, 0]],
    "B+x": [[0, 1, 0, 1]],
    "group": [[0, 1, 0, 0], [0, 0, 1, 0]],
    "group, differently": [[0, 1, 0, 0], [0, -1, 1, 0]],
    "all": [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],
}


def parts(*fits, of=slice(None)):
    """What is stored of some fits, for some coefficients."""
    beta, df = (np.array([getattr(fit, name)[of] for fit in fits]) for name in ("beta", "df"))
    vcov = np.array([fit.vcov[of][:, of] for fit in fits])
    d_vcov = np.array([fit.d_vcov[:, of][:, :, of] for fit in fits])
    return beta, vcov, d_vcov, df


# --------------------------------------------------------------------------------------------------- against lmerTest


@pytest.fixture(scope="module")
def gaussian():
    """Fits of the cells of tests/reference/lmerTest_joint.R."""
    cells = pd.read_csv(REFERENCE / "lmerTest_joint_cells.csv")
    one, x = np.ones(len(cells)), cells["x"].to_numpy()
    donor = np.unique(cells["donor"], return_inverse=True)[1]
    X = np.column_stack([one, cells["group"] == "B", cells["group"] == "C", x]).astype(float)
    columns = {"intercept": [[one]], "slope": [[one, x]], "uncorrelated": [[one], [x]]}
    return {
        model: fit_counts(
            cells["y"].to_numpy(float)[:, None],
            np.zeros(len(cells)),
            X,
            [(donor, 12, np.column_stack(c)) for c in terms],
        )[0]
        for model, terms in columns.items()
    }


@pytest.mark.parametrize("test", LINEAR)
@pytest.mark.parametrize("model", ["intercept", "slope", "uncorrelated"])
def test_lmertest_where_counts_are_nearly_gaussian(gaussian, model, test):
    frozen = pd.read_csv(REFERENCE / "lmerTest_joint.csv").set_index(["model", "test"]).loc[(model, test)]
    L = np.array(LINEAR[test], float)
    fitted = gaussian[model]
    assert fitted.status == "ok"
    of = np.flatnonzero(L.any(axis=0))
    statistic, df2 = joint(L[:, of], *parts(fitted, of=of))
    np.testing.assert_allclose(df2, frozen["df2"], rtol=0.006)
    np.testing.assert_allclose(statistic, frozen["statistic"], rtol=0.03)
    np.testing.assert_allclose(f_test(statistic, len(L), df2), frozen["p"], rtol=0.06)
    if len(L) == 1:
        estimate, se, df = contrast(L[0, of], *parts(fitted, of=of))
        np.testing.assert_allclose(estimate, frozen["estimate"], atol=0.0015)
        np.testing.assert_allclose(se, frozen["se"], rtol=0.015)
        np.testing.assert_allclose(df, df2, rtol=1e-9)
        np.testing.assert_allclose((estimate / se) ** 2, statistic, rtol=1e-9)


# ----------------------------------------------------------------------------------------------------- what is stored


@pytest.mark.parametrize("kind", KINDS)
def test_stored_derivatives_give_the_degrees_of_freedom_of_coefficients(kind):
    fitted = fit_cells(models.simulate(kind, seed=KINDS[kind], n_donors=10, intercept=1.0))
    assert fitted.status == "ok"
    assert fitted.d_vcov.shape[1:] == fitted.vcov.shape
    spread = np.einsum("kii->ki", fitted.d_vcov)
    np.testing.assert_allclose(2 * np.diag(fitted.vcov) ** 2 / (spread**2).sum(axis=0), fitted.df, rtol=1e-9)
    for j in range(3):
        estimate, se, df = contrast(np.array([-2.0]), *parts(fitted, of=[j]))
        assert estimate == -2 * fitted.beta[j]
        assert se == pytest.approx(2 * fitted.se[j], rel=1e-15)
        assert df == fitted.df[j]


def test_no_parameter_in_the_interior():
    """A Poisson limit without donor variance: nothing that the covariance depends on is estimated."""
    rng = np.random.default_rng(0)
    donor = np.repeat(np.arange(10), 30)
    X = np.column_stack([np.ones(300), donor % 2, rng.normal(size=300)])
    y = np.zeros((300, 1))
    y[rng.permutation(300)[:150]] = 1  # less spread than Poisson
    fitted = fit_counts(y, np.zeros(300), X, [(donor, 10, X[:, :1])])[0]
    assert fitted.status == "singular"
    assert fitted.theta == np.inf
    np.testing.assert_array_equal(fitted.d_vcov, np.zeros((2, 3, 3)))
    np.testing.assert_array_equal(fitted.df, [8, 8, np.inf])
    assert contrast(np.array([1.0, 1]), *parts(fitted, of=[1, 2]))[2] == 8
    assert joint(np.eye(2), *parts(fitted, of=[1, 2]))[1] == 8


def test_maximum_likelihood_has_no_derivatives():
    cells = models.simulate("one", seed=3)
    fitted = fit_cells(cells, "ml")
    assert fitted.d_vcov.shape == (0, 3, 3)
    L = np.array([[1.0, 0.5, 0], [0, 1, -1]])
    statistic, df2 = joint(L, *parts(fitted))
    V = L @ fitted.vcov @ L.T
    chi2 = L @ fitted.beta @ np.linalg.solve(V, L @ fitted.beta)
    assert statistic * 2 == pytest.approx(chi2, rel=1e-12)
    assert df2 == np.inf
    assert f_test(statistic, 2, df2) == pytest.approx(stats.chi2.sf(chi2, 2), rel=1e-12)
    estimate, se, df = contrast(L[0], *parts(fitted))
    assert estimate == pytest.approx(L[0] @ fitted.beta)
    assert se == pytest.approx(np.sqrt(V[0, 0]))
    assert df == np.inf


@pytest.mark.parametrize("method", ["reml", "ml"])
def test_genes_without_a_fit_and_coefficients_without_an_estimate(method):
    """A gene that one level of a factor lacks; an empty gene; a gene with everything."""
    rng = np.random.default_rng(1)
    donor = np.repeat(np.arange(15), 20)
    level = donor % 3
    X = np.column_stack([np.ones(300), level == 1, level == 2, rng.normal(size=300)]).astype(float)
    full = rng.negative_binomial(2, 0.4, 300).astype(float)
    fits = fit_counts(
        np.column_stack([full, full * (level != 2), full * (level == 0)]),
        np.zeros(300),
        X,
        [(donor, 15, X[:, :1])],
        method,
    )
    assert [fit.status == "separated" for fit in fits] == [False, True, True]
    assert len({fit.d_vcov.shape for fit in fits}) == 1
    estimate, _, df = contrast(np.array([1.0, -1]), *parts(*fits, of=[1, 2]))
    np.testing.assert_array_equal(np.isnan(estimate), [False, True, True])
    np.testing.assert_array_equal(np.isnan(df), [False, True, True])
    estimate, se, df = contrast(np.array([1.0, -1]), *parts(*fits, of=[1, 3]))
    np.testing.assert_array_equal(np.isnan([estimate, se, df]).all(axis=0), [False, False, True])
    statistic, df2 = joint(np.eye(2), *parts(*fits, of=[1, 3]))
    np.testing.assert_array_equal(np.isnan([statistic, df2]).all(axis=0), [False, False, True])
    assert (joint(np.eye(2), *parts(fits[1], of=[1, 3]))[0] == statistic[1]).all()


def test_containment():
    """Where the variance that carries a coefficient is 0, a combination has the fewest df of its coefficients."""
    found = 0
    for seed in range(12):
        fitted = fit_cells(models.simulate("nested", seed=seed, psi=[0.0, 0.6], intercept=1.5))
        own = 2 * np.diag(fitted.vcov) ** 2 / (np.einsum("kii->ki", fitted.d_vcov) ** 2).sum(axis=0)
        contained = ~np.isclose(own, fitted.df, rtol=1e-5)
        if fitted.status != "singular" or not contained.any() or contained.all():
            continue
        found += 1
        j, other = np.flatnonzero(contained)[0], np.flatnonzero(~contained)[0]
        for of in ([j, other], [other, j]):
            _, _, df = contrast(np.array([1.0, 2.0]), *parts(fitted, of=of))
            assert df == fitted.df[of].min()
            _, df2 = joint(np.eye(2), *parts(fitted, of=of))
            assert df2 == fitted.df[of].min()
        assert contrast(np.array([3.0]), *parts(fitted, of=[j]))[2] == fitted.df[j]
    assert found > 3


def test_no_degrees_of_freedom_stay_none():
    beta, vcov = np.ones((1, 2)), np.eye(2)[None]
    d_vcov = np.full((1, 1, 2, 2), 0.1)
    df = np.array([[np.nan, 200.0]])
    assert np.isnan(contrast(np.array([1.0, 1.0]), beta, vcov, d_vcov, df)[2])
    assert np.isnan(joint(np.eye(2), beta, vcov, d_vcov, df)[1])
    assert np.isnan(f_test(np.array([3.0]), 2, np.array([np.nan])))


# ------------------------------------------------------------------------------------------------------------ formulas


@given(st.integers(0, 2**16))
def test_f_does_not_depend_on_how_the_hypotheses_are_written(seed):
    rng = np.random.default_rng(seed)
    k, q = 4, int(rng.integers(1, 4))
    root, d_vcov = rng.normal(size=(k, k)), rng.normal(size=(1, 2, k, k))
    vcov, d_vcov = (root @ root.T)[None] + 0.1 * np.eye(k), d_vcov + d_vcov.swapaxes(2, 3)
    beta = rng.normal(size=(1, k))
    df = 2 * np.einsum("gii->gi", vcov) ** 2 / (np.einsum("gkii->gki", d_vcov) ** 2).sum(axis=1)
    L = rng.normal(size=(q, k))
    V = L @ vcov[0] @ L.T
    by_hand = L @ beta[0] @ np.linalg.solve(V, L @ beta[0]) / q
    statistic, df2 = joint(L, beta, vcov, d_vcov, df)
    assert statistic == pytest.approx(by_hand, rel=1e-6)
    again, _ = joint(rng.normal(size=(q, q)) @ L, beta, vcov, d_vcov, df)
    assert again == pytest.approx(by_hand, rel=1e-4)
    if q == 1:
        estimate, se, own = contrast(L[0], beta, vcov, d_vcov, df)
        assert df2 == pytest.approx(own, rel=1e-9)
        assert f_test(statistic, 1, df2) == pytest.approx(two_sided(estimate / se, own), rel=1e-6)
        scaled = contrast(-3 * L[0], beta, vcov, d_vcov, df)
        np.testing.assert_allclose(np.concatenate(scaled), np.concatenate([-3 * estimate, 3 * se, own]), rtol=1e-9)


def test_combined_degrees_of_freedom():
    df = np.array(
        [[5.0, 5, 5], [4, 10, 30], [4, np.inf, np.inf], [np.inf, np.inf, np.inf], [2.0000001, 9, 9], [1.5, 9, 9]]
    )
    E = 4 / 2 + 10 / 8 + 30 / 28
    expected = [5, 2 * E / (E - 3), 2 * 4 / (4 - 3), np.inf, 2, 1.5]
    np.testing.assert_allclose(combine_df(df), expected, rtol=1e-6)
    np.testing.assert_allclose(combine_df(np.full((1, 2), 1e12)), 1e12)  # no cancellation
    assert np.isnan(combine_df(np.array([[np.nan, 4.0]])))


def test_the_mean_of_f_is_that_of_its_parts():
    """The definition: F with the combined degrees of freedom has the mean of the independent squared t."""
    df = np.array([7.0, 12, 40])
    mean = np.mean([stats.t(nu).var() for nu in df])
    assert stats.f(3, combine_df(df[None])[0]).mean() == pytest.approx(mean, rel=1e-12)


def test_f_test():
    statistic = np.array([2.0, 2.0, 2.0, np.nan, 2.0])
    df2 = np.array([5.0, np.inf, np.nan, 5.0, 0.0])
    expected = [stats.f.sf(2, 3, 5), stats.chi2.sf(6, 3), np.nan, np.nan, np.nan]
    np.testing.assert_allclose(f_test(statistic, np.full(5, 3.0), df2), expected, rtol=1e-12)


def test_independent_rows():
    L = np.array([[0, 1.0, 0], [0, 0, 1e6], [0, -2, 3], [1e-6, 0, 0], [0, 0, 1]])
    np.testing.assert_array_equal(independent_rows(L), L[[0, 1, 3]])
    np.testing.assert_array_equal(independent_rows(L[:1]), L[:1])
