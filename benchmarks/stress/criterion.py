"""The criterion of a model, cell by cell: Laplace's approximation, or the integral itself for one scalar random term.

Written against the formulas, with numpy and scipy; nothing of the package is used. The model is the user's: raw columns
of X, covariance matrices, 1/theta. Cells are not grouped and offsets not interpolated.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.polynomial.hermite import hermgauss
from scipy import sparse
from scipy.linalg import cho_solve
from scipy.linalg.lapack import dpotrf
from scipy.special import expit, gammaln, logsumexp

GRID = np.linspace(-10.0, 10.0, 301)  # points of the trapezium rule, in posterior standard deviations


@dataclass(frozen=True)
class Point:
    """Parameters of a model: a variance may be 0, and 1/theta as well.

    Attributes
    ----------
    beta
        (p,) fixed effects; for REML not a parameter, but where the mode is searched from.
    zi
        (k,) zero inflation.
    sigma
        Covariance matrix of every random term.
    dispersion
        1/theta, or the residual variance.
    """

    beta: np.ndarray
    zi: np.ndarray
    sigma: tuple[np.ndarray, ...]
    dispersion: float

    def replace(self, **changes: object) -> Point:
        """Change some of them."""
        return replace(self, **changes)


def root(sigma: np.ndarray) -> np.ndarray:
    """Matrix R with R R' = sigma."""
    if sigma.shape == (1, 1):
        return np.sqrt(np.maximum(sigma, 0.0))
    size = np.sqrt(np.maximum(np.diag(sigma), 1e-300))
    values, vectors = np.linalg.eigh(sigma / np.outer(size, size))
    return size[:, None] * vectors * np.sqrt(np.maximum(values, 0.0))


