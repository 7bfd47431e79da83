"""Fit a drawn model through the package and hold the result against the criterion of `criterion`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from scipy import sparse
from scipy.optimize import linprog, minimize

from scglmm.compression.nodes import make_nodes
from scglmm.inference.frame import make_frame, strata_of
from scglmm.inference.genes import Options, fit_genes
from scglmm.inference.quadrature import is_inexact
from scglmm.inference.response import fit_response

from .criterion import Criterion, Point
from .draw import Drawn

LIMIT = 1e-8  # 1/theta of a fit at its Poisson limit
LOG_THETA = (math.log(1e-8), math.log(1e8))
VALID = ("ok", "singular", "poisson_limit", "zi_boundary")  # statuses that claim a maximum


@dataclass
class Found:
    """What the package says of a model, by whichever of its two ways."""

    status: str
    point: Point | None
    loglik: float
    grad: float
    n_eval: int
    zi_free: bool
    way: str
    effects: list[np.ndarray] | None = None  # random effects, (levels, columns) of every term
    quadrature_error: float = 0.0  # what it says is missing to the integral


def fit(drawn: Drawn) -> Found:
    """Fit as one response, or (half of the counts without zero inflation) as a gene of a matrix."""
    design, y = drawn.design, drawn.y
    k = 0 if drawn.zi_design is None else drawn.zi_design.X.shape[1]
    as_gene = drawn.family != "gaussian" and not k and drawn.seed % 2 == 0
    if as_gene:
        stratum, first = strata_of(design)
        nodes = make_nodes(stratum, design.offset, min(1e-10, 1e-4 / (20 * y.sum())))
        frame = make_frame(design, first, nodes.n_cells)
        options = Options("reml" if drawn.reml else "ml", family=drawn.family, n_quad=drawn.n_quad)
        result = fit_genes(
            sparse.csr_array(y[:, None]), np.arange(y.size), nodes, frame, np.array([0]), options, n_jobs=1,
            max_bytes=1e8,
        ).fits[0]  # fmt: skip
        zi = np.empty(0)
    else:
        result = fit_response(
            design, y, family=drawn.family, zi_design=drawn.zi_design, reml=drawn.reml, n_quad=drawn.n_quad
        )
        zi = result.zi_beta
    point = None
    if result.status in VALID:
        dispersion = result.residual_sd**2 if drawn.family == "gaussian" else 1 / result.theta
        if drawn.family == "nbinom2":
            dispersion = max(dispersion, LIMIT)
        point = Point(result.beta, zi, tuple(result.sigma), float(dispersion))
    # On its boundary a zero inflation is said not to be determined.
    zi_free = k == 0 or (result.status != "zi_boundary" and bool(np.isfinite(result.zi_vcov).all()))
    return Found(
        result.status, point, result.loglik, result.grad, result.n_eval, zi_free, "gene" if as_gene else "response",
        None if as_gene else result.ranef, result.quadrature_error,
    )  # fmt: skip


def criterion_of(drawn: Drawn, points: int = 0) -> Criterion:
    """Take a drawn model to the independent criterion; quadrature by a fine rule unless `points` are given."""
    return Criterion(
        drawn.y, drawn.design.X, drawn.design.offset, [(t.codes, t.covariates) for t in drawn.design.random],
        drawn.family, None if drawn.zi_design is None else drawn.zi_design.X, reml=drawn.reml,
        integral=drawn.n_quad > 1, points=points,
    )  # fmt: skip


class Coordinates:
    """The free parameters of a point as a vector: (beta,) (zi,) roots of the covariances, log dispersion.

    A covariance of rank r has a root with r columns, its upper triangle 0: as many numbers as such matrices have.
    """

    def __init__(
        self, criterion: Criterion, at: Point, *, zi_free: bool = True, dispersion_free: bool, full: bool = False
    ) -> None:
        self.criterion, self.at = criterion, at
        self.zi_free, self.dispersion_free = zi_free, dispersion_free
        self.sizes = [np.sqrt(np.mean(c**2, axis=0)) for _, c in criterion.terms]
        self.roots = [self._root(s, size, full) for s, size in zip(at.sigma, self.sizes, strict=True)]
        self.entries = [[(i, j) for j in range(r.shape[1]) for i in range(j, r.shape[0])] for r in self.roots]
        X = criterion.X
        self.beta_scale = np.sqrt(np.mean(X**2, axis=0))

    @staticmethod
    def _root(sigma: np.ndarray, size: np.ndarray, full: bool) -> np.ndarray:
        values, vectors = np.linalg.eigh(sigma * np.outer(size, size))
        kept = values > (-1.0 if full else 1e-13 * max(values[-1], 1e-12))
        half = vectors[:, kept] * np.sqrt(np.maximum(values[kept], 0.0))
        return np.linalg.qr(half.T, mode="r").T if half.shape[1] else half

    def null_spaces(self) -> list[tuple[int, np.ndarray]]:
        """Orthonormal directions without variance of every term that has some, in units of the covariates."""
        result = []
        for term, r in enumerate(self.roots):
            if r.shape[1] < r.shape[0]:
                result.append((term, np.linalg.svd(r, full_matrices=True)[0][:, r.shape[1] :]))
        return result

    def pack(self, point: Point | None = None) -> np.ndarray:
        """Turn a point (with covariances of the same rank) into a vector."""
        point = self.at if point is None else point
        parts = [] if self.criterion.reml else [point.beta * self.beta_scale]
        if self.zi_free:
            parts.append(point.zi)
        for r, size, sigma, entries in zip(self.roots, self.sizes, point.sigma, self.entries, strict=True):
            own = r if point is self.at else self._root(sigma, size, True)
            parts.append(np.array([own[at] for at in entries]))
        if self.dispersion_free:
            parts.append(np.array([math.log(point.dispersion)]))
        return np.concatenate([np.empty(0), *parts])

    def unpack(self, x: np.ndarray) -> Point:
        """Turn a vector into a point."""
        at = 0

        def take(n: int) -> np.ndarray:
            nonlocal at
            at += n
            return x[at - n : at]

        beta = self.at.beta if self.criterion.reml else take(self.criterion.p) / self.beta_scale
        zi = take(self.at.zi.size) if self.zi_free else self.at.zi
        sigma = []
        for r, size, entries in zip(self.roots, self.sizes, self.entries, strict=True):
            new = np.zeros_like(r)
            for (i, j), value in zip(entries, take(len(entries)), strict=True):
                new[i, j] = value
            sigma.append(new @ new.T / np.outer(size, size))
        dispersion = float(math.exp(take(1)[0])) if self.dispersion_free else self.at.dispersion
        return Point(beta, zi, tuple(sigma), dispersion)

    def value(self, x: np.ndarray) -> float:
        """Criterion at a vector."""
        return self.criterion.value(self.unpack(x))


def derivatives(f: Callable[[np.ndarray], float], x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradient and Hessian by differences, in units of the steps, which are about a thirtieth of a standard error.

    Returns
    -------
    gradient, Hessian, steps.
    """
    n = x.size
    f0 = f(x)
    steps = np.empty(n)
    for i in range(n):
        step, e = 1e-3 * max(1.0, abs(x[i])), np.eye(n)[i]
        for _ in range(20):
            bend = 2 * f0 - f(x + step * e) - f(x - step * e)
            if math.isnan(bend) or bend > 3e-3:
                step *= 0.3
            elif bend < 1e-4 and step < 0.3:
                step *= 2.0
            else:
                break
        steps[i] = step
    gradient, hessian = np.empty(n), np.empty((n, n))
    for i in range(n):
        e = steps[i] * np.eye(n)[i]
        up, down = f(x + e), f(x - e)
        up2, down2 = f(x + e / 2), f(x - e / 2)
        gradient[i] = (4 * (up2 - down2) - (up - down) / 2) / 3
        hessian[i, i] = (16 * (up2 + down2 - 2 * f0) - (up + down - 2 * f0)) / 3
        for j in range(i):
            d = steps[j] * np.eye(n)[j]
            cross = f(x + e + d) - f(x + e - d) - f(x - e + d) + f(x - e - d)
            hessian[i, j] = hessian[j, i] = cross / 4
    return gradient, hessian, steps


