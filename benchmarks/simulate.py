"""Counts with known truth for the benchmarks, in memory or written chunk by chunk to files larger than memory.

Counts of cell i of donor d and gene g are NB2 with mean ``size_i / mean(size) * exp(b_g + x_d'beta_g + u_dg)`` and the
size of the gene. Genes differ in mean over four orders of magnitude; the share of non-zero counts is as asked for.
Cells are simulated in stretches of `STRETCH` with a random number generator each, so the counts are the same however
they are chunked.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import h5py
import numba
import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata.io import sparse_dataset, write_elem

STRETCH = 10_000  # cells that share a random number generator
FORMULA = "~ offset(log(libSize)) + Dx + Age + Sex + (1|SubID)"


@dataclass(frozen=True)
class Study:
    """Size and shape of a simulated study.

    Attributes
    ----------
    cells, genes, donors
        Numbers.
    density
        Share of counts that are not zero.
    shuffled
        Cells of all donors mixed, as after a random permutation; False keeps the cells of a donor together, as in
        files that were concatenated sample by sample.
    seed
        Of everything random.
    """

    cells: int
    genes: int
    donors: int
    density: float = 0.05
    shuffled: bool = True
    seed: int = 0


class Simulator:
    """Rows of a study on demand.

    Attributes
    ----------
    obs
        Donor `SubID`, `Dx`, `Age`, `Sex` of the donor, and `libSize` of every cell.
    var
        `log_mean`, `theta`, `donor_sd` and `beta_Dx` of every gene (natural log).
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        rng = np.random.default_rng(study.seed)
        share = rng.dirichlet(np.full(study.donors, 2.0))
        # Every donor has cells, so that the number of donors is the one asked for.
        self.donor = np.concatenate(
            [np.arange(study.donors), rng.choice(study.donors, study.cells - study.donors, p=share)]
        ).astype(np.int32)
        if study.shuffled:
            rng.shuffle(self.donor)
        else:
            self.donor.sort()
        size = np.round(np.exp(rng.normal(9.0, 0.5, study.cells)))
        self.size = size / size.mean()
        case = (np.arange(study.donors) % 2).astype(float)
        self.obs = _obs(self.donor, size, case, rng.uniform(50, 95, study.donors), rng.random(study.donors) < 0.5)
        self.theta = np.exp(rng.normal(0.5, 0.7, study.genes))
        donor_sd = np.exp(rng.normal(-1.0, 0.4, study.genes))
        effect = np.where(rng.random(study.genes) < 0.2, rng.normal(0, 0.5, study.genes), 0.0)
        # (donors, genes) means of a cell of average size, up to the factor that gives the density asked for.
        rate = rng.normal(0, 1, (study.donors, study.genes)).astype(np.float32)
        rate *= donor_sd.astype(np.float32)
        rate += case[:, None].astype(np.float32) * effect.astype(np.float32)
        log_mean = rng.normal(0, 1.2, study.genes)
        log_mean += self._scale(rate, log_mean, rng)
        rate += log_mean.astype(np.float32)
        self.rate = np.exp(rate, out=rate)
        self.var = pd.DataFrame(
            {"log_mean": log_mean, "theta": self.theta, "donor_sd": donor_sd, "beta_Dx": effect},
            index=[f"G{g:05d}" for g in range(study.genes)],
        )

    def _scale(self, rate: np.ndarray, log_mean: np.ndarray, rng: np.random.Generator) -> float:
        """Log factor of all means with which the expected share of non-zero counts is the density."""
        cells = rng.choice(self.study.cells, min(1000, self.study.cells), replace=False)
        genes = rng.choice(self.study.genes, min(4000, self.study.genes), replace=False)
        mu = self.size[cells, None] * np.exp(rate[np.ix_(self.donor[cells], genes)] + log_mean[genes])
        low, high = -30.0, 10.0
        for _ in range(40):
            middle = (low + high) / 2
            zero = np.exp(-self.theta[genes] * np.log1p(mu * np.exp(middle) / self.theta[genes]))
            low, high = (middle, high) if 1 - zero.mean() < self.study.density else (low, middle)
        return low

    def stretches(self) -> Iterator[sp.csr_matrix]:
        """Rows of `STRETCH` cells after each other, float32."""
        for number, first in enumerate(range(0, self.study.cells, STRETCH)):
            cells = slice(first, first + STRETCH)
            seed = np.random.SeedSequence([self.study.seed, number]).generate_state(1)[0]
            indptr, indices, data = _draw(seed, self.donor[cells], self.size[cells], self.rate, self.theta)
            yield sp.csr_matrix((data, indices, indptr), shape=(indptr.size - 1, self.study.genes))

    def anndata(self) -> ad.AnnData:
        """Make the whole study, in memory."""
        return ad.AnnData(sp.vstack(list(self.stretches()), format="csr"), obs=self.obs, var=self.var)


