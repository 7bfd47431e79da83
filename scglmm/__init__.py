"""Negative binomial mixed models for single-cell data in AnnData.

The package in dependency order, each layer importing only those above it in this list:

`scglmm.formula`
    lme4's grammar, and the design it stands for on the columns of `obs`.
`scglmm.compression`
    Cells become nodes: the cost of a fit does not grow with the number of cells.
`scglmm.engine`
    Laplace ML and REML for any set of random effects; numba kernels on plain arrays.
`scglmm.inference`
    Estimates, tests, degrees of freedom, variance fractions.
`scglmm.results`
    What is written to an AnnData, and how it is read back.
`scglmm.mixed`
    One response and a data frame: `scglmm.glmm`, its result, tests and checks.
`scglmm.pp`, `scglmm.tl`, `scglmm.get`, `scglmm.pl`, `scglmm.power`, `scglmm.datasets`
    What a user calls.
`scglmm.cli`
    The same from a shell.
"""

from __future__ import annotations

from importlib.metadata import version

from . import datasets, get, mixed, pl, pp, tl
from ._power import power
from .mixed import GLMMResult, glmm, lrt

__version__ = version("scglmm")
__all__ = ["GLMMResult", "datasets", "get", "glmm", "lrt", "mixed", "pl", "power", "pp", "tl"]