@dataclass
class Record:
    """What came out for one model; see `check`."""

    seed: int
    model: str
    family: str
    status: str
    way: str
    n: int
    loglik: float = math.nan
    seconds: float = 0.0
    n_eval: int = 0
    engine_gradient: float = math.nan
    difference: float = math.nan  # our log-likelihood minus the criterion at our parameters
    quadrature: float = math.nan  # the same for the integral, of which quadrature is an approximation;
    quadrature_error: float = math.nan  # the fit says itself how far it is from there
    gradient: float = math.nan  # largest gradient by differences, per standard error
    promise: float = math.nan  # rise that gradient and Hessian promise
    curvature: float = math.nan  # smallest eigenvalue of minus the Hessian scaled to unit diagonal
    rise: float = 0.0  # most that the criterion rises when a variance at 0 leaves it
    theta_rise: float = 0.0  # most that it rises when 1/theta leaves 0
    separated: bool = False  # by a linear programme on the cells
    better: float = math.nan  # what scipy found above our point
    problems: list[str] = field(default_factory=list)


def check(drawn: Drawn, *, optimise: bool) -> Record:
    """Fit a model and check what is claimed about it."""
    start = time.perf_counter()
    found = fit(drawn)
    seconds = time.perf_counter() - start
    record = Record(
        drawn.seed, str(drawn), drawn.family + ("+zi" if drawn.zi else "") + ("+quad" if drawn.n_quad > 1 else ""),
        found.status, found.way, drawn.y.size, found.loglik, seconds, found.n_eval, found.grad,
    )  # fmt: skip
    if drawn.family != "gaussian":
        record.separated = is_separated(drawn.design.X, drawn.y)
        if record.separated != (found.status == "separated"):
            record.problems.append("separation")
    if found.point is None:
        return record
    criterion = criterion_of(drawn, drawn.n_quad if drawn.n_quad > 1 else 0)
    if found.effects is not None:
        criterion.begin_at(found.effects)  # zero-inflated counts may have several modes
    value = criterion.value(found.point)
    if math.isnan(value):
        value = criterion.value(found.point)  # which begins again from 0
    record.difference = found.loglik - value
    if drawn.n_quad > 1:
        record.quadrature = found.loglik - criterion_of(drawn).value(found.point)
        record.quadrature_error = found.quadrature_error
        # further off than this a fit has to say so, and by how much
        said = is_inexact(found.quadrature_error) and abs(record.quadrature + found.quadrature_error) <= 1e-3
        if not (abs(record.quadrature) <= 1e-3 or said):
            record.problems.append("quadrature")
    # Compression is exact to 1e-4 in the log-likelihood, and to rounding error of the sum.
    if not abs(record.difference) <= 1e-5 + 1e-9 * abs(value):
        record.problems.append("value")
        if math.isnan(value):
            return record
    has_theta = drawn.family == "nbinom2"
    at_limit = has_theta and found.point.dispersion <= LIMIT
    free = drawn.family == "gaussian" or (has_theta and not at_limit)
    coordinates = Coordinates(criterion, found.point, zi_free=found.zi_free, dispersion_free=free)
    x = coordinates.pack()
    _interior(coordinates, x, record, found.status)
    _boundary(coordinates, found.point, value, record)
    if at_limit:
        values = [criterion.value(found.point.replace(dispersion=a)) for a in 10.0 ** np.arange(-7, 0.1, 0.5)]
        record.theta_rise = float(np.nanmax(values) - value)
        if record.theta_rise > 1e-6:
            record.problems.append("theta")
    if optimise and x.size:
        record.better = best(drawn, criterion, found) - value
        if record.better > 1e-4:
            record.problems.append("optimum")
    return record


