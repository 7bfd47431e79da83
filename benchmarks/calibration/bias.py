"""Bias and coverage of the log fold change at a handful of counts per donor.

``python -m benchmarks.calibration.bias`` compares four estimators of a donor-level effect on the same genes:

* `reml`: beta at the joint mode of (v, beta), variances by REML: what `tl.nbmm` reports;
* `ml`: the maximum of the Laplace likelihood over everything;
* `laplace-beta`: the maximum of the Laplace likelihood over beta, variances fixed at REML's;
* `exact-beta`: the maximum over beta of the likelihood by numerical integration, variances fixed at REML's.

The last two say which part of the bias comes from taking beta at the joint mode and which from Laplace's approximation.
Slope is the regression of the estimates on the true effects, 1 where there is no bias. Genes for which one of the
estimators does not exist (no counts in a group) are left out for all of them and counted as lost.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from scipy import sparse, stats

from scglmm.compression.nodes import make_nodes
from scglmm.compression.tables import accumulate
from scglmm.engine.fit import FAILED, fit
from scglmm.engine.laplace import laplace
from scglmm.engine.layout import Data, make_work
from scglmm.engine.responses import Responses
from scglmm.formula import build_design, parse_formula
from scglmm.inference.containment import find_carrier
from scglmm.inference.frame import Frame, make_frame, strata_of
from scglmm.inference.gene import NOT_CONVERGED, SEPARATED, fit_gene

from .report import percent, table

COUNTS = (0.5, 1.0, 2.0, 4.0, 5.0, 20.0)
DONOR_SD = (0.5, 1.0)
DONORS = (4, 10, 40)  # per group
BETA = np.array([-1.0, -0.5, 0.0, 0.0, 0.5, 1.0])
THETA = 1.0
CELLS = 50  # per donor
ESTIMATORS = ("reml", "ml", "laplace-beta", "exact-beta")
GRID = np.linspace(-8, 8, 400)  # of the standardised random effect


@dataclass(frozen=True)
class Estimate:
    """A log fold change, its standard error, and the degrees of freedom of its interval."""

    beta: float
    se: float
    df: float


def main(arguments: list[str] | None = None) -> None:
    """Simulate, estimate, print and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibration.bias", description=__doc__)
    parser.add_argument("--genes", type=int, default=2000, help="genes of each combination")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("calibration-results/bias"))
    parser.add_argument("--smoke", action="store_true", help="a few genes: whether it runs")
    options = parser.parse_args(arguments)
    genes = 20 if options.smoke else options.genes
    combinations = [(n, sd, c) for n in DONORS for sd in DONOR_SD for c in COUNTS]
    if options.smoke:
        combinations = [(4, 0.5, 4.0), (10, 1.0, 1.0)]
    parts = Parallel(n_jobs=options.jobs)(delayed(study)(n, sd, c, genes) for n, sd, c in combinations)
    result = pd.concat(parts, ignore_index=True)
    options.out.mkdir(parents=True, exist_ok=True)
    result.to_csv(options.out / "bias.csv", index=False, float_format="%.5g")
    text = markdown(result)
    (options.out / "bias.md").write_text(text)
    print(text)


def study(donors: int, sd: float, counts: float, n_genes: int) -> pd.DataFrame:
    """Estimate the effect in genes with `counts` per donor on average; one row per estimator."""
    rng = np.random.default_rng([donors, round(100 * sd), round(100 * counts)])
    obs = pd.DataFrame(
        {
            "donor": pd.Categorical(np.repeat(np.arange(2 * donors), CELLS)),
            "x": np.repeat(np.arange(2 * donors) % 2, CELLS),
        }
    )
    beta = rng.choice(BETA, n_genes)
    effects = rng.normal(0, sd, (2 * donors, n_genes))[obs["donor"].cat.codes]
    log_mean = np.log(counts / CELLS) - sd**2 / 2 + np.outer(obs["x"] - 0.5, beta) + effects
    y = rng.poisson(np.exp(log_mean) * rng.gamma(THETA, 1 / THETA, log_mean.shape)).astype(float)

    design = build_design(parse_formula("~ x + (1|donor)"), obs)
    stratum, first = strata_of(design)
    nodes = make_nodes(stratum, np.zeros(len(obs)))
    frame = make_frame(design, first, nodes.n_cells)
    tables = accumulate(sparse.csr_array(y), np.arange(len(obs)), nodes, np.arange(n_genes))
    responses = Responses(nodes.grid, tables)
    found = [estimate(responses[g], frame) for g in range(n_genes)]

    rows = []
    known = np.array([f is not None for f in found])
    for name in ESTIMATORS:
        here = [f[name] for f in found if f is not None]
        b, se, df = (np.array([getattr(e, field) for e in here]) for field in ("beta", "se", "df"))
        rows.append(
            {"donors": f"{donors}v{donors}", "sd": sd, "counts": counts, "estimator": name, "genes": int(known.sum())}
            | {"share_lost": 1 - known.mean()}
            | _rates(b, se, df, beta[known])
        )
    return pd.DataFrame(rows)


