from __future__ import annotations

import numpy as np
import pytest
from models import KINDS, Cells, Dense, Model, compile_model, richardson, roots, simulate
from scipy.optimize import minimize
from scipy.stats import spearmanr

from scglmm.engine.boundary import variance_derivative
from scglmm.engine.covariance import term_parameters
from scglmm.engine.fit import OK, Fit, fit
from scglmm.engine.optimise import LOG_THETA_MAX, LOG_THETA_MIN

BOTH = pytest.mark.parametrize("joint", [False, True], ids=["ml", "reml"])


def rate(cells: Cells) -> np.ndarray:
    """First guess of beta: the pooled rate."""
    beta = np.zeros(cells.X.shape[1])
    beta[0] = np.log(cells.y.sum() / np.exp(cells.offset).sum())
    return beta


def run(cells: Cells, joint: bool, model: Model | None = None, **options) -> tuple[Model, Fit]:
    model = compile_model(cells) if model is None else model
    return model, fit(model.data, model.structure, model.X, joint, rate(cells), **options)


def point(found: Fit, joint: bool) -> np.ndarray:
    return np.r_[[] if joint else found.beta, found.psi, found.log_theta]


def starts(cells: Cells, joint: bool) -> list[np.ndarray]:
    """Points far from one another, for an optimiser that is not ours."""
    diagonal = np.concatenate([np.eye(c)[np.triu_indices(c)] for c in cells.widths] or [np.empty(0)])
    fixed = [] if joint else rate(cells)
    return [
        np.r_[fixed, np.where(diagonal > 0, sd, 0.05), log_theta]
        for sd, log_theta in ((0.5, 0.5), (0.1, 2.0), (1.0, -1.0))
    ]


def best_dense(cells: Cells, joint: bool) -> float:
    """Highest value that scipy finds with an independent criterion and differences for gradients."""
    dense = Dense(cells)
    bounds = (LOG_THETA_MIN, LOG_THETA_MAX)

    def objective(x: np.ndarray) -> float:
        return -dense.criterion(np.r_[x[:-1], np.clip(x[-1], *bounds)], joint=joint)

    return max(-minimize(objective, x, method="BFGS", options={"gtol": 1e-4}).fun for x in starts(cells, joint))


