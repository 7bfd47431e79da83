"""Simulated models for the tests of the engine, and the same models with dense matrices.

`simulate` draws cells, `compile_model` turns them into what the engine takes, every cell a node of its stratum.
`Dense` computes the Laplace criterion from the cells alone, with numpy and scipy: nothing of the package is used there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.special import gammaln

from scglmm.compression.nodes import make_nodes
from scglmm.engine.families import GAUSSIAN, NB2, POISSON
from scglmm.engine.histogram import exceedance, log_factorials
from scglmm.engine.laplace import laplace
from scglmm.engine.layout import Data, make_work
from scglmm.engine.responses import response_data
from scglmm.engine.structure import analyse


@dataclass
class Cells:
    """A simulated data set: counts, offsets, designs, and random terms as (codes, levels, covariates), on cells."""

    y: np.ndarray
    offset: np.ndarray
    X: np.ndarray
    terms: list[tuple[np.ndarray, int, np.ndarray]]
    stratum: np.ndarray

    @property
    def widths(self) -> list[int]:
        return [covariates.shape[1] for _, _, covariates in self.terms]

    @property
    def n_psi(self) -> int:
        return sum(c * (c + 1) // 2 for c in self.widths)

    def subset(self, y: np.ndarray) -> Cells:
        """The same cells with other counts."""
        return Cells(y, self.offset, self.X, self.terms, self.stratum)


# Random terms of the models that tests go through, and values of psi that are a good distance from 0.
KINDS = {
    "none": [],
    "one": [0.6],
    "nested": [0.5, 0.35],
    "crossed": [0.5, 0.4],
    "slope": [0.6, 0.25, 0.4],
    "uncorrelated": [0.5, 0.4],
    "three columns": [0.5, 0.2, -0.1, 0.4, 0.15, 0.3],
    "several": [0.5, -0.2, 0.4, 0.3, 0.35],
}


def simulate(
    kind: str,
    seed: int = 0,
    *,
    n_donors: int = 12,
    per_donor: int = 6,
    cells: int = 2,
    intercept: float = 0.7,
    theta: float = 2.0,
    psi: list[float] | None = None,
    spread: float = 0.4,
) -> Cells:
    """Cells of a model: `per_donor` strata in each donor, `cells` cells in each stratum.

    The fixed effects are a constant, a group of donors, and a covariate of strata; the offset has standard deviation
    `spread`.
    """
    rng = np.random.default_rng(seed)
    n_strata = n_donors * per_donor
    donor = np.repeat(np.arange(n_donors), per_donor)
    x, z = rng.normal(size=n_strata), rng.normal(size=n_strata)
    one = np.ones(n_strata)
    sample = donor * 2 + np.arange(n_strata) % 2
    batch = rng.permutation(np.arange(n_strata) % 7)
    random = {
        "none": [],
        "one": [(donor, n_donors, [one])],
        "nested": [(donor, n_donors, [one]), (sample, 2 * n_donors, [one])],
        "crossed": [(donor, n_donors, [one]), (batch, 7, [one])],
        "slope": [(donor, n_donors, [one, x])],
        "uncorrelated": [(donor, n_donors, [one]), (donor, n_donors, [x])],
        "three columns": [(donor, n_donors, [one, x, z])],
        "several": [(donor, n_donors, [one, x]), (sample, 2 * n_donors, [one]), (batch, 7, [one])],
    }[kind]
    terms = [(codes, levels, np.column_stack(columns)) for codes, levels, columns in random]
    psi = KINDS[kind] if psi is None else psi
    eta = intercept + 0.4 * (donor % 2) - 0.2 * x
    for (codes, levels, covariates), root in zip(terms, roots(psi, [t[2].shape[1] for t in terms]), strict=True):
        effects = rng.normal(size=(levels, covariates.shape[1])) @ root.T
        eta = eta + np.sum(covariates * effects[codes], axis=1)
    stratum = np.repeat(np.arange(n_strata), cells)
    offset = rng.normal(0, spread, stratum.size)
    mu = np.exp(eta[stratum] + offset)
    y = rng.poisson(mu * rng.gamma(theta, 1 / theta, stratum.size) if np.isfinite(theta) else mu).astype(float)
    X = np.column_stack([one, donor % 2, x])
    on_cells = [(codes[stratum], levels, covariates[stratum]) for codes, levels, covariates in terms]
    return Cells(y, offset, X[stratum], on_cells, stratum)


def roots(psi: np.ndarray, widths: list[int]) -> list[np.ndarray]:
    """Lower triangular Lambda of every term."""
    result, at = [], 0
    for c in widths:
        root = np.zeros((c, c))
        for j in range(c):
            root[j:, j] = psi[at : at + c - j]
            at += c - j
        result.append(root)
    return result


@dataclass
class Model:
    """Arrays of the engine, and its scratch."""

    data: Data
    structure: Any
    order: np.ndarray
    X: np.ndarray
    work: Any = field(repr=False)

    @property
    def p(self) -> int:
        return self.X.shape[1]

    @property
    def q(self) -> int:
        return self.order.size

    @property
    def n_psi(self) -> int:
        return self.structure.psi_at.shape[1]

    def evaluate(
        self,
        par: np.ndarray,
        *,
        joint: bool,
        beta: np.ndarray | None = None,
        v: np.ndarray | None = None,
        with_theta: bool = True,
    ) -> tuple[float, np.ndarray, np.ndarray, np.ndarray]:
        """Value, gradient, and the mode of beta and v (reordered) at (beta, psi, log theta), or (psi, log theta)."""
        beta = np.zeros(self.p) if beta is None else np.array(beta, float)
        v = np.zeros(self.q) if v is None else np.array(v, float)
        gradient = np.full(par.size, np.nan)
        value = laplace(
            self.data, self.structure, self.X, joint, with_theta, np.array(par, float), beta, v, gradient, self.work
        )
        return value, gradient, beta, v


def compile_model(cells: Cells, stratum_order: np.ndarray | None = None) -> Model:
    """What the engine takes, every cell being a node; strata may be put in another order."""
    n_strata = cells.stratum.max() + 1
    number = np.arange(n_strata) if stratum_order is None else np.argsort(stratum_order)
    stratum = number[cells.stratum]
    by_stratum = np.argsort(stratum, kind="stable")
    first = by_stratum[np.searchsorted(stratum[by_stratum], np.arange(n_strata))]
    start = np.concatenate([[0], np.cumsum(np.bincount(stratum))])
    offset, y = cells.offset[by_stratum], cells.y[by_stratum]
    exceed, tail = exceedance(*np.unique(cells.y, return_counts=True))
    constant = float(y @ offset - log_factorials(exceed, tail))
    nodes = np.stack([np.exp(offset), np.ones(y.size), y])
    data = Data(0, start, nodes, np.bincount(stratum, cells.y), exceed, tail, constant)
    structure, order = analyse(
        [codes[first] for codes, _, _ in cells.terms],
        [levels for _, levels, _ in cells.terms],
        [covariates[first] for _, _, covariates in cells.terms],
        n_strata,
    )
    X = np.ascontiguousarray(cells.X[first])
    return Model(data, structure, order, X, make_work(structure, X))


class Dense:
    """The Laplace criterion with dense matrices, from the cells."""

    def __init__(self, cells: Cells) -> None:
        self.cells = cells
        self.p = cells.X.shape[1]
        blocks = []
        for codes, levels, covariates in cells.terms:
            indicator = (codes[:, None] == np.arange(levels)).astype(float)
            blocks.append((indicator[:, :, None] * covariates[:, None, :]).reshape(codes.size, -1))
        self.Z = np.hstack([*blocks, np.empty((cells.y.size, 0))])
        self.q = self.Z.shape[1]
        self._start: np.ndarray = np.zeros(self.q + self.p)

    def root(self, psi: np.ndarray) -> np.ndarray:
        """Lambda (q, q)."""
        result, at = np.zeros((self.q, self.q)), 0
        for (_, levels, _), root in zip(self.cells.terms, roots(psi, self.cells.widths), strict=True):
            size = levels * root.shape[0]
            result[at : at + size, at : at + size] = np.kron(np.eye(levels), root)
            at += size
        return result

    def log_likelihood(self, eta: np.ndarray, log_theta: float) -> float:
        """Log-likelihood of all cells at linear predictors with their offsets."""
        y, theta = self.cells.y, np.exp(log_theta)
        log_mean = np.logaddexp(eta, log_theta)
        terms = gammaln(y + theta) - gammaln(theta) - gammaln(y + 1) + theta * (log_theta - log_mean)
        return float(np.sum(terms + y * (eta - log_mean)))

    def mode(self, B: np.ndarray, base: np.ndarray, theta: float, start: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mode in the coefficients of B, the first q of which are penalised, and the penalised Hessian there."""
        y, x = self.cells.y, start.copy()
        penalty = np.zeros(x.size)
        penalty[: self.q] = 1.0

        def objective(x: np.ndarray) -> float:
            return self.log_likelihood(base + B @ x, np.log(theta)) - 0.5 * np.sum(penalty * x**2)

        value = objective(x)
        for _ in range(100):
            mu = np.exp(base + B @ x)
            gradient = B.T @ ((y - mu) / (1 + mu / theta)) - penalty * x
            curvature = mu * (1 + y / theta) / (1 + mu / theta) ** 2
            hessian = (B * curvature[:, None]).T @ B + np.diag(penalty)
            step = np.linalg.solve(hessian, gradient)
            if gradient @ step < 1e-18:
                return x, hessian
            length = 1.0
            while length > 1e-10:
                trial = objective(x + length * step)
                if trial >= value - 1e-10:
                    break
                length /= 2
            x, value = x + length * step, trial
        return x, hessian

    def criterion(self, par: np.ndarray, *, joint: bool) -> float:
        """Value at (beta, psi, log theta), or for REML (psi, log theta)."""
        par = np.asarray(par, float)
        psi, theta = par[0 if joint else self.p : -1], float(np.exp(par[-1]))
        ZL = self.Z @ self.root(psi)
        if joint:
            B, base = np.hstack([ZL, self.cells.X]), self.cells.offset
        else:
            B, base = ZL, self.cells.offset + self.cells.X @ par[: self.p]
        start = self._start[: B.shape[1]]
        x, hessian = self.mode(B, base, theta, start) if B.shape[1] else (start, np.eye(0))
        self._start[: x.size] = x
        v = x[: self.q]
        value = self.log_likelihood(base + B @ x, par[-1]) - 0.5 * v @ v - 0.5 * np.linalg.slogdet(hessian)[1]
        return value + 0.5 * self.p * np.log(2 * np.pi) if joint else value


# Families and the number of columns of their zero inflation.
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
    y = cells.y - cells.offset if family == GAUSSIAN else cells.y
    model.data = response_data(nodes, y, family, W if k else None)
    return model, Family(cells, family, W[cells.stratum]), rng.normal(-1, 0.3, k)


def richardson(function: Any, x: np.ndarray, step: float = 0.02) -> np.ndarray:
    """Gradient by central differences at three steps, extrapolated: the error is of sixth order."""
    result = np.empty(x.size)
    for i in range(x.size):
        e = np.eye(x.size)[i]
        d = [(function(x + h * e) - function(x - h * e)) / (2 * h) for h in (step, step / 2, step / 4)]
        once = [(4 * d[1] - d[0]) / 3, (4 * d[2] - d[1]) / 3]
        result[i] = (16 * once[1] - once[0]) / 15
    return result


def one_sided(function: Any, step: float = 1e-3) -> float:
    """Derivative at 0 of a function on [0, inf), forward differences extrapolated to fourth order."""
    f0 = function(0.0)
    table = [(function(step / 2**k) - f0) / (step / 2**k) for k in range(5)]
    for order in range(1, 5):
        table = [(2**order * b - a) / (2**order - 1) for a, b in pairwise(table)]
    return table[0]
