"""What fitting one group of cells produced, before any of it is written to an AnnData."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

STATUSES = (
    "ok",
    "singular",
    "poisson_limit",
    "zi_boundary",
    "separated",
    "too_few_counts",
    "not_converged",
    "not_selected",
)
"""Statuses of a gene. `not_selected` is that of genes which were never fitted (outside `mask_var`)."""

NOT_SELECTED = "not_selected"

PER_COEFFICIENT = ("coef", "se", "stat", "dof", "pval", "padj")
"""Tables with one column per coefficient; also the suffixes of their keys in `varm`."""


@dataclass
class GeneTable:
    """Results for the genes of one group of cells.

    Attributes
    ----------
    genes
        Names of the fitted genes: all of `adata.var_names`, or those of a selection.
    coefficients
        Names of the p fixed effects.
    coef, se, stat, dof, pval, padj
        Arrays, genes × p: estimate and standard error (natural log scale), test statistic, its degrees of
        freedom (inf for a z test), p-value and adjusted p-value. NaN where there is none.
    vcov
        Array, genes × p(p+1)/2: covariance of the fixed effects, lower triangle by rows
        (entry (i, j), j <= i, at i(i+1)/2 + j).
    varpart
        Variance fractions, one row per gene and one column per source (fixed terms, random terms,
        `CountNoise`, `Residuals`). Rows are taken in the order of `genes`, whatever the index.
    fit
        One row per gene, in the same order: `theta`, variances, `loglik`, `mean`, ..., and `status`
        (strings).
    positions
        Position of every gene in `adata.var`. Needed only where `genes` is a selection and names are
        duplicated.
    dvcov
        Array, genes × m × p(p+1)/2: what the degrees of freedom of contrasts need, see
        `scglmm.inference.gene.GeneFit.d_vcov`; each of the m triangles as in `vcov`. None where there are none.
    terms
        Term of every coefficient, as it is spelled in the formula; its own name where it belongs to none.

    Raises
    ------
    ValueError
        A table does not have one row per gene and one column per coefficient.
    """

    genes: pd.Index
    coefficients: list[str]
    coef: NDArray[np.float64]
    se: NDArray[np.float64]
    stat: NDArray[np.float64]
    dof: NDArray[np.float64]
    pval: NDArray[np.float64]
    padj: NDArray[np.float64]
    vcov: NDArray[np.float64]
    varpart: pd.DataFrame
    fit: pd.DataFrame
    positions: NDArray[np.intp] | None = None
    dvcov: NDArray[np.float64] | None = None
    terms: list[str] | None = None

    def __post_init__(self) -> None:
        self.genes = pd.Index(self.genes)
        self.coefficients = [str(c) for c in self.coefficients]
        n, p = len(self.genes), len(self.coefficients)
        shapes = dict.fromkeys(PER_COEFFICIENT, (n, p)) | {"vcov": (n, p * (p + 1) // 2)}
        for name, shape in shapes.items():
            array = np.asarray(getattr(self, name), dtype=np.float64)
            if array.shape != shape:
                msg = f"`{name}` has shape {array.shape}; {n} genes and {p} coefficients need {shape}."
                raise ValueError(msg)
            setattr(self, name, array)
        if self.dvcov is not None:
            self.dvcov = np.asarray(self.dvcov, dtype=np.float64)
            if self.dvcov.ndim != 3 or self.dvcov.shape[::2] != shapes["vcov"]:
                need = f"({n}, m, {p * (p + 1) // 2})"
                msg = f"`dvcov` has shape {self.dvcov.shape}; {n} genes and {p} coefficients need {need}."
                raise ValueError(msg)
        if self.terms is not None and len(self.terms) != p:
            msg = f"`terms` has {len(self.terms)} entries for {p} coefficients."
            raise ValueError(msg)
        for name in ("varpart", "fit"):
            if len(frame := getattr(self, name)) != n:
                msg = f"`{name}` has {len(frame)} rows for {n} genes."
                raise ValueError(msg)
        if "status" not in self.fit.columns:
            msg = "`fit` has no column 'status'."
            raise ValueError(msg)
        if self.positions is not None and len(self.positions) != n:
            msg = f"`positions` has {len(self.positions)} entries for {n} genes."
            raise ValueError(msg)

    def rows(self, var_names: pd.Index) -> NDArray[np.intp]:
        """Row of this table for every gene of `var_names`, -1 where the gene is not in it.

        Raises
        ------
        ValueError
            Genes are not in `var_names`, or cannot be told apart because names are duplicated.
        """
        rows = np.full(len(var_names), -1, dtype=np.intp)
        if self.positions is not None:
            rows[np.asarray(self.positions)] = np.arange(len(self.genes))
        elif self.genes.equals(var_names):
            rows[:] = np.arange(len(var_names))
        elif not (self.genes.is_unique and var_names.is_unique):
            msg = (
                "Gene names are not unique, so a selection of genes cannot be matched to `adata.var_names`: "
                "run `adata.var_names_make_unique()` first."
            )
            raise ValueError(msg)
        else:
            missing = self.genes.difference(var_names)
            if len(missing):
                msg = f"{len(missing)} genes of the result are not in `adata`, among them {missing[0]!r}."
                raise ValueError(msg)
            rows[:] = self.genes.get_indexer(var_names)
        return rows


def triangle_size(p: int) -> int:
    """Count the entries p(p+1)/2 of the lower triangle of a p × p matrix."""
    return p * (p + 1) // 2


def triangle_positions(subset: list[int]) -> NDArray[np.intp]:
    """Find, in a larger lower triangle by rows, the lower triangle over some of its variables.

    Entry k of the result is where entry k of the small triangle (variables in the order of `subset`) is
    found.
    """
    pairs = [(max(a, b), min(a, b)) for i, a in enumerate(subset) for b in subset[: i + 1]]
    return np.array([i * (i + 1) // 2 + j for i, j in pairs], dtype=np.intp)