def best(cells: Cells, model: Model, joint: bool, *also: np.ndarray) -> float:
    """Highest value that scipy finds with the engine's criterion, which is checked elsewhere."""

    def objective(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient, *_ = model.evaluate(x, joint=joint)
        return (-value, -gradient) if np.isfinite(value) else (1e10, np.zeros(x.size))

    limits = [(-10, 10)] * (0 if joint else model.p) + [(-5, 5)] * model.n_psi + [(LOG_THETA_MIN, LOG_THETA_MAX)]
    options = {"ftol": 1e-15, "gtol": 1e-7, "maxiter": 500}
    found = [
        minimize(objective, x, jac=True, method="L-BFGS-B", bounds=limits, options=options)
        for x in [*starts(cells, joint), *also]
    ]
    return max(-result.fun for result in found)


def check_settled(model: Model, found: Fit, joint: bool, rounding_of_value: float = 0.0) -> None:
    """The point is a maximum, in the interior or on the boundary, and the record says which."""
    status, grad = found.status, found.grad
    assert status == OK
    rounding = 1e-6 * max(1.0, 0.01 * abs(found.value))
    assert grad < rounding
    first = 0 if joint else model.p
    par = point(found, joint)
    value, gradient, *_ = model.evaluate(par, joint=joint, beta=found.beta)
    recorded = found.value
    assert recorded == pytest.approx(value, rel=1e-11, abs=rounding_of_value)
    assert np.abs(gradient[found.free]).max(initial=0) < 2 * rounding
    assert found.free[:first].all()
    assert (par[first:-1][~found.free[first:-1]] == 0).all()
    for term in term_parameters(model.structure, first):
        derivative = variance_derivative(model.structure, model.X, joint, term.slot, term.c, model.work)
        (root,) = roots(par[term.entries], [term.c])
        values, vectors = np.linalg.eigh(root @ root.T)
        null = vectors[:, values < 1e-7]
        # As many columns are fixed at 0 as Sigma has directions without variance.
        fixed = (~found.free[term.entries[term.diagonal]]).sum()
        assert fixed == null.shape[1]
        if fixed:
            assert np.linalg.eigvalsh(null.T @ derivative @ null)[-1] <= 1e-6
    assert found.theta_at_limit == (not found.free[-1])
    if found.theta_at_limit:
        assert found.log_theta == LOG_THETA_MAX
        assert -np.exp(LOG_THETA_MAX) * gradient[-1] <= 1e-6 * max(1, -value)


@BOTH
@pytest.mark.parametrize("kind", KINDS)
def test_no_worse_than_scipy_on_dense_matrices(kind, joint):
    cells = simulate(kind, 11)
    model, found = run(cells, joint)
    check_settled(model, found, joint)
    shortfall = best_dense(cells, joint) - found.value
    assert shortfall <= 1e-6


@BOTH
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_models_of_all_kinds_are_settled(kind, seed, joint):
    # Variances from nothing to plenty: many of these end on a boundary.
    rng = np.random.default_rng(seed)
    psi = np.array(KINDS[kind]) * rng.choice([0.0, 0.1, 0.3, 1.0], len(KINDS[kind]))
    cells = simulate(
        kind, seed, n_donors=int(rng.integers(10, 20)), cells=3, intercept=rng.choice([0.0, 1.5]), psi=psi.tolist(),
        theta=rng.choice([0.5, 2.0, np.inf]),
    )  # fmt: skip
    model, found = run(cells, joint)
    check_settled(model, found, joint)
    shortfall = best(cells, model, joint, point(found, joint)) - found.value
    assert shortfall <= 1e-6


# Correlated slopes whose covariance matrix is singular, with intercepts of little variance: settings of `simulate`.
SINGULAR_SLOPES = [
    ("slope", 101, 6, 4, 5, 3.0, np.inf, [0.0, 0.25, 0.12]),
    ("slope", 102, 6, 3, 5, 3.0, 1.0, [0.06, 0.075, 0.4]),
    ("slope", 120, 11, 3, 3, 1.0, 5.0, [0.18, 0.025, 0.04]),
    ("slope", 121, 12, 7, 5, 0.0, 1.0, [0.0, 0.0, 0.04]),
    ("slope", 210, 9, 2, 3, 3.0, np.inf, [0.0, 0.025, 0.04]),
    ("three columns", 24, 13, 7, 2, 1.0, 5.0, [0.15, 0.02, -0.1, 0.04, 0.0, 0.03]),
    ("three columns", 25, 12, 3, 3, 0.0, 5.0, [0.15, 0.2, -0.03, 0.12, 0.015, 0.0]),
    ("three columns", 28, 9, 3, 1, 3.0, 5.0, [0.15, 0.2, -0.1, 0.04, 0.15, 0.09]),
    ("several", 3, 10, 7, 4, 3.0, np.inf, [0.05, 0.0, 0.12, 0.03, 0.035]),
    ("several", 27, 11, 4, 1, 3.0, np.inf, [0.15, 0.0, 0.0, 0.09, 0.035]),
    ("several", 47, 9, 7, 3, 3.0, np.inf, [0.0, -0.06, 0.4, 0.03, 0.035]),
]


@BOTH
@pytest.mark.parametrize("setting", SINGULAR_SLOPES, ids=lambda s: f"{s[0]} {s[1]}")
def test_singular_covariances_are_settled(setting, joint):
    kind, seed, n_donors, per_donor, n_cells, intercept, theta, psi = setting
    cells = simulate(
        kind, seed, n_donors=n_donors, per_donor=per_donor, cells=n_cells, intercept=intercept, theta=theta, psi=psi
    )
    model, found = run(cells, joint)
    check_settled(model, found, joint)
    shortfall = best(cells, model, joint, point(found, joint)) - found.value
    assert shortfall <= 1e-6


@BOTH
def test_no_variance_at_all(joint):
    # The same counts in every donor: less variance than chance would give.
    cells = simulate("nested", 3, theta=np.inf, psi=[0.0, 0.0])
    y = np.tile(cells.y[:12], 12)
    offset, X = np.tile(cells.offset[:12], 12), cells.X.copy()
    X[:, 2] = np.tile(X[:12, 2], 12)
    same = Cells(y, offset, X, cells.terms, cells.stratum)
    model, found = run(same, joint)
    check_settled(model, found, joint)
    assert found.psi.tolist() == [0.0, 0.0]
    assert not found.free[-3:-1].any()
    assert (found.v == 0).all()


@BOTH
def test_no_overdispersion(joint):
    cells = simulate("one", 4, intercept=2.0)
    mean = np.exp(2 + 0.3 * np.cos(cells.terms[0][0]) + cells.offset)
    regular = cells.subset(np.round(mean))
    model, found = run(regular, joint)
    check_settled(model, found, joint)
    assert found.theta_at_limit
    assert found.psi[0] != 0


@BOTH
def test_poisson_data_are_at_the_limit_or_rightly_not(joint):
    at_limit = 0
    for seed in range(12):
        cells = simulate("one", seed, theta=np.inf, n_donors=15, per_donor=5, cells=4)
        model, found = run(cells, joint)
        check_settled(model, found, joint)
        at_limit += found.theta_at_limit
        if not found.theta_at_limit:
            limit = point(found, joint)
            limit[-1] = LOG_THETA_MAX
            assert found.value > model.evaluate(limit, joint=joint)[0]
    assert 3 <= at_limit <= 11  # about half of them are


@BOTH
@pytest.mark.parametrize("sd", [0.01, 0.02])
def test_a_small_variance_that_is_there_stays(sd, joint):
    cells = simulate("one", 5, n_donors=20, per_donor=40, cells=2, intercept=9.0, theta=1000.0, psi=[sd])
    model, found = run(cells, joint)
    check_settled(model, found, joint)
    assert found.free.all()
    assert abs(found.psi[0]) == pytest.approx(sd, rel=0.5)


@BOTH
@pytest.mark.parametrize("ratio", [0.8, -1.5])
def test_a_slope_that_follows_the_intercept(ratio, joint):
    # psi of rank one: correlation 1 or -1 in truth, and with regular counts in the estimate.
    cells = simulate("slope", 6, n_donors=20, intercept=3.0)
    donor, x = cells.terms[0][0], cells.X[:, 2]
    u = 0.4 * np.random.default_rng(7).normal(size=20)
    eta = 3 + 0.2 * cells.X[:, 1] - 0.1 * x + u[donor] * (1 + ratio * x) + cells.offset
    model, found = run(cells.subset(np.round(np.exp(eta))), joint)
    check_settled(model, found, joint)
    assert found.psi[2] == 0
    assert not found.free[-2]
    assert found.psi[1] / found.psi[0] == pytest.approx(ratio, rel=0.1)


@BOTH
@pytest.mark.parametrize("kind", ["one", "nested", "crossed", "slope", "several"])
def test_order_of_strata_does_not_matter(kind, joint):
    cells = simulate(kind, 8)
    _, found = run(cells, joint)
    shuffle = np.random.default_rng(0).permutation(cells.stratum.max() + 1)
    _, again = run(cells, joint, compile_model(cells, shuffle))
    assert again.value == pytest.approx(found.value, rel=1e-11)
    assert again.beta == pytest.approx(found.beta, abs=1e-8)
    assert again.log_theta == pytest.approx(found.log_theta, abs=1e-8)
    for mine, other in zip(roots(found.psi, cells.widths), roots(again.psi, cells.widths), strict=True):
        assert mine @ mine.T == pytest.approx(other @ other.T, abs=1e-8)


@BOTH
@pytest.mark.parametrize("kind", ["one", "nested", "crossed", "slope", "uncorrelated"])
@pytest.mark.parametrize(("sd", "log_theta"), [(3.0, 6.0), (0.02, -4.0), (-0.7, 12.0), (0.0, 0.0)])
def test_any_start_ends_at_the_same_optimum(kind, sd, log_theta, joint):
    cells = simulate(kind, 9)
    model, found = run(cells, joint)
    guess = np.where(model.structure.psi_at[0] == model.structure.psi_at[1], sd, 0.1 * (sd != 0))
    _, again = run(cells, joint, model, psi_guess=guess, log_theta_guess=log_theta)
    check_settled(model, again, joint)
    assert again.value == pytest.approx(found.value, abs=1e-8)
    assert again.beta == pytest.approx(found.beta, abs=1e-6)
    assert again.log_theta == pytest.approx(found.log_theta, abs=1e-6)


@BOTH
@pytest.mark.parametrize("kind", ["none", "one", "crossed", "slope"])
def test_curvature_at_the_optimum(kind, joint):
    cells = simulate(kind, 10)
    model, found = run(cells, joint)
    par = point(found, joint)

    def gradient(x: np.ndarray, i: int) -> float:
        return model.evaluate(x, joint=joint, beta=found.beta, v=found.v)[1][i]

    expected = np.array([richardson(lambda x, i=i: gradient(x, i), par, 0.01) for i in range(par.size)])
    expected[~found.free] = expected[:, ~found.free] = 0.0
    # It is taken just before the last Newton step.
    size = np.sqrt(np.abs(np.outer(np.diag(expected), np.diag(expected)))) + 1e-12
    assert (found.hessian - expected) / size == pytest.approx(np.zeros_like(size), abs=2e-4)
    if not joint:
        return

    def beta(x: np.ndarray, c: int) -> float:
        return model.evaluate(x, joint=True, beta=found.beta, v=found.v)[2][c]

    def covariance(x: np.ndarray, c: int, d: int) -> float:
        model.evaluate(x, joint=True, beta=found.beta, v=found.v)
        return model.work.schur[1][c, d]

    dense = Dense(cells)
    ZL = dense.Z @ dense.root(found.psi)
    _, hessian = dense.mode(np.hstack([ZL, cells.X]), cells.offset, np.exp(found.log_theta), np.zeros(dense.q + 3))
    inverse = np.linalg.inv(hessian)
    assert found.covariance == pytest.approx(inverse[dense.q :, dense.q :], rel=1e-6)
    for c in range(model.p):
        expected = richardson(lambda x, c=c: beta(x, c), par, 0.01) * found.free
        assert found.d_beta[:, c] == pytest.approx(expected, rel=1e-3, abs=1e-5)
        for d in range(model.p):
            expected = richardson(lambda x, c=c, d=d: covariance(x, c, d), par, 0.01) * found.free
            assert found.d_covariance[:, c, d] == pytest.approx(expected, rel=1e-3, abs=1e-6)


@BOTH
def test_record(joint):
    cells = simulate("crossed", 11)
    model, found = run(cells, joint)
    eta = model.X @ found.beta
    _, _, _, v = model.evaluate(point(found, joint), joint=joint, beta=found.beta)
    assert found.v == pytest.approx(v, abs=1e-8)
    for a, column in enumerate(model.structure.z_column.T):
        eta = eta + found.psi[a] * found.v[column]
    assert found.eta == pytest.approx(eta, abs=1e-8)
    assert 5 <= found.n_eval <= 80
    _, rough = run(cells, joint, model, curvature=False)
    assert rough.value == pytest.approx(found.value, abs=1e-7)
    assert rough.n_eval < found.n_eval
    assert not rough.hessian.any()


def test_fits_do_not_share_memory():
    model = compile_model(simulate("one", 12))
    cells = [simulate("one", seed) for seed in (12, 13)]
    first = fit(model.data, model.structure, model.X, True, rate(cells[0]), work=model.work)
    kept = {name: np.copy(getattr(first, name)) for name in ("beta", "psi", "covariance", "eta", "v", "hessian")}
    other = compile_model(cells[1])
    fit(other.data, model.structure, other.X, True, rate(cells[1]), work=model.work)
    for name, value in kept.items():
        assert (getattr(first, name) == value).all()


@BOTH
def test_one_stratum_without_random_effects(joint):
    rng = np.random.default_rng(14)
    y = rng.negative_binomial(2, 0.3, 200).astype(float)
    cells = Cells(y, np.zeros(200), np.ones((200, 1)), [], np.zeros(200, int))
    model, found = run(cells, joint)
    check_settled(model, found, joint)
    assert found.beta[0] == pytest.approx(np.log(cells.y.mean()), abs=1e-7)
    shortfall = best(cells, model, joint) - found.value
    assert shortfall <= 1e-8


@BOTH
@pytest.mark.parametrize("n_counts", [1, 2, 5])
def test_hardly_any_counts(n_counts, joint):
    cells = simulate("one", 15, n_donors=20, per_donor=10)
    X = cells.X[:, :1]
    y = np.zeros(cells.y.size)
    y[np.random.default_rng(n_counts).choice(y.size, n_counts, replace=False)] = 1
    sparse = Cells(y, cells.offset, X, cells.terms, cells.stratum)
    model, found = run(sparse, joint)
    if found.status == OK:
        check_settled(model, found, joint)
        assert np.isfinite(found.beta).all()


@BOTH
def test_one_enormous_count(joint):
    cells = simulate("one", 16)
    cells.y[5] = 1e7
    model, found = run(cells, joint)
    # the value is what is left of terms of y log(y), which cancel: they are known to one unit in the last place
    check_settled(model, found, joint, 2 * np.spacing(1e7 * np.log(1e7)))
    assert found.log_theta < 0


@BOTH
def test_counts_that_cannot_be_fitted_fail(joint):
    cells = simulate("one", 17)
    model = compile_model(cells)
    model.data.nodes[0] = np.nan
    found = fit(model.data, model.structure, model.X, joint, rate(cells))
    assert found.status != OK


def test_effects_follow_the_donors():
    cells = simulate("one", 18, n_donors=30, per_donor=10)
    model, found = run(cells, True)
    donor = cells.terms[0][0]
    expected = np.bincount(donor, np.exp(cells.offset + cells.X @ found.beta))
    residual = np.log((np.bincount(donor, cells.y) + 0.5) / expected)
    effects = found.psi[0] * found.v[model.order]
    assert spearmanr(residual, effects).statistic > 0.95
