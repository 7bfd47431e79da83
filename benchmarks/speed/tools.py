"""How each tool in Python fits the model, called as its documentation says.

Every function takes a `Problem` and yields one `Fit` per gene; where the tool takes all genes in one call, the seconds
of the call are spread over them. Only the tool's own work is timed.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.measure import peak, reset_peak, resident

from .problem import Problem

ENOUGH = 400  # genes of a whole call of scglmm: its fixed costs are shared by as many as in small real data


@dataclass
class Fit:
    """Estimates of one gene.

    Attributes
    ----------
    gene
        Name.
    cpu, wall
        Seconds of CPU time, by the clock.
    beta
        (p,) coefficients of `Problem.X`, natural log.
    sigma2, theta
        Variance between donors, NB2 size.
    loglik
        What the tool reports; NaN where it reports none.
    memory
        Peak resident memory during the fit (of one gene, or of all in one call) above that before it, bytes.
    note
        What it warned of.
    """

    gene: str
    cpu: float
    wall: float
    beta: list[float]
    sigma2: float
    theta: float
    memory: float
    loglik: float = float("nan")
    note: str = ""


@dataclass
class Clock:
    """CPU and wall seconds of a block, and its peak memory above what was resident before (bytes)."""

    cpu: float = 0.0
    wall: float = 0.0
    memory: float = 0.0
    _start: tuple[float, float] = field(default=(0.0, 0.0))

    def __enter__(self) -> Clock:
        reset_peak()
        self.memory = resident()
        self._start = time.process_time(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.cpu = time.process_time() - self._start[0]
        self.wall = time.perf_counter() - self._start[1]
        self.memory = max(peak() - self.memory, 0.0)


def fit_glmm(problem: Problem) -> Iterator[Fit]:
    """Fit with the PyPI package glmm: Laplace maximum likelihood with standard errors, gene by gene."""
    import glmm

    data = {name: problem.X[:, k + 1] for k, name in enumerate(problem.names)} | {"donor": problem.donor.astype(str)}
    for g, gene in enumerate(problem.genes):
        data["y"] = problem.counts[:, g]
        with Clock() as clock:
            fit = glmm.fit(data, f"y ~ {problem.fixed}", "negativebinomial", offset=problem.offset)
        beta = [float(b) for b in fit.beta]
        yield Fit(
            gene,
            clock.cpu,
            clock.wall,
            beta,
            float(fit.tau2[0]),
            float(fit.dispersion),
            clock.memory,
            float(fit.loglik),
        )


def fit_gpboost(problem: Problem) -> Iterator[Fit]:
    """Fit with gpboost: Laplace maximum likelihood by L-BFGS, with standard errors, gene by gene."""
    import gpboost

    for g, gene in enumerate(problem.genes):
        with Clock() as clock:
            model = gpboost.GPModel(group_data=problem.donor, likelihood="negative_binomial", num_parallel_threads=1)
            model.fit(problem.counts[:, g], X=problem.X, offset=problem.offset, params={"trace": False})
            estimates = model.get_coef(std_err=True, format_pandas=False)
        beta = np.asarray(estimates, float)[0]
        sigma2 = float(np.asarray(model.get_cov_pars(), float).ravel()[0])
        theta = float(np.asarray(model.get_aux_pars(), float).ravel()[0])
        loglik = -float(model.get_current_neg_log_likelihood())
        yield Fit(gene, clock.cpu, clock.wall, beta.tolist(), sigma2, theta, clock.memory, loglik)


def fit_edgepython(problem: Problem) -> Iterator[Fit]:
    """Fit with edgepython's `glm_sc_fit`, the NEBULA-LN algorithm: gamma donor effects, all genes in one call."""
    import edgepython

    counts = np.ascontiguousarray(problem.counts.T)

    def fit(rows: np.ndarray) -> dict[str, Any]:
        # no gene is filtered: the tools are compared on all of them
        return edgepython.glm_sc_fit(
            rows, design=problem.X, sample=problem.donor, offset=np.exp(problem.offset), cpc=0.0, mincp=0, verbose=False
        )

    fit(counts[:1])  # compiled code, warm
    with Clock() as clock:
        found = fit(counts)
    m = len(problem.genes)
    for g, gene in enumerate(problem.genes):
        converged = int(found["convergence"][g])
        yield Fit(
            gene,
            clock.cpu / m,
            clock.wall / m,
            [float(b) for b in found["coefficients"][g]],
            float(found["sigma_sample"][g]),
            1 / float(found["dispersion"][g]),
            clock.memory,
            note="" if converged == 1 else f"convergence {converged}",
        )


