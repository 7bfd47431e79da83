"""Genes that end neither `ok` nor `singular`, on all data sets: each status against an independent look at the counts.

`poisson_limit`: the profile likelihood of 1/theta, with all other parameters optimised again at every theta, falls from
1/theta = 0 on, so that the maximum is the Poisson model. It is computed here with numpy from the formulas: Laplace's
approximation with one random intercept, where

    sum_i (y_i + theta) log(1 + m L_i / theta),  L_i = exp(offset_i)

is a power series in m = exp(x'beta + sigma v) whose coefficients are moments of L. It is analytic in 1/theta at 0.
"""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from scipy import sparse
from scipy.special import gammaln
from threadpoolctl import threadpool_limits

import scglmm

ORDER = 16  # of the power series
RATIO = 4.0  # theta is at least so many times the largest mean, so that a term is less than 1/4 of the one before
THETAS = (np.inf, 1e10, 1e8, 1e5, 1e3, 25.0, 5.0, 2.0)  # times that


class Profile:
    """Log-likelihoods of many genes at once, as functions of 1/theta, beta and sigma.

    Parameters
    ----------
    y, X, offset, donor
        (n, G) counts, (n, p) design, (n,) offset and codes of the donors.
    """

    def __init__(self, y: np.ndarray, X: np.ndarray, offset: np.ndarray, donor: np.ndarray) -> None:
        rows, at = np.unique(np.column_stack([X, donor]), axis=0, return_inverse=True)
        self.X, self.of = rows[:, :-1], np.eye(donor.max() + 1)[rows[:, -1].astype(int)]
        belongs = sparse.csr_array((np.ones(len(at)), (at.ravel(), np.arange(len(at)))))
        self.shift = offset.max()
        L = np.exp(offset - self.shift)[:, None] ** np.arange(1, ORDER + 1)
        self.M = belongs @ L
        self.N = np.stack([belongs @ (y * power[:, None]) for power in L.T], axis=2).transpose(1, 0, 2)
        self.total = (belongs @ y).T
        self.constant = (y * (offset - self.shift)[:, None] - gammaln(y + 1)).sum(axis=0)
        most = int(y.max())
        self.above = np.stack([(y > j).sum(axis=0) for j in range(most)], axis=1)  # sum_i sum_{j < y_i} log(1 + a j)
        self.v = np.zeros((y.shape[1], self.of.shape[1]))
        self.H: np.ndarray | None = None

    def largest_mean(self, par: np.ndarray) -> np.ndarray:
        """(G,) of all cells."""
        self.value(np.zeros(len(par)), par)
        return np.exp(self.eta(par, self.v)).max(axis=1)

    def eta(self, par: np.ndarray, v: np.ndarray) -> np.ndarray:
        return par[:, :-1] @ self.X.T + par[:, -1:] * (v @ self.of.T)

    def value(self, alpha: np.ndarray, par: np.ndarray) -> np.ndarray:
        """(G,) log-likelihoods at 1/theta (G,) and (beta, sigma) (G, p + 1)."""
        k = np.arange(1, ORDER + 1)
        a = alpha[:, None, None]
        C = (-1.0) ** k / k * (a**k * self.N + a ** (k - 1) * self.M)
        sigma, v = par[:, -1:], self.v
        for _ in range(60):
            eta = self.eta(par, v)
            terms = C * np.multiply.accumulate(np.broadcast_to(np.exp(eta)[..., None], C.shape), axis=2)
            slope = self.total + np.einsum("grk,k->gr", terms, k)
            curvature = -np.einsum("grk,k->gr", terms, k**2)
            hessian = 1 + sigma**2 * (curvature @ self.of)
            step = (sigma * (slope @ self.of) - v) / hessian
            v = v + np.clip(step, -2, 2)
            if np.abs(step).max() < 1e-9:
                break
        else:
            raise AssertionError("the mode was not found")
        self.v = v
        f = (self.total * eta + terms.sum(axis=2)).sum(axis=1) + self.constant
        f += (self.above * np.log1p(alpha[:, None] * np.arange(self.above.shape[1]))).sum(axis=1)
        return f - (v**2).sum(axis=1) / 2 - np.log(hessian).sum(axis=1) / 2

    def gradient(self, alpha: np.ndarray, par: np.ndarray, step: float = 1e-4) -> np.ndarray:
        """(G, p + 1), by differences."""
        sides = [[self.value(alpha, par + s * step * e) for s in (1, -1)] for e in np.eye(par.shape[1])]
        return np.stack([(up - down) / (2 * step) for up, down in sides], axis=1)

    def hessian(self, alpha: np.ndarray, par: np.ndarray, step: float = 1e-3) -> np.ndarray:
        sides = [[self.gradient(alpha, par + s * step * e) for s in (1, -1)] for e in np.eye(par.shape[1])]
        found = np.stack([(up - down) / (2 * step) for up, down in sides], axis=1)
        return (found + found.transpose(0, 2, 1)) / 2

    def optimise(self, alpha: np.ndarray, par: np.ndarray) -> np.ndarray:
        """Optimise beta and sigma from a point near the maximum, until no more than 1e-8 is to be gained."""
        for k in range(60):
            if self.H is None or k % 6 == 5:
                values, vectors = np.linalg.eigh(self.hessian(alpha, par))
                # about sigma = 0, which is stationary, the likelihood is flat
                self.H = (vectors * -np.maximum(np.abs(values), 0.1)[:, None]) @ vectors.transpose(0, 2, 1)
            gradient = self.gradient(alpha, par)
            change = -np.linalg.solve(self.H, gradient[..., None])[..., 0]
            if (change * gradient).sum(axis=1).max() < 2e-8:
                return par
            par = par + np.clip(change, -0.2, 0.2)
        raise AssertionError("the maximum was not found")

    def slope(self, alpha: np.ndarray, par: np.ndarray, scale: np.ndarray) -> np.ndarray:
        """(G,) derivative in 1/theta; at the optimum of the others that of the profile likelihood."""
        return (self.value(alpha + 1e-4 * scale, par) - self.value(alpha - 1e-4 * scale, par)) / (2e-4 * scale)


