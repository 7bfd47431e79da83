"""One response: what no package says, checked directly."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from fitting import fit_formula
from scipy.integrate import quad
from scipy.optimize import minimize
from scipy.special import gammaln, logsumexp
from scipy.stats import nbinom, norm, poisson

from scglmm.formula import build_design, parse_formula
from scglmm.inference.compressed import compress
from scglmm.inference.response import fit_response


def simulated(seed: int = 1, n_groups: int = 12, n: int = 8, zero: float = 0.0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(n_groups), n)
    x, offset = rng.normal(size=group.size), rng.normal(0, 0.3, group.size)
    eta = 0.8 + 0.4 * x + rng.normal(0, 0.7, n_groups)[group] + offset
    counts = rng.poisson(np.exp(eta) * rng.gamma(3.0, 1 / 3.0, group.size)) * (rng.random(group.size) >= zero)
    group_name = np.array([f"g{i}" for i in group])
    y = eta + rng.normal(0, 0.6, group.size)
    return pd.DataFrame({"y": y, "counts": counts, "x": x, "size": np.exp(offset), "g": group_name})


def cell_log_likelihood(family: str, y: np.ndarray, eta: np.ndarray, size: float, inflation: float) -> np.ndarray:
    if family == "gaussian":
        return norm.logpdf(y, eta, size)
    f = poisson.logpmf(y, np.exp(eta)) if family == "poisson" else nbinom.logpmf(y, size, size / (size + np.exp(eta)))
    with np.errstate(divide="ignore"):
        return np.logaddexp(np.where(y == 0, np.log(inflation), -np.inf), np.log1p(-inflation) + f)


@pytest.mark.parametrize(
    ("family", "zi"), [("gaussian", None), ("poisson", None), ("nbinom2", None), ("poisson", "~ 1"), ("nbinom2", "~ 1")]
)
def test_quadrature_is_maximum_likelihood(family, zi):
    """Against numerical integration of every group, maximised by a general optimiser."""
    table = simulated(2, zero=0.25 if zi else 0.0)
    response = "y" if family == "gaussian" else "counts"
    fitted = fit_formula(table, response, "~ offset(log(size)) + x + (1|g)", zi, family=family, n_quad=25)
    y, x, offset = table[response].to_numpy(float), table["x"].to_numpy(), np.log(table["size"].to_numpy())
    _, group = np.unique(table["g"], return_inverse=True)
    grid = np.linspace(-9, 9, 361)

    def log_likelihood(par: np.ndarray) -> float:
        inflation = 1 / (1 + np.exp(-par[4])) if zi else 0.0
        eta = offset + par[0] + par[1] * x + np.exp(par[2]) * grid[:, None]
        cells = cell_log_likelihood(family, y, eta, np.exp(par[3]), inflation)
        joint = np.stack([cells[:, group == g].sum(axis=1) for g in range(12)]) + norm.logpdf(grid)
        return float(logsumexp(joint, axis=1).sum() + 12 * np.log(grid[1] - grid[0]))

    size = fitted.residual_sd if family == "gaussian" else fitted.theta if family == "nbinom2" else 1.0
    best = np.r_[fitted.beta, 0.5 * np.log(fitted.sigma[0][0, 0]), np.log(size), fitted.zi_beta]
    assert fitted.loglik == pytest.approx(log_likelihood(best), abs=1e-6)
    found = minimize(lambda par: -log_likelihood(par), best + 0.05, method="BFGS", options={"gtol": 1e-4})
    assert -found.fun <= fitted.loglik + 1e-6
    np.testing.assert_allclose(fitted.beta, found.x[:2], atol=1e-3)


@pytest.mark.parametrize("n_quad", [2, 5, 40])
def test_quadrature_of_one_group_with_adaptive_integration(n_quad):
    """The integral is the log-likelihood and what the fit says that is missing to it."""
    table = simulated(3, n_groups=4, n=3)
    fitted = fit_formula(table, "counts", "~ 1 + (1|g)", family="poisson", n_quad=n_quad)
    sigma, total = np.sqrt(fitted.sigma[0][0, 0]), 0.0
    for _, part in table.groupby("g"):
        y = part["counts"].to_numpy()

        def density(u: float, y=y) -> float:
            return np.exp(poisson.logpmf(y, np.exp(fitted.beta[0] + u)).sum()) * norm.pdf(u, 0, sigma)

        total += np.log(quad(density, -8 * sigma, 8 * sigma, epsabs=0, epsrel=1e-12, limit=500)[0])
    assert fitted.loglik + fitted.quadrature_error == pytest.approx(total, abs=1e-6)
    assert (abs(fitted.quadrature_error) < 1e-6) == (n_quad == 40)


@pytest.mark.parametrize("reml", [False, True])
def test_gaussian_criterion_with_dense_matrices(reml):
    """The density of y, and its integral over the fixed effects, from V = Z Sigma Z' + s^2 I."""
    table = simulated(4)
    slopes = dict(zip(np.unique(table["g"]), np.random.default_rng(4).normal(0, 0.8, 12), strict=True))
    table["y"] += table["g"].map(slopes) * table["x"]
    fitted = fit_formula(table, "y", "~ offset(log(size)) + x + (x|g)", family="gaussian", reml=reml)
    y = (table["y"] - np.log(table["size"])).to_numpy()
    X = np.column_stack([np.ones(y.size), table["x"]])
    same = (table["g"].to_numpy()[:, None] == table["g"].to_numpy()).astype(float)

    def criterion(sigma: np.ndarray, residual: float, beta: np.ndarray) -> float:
        V = same * (X @ sigma @ X.T) + residual**2 * np.eye(y.size)
        inverse = np.linalg.inv(V)
        r = y - X @ beta
        value = y.size * np.log(2 * np.pi) + np.linalg.slogdet(V)[1] + r @ inverse @ r
        if reml:
            value += np.linalg.slogdet(X.T @ inverse @ X)[1] - 2 * np.log(2 * np.pi)
        return -0.5 * value

    assert fitted.loglik == pytest.approx(criterion(fitted.sigma[0], fitted.residual_sd, fitted.beta), rel=1e-10)
    V = same * (X @ fitted.sigma[0] @ X.T) + fitted.residual_sd**2 * np.eye(y.size)
    gls = np.linalg.inv(X.T @ np.linalg.solve(V, X))
    np.testing.assert_allclose(fitted.beta, gls @ X.T @ np.linalg.solve(V, y), rtol=1e-6)
    if reml:
        np.testing.assert_allclose(fitted.vcov, gls, rtol=1e-6)
    # predictions and the trace of the matrix that maps y to them
    levels = np.unique(table["g"])
    Z = np.hstack([(table["g"].to_numpy() == level)[:, None] * X for level in levels])
    G = np.kron(np.eye(levels.size), fitted.sigma[0])
    projection = X @ gls @ X.T @ np.linalg.inv(V)
    smoother = projection + Z @ G @ Z.T @ np.linalg.solve(V, np.eye(y.size) - projection)
    assert fitted.hat_trace == pytest.approx(np.trace(smoother), rel=1e-6)
    np.testing.assert_allclose(fitted.eta, smoother @ y + np.log(table["size"]), rtol=1e-5)
    np.testing.assert_allclose(fitted.eta_fixed, X @ fitted.beta + np.log(table["size"]), rtol=1e-8)
    # prediction error variance of the effects (Henderson's equations)
    W = np.hstack([X, Z]) / fitted.residual_sd
    full = W.T @ W
    full[2:, 2:] += np.linalg.inv(G)
    error = np.linalg.inv(full)[2:, 2:]
    given = np.linalg.inv(full[2:, 2:])
    for j in range(levels.size):
        at = slice(2 * j, 2 * j + 2)
        np.testing.assert_allclose(fitted.ranef_pev[0][j], error[at, at], rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(fitted.ranef_vcov[0][j], given[at, at], rtol=1e-6, atol=1e-12)


def test_gaussian_units_do_not_matter():
    table = simulated(5)
    fitted = fit_formula(table, "y", "~ x + (1|g)", family="gaussian", reml=True)
    scaled = table.assign(y=1e6 + 1e-3 * table["y"], x=1e4 * table["x"])
    other = fit_formula(scaled, "y", "~ x + (1|g)", family="gaussian", reml=True)
    np.testing.assert_allclose(other.beta, [1e6 + 1e-3 * fitted.beta[0], 1e-7 * fitted.beta[1]], rtol=1e-6)
    np.testing.assert_allclose(other.se, fitted.se * [1e-3, 1e-7], rtol=1e-4)
    np.testing.assert_allclose(other.df, fitted.df, rtol=1e-4)
    np.testing.assert_allclose(other.sigma[0], 1e-6 * fitted.sigma[0], rtol=1e-4)


@pytest.mark.parametrize("family", ["poisson", "nbinom2"])
def test_zero_inflation_with_a_covariate(family):
    """Without random effects: the likelihood maximised by a general optimiser."""
    rng = np.random.default_rng(6)
    table = simulated(6, n_groups=30)
    absent = rng.random(len(table)) < 1 / (1 + np.exp(1.0 - 0.8 * table["x"]))
    table["counts"] = table["counts"] * ~absent
    design, zi = build_design(parse_formula("~ x"), table), build_design(parse_formula("~ x"), table)
    y, X = table["counts"].to_numpy(float), design.X
    fitted = fit_response(design, y, family=family, zi_design=zi)

    def minus(par: np.ndarray) -> float:
        p0 = 1 / (1 + np.exp(-X @ par[2:4]))
        return -cell_log_likelihood(family, y, X @ par[:2], np.exp(par[4]), p0).sum()

    best = minimize(minus, np.zeros(5), method="BFGS", options={"gtol": 1e-5})
    assert fitted.loglik == pytest.approx(-best.fun, abs=1e-6)
    np.testing.assert_allclose(fitted.beta, best.x[:2], atol=2e-4)
    np.testing.assert_allclose(fitted.zi_beta, best.x[2:4], atol=2e-4)
    np.testing.assert_allclose(fitted.zi_eta, X @ fitted.zi_beta)
    assert fitted.status == "ok"
    if family == "poisson":
        assert fitted.theta == np.inf


def test_compression_of_zero_inflated_counts():
    """Many rows of one stratum, every one with an offset of its own, against the sum over the rows."""
    rng = np.random.default_rng(7)
    n = 4000
    table = pd.DataFrame({"size": rng.lognormal(0, 0.6, n), "x": np.repeat([0.0, 1.0], n // 2)})
    counts = rng.poisson(table["size"] * np.exp(0.5 + 0.3 * table["x"])) * (rng.random(n) > 0.2)
    design = build_design(parse_formula("~ offset(log(size)) + x"), table)
    zi = build_design(parse_formula("~ 1"), table)
    fitted = fit_response(design, counts, family="poisson", zi_design=zi)
    model = compress(design, counts.astype(float), "poisson", zi)
    assert model.data.nodes.shape[1] < n / 5
    p0 = 1 / (1 + np.exp(-fitted.zi_eta))
    assert fitted.loglik == pytest.approx(cell_log_likelihood("poisson", counts, fitted.eta, 1.0, p0).sum(), abs=1e-5)


def test_no_zero_inflation_is_said():
    rng = np.random.default_rng(8)
    table = simulated(8, n_groups=30)
    table["counts"] = rng.poisson(np.exp(2.0 + 0.3 * table["x"]))
    plain = fit_formula(table, "counts", "~ x + (1|g)", family="poisson")
    fitted = fit_formula(table, "counts", "~ x + (1|g)", "~ 1", family="poisson")
    assert fitted.status == "zi_boundary"
    assert fitted.loglik >= plain.loglik - 1e-6
    np.testing.assert_allclose(fitted.beta, plain.beta, atol=1e-3)


def test_poisson_is_the_limit_of_the_negative_binomial():
    rng = np.random.default_rng(9)
    table = simulated(9)
    table["counts"] = rng.binomial(8, 1 / (1 + np.exp(0.5 - 0.4 * table["x"])))
    limit = fit_formula(table, "counts", "~ x + (1|g)", reml=True)
    exact = fit_formula(table, "counts", "~ x + (1|g)", reml=True, family="poisson")
    assert limit.theta == exact.theta == np.inf
    assert limit.n_par == exact.n_par + 1
    assert limit.loglik == pytest.approx(exact.loglik, abs=1e-5)
    np.testing.assert_allclose(limit.beta, exact.beta, atol=1e-6)
    np.testing.assert_allclose(limit.se, exact.se, rtol=1e-5)


@pytest.mark.parametrize("zi", [None, "~ 1"])
def test_a_separated_response(zi):
    """One level without counts: its coefficient is lost, the rest is the fit without its rows."""
    table = simulated(10, zero=0.2 if zi else 0.0)
    table["kind"] = np.where(table["g"] < "g5", "a", np.where(table["g"] < "g8", "b", "c"))
    table.loc[table["kind"] == "b", "counts"] = 0
    fitted = fit_formula(table, "counts", "~ kind + x + (1|g)", zi, family="poisson", reml=True)
    rest = fit_formula(table[table["kind"] != "b"], "counts", "~ kind + x + (1|g)", zi, family="poisson", reml=True)
    assert fitted.status == "separated"
    assert fitted.lost.tolist() == [False, True, False, False]
    kept = [0, 2, 3]
    np.testing.assert_allclose(fitted.beta[kept], rest.beta, atol=1e-6)
    np.testing.assert_allclose(fitted.df[kept], rest.df, rtol=1e-4)
    assert np.isnan(fitted.beta[1])
    assert np.isnan(fitted.vcov[1]).all()
    assert np.isnan(fitted.df_of([0, 1, 0, 0]))
    assert fitted.df_of([0, 0, 1, 0]) == pytest.approx(fitted.df[2])
    assert (fitted.eta[table["kind"] == "b"] == -np.inf).all()
    np.testing.assert_allclose(fitted.eta[table["kind"] != "b"], rest.eta, atol=1e-6)
    assert fitted.ranef[0].shape == (12, 1)


def test_zeros_that_a_covariate_explains_altogether():
    """The logit runs to infinity: said, and the rest is the fit of the rows that are not certain to be 0."""
    table = simulated(13, n_groups=20)
    table["failed"] = (np.arange(len(table)) % 4 == 0).astype(float)
    table.loc[table["failed"] == 1, "counts"] = 0
    table["counts"] = np.where((table["failed"] == 0) & (table["counts"] == 0), 1, table["counts"])
    fitted = fit_formula(table, "counts", "~ x + (1|g)", "~ failed", family="poisson")
    rest = fit_formula(table[table["failed"] == 0], "counts", "~ x + (1|g)", family="poisson")
    assert fitted.status == "zi_boundary"
    assert fitted.loglik == pytest.approx(rest.loglik, abs=1e-5)
    np.testing.assert_allclose(fitted.beta, rest.beta, atol=1e-5)
    np.testing.assert_allclose(fitted.se, rest.se, rtol=1e-4)
    assert np.isnan(fitted.zi_vcov).all() or np.sqrt(np.diag(fitted.zi_vcov)).max() > 5


def test_quadrature_on_the_boundary():
    """A standard deviation at 0 and theta at infinity are those of Laplace."""
    table = simulated(9)
    table["counts"] = np.random.default_rng(9).binomial(8, 1 / (1 + np.exp(0.5 - 0.4 * table["x"])))
    laplace_fit = fit_formula(table, "counts", "~ x + (1|g)")
    fitted = fit_formula(table, "counts", "~ x + (1|g)", n_quad=9)
    assert laplace_fit.singular == fitted.singular == [True]
    assert fitted.theta == np.inf
    assert fitted.loglik == pytest.approx(laplace_fit.loglik, abs=1e-8)
    np.testing.assert_allclose(fitted.beta, laplace_fit.beta, atol=1e-6)


def test_residuals_next_to_nothing():
    table = simulated(14)
    effects = np.random.default_rng(14).normal(size=12)[np.unique(table["g"], return_inverse=True)[1]]
    table["y"] = 3 + 2 * table["x"] + effects + 1e-3 * np.random.default_rng(15).normal(size=len(table))
    fitted = fit_formula(table, "y", "~ x + (1|g)", family="gaussian", reml=True)
    assert fitted.status == "ok"
    assert fitted.residual_sd == pytest.approx(1e-3, rel=0.2)
    assert fitted.df == pytest.approx([11, 83], rel=1e-3)


def test_responses_that_are_refused():
    table = simulated(11, n_groups=4, n=3)
    design = build_design(parse_formula("~ x + (1|g)"), table)
    y = table["counts"].to_numpy(float)
    for wrong, message in (
        (y[:-1], "one number for each row"),
        (np.where(np.arange(12) == 3, np.nan, y), "missing or infinite in 1 of 12 rows, the first of them row 3"),
        (y - 5, "needs counts, and the response is"),
        (y + 0.5, "fractional"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_response(design, wrong)
    with pytest.raises(ValueError, match="'gaussian', 'poisson', 'nbinom2'"):
        fit_response(design, y, family="binomial")
    with pytest.raises(ValueError, match="model of counts"):
        fit_response(design, y, family="gaussian", zi_design=build_design(parse_formula("~ 1"), table))
    with pytest.raises(ValueError, match="fixed effects only"):
        fit_response(design, y, zi_design=design)
    with pytest.raises(ValueError, match="same rows"):
        fit_response(design, y, zi_design=build_design(parse_formula("~ 1"), table[:5]))
    with pytest.raises(ValueError, match="reproduce the response exactly"):
        fit_response(design, 2.0 + 3.0 * table["x"].to_numpy(), family="gaussian")
    many = build_design(parse_formula("~ 1 + (x|g)"), table.assign(g=np.arange(12) // 2))
    with pytest.raises(ValueError, match="12 for 12 rows"):
        fit_response(many, table["y"].to_numpy(), family="gaussian")


@pytest.mark.parametrize(
    ("formula", "options", "message"),
    [
        ("~ x + (x|g)", {}, r"this model has \(1 \+ x\|g\)"),
        ("~ x", {}, "this model has none"),
        ("~ x + (1|g)", {"reml": True}, "maximum likelihood only"),
        ("~ x + (1|g)", {"n_quad": 0}, "from 1"),
        ("~ x + (1|g)", {"n_quad": 2.5}, "integer"),
    ],
)
def test_quadrature_that_is_refused(formula, options, message):
    with pytest.raises(ValueError, match=message):
        fit_formula(simulated(), "counts", formula, **({"n_quad": 5} | options))


def test_a_response_without_counts():
    table = simulated().assign(counts=0)
    fitted = fit_formula(table, "counts", "~ x + (1|g)")
    assert fitted.status == "separated"
    assert np.isnan(fitted.beta).all()
    assert fitted.eta.shape == (96,)
    assert np.isnan(fitted.df_of([0.0, 1.0]))


def test_constant_of_the_log_likelihood():
    """Plain Poisson regression: every constant is there."""
    table = simulated(12)
    fitted = fit_formula(table, "counts", "~ x", family="poisson")
    y, eta = table["counts"].to_numpy(), fitted.eta
    assert fitted.loglik == pytest.approx(np.sum(y * eta - np.exp(eta) - gammaln(y + 1)), rel=1e-12)
    assert fitted.hat_trace == pytest.approx(2.0)
    assert fitted.n_par == 2
