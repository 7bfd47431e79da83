from __future__ import annotations

import numpy as np
import pytest
from models import Dense, compile_model, simulate
from scipy.optimize import minimize

from scglmm.engine import optimise


def search(model, par, joint, *, metric=None, theta_stop=np.inf):
    """Run the search as Python, its criterion compiled."""
    par = np.array(par, float)
    metric = 0.01 * np.eye(par.size) if metric is None else metric.copy()
    value, gradient, beta, v = model.evaluate(par, joint=joint)
    d_v, d_beta = np.zeros((par.size, v.size)), np.zeros((par.size, beta.size))
    value, n_eval, status = optimise.maximise(
        model.data, model.structure, model.X, joint, par, value, metric, theta_stop, beta, v, gradient, model.work,
        d_v, d_beta,
    )  # fmt: skip
    return par, value, n_eval, status, gradient


@pytest.mark.parametrize("joint", [False, True], ids=["ml", "reml"])
@pytest.mark.parametrize("start", [(0.3, 0.0), (2.5, 3.0), (0.05, -3.0)])
def test_reaches_the_optimum(joint, start, as_python):
    cells = simulate("one", 1)
    model, dense = compile_model(cells), Dense(cells)
    par, value, _, status, gradient = search(model, np.r_[[] if joint else [0.0, 0.0, 0.0], start], joint)
    best = minimize(lambda x: -dense.criterion(x, joint=joint), par, method="Nelder-Mead")
    assert status == optimise.CONVERGED
    assert value >= -best.fun - 1e-7
    assert value == pytest.approx(model.evaluate(par, joint=joint)[0], rel=1e-12)
    assert np.abs(gradient).max() < 0.02


def test_parameters_without_a_metric_stay(as_python):
    model = compile_model(simulate("one", 1))
    metric = np.diag([0.01, 0.0])
    par, *_ = search(model, [0.4, 1.7], True, metric=metric)
    assert par[1] == 1.7
    assert par[0] != 0.4


def test_stops_where_theta_passes_the_limit_given(as_python):
    cells = simulate("one", 2)
    cells.y[:] = np.round(np.exp(0.7 + cells.offset))  # less spread than a Poisson
    model = compile_model(cells)
    par, value, _, status, _ = search(model, [0.3, 0.0], True, theta_stop=np.log(50.0))
    assert status == optimise.STOPPED_AT_THETA
    assert par[1] > np.log(50.0)
    assert value == pytest.approx(model.evaluate(par, joint=True)[0], rel=1e-12)


def test_theta_stays_within_its_bounds(as_python):
    cells = simulate("one", 2)
    cells.y[:] = np.round(np.exp(0.7 + cells.offset))
    par, _, _, status, _ = search(compile_model(cells), [0.3, 17.0], True)
    assert status == optimise.CONVERGED
    assert par[1] <= optimise.LOG_THETA_MAX


def test_a_criterion_that_cannot_be_evaluated(as_python):
    model = compile_model(simulate("one", 1))
    _, value, n_eval, status, _ = search(model, [np.nan, 0.0], True)
    assert np.isnan(value)
    assert n_eval == 0
    assert status == optimise.NOT_CONVERGED


def test_update_is_that_of_bfgs(as_python):
    rng = np.random.default_rng(0)
    a = rng.normal(size=(3, 3))
    metric = a @ a.T + np.eye(3)
    step, change = rng.normal(size=3), rng.normal(size=3)
    if step @ change < 0:
        change = -change
    rho = 1 / (step @ change)
    left = np.eye(3) - rho * np.outer(step, change)
    expected = left @ metric @ left.T + rho * np.outer(step, step)
    found = metric.copy()
    optimise._bfgs_update(found, step, change)
    assert found == pytest.approx(expected)
    unchanged = metric.copy()
    optimise._bfgs_update(unchanged, step, -change)  # curvature of the wrong sign
    assert (unchanged == metric).all()


def test_longest_step(as_python):
    X = np.ones((4, 2))
    par = np.zeros(4)
    longest = optimise._longest_step
    assert longest(X, False, par, np.array([1.0, 1.0, 0.5, 2.0])) == 1.0
    assert longest(X, False, par, np.array([6.0, 0.0, 0.0, 0.0])) == pytest.approx(0.5)
    assert longest(X, False, par, np.array([0.0, 0.0, 4.0, 0.0])) == pytest.approx(optimise.MAX_PSI_STEP / 4)
    assert longest(X, True, par, np.array([0.0, 0.0, 0.0, 30.0])) == pytest.approx(optimise.MAX_THETA_STEP / 30)