PSYCHAD = "~ offset(log(libSize)) + Dx + Age + Sex + (1|SubID)"


def read(name: str, reference: Path) -> tuple[ad.AnnData, str, str, str]:
    """Give data, formula, offset and donor."""
    if name == "psychad_sim":
        return scglmm.datasets.psychad(), PSYCHAD, "libSize", "SubID"
    adata = ad.read_h5ad(reference / f"{name}.h5ad")
    if name == "psychad40":
        return adata, PSYCHAD, "libSize", "SubID"
    adata.obs["total"] = np.asarray(adata.X.sum(axis=1, dtype=float)).ravel()
    return adata, "~ offset(log(total)) + stim + (1|ind)", "total", "ind"


@pytest.fixture(autouse=True)
def _one_thread():
    """The matrices are small."""
    with threadpool_limits(1):
        yield


@pytest.mark.parametrize("name", ["psychad_sim", "psychad40", "kang18_bcells"])
def test_every_status_is_explained(name, reference):
    """Maximum likelihood: those that are neither `ok` nor `singular`."""
    adata, formula, offset, donor = read(name, reference)
    scglmm.tl.nbmm(adata, formula, method="ml", n_jobs=2)
    fit, coef = adata.varm["nbmm_fit"], adata.varm["nbmm_coef"]
    status = fit["status"].astype(str)
    assert set(status) <= {"ok", "singular", "poisson_limit", "separated", "too_few_counts"}
    assert (fit.loc[status == "too_few_counts", "n_cells"] < 10).all()

    separated = adata[:, status == "separated"].X.toarray()
    if separated.size:  # the only factor: one of its levels has no count
        counts = np.array([separated[adata.obs["stim"] == level].sum(axis=0) for level in ("ctrl", "stim")])
        assert (counts.min(axis=0) == 0).all()
        assert (counts.max(axis=0) >= 10).all()

    limit = (status == "poisson_limit").to_numpy()
    assert limit.any()
    X = np.ones((adata.n_obs, coef.shape[1]))
    for j, column in enumerate(coef.columns[1:], 1):
        variable, _, level = column.rstrip("]").partition("[T.")
        X[:, j] = adata.obs[variable] == level if level else adata.obs[variable]
    mean, sd = X.mean(axis=0), X.std(axis=0)
    mean[0], sd[0] = 0, 1
    counts = adata.X[:, limit].toarray().astype(float)
    profile = Profile(
        counts, (X - mean) / sd, np.log(adata.obs[offset].to_numpy(float)), adata.obs[donor].cat.codes.to_numpy()
    )
    beta = coef.to_numpy()[limit]
    par = np.column_stack([beta * sd, np.sqrt(fit.loc[limit, f"var[{donor}]"])])
    par[:, 0] = beta[:, 0] + beta @ mean + profile.shift
    zero = np.zeros(limit.sum())
    # the Poisson model is fitted as it should be
    best = profile.value(zero, par)
    np.testing.assert_allclose(fit.loc[limit, "loglik"], best, rtol=0, atol=1e-4)
    assert np.abs(profile.gradient(zero, par)).max() < 1e-3
    # and from there the profile likelihood falls, as 1/theta grows
    smallest = RATIO * profile.largest_mean(par)
    last = best + 1e-7
    for times in THETAS:
        alpha = 1 / (times * smallest)
        par = profile.optimise(alpha, par)
        assert (profile.slope(alpha, par, 1 / smallest) < 0).all()
        value = profile.value(alpha, par)
        assert (value < last + 1e-7).all()
        last = value
    assert (last < best).all()