def _whole_call(problem: Problem, **how: Any) -> Iterator[Fit]:
    """`scglmm.tl.nbmm` as users call it: checks, compression, fits, null model, variance fractions, tables."""
    import scanpy as sc

    import scglmm

    sc.settings.verbosity = 0
    warnings.simplefilter("ignore")
    times = -(-ENOUGH // len(problem.genes))
    adata = problem.anndata(times)
    formula = f"~ offset(log(size)) + {problem.fixed}"
    # compiled code, warm: with moderation, that needs 200 genes
    scglmm.tl.nbmm(adata if how.get("moderate") else adata[:, :2].copy(), formula, n_jobs=1, **how)
    with Clock() as clock:
        scglmm.tl.nbmm(adata, formula, n_jobs=1, **how)
    fit, coef = adata.varm["nbmm_fit"], adata.varm["nbmm_coef"]
    for g, gene in enumerate(problem.genes):
        row = fit.iloc[g]
        loglik = float(row["loglik"]) if how.get("method") == "ml" else float("nan")
        yield Fit(
            gene,
            clock.cpu / adata.n_vars,
            clock.wall / adata.n_vars,
            coef.iloc[g].to_numpy(float).tolist(),
            float(row["var[donor]"]),
            float(row["theta"]),
            clock.memory,
            loglik,
            "" if row["status"] == "ok" else str(row["status"]),
        )


def fit_scglmm_ml(problem: Problem) -> Iterator[Fit]:
    """Fit by `tl.nbmm(method="ml")`."""
    return _whole_call(problem, method="ml")


def fit_scglmm_reml(problem: Problem) -> Iterator[Fit]:
    """Fit by `tl.nbmm(moderate=False)`: REML."""
    return _whole_call(problem, moderate=False)


def fit_scglmm_moderated(problem: Problem) -> Iterator[Fit]:
    """Fit by `tl.nbmm(moderate=True)`: REML, moderated."""
    return _whole_call(problem, moderate=True)


def fit_scglmm_fits(problem: Problem) -> Iterator[Fit]:
    """Compress all genes and fit each by maximum likelihood with standard errors: what the other tools do.

    The null model and the variance fractions of `tl.nbmm` are left out, because no other tool computes them. Each gene
    is charged its own fit, and its share of the nodes and of the compression.
    """
    from benchmarks.engine import Model

    adata = problem.anndata(-(-ENOUGH // len(problem.genes)))
    formula = f"~ offset(log(size)) + {problem.fixed}"
    Model(adata[:, :2].copy(), formula).fit(0, "ml")  # compiled code, warm
    with Clock() as shared:
        model = Model(adata, formula)
    for g, gene in enumerate(problem.genes):
        with Clock() as clock:
            fit = model.fit(g, "ml")
        cpu, wall = clock.cpu + shared.cpu / adata.n_vars, clock.wall + shared.wall / adata.n_vars
        beta, sigma2 = [float(b) for b in fit.beta], float(fit.sigma[0][0, 0])
        yield Fit(gene, cpu, wall, beta, sigma2, float(fit.theta), shared.memory + clock.memory, float(fit.loglik))


@dataclass(frozen=True)
class Tool:
    """A row of the table.

    Attributes
    ----------
    name
        As shown.
    packages
        What must be installed.
    fit
        How it is called; None for those in `peers.R`.
    slow
        Whether it takes seconds per gene, so that it is given few genes.
    criterion
        What it maximises.
    """

    name: str
    packages: str
    fit: Callable[[Problem], Iterator[Fit]] | None
    slow: bool = False
    criterion: str = "ML, Laplace"

    @property
    def is_ours(self) -> bool:
        """Whether it is a way to call scglmm."""
        return self.packages == "scglmm"


TOOLS = {
    tool.name: tool
    for tool in (
        Tool("scglmm, fits", "scglmm", fit_scglmm_fits),
        Tool("scglmm, tl.nbmm ML", "scglmm", fit_scglmm_ml),
        Tool("scglmm, tl.nbmm REML", "scglmm", fit_scglmm_reml, criterion="REML, Laplace"),
        Tool("scglmm, tl.nbmm moderated", "scglmm", fit_scglmm_moderated, criterion="REML, moderated"),
        Tool("glmm", "glmm", fit_glmm),
        Tool("gpboost", "gpboost", fit_gpboost),
        Tool("edgepython", "edgepython", fit_edgepython, criterion="h-likelihood, gamma effects"),
        Tool("NEBULA-LN", "nebula", None, criterion="h-likelihood, gamma effects"),
        Tool("glmmTMB", "glmmTMB", None, slow=True),
        Tool("glmer.nb", "lme4", None, slow=True, criterion="ML, Laplace, expected curvature"),
    )
}