def _interior(coordinates: Coordinates, x: np.ndarray, record: Record, status: str) -> None:
    if not x.size:
        record.gradient, record.promise, record.curvature = 0.0, 0.0, 1.0
        return
    gradient, hessian, steps = derivatives(coordinates.value, x)
    if not (np.isfinite(gradient).all() and np.isfinite(hessian).all()):
        record.problems.append("derivatives")
        return
    size, values, vectors = _principal(hessian)
    if values[0] < 0.02:
        # Parameters that the data hardly tell apart: once more along the principal directions.
        turn = steps[:, None] * vectors / size[:, None]
        gradient, hessian, steps = derivatives(lambda y: coordinates.value(x + turn @ y), np.zeros(x.size))
        if not (np.isfinite(gradient).all() and np.isfinite(hessian).all()):
            record.problems.append("derivatives")
            return
        size, values, vectors = _principal(hessian)
    along = vectors.T @ (gradient / size)
    record.gradient = float(np.abs(gradient / size).max())
    record.promise = float(0.5 * np.sum(along**2 / np.maximum(np.abs(values), 1e-6)))
    record.curvature = float(values[0])
    if record.promise > 1e-6:
        record.problems.append("gradient")
    if record.curvature < 1e-7 and status != "zi_boundary":
        record.problems.append("curvature")


