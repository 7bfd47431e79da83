"""What every tool is given: counts of some genes, standardised covariates, donors and offsets."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from scglmm.formula import build_design, parse_formula


@dataclass(frozen=True)
class Problem:
    """A model with one random intercept for every gene.

    Attributes
    ----------
    names
        Of the columns of `X` behind the intercept.
    genes
        Names.
    X
        (n, p) intercept and columns of mean 0 and standard deviation 1, so that no tool is put off by their units.
    donor
        (n,) number of the donor of every cell, cells of a donor together (NEBULA wants them so).
    offset
        (n,) natural log.
    counts
        (n, genes) float64, by columns.
    """

    names: list[str]
    genes: list[str]
    X: np.ndarray
    donor: np.ndarray
    offset: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, adata: ad.AnnData, formula: str, genes: np.ndarray) -> Problem:
        """Take some genes of a data set.

        Raises
        ------
        ValueError
            The random part of the formula is not one intercept per level of one factor.
        """
        design = build_design(parse_formula(formula), adata.obs)
        if len(design.random) != 1 or np.ptp(design.random[0].covariates) != 0:
            raise ValueError(f"{formula!r}: the tools are compared on one term (1|g).")
        order = np.argsort(design.random[0].codes, kind="stable")
        covariates = design.X[:, np.ptp(design.X, axis=0) > 0]
        covariates = (covariates - covariates.mean(axis=0)) / covariates.std(axis=0, ddof=1)
        offset = np.zeros(adata.n_obs) if design.offset is None else design.offset
        counts = np.asarray(adata.X[:, genes].todense(), np.float64)
        return cls(
            [f"x{k + 1}" for k in range(covariates.shape[1])],
            list(adata.var_names[genes]),
            np.column_stack([np.ones(adata.n_obs), covariates])[order],
            design.random[0].codes[order].astype(np.int64),
            offset[order],
            np.asfortranarray(counts[order]),
        )

    @property
    def fixed(self) -> str:
        """Fixed and random part of the formula, without offset."""
        return " + ".join([*self.names, "(1|donor)"])

    def anndata(self, times: int = 1) -> ad.AnnData:
        """Make an AnnData, the genes repeated so that a call's fixed costs are shared by as many as in real data."""
        import scipy.sparse as sp

        obs = pd.DataFrame(self.X[:, 1:], columns=self.names)
        obs["donor"] = pd.Categorical.from_codes(self.donor, [f"D{k}" for k in range(self.donor.max() + 1)])
        obs["size"] = np.exp(self.offset)
        obs.index = obs.index.astype(str)
        tiled = sp.hstack([sp.csr_matrix(self.counts.astype(np.float32))] * times, format="csr")
        var = pd.DataFrame(index=[f"{gene}_{k}" for k in range(times) for gene in self.genes])
        return ad.AnnData(tiled, obs=obs, var=var)

    def write(self, folder: Path) -> None:
        """Write plain little-endian float64 and a line of JSON, which R reads without packages."""
        sizes = [self.donor.size, self.X.shape[1], len(self.genes)]
        (folder / "sizes.txt").write_text(" ".join(map(str, sizes)))
        (folder / "names.json").write_text(json.dumps([self.names, self.genes]))
        numbers = [self.X.ravel("F"), self.donor.astype(float), self.offset, self.counts.ravel("F")]
        np.concatenate(numbers).astype("<f8").tofile(folder / "numbers.bin")

    @classmethod
    def read(cls, folder: Path) -> Problem:
        """Read what `write` wrote."""
        n, p, m = map(int, (folder / "sizes.txt").read_text().split())
        names, genes = json.loads((folder / "names.json").read_text())
        numbers = np.fromfile(folder / "numbers.bin", "<f8")
        X, donor, offset, counts = np.split(numbers, np.cumsum([n * p, n, n]))
        shaped = X.reshape(n, p, order="F"), donor.astype(np.int64), offset, counts.reshape(n, m, order="F")
        return cls(names, genes, *shaped)
