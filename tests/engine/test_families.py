"""Poisson, Gaussian and zero-inflated families: the Laplace criterion against dense matrices, gradients."""

from __future__ import annotations

import numpy as np
import pytest
from models import KINDS, Cells, Dense, Model, compile_model, richardson, simulate
from scipy.special import gammaln

from scglmm.compression.nodes import make_nodes
from scglmm.engine.families import GAUSSIAN, NB2, POISSON
from scglmm.engine.responses import response_data

CASES = {"poisson": (POISSON, 0), "gaussian": (GAUSSIAN, 0), "zip": (POISSON, 1), "zinb": (NB2, 2)}


class Family(Dense):
    """The criterion for any family: derivatives of the log-likelihood of a cell by complex steps."""

    def __init__(self, cells: Cells, family: int, W: np.ndarray) -> None:
        super().__init__(cells)
        self.family, self.W = family, W
        self.zi = np.zeros(W.shape[1])

    def cell(self, eta: np.ndarray, theta: float) -> np.ndarray:
        """Log-likelihood of every cell; eta may be complex."""
        y = self.cells.y
        if self.family == GAUSSIAN:
            return -0.5 * (np.log(2 * np.pi * theta) + (y - eta) ** 2 / theta)
        if self.family == POISSON:
            log_f, log_0 = y * eta - np.exp(eta) - gammaln(y + 1), -np.exp(eta)
        else:
            log_0 = -theta * np.log1p(np.exp(eta) / theta)
            terms = gammaln(y + theta) - gammaln(theta) - gammaln(y + 1) + y * (eta - np.log(theta))
            log_f = terms - (y + theta) * np.log1p(np.exp(eta) / theta)
        if not self.W.size:
            return log_f
        odds = np.exp(self.W @ self.zi)
        return np.where(y > 0, log_f, np.log(odds + np.exp(log_0))) - np.log1p(odds)

    def log_likelihood(self, eta: np.ndarray, log_theta: float) -> float:
        return float(self.cell(eta, np.exp(log_theta)).sum())

    def mode(self, B, base, theta, start):
        x, penalty = start.copy(), np.arange(start.size) < self.q
        h = 1e-4

        def objective(x: np.ndarray) -> float:
            return self.log_likelihood(base + B @ x, np.log(theta)) - 0.5 * np.sum(penalty * x**2)

        def slope(eta: np.ndarray) -> np.ndarray:
            return self.cell(eta + 1e-20j, theta).imag / 1e-20

        for _ in range(200):
            eta = base + B @ x
            gradient = B.T @ slope(eta) - penalty * x
            second = [(slope(eta + d) - slope(eta - d)) / (2 * d) for d in (h, h / 2)]
            curvature = -(4 * second[1] - second[0]) / 3
            hessian = (B * curvature[:, None]).T @ B + np.diag(penalty.astype(float))
            step = np.linalg.solve(hessian, gradient)
            if not gradient @ step > 0:
                step = gradient / np.abs(hessian).sum()
            if gradient @ step < 1e-18:
                return x, hessian
            length = 1.0
            while length > 1e-10 and objective(x + length * step) < objective(x) - 1e-10:
                length /= 2
            x = x + length * step
        return x, hessian

    def criterion(self, par, *, joint):
        first = 0 if joint else self.p
        self.zi = np.asarray(par[first : first + self.zi.size])
        return super().criterion(np.delete(par, slice(first, first + self.zi.size)), joint=joint)


def case(name: str, kind: str, seed: int = 0) -> tuple[Model, Family, np.ndarray]:
    """A model of a family, the same with dense matrices, and parameters (zi, psi, log theta) off the optimum."""
    family, k = CASES[name]
    cells = simulate(kind, seed, theta=np.inf if family == POISSON else 2.0)
    rng = np.random.default_rng(seed)
    n_strata = cells.stratum.max() + 1
    W = np.column_stack([np.ones(n_strata), rng.normal(size=n_strata)])[:, :k]
    if family == GAUSSIAN:
        offset = cells.offset
        cells = Cells(np.log1p(cells.y) + rng.normal(0, 0.5, offset.size), offset, cells.X, cells.terms, cells.stratum)
    elif k:
        cells = cells.subset(cells.y * (rng.random(cells.y.size) > 0.3))
    model = compile_model(cells)
    nodes = make_nodes(cells.stratum, cells.offset)
    model.data = response_data(nodes, cells.y, family, W if k else None)
    return model, Family(cells, family, W[cells.stratum]), rng.normal(-1, 0.3, k)


def point(kind: str, joint: bool, zi: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    psi = np.array(KINDS[kind]) * rng.choice([-1, 1], len(KINDS[kind])) * rng.uniform(0.3, 2, len(KINDS[kind]))
    beta = np.array([0.7, 0.4, -0.2]) + rng.normal(0, 0.3, 3)
    return np.r_[[] if joint else beta, zi, psi, rng.uniform(-1, 2)]


@pytest.mark.parametrize("joint", [False, True], ids=["ml", "reml"])
@pytest.mark.parametrize("kind", ["none", "one", "several"])
@pytest.mark.parametrize("name", CASES)
def test_value_against_dense(name, kind, joint):
    model, dense, zi = case(name, kind)
    for seed in range(2):
        par = point(kind, joint, zi, seed)
        value = model.evaluate(par, joint=joint)[0]
        assert value == pytest.approx(dense.criterion(par, joint=joint), rel=1e-8)


@pytest.mark.parametrize("joint", [False, True], ids=["ml", "reml"])
@pytest.mark.parametrize("kind", ["none", "one", "crossed", "slope", "several"])
@pytest.mark.parametrize("name", CASES)
def test_gradient_against_differences(name, kind, joint):
    model, _, zi = case(name, kind)
    for seed in range(2):
        par = point(kind, joint, zi, seed)
        _, gradient, beta, v = model.evaluate(par, joint=joint)
        expected = richardson(lambda x, b=beta, v=v: model.evaluate(x, joint=joint, beta=b, v=v)[0], par)
        assert np.abs(gradient - expected).max() <= 1e-6 * (1 + np.abs(gradient).max())