def simulate(study: Study) -> ad.AnnData:
    """Simulate a study in memory."""
    return Simulator(study).anndata()


def write_h5ad(study: Study, paths: dict[str | None, Path]) -> int:
    """Write a study stretch by stretch, the same counts to every path.

    Parameters
    ----------
    study
        What to simulate.
    paths
        For each compression (`"gzip"`, None) the file to write.

    Returns
    -------
    Non-zero counts.
    """
    simulator = Simulator(study)
    nnz = 0
    for path in paths.values():
        ad.AnnData(obs=simulator.obs, var=simulator.var).write_h5ad(path)
    files = {compression: h5py.File(path, "r+") for compression, path in paths.items()}
    try:
        for first, rows in enumerate(simulator.stretches()):
            nnz += rows.nnz
            for compression, file in files.items():
                if first == 0:
                    # chunks of 1 MiB: h5py's guess from the first stretch would not suit the whole
                    how = {"chunks": (2**18,), "compression": compression}
                    if "X" in file:
                        del file["X"]
                    write_elem(file, "X", rows, dataset_kwargs=how)
                else:
                    sparse_dataset(file["X"]).append(rows)
    finally:
        for file in files.values():
            file.close()
    return nnz


def multiply(adata: ad.AnnData, times: int) -> ad.AnnData:
    """Repeat the cells with slightly different library sizes: more cells of the same donors."""
    rng = np.random.default_rng(0)
    obs = pd.concat([adata.obs] * times, ignore_index=True)
    obs.index = obs.index.astype(str)
    obs["libSize"] = np.round(obs["libSize"] * rng.uniform(0.9, 1.1, len(obs)))
    return ad.AnnData(sp.vstack([adata.X] * times, format="csr"), obs=obs, var=adata.var[[]])


def tile(adata: ad.AnnData, times: int) -> ad.AnnData:
    """Repeat the genes."""
    tiled = ad.AnnData(sp.hstack([adata.X] * times, format="csr"), obs=adata.obs.copy())
    tiled.var_names = [f"{name}_{i}" for i in range(times) for name in adata.var_names]
    return tiled


def _obs(donor: np.ndarray, size: np.ndarray, case: np.ndarray, age: np.ndarray, male: np.ndarray) -> pd.DataFrame:
    width = len(str(case.size - 1))
    names = [f"D{d:0{width}d}" for d in range(case.size)]
    return pd.DataFrame(
        {
            "SubID": pd.Categorical.from_codes(donor, names),
            "Dx": pd.Categorical.from_codes(case.astype(np.int8)[donor], ["Control", "AD"]),
            "Age": age[donor],
            "Sex": pd.Categorical.from_codes(male.astype(np.int8)[donor], ["F", "M"]),
            "libSize": size,
        },
        index=pd.RangeIndex(donor.size).astype(str),
    )


@numba.njit(cache=True)
def _draw(seed, donor, size, rate, theta):
    """Draw CSR counts by inversion: P(y > 0) is at most mu, so that most zeros cost one random number."""
    np.random.seed(seed)  # noqa: NPY002, the generator that numba compiles
    n, m = donor.size, theta.size
    indptr = np.zeros(n + 1, np.int32)
    room = 1 << 16
    indices, data = np.empty(room, np.int32), np.empty(room, np.float32)
    used = 0
    for i in range(n):
        if used + m > room:
            room = 2 * (room + m)
            wider, longer = np.empty(room, np.int32), np.empty(room, np.float32)
            wider[:used], longer[:used] = indices[:used], data[:used]
            indices, data = wider, longer
        for g in range(m):
            u = np.random.random()  # noqa: NPY002
            mu = size[i] * rate[donor[i], g]
            if u >= mu:
                continue
            probability = np.exp(-theta[g] * np.log1p(mu / theta[g]))
            above = 1.0 - probability  # P(y > 0)
            if u >= above:
                continue
            count = 0
            while u < above and count < 100_000:
                count += 1
                probability *= (count - 1 + theta[g]) / count * mu / (mu + theta[g])
                above -= probability
                if probability < 1e-16 * count and above < 1e-12:
                    break
            indices[used] = g
            data[used] = count
            used += 1
        indptr[i + 1] = used
    return indptr, indices[:used].copy(), data[:used].copy()