class Criterion:
    """Log-likelihood or restricted log-likelihood of a model, all constants.

    Parameters
    ----------
    y, X, offset
        (n,), (n, p), (n,).
    terms
        (codes, covariates) of every random term.
    family
        `"nbinom2"`, `"poisson"` or `"gaussian"`.
    W
        (n, k) design of the logit of the zero-inflation probability, None without.
    reml
        Which of the two.
    integral
        Whether the random effects, one scalar term, are integrated out numerically and not by Laplace's approximation.
    points
        Points of adaptive Gauss-Hermite quadrature for such an integral; 0 for a fine trapezium rule.
    """

    def __init__(
        self,
        y: np.ndarray,
        X: np.ndarray,
        offset: np.ndarray,
        terms: list[tuple[np.ndarray, np.ndarray]],
        family: str,
        W: np.ndarray | None = None,
        *,
        reml: bool = False,
        integral: bool = False,
        points: int = 0,
    ) -> None:
        self.y, self.X, self.offset, self.family, self.W = y, X, offset, family, W
        self.reml, self.integral = reml, integral
        # Nodes in posterior standard deviations, and the logarithms of their weights.
        self.nodes, self.log_weights = GRID, np.full(GRID.size, math.log(GRID[1] - GRID[0]))
        if points:
            t, weights = hermgauss(points)
            self.nodes, self.log_weights = math.sqrt(2) * t, np.log(math.sqrt(2) * weights) + t**2
        self._levels = [codes for codes, _ in terms]
        self.terms = [(np.unique(codes, return_inverse=True)[1], covariates) for codes, covariates in terms]
        self.p, self.zero = X.shape[1], y == 0
        columns, at = [], 0
        for codes, covariates in self.terms:
            width = covariates.shape[1]
            columns.append(at + codes[:, None] * width + np.arange(width))
            at += (codes.max() + 1) * width
        self.q = at
        self.columns = np.hstack([*columns, np.empty((y.size, 0), int)])
        self._u = np.zeros(self.q)
        self._home = self._u  # effects from which a mode is searched when it was not found from the last
        self._beta: np.ndarray | None = None
        self._roots: list[np.ndarray] = []
        self._last: tuple[float, np.ndarray] = (math.nan, np.empty(0))
        n, w = self.columns.shape
        self._B = sparse.csr_array((np.ones(n * w), self.columns.ravel(), w * np.arange(n + 1)), shape=(n, self.q))
        self._pairs = [(a, b, self.columns[:, a] * self.q + self.columns[:, b]) for a in range(w) for b in range(w)]
        if family != "gaussian":
            self._factorial = gammaln(y + 1)
            self._few = y.max() < 1e6
            self._at = y.astype(int) if self._few else None

    # Log-likelihood of every cell

    def _constant(self, point: Point) -> np.ndarray:
        """Terms without the linear predictor: for counts sum_{j<y} log(1 + j/theta) - log y!."""
        if self.family == "gaussian":
            return np.zeros(self.y.size)
        alpha = point.dispersion
        if alpha == 0.0:
            return -self._factorial
        if self._last[0] != alpha:
            if self._few:
                steps = np.log1p(alpha * np.arange(self._at.max() + 1))
                sums = np.concatenate([[0.0], np.cumsum(steps)])[self._at]
            else:
                theta = 1.0 / alpha
                sums = gammaln(self.y + theta) - gammaln(theta) - self.y * math.log(theta)
            self._last = alpha, sums - self._factorial
        return self._last[1]

    def _logits(self, point: Point) -> np.ndarray | None:
        return None if self.W is None else self.W @ point.zi

    def cells(
        self, eta: np.ndarray, point: Point, zeta: np.ndarray | None, at: slice | np.ndarray = np.s_[:]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Log-likelihood of cells (but for the constant) and its first two derivatives in eta."""
        y = self.y[at] if eta.ndim == 1 else self.y[at][:, None]
        if self.family == "gaussian":
            residual, variance = y - eta, point.dispersion
            value = -0.5 * (np.log(2 * np.pi * variance) + residual**2 / variance)
            return value, residual / variance, np.full(eta.shape, -1 / variance)
        alpha = point.dispersion
        eta = np.minimum(eta, 250.0)
        mu = np.exp(eta)
        r = 1 / (1 + alpha * mu)
        zero = -np.log1p(alpha * mu) / alpha if alpha > 0 else -mu  # log-probability of a 0
        value = y * eta + (1 + alpha * y) * zero
        first, second = (y - mu) * r, -mu * (1 + alpha * y) * r * r
        if zeta is None:
            return value, first, second
        zeta = zeta[at] if eta.ndim == 1 else zeta[at][:, None]
        own = expit(zero - zeta)  # probability that a 0 is one of the family's
        slope = -mu * r
        is_zero = np.broadcast_to(y == 0, eta.shape)
        value = np.where(is_zero, np.logaddexp(zeta, zero), value) - np.logaddexp(0, zeta)
        first = np.where(is_zero, own * slope, first)
        second = np.where(is_zero, own * ((1 - own) * slope**2 + slope * r), second)
        return value, first, second

    # The mode of the random effects (and of beta)

    def _rows(self) -> np.ndarray:
        """Entries of Z Lambda, (n, slots)."""
        parts = [covariates @ r for (_, covariates), r in zip(self.terms, self._roots, strict=True)]
        return np.hstack([*parts, np.empty((self.y.size, 0))])

    def mode(self, point: Point, start: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mode of (v, beta) or v, linear predictors, and the Cholesky factor of the penalised Hessian.

        Raises
        ------
        np.linalg.LinAlgError
            The Hessian is not positive definite there, or the mode was not reached.
        """
        rows, q, B = self._rows(), self.q, self._B
        zeta = self._logits(point)
        B.data[:] = rows.ravel()
        fixed = self.X if self.reml else None
        base = self.offset if self.reml else self.offset + self.X @ point.beta

        def predict(x: np.ndarray) -> np.ndarray:
            eta = base + B @ x[:q]
            return eta + fixed @ x[q:] if self.reml else eta

        x, near = start, 0
        eta = predict(x)
        value, first, second = self.cells(eta, point, zeta)
        total = value.sum() - 0.5 * x[:q] @ x[:q]
        for _ in range(300):
            gradient = B.T @ first - x[:q]
            if self.reml:
                gradient = np.concatenate([gradient, fixed.T @ first])
            hessian = self._hessian(rows, B, -second)
            factor, info = dpotrf(hessian, lower=1)
            concave = info == 0
            if not concave:
                factor, info = dpotrf(self._hessian(rows, B, np.maximum(-second, 0.0)) + 1e-8 * np.eye(x.size), lower=1)
                if info:
                    raise np.linalg.LinAlgError
            step = cho_solve((factor, True), gradient) if x.size else gradient
            decrement = gradient @ step
            length = min(1.0, 8.0 / max(np.abs(predict(x + step) - eta).max(initial=0.0), 1e-300))
            # The determinant feels an error of the mode to first order: two more steps once it is as good as reached.
            if decrement < 1e-20 or near == 2:
                if not concave:
                    raise np.linalg.LinAlgError
                return x, eta, factor
            rounding = max(1e-9, 4e-15 * np.abs(value).sum())  # differences of the sum below this say nothing
            near += decrement < rounding
            while True:
                there = x + length * step
                eta_there = predict(there)
                value, first, second = self.cells(eta_there, point, zeta)
                new = value.sum() - 0.5 * there[:q] @ there[:q]
                if new >= total + 1e-4 * length * decrement or decrement < rounding:
                    break
                length *= 0.4
                if length < 1e-12:
                    raise np.linalg.LinAlgError
            x, eta, total = there, eta_there, new
        raise np.linalg.LinAlgError

    def _hessian(self, rows: np.ndarray, B: sparse.csr_array, curvature: np.ndarray) -> np.ndarray:
        q = self.q
        M = np.eye(q).ravel()
        for a, b, at in self._pairs:
            if a >= b:
                more = np.bincount(at, curvature * rows[:, a] * rows[:, b], q * q)
                M += more
                if a != b:
                    M += more.reshape(q, q).T.ravel()
        M = M.reshape(q, q)
        if not self.reml:
            return M
        scaled = self.X * curvature[:, None]
        V = B.T @ scaled
        return np.block([[M, V], [V.T, self.X.T @ scaled]])

    # The criterion

    def begin_at(self, effects: list[np.ndarray]) -> None:
        """Search the next mode from these random effects, (levels, columns) of every term."""
        used = [own[np.unique(codes)].ravel() for own, codes in zip(effects, self._levels, strict=True)]
        self._u = np.concatenate([np.empty(0), *used])
        self._home = self._u.copy()

    def value(self, point: Point, *, restart: bool = False) -> float:
        """Value at a point; NaN where there is none. `restart` forgets where the last mode was."""
        if restart:
            self._u, self._beta = np.zeros(self.q), None
        for start in (None, self._home):  # a search may overshoot from where the last mode was
            if start is not None:
                self._u, self._beta = start.copy(), None
            try:
                return self._integral(point) if self.integral else self._laplace(point)
            except np.linalg.LinAlgError:
                pass
        self._u, self._beta = np.zeros(self.q), None
        return math.nan

    def _find(self, point: Point) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Mode, searched from the last one."""
        beta = point.beta if self._beta is None else self._beta
        self._roots = [root(s) for s in point.sigma]
        start = np.concatenate([self._v(), beta]) if self.reml else self._v()
        x, eta, factor = self.mode(point, start)
        if self.reml:
            self._beta = x[self.q :]
        self._u = self._effects(x[: self.q])
        return x, eta, factor

    def _effects(self, v: np.ndarray) -> np.ndarray:
        u, at = np.empty(self.q), 0
        for (codes, covariates), r in zip(self.terms, self._roots, strict=True):
            width = covariates.shape[1]
            size = (codes.max() + 1) * width
            u[at : at + size] = (v[at : at + size].reshape(-1, width) @ r.T).ravel()
            at += size
        return u

    def _v(self) -> np.ndarray:
        """Spherical effects of the last u."""
        v, at = np.zeros(self.q), 0
        for (codes, covariates), r in zip(self.terms, self._roots, strict=True):
            width = covariates.shape[1]
            size = (codes.max() + 1) * width
            inverse = np.linalg.pinv(r, rcond=1e-7) if width > 1 else np.where(r > 0, 1 / np.where(r > 0, r, 1.0), 0.0)
            v[at : at + size] = (self._u[at : at + size].reshape(-1, width) @ inverse.T).ravel()
            at += size
        return v

    def _laplace(self, point: Point) -> float:
        x, eta, factor = self._find(point)
        cells = self.cells(eta, point, self._logits(point))[0] + self._constant(point)
        value = math.fsum(cells.tolist()) - 0.5 * x[: self.q] @ x[: self.q]
        value -= np.log(np.diag(factor)).sum()
        return float(value + 0.5 * self.p * math.log(2 * math.pi) if self.reml else value)

    def _integral(self, point: Point) -> float:
        """Integrate every level around its mode; the trapezium rule is as good as exact for such integrands."""
        x, eta, factor = self._find(point)
        codes = self.terms[0][0]
        rows = self._rows()[:, 0]
        scale = 1 / np.diag(factor)  # of a diagonal matrix
        deviation = scale[:, None] * self.nodes  # (levels, points)
        predictors = eta[:, None] + rows[:, None] * deviation[codes]
        cells = self.cells(predictors, point, self._logits(point))[0]
        by_level = np.zeros((self.q, self.nodes.size))
        np.add.at(by_level, codes, cells)
        by_level += self.log_weights - 0.5 * (x[:, None] + deviation) ** 2
        integrals = logsumexp(by_level, axis=1) + np.log(scale / math.sqrt(2 * math.pi))
        return float(integrals.sum() + self._constant(point).sum())