def _principal(hessian: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scale minus a Hessian to unit diagonal; eigenvalues and vectors."""
    size = np.sqrt(np.maximum(np.abs(np.diag(hessian)), 1e-9))
    return size, *np.linalg.eigh(-hessian / np.outer(size, size))


def _boundary(coordinates: Coordinates, point: Point, value: float, record: Record) -> None:
    """How far the criterion rises when directions without variance get some."""
    criterion = coordinates.criterion
    for term, null in coordinates.null_spaces():
        directions = list(null.T)
        directions += [
            (null[:, i] + sign * null[:, j]) / math.sqrt(2)
            for i in range(null.shape[1])
            for j in range(i)
            for sign in (-1, 1)
        ]
        size = coordinates.sizes[term]
        for direction in directions:
            more = np.outer(direction, direction) / np.outer(size, size)
            for variance in 10.0 ** np.arange(-9, 0.6, 0.5):
                sigma = list(point.sigma)
                sigma[term] = sigma[term] + variance * more
                there = criterion.value(point.replace(sigma=tuple(sigma)))
                if there - value > record.rise:
                    record.rise = float(there - value)
    if record.rise > 1e-6:
        record.problems.append("variance")


def is_separated(X: np.ndarray, y: np.ndarray) -> bool:
    """Whether the mean of some cells without counts can be sent to 0 at no cost: a linear programme on the cells."""
    X = X / np.abs(X).max(axis=0)
    positive, zero = np.unique(X[y > 0], axis=0), np.unique(X[y == 0], axis=0)
    if not zero.size:
        return False
    found = linprog(
        zero.sum(axis=0), A_eq=positive, b_eq=np.zeros(len(positive)), A_ub=np.vstack([zero, -zero]),
        b_ub=np.repeat([0.0, 1.0], len(zero)), bounds=(None, None), method="highs",
    )  # fmt: skip
    return bool(found.status == 0 and found.fun < -1e-6)


def best(drawn: Drawn, criterion: Criterion, found: Found) -> float:
    """Highest value that scipy's L-BFGS-B finds from several starts, by differences of the criterion."""
    point = found.point
    has_dispersion = drawn.family != "poisson"
    values = [-math.inf]
    coordinates = Coordinates(criterion, point, dispersion_free=has_dispersion, full=True)
    n_fixed = (0 if drawn.reml else point.beta.size) + point.zi.size
    bounds = [(-60, 60)] * n_fixed + [(-15, 15)] * sum(map(len, coordinates.entries))
    bounds += [(-LOG_THETA[1], -LOG_THETA[0]) if drawn.family == "nbinom2" else (-40, 40)] * has_dispersion

    def objective(x: np.ndarray) -> float:
        value = coordinates.value(x)
        return -value if math.isfinite(value) else 1e10

    def gradient(x: np.ndarray) -> np.ndarray:
        e = np.eye(x.size) * 1e-4
        return np.array([(objective(x + d) - objective(x - d)) / 2e-4 for d in e])

    for x in _starts(drawn, coordinates):
        x = np.clip(x, [b[0] for b in bounds], [b[1] for b in bounds])
        for _ in range(2):  # once more: a line search may have met a point without a value
            options = {"maxiter": 200, "ftol": 1e-13, "gtol": 1e-6}
            result = minimize(objective, x, jac=gradient, method="L-BFGS-B", bounds=bounds, options=options)
            x = result.x
        if result.fun < 1e9:
            values.append(criterion.value(coordinates.unpack(x), restart=True))
    return float(np.nanmax(values))


def _starts(drawn: Drawn, coordinates: Coordinates) -> list[np.ndarray]:
    """Around our point, and far from it: little and much variance, dispersion and zero inflation."""
    rng = np.random.default_rng(drawn.seed)
    at = coordinates.at
    here = coordinates.pack()
    starts = [here + rng.normal(0, 0.3, here.size)]
    beta = at.beta
    for sd, dispersion, zero in ((0.5, 1.0, -1.5), (0.1, 0.05, -4.0), (1.5, 5.0, 0.5)):
        sigma = tuple(np.diag((sd / size) ** 2) for size in coordinates.sizes)
        # Not too far in the dispersion of Gaussian responses, whose unit is their own.
        scale = at.dispersion if drawn.family == "gaussian" else 1.0
        zi = np.zeros(at.zi.size)
        if zi.size:
            zi[0] = zero
        starts.append(coordinates.pack(Point(beta, zi, sigma, dispersion * scale)))
    return starts