def _rates(b: np.ndarray, se: np.ndarray, df: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    slope = stats.linregress(truth, b)
    quantile = stats.t.ppf(0.975, np.minimum(df, 1e9))
    rates = {
        "coverage": np.abs(b - truth) <= quantile * se,
        "type1": (np.abs(b) > quantile * se)[truth == 0],
        "power": (np.abs(b) > quantile * se)[truth != 0],
    }
    row = {"slope": slope.slope, "slope_se": slope.stderr}
    for name, hits in rates.items():
        row |= {name: hits.mean(), f"{name}_se": np.sqrt(hits.mean() * (1 - hits.mean()) / hits.size)}
    row["rmse"] = np.sqrt(np.mean((b - truth) ** 2))
    row["se_over_sd"] = np.sqrt(np.mean(se**2)) / np.std(b - slope.slope * truth)
    return row


def estimate(data: Data, frame: Frame) -> dict[str, Estimate] | None:
    """All estimators for one gene; None where one of them has none (no counts in a group)."""
    carriers = [find_carrier(frame, contrast) for contrast in np.eye(frame.X.shape[1])]
    results = {}
    for method in ("reml", "ml"):
        fitted = fit_gene(data, frame, carriers, 0.0, method, null=False)
        if fitted.status in (SEPARATED, NOT_CONVERGED):
            return None
        results[method] = Estimate(fitted.beta[1], fitted.se[1], fitted.df[1])
    rate = np.log(data.y_sum.sum() / float(data.nodes[0] @ data.nodes[1]))
    reml = fit(data, frame.structure, frame.Q, True, rate * frame.intercept, curvature=False)
    if reml.status == FAILED:
        return None
    df = results["reml"].df
    for name, gradient in (
        ("laplace-beta", lambda gamma: _laplace_gradient(gamma, data, frame, reml)),
        ("exact-beta", lambda gamma: _exact_gradient(gamma, data, frame, reml)),
    ):
        found = _maximise(gradient, reml.beta.copy())
        if found is None:
            return None
        gamma, information = found
        covariance = frame.back @ np.linalg.inv(information) @ frame.back.T
        results[name] = Estimate((frame.back @ gamma)[1], np.sqrt(covariance[1, 1]), df)
    return results


def _maximise(gradient, gamma: np.ndarray, step: float = 1e-4) -> tuple[np.ndarray, np.ndarray] | None:
    """Newton's method from a gradient, its derivative by differences; the point and minus the Hessian there."""
    p = gamma.size
    for _ in range(50):
        g = gradient(gamma)
        information = -np.array(
            [(gradient(gamma + step * e) - gradient(gamma - step * e)) / (2 * step) for e in np.eye(p)]
        )
        information = (information + information.T) / 2
        if not np.isfinite(information).all() or np.linalg.eigvalsh(information)[0] <= 0:
            return None
        move = np.linalg.solve(information, g)
        gamma = gamma + move * min(1.0, 0.5 / max(np.abs(move).max(), 1e-300))
        if np.abs(move).max() < 1e-7:
            return gamma, information
    return None


def _laplace_gradient(gamma: np.ndarray, data: Data, frame: Frame, reml) -> np.ndarray:
    """Gradient in beta of the Laplace log-likelihood at fixed variances."""
    p = gamma.size
    par = np.concatenate([gamma, reml.psi, [reml.log_theta]])
    gradient = np.zeros(par.size)
    work = make_work(frame.structure, frame.Q)
    laplace(data, frame.structure, frame.Q, False, True, par, gamma.copy(), reml.v.copy(), gradient, work)
    return gradient[:p]


def _exact_gradient(gamma: np.ndarray, data: Data, frame: Frame, reml) -> np.ndarray:
    """Gradient in beta of the likelihood by the trapezoid rule, donor by donor (one node per donor here).

    By Fisher's identity it is the posterior mean of the gradient given the random effect.
    """
    theta = np.exp(reml.log_theta)
    exposure, cells, y = data.nodes
    eta = (frame.Q @ gamma)[:, None] + reml.psi[0] * GRID
    mean = exposure[:, None] * np.exp(eta)
    total = y + theta * cells
    log_density = y[:, None] * eta - total[:, None] * np.log1p(mean / theta) - GRID**2 / 2
    posterior = np.exp(log_density - log_density.max(axis=1, keepdims=True))
    posterior /= posterior.sum(axis=1, keepdims=True)
    score = y[:, None] - total[:, None] * mean / (theta + mean)
    return frame.Q.T @ (posterior * score).sum(axis=1)


def markdown(result: pd.DataFrame) -> str:
    """Slopes and rates, a column per estimator."""
    parts = []
    titles = {
        "slope": "Slope",
        "coverage": "Coverage of 95% intervals",
        "type1": "Genes without effect with p < 5%",
        "power": "Genes with an effect with p < 5%",
    }
    for column, title in titles.items():
        rows = []
        for (donors, sd, counts), group in result.groupby(["donors", "sd", "counts"], sort=False):
            group = group.set_index("estimator")
            cells = [percent(group[column][name], group[f"{column}_se"][name]) for name in ESTIMATORS]
            rows.append([str(donors), f"{sd:g}", f"{counts:g}", percent(group["share_lost"].iloc[0]), *cells])
        header = ["donors", "donor sd", "counts per donor", "lost", *ESTIMATORS]
        parts += [f"## {title}, in percent\n", table(header, rows)]
    return "\n".join(parts)


if __name__ == "__main__":
    main()
