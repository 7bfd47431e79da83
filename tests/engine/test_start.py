from __future__ import annotations

import numpy as np
import pytest
from models import KINDS, compile_model, simulate

from scglmm.engine import start
from scglmm.engine.layout import ETA


def start_of(cells):
    model = compile_model(cells)
    beta, v, psi = np.zeros(model.p), np.zeros(model.q), np.zeros(model.n_psi)
    log_theta = start.starting_point(model.data, model.structure, model.X, beta, v, psi, model.work)
    return model, beta, v, psi, log_theta


@pytest.mark.parametrize("kind", KINDS)
def test_within_reach_of_the_truth(kind, as_python):
    cells = simulate(kind, n_donors=15, theta=1.5)
    model, beta, _, psi, log_theta = start_of(cells)
    assert beta == pytest.approx([0.7, 0.4, -0.2], abs=1.0)
    assert log_theta == pytest.approx(np.log(1.5), abs=1.5)
    diagonal = model.structure.psi_at[0] == model.structure.psi_at[1]
    assert (psi[~diagonal] == 0).all()
    assert ((psi[diagonal] >= start.SIGMA_RANGE[0]) & (psi[diagonal] <= start.SIGMA_RANGE[1])).all()


def test_never_at_zero(as_python):
    _, _, _, psi, _ = start_of(simulate("nested", psi=[0.0, 0.0], n_donors=20, theta=np.inf))
    assert (psi >= start.SIGMA_RANGE[0]).all()


@pytest.mark.parametrize("theta", [0.3, 4.0])
def test_moments(theta, as_python):
    cells = simulate("none", 1, n_donors=20, intercept=1.5, theta=theta)
    cells.y[0] = 700  # a large count is in the tail of the histogram
    model = compile_model(cells)
    eta = cells.X @ [1.5, 0.4, -0.2]
    model.work.strata[ETA] = model.X @ [1.5, 0.4, -0.2]
    mu = np.exp(eta + cells.offset)
    excess = np.sum((cells.y - mu) ** 2 - mu)
    assert start._moment_theta(model.data, model.work.strata) == pytest.approx(np.sum(mu**2) / excess)


def test_moments_of_underdispersed_counts(as_python):
    cells = simulate("none", 2)
    cells.y[:] = np.round(np.exp(cells.X @ [0.7, 0.4, -0.2] + cells.offset))
    model = compile_model(cells)
    model.work.strata[ETA] = model.X @ [0.7, 0.4, -0.2]
    assert start._moment_theta(model.data, model.work.strata) == start.THETA_RANGE[1]


def test_no_mode_no_start(as_python):
    model = compile_model(simulate("one"))
    model.data.nodes[0, 3] = np.nan
    beta, v, psi = np.zeros(model.p), np.zeros(model.q), np.zeros(model.n_psi)
    assert np.isnan(start.starting_point(model.data, model.structure, model.X, beta, v, psi, model.work))
