"""A random model and its data, from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from scglmm.formula import build_design, parse_formula
from scglmm.formula.design import Design
from scglmm.inference.containment import levels_to_spare
from scglmm.inference.frame import make_frame, strata_of

# d donors, grp a factor and w a number of donors; t a factor, x a number (few values) and z one (any) of cells; b a
# grouping factor that crosses donors.
FIXED = (
    "1", "grp", "w", "t", "x", "z", "grp + t", "grp + w", "grp * t", "grp * x", "grp + t + x", "w + t + z", "t * x",
    "0 + grp", "b + t", "grp * t + w", "poly(x, 2) + grp",
)  # fmt: skip
RANDOM = (
    "(1|d)", "(1|d)", "(1|d)", "(1|d)", "(1|d) + (1|b)", "(1|d) + (1|d:t)", "(1|d/t)", "(1|b/d)", "(x|d)", "(t|d)",
    "(z|d)", "(x||d)", "(0 + x|d)", "(0 + t|d)", "(x + z|d)", "(x|d) + (1|b)", "(1|d) + (0 + x|b)", "(x||d) + (1|b)",
    "(1|d) + (1|b) + (1|d:t)", "(1|b)", "",
)  # fmt: skip
INFLATION = ("1", "1", "grp", "x", "t")
QUADRATURE = (25, 31)
MAX_MEAN = 1e6


@dataclass(frozen=True)
class Drawn:
    """A model and its data.

    Attributes
    ----------
    seed, formula, family, zi, reml, n_quad
        What it is; `zi` is empty without zero inflation.
    design, zi_design
        On the cells.
    y
        (n,) response.
    truth
        What it was drawn from: mean, theta (or residual standard deviation), standard deviations of the random columns.
    """

    seed: int
    formula: str
    family: str
    zi: str
    reml: bool
    n_quad: int
    design: Design
    zi_design: Design | None
    y: np.ndarray
    truth: dict[str, object]

    def __str__(self) -> str:
        """One line."""
        parts = [f"seed {self.seed}: {self.family} {self.formula}", "REML" if self.reml else "ML"]
        parts += [f"zi ~ {self.zi}"] * bool(self.zi) + [f"n_quad={self.n_quad}"] * (self.n_quad > 1)
        return ", ".join([*parts, f"{self.y.size} cells", str(self.truth)])


def draw(seed: int) -> Drawn:
    """Draw until there are counts and the formula can be coded on the cells."""
    for attempt in range(200):
        drawn = _attempt(seed, np.random.default_rng([seed, attempt]))
        if drawn is not None:
            return drawn
    msg = f"No model can be drawn from seed {seed}."
    raise RuntimeError(msg)


def _cells(rng: np.random.Generator) -> pd.DataFrame:
    n_donors = int(np.round(np.exp(rng.uniform(np.log(3), np.log(60)))))
    most = np.exp(rng.uniform(np.log(2), np.log(500)))
    per_donor = np.maximum(1, np.ceil(most * rng.random(n_donors) ** rng.choice([0.0, 1.0, 4.0]))).astype(int)
    donor = np.repeat(np.arange(n_donors), per_donor)
    n = donor.size
    levels = int(rng.integers(2, 4))
    group = rng.permutation(np.arange(n_donors) % levels)
    treatment = rng.integers(0, 2, n) if rng.random() < 0.7 else (rng.random(n) < rng.random(n_donors)[donor]) * 1
    return pd.DataFrame(
        {
            "d": pd.Categorical([f"d{i}" for i in donor]),
            "grp": pd.Categorical([f"g{i}" for i in group[donor]]),
            "w": rng.normal(size=n_donors)[donor] * rng.choice([0.01, 1.0, 100.0]),
            "t": pd.Categorical([f"t{i}" for i in treatment]),
            "x": rng.integers(-2, 3, n).astype(float),
            "z": rng.normal(size=n),
            "b": pd.Categorical([f"b{i}" for i in rng.integers(0, rng.integers(2, 9), n)]),
            "o": rng.normal(0, rng.choice([0.0, 0.3, 1.0]), n),
        }
    )


def _attempt(seed: int, rng: np.random.Generator) -> Drawn | None:
    obs = _cells(rng)
    fixed, random = rng.choice(FIXED), rng.choice(RANDOM)
    formula = f"~ offset(o) + {fixed}" + (f" + {random}" if random else "")
    family = str(rng.choice(["nbinom2", "poisson", "gaussian"], p=[0.65, 0.2, 0.15]))
    zi = str(rng.choice(INFLATION)) if family != "gaussian" and rng.random() < 0.18 else ""
    reml = bool(rng.random() < 0.5)
    single = random in {"(1|d)", "(1|b)", "(0 + x|d)"}
    n_quad = int(rng.choice(QUADRATURE)) if single and not reml and rng.random() < 0.25 else 1
    try:
        design = build_design(parse_formula(formula), obs)
        zi_design = build_design(parse_formula(f"~ {zi}"), obs) if zi else None
    except ValueError:  # a level is missing, a column is constant, ...
        return None

    # What the package refuses before any fit: random effects of which the fixed effects leave nothing.
    stratum, first = strata_of(design)
    frame = make_frame(design, first, np.bincount(stratum))
    if any(levels_to_spare(frame, term) <= 0 for term in range(len(design.random))):
        return None

    mean = np.exp(rng.uniform(np.log(0.01), np.log(1000)))
    beta = rng.uniform(-1, 1, design.X.shape[1]) * rng.choice([0.0, 0.5, 3.0])
    eta = design.X @ (beta / np.abs(design.X).max(axis=0))
    sds = []
    for term in design.random:
        columns = term.covariates.shape[1]
        sd = np.array([rng.choice([0.0, rng.uniform(0, 0.3), rng.uniform(0, 3)]) for _ in range(columns)])
        mixing = np.linalg.qr(rng.normal(size=(columns, columns)))[0] if rng.random() < 0.5 else np.eye(columns)
        effects = rng.normal(size=(term.codes.max() + 1, columns)) * sd @ mixing
        eta = eta + np.sum(term.covariates * effects[term.codes], axis=1)
        sds.append(np.round(sd, 3).tolist())
    eta = eta - np.mean(eta) + design.offset
    n = eta.size
    truth: dict[str, object] = {"mean": round(float(mean), 4), "sd": sds}
    if family == "gaussian":
        residual = np.exp(rng.uniform(np.log(0.01), np.log(10)))
        y = np.log(mean) + eta + rng.normal(0, residual, n)
        truth["residual"] = round(float(residual), 4)
        if max((t.covariates.shape[1] * np.unique(t.codes).size for t in design.random), default=0) >= n:
            return None
    else:
        theta = np.inf if family == "poisson" or rng.random() < 0.15 else np.exp(rng.uniform(np.log(0.02), np.log(1e5)))
        mu = np.minimum(MAX_MEAN, mean * np.exp(np.minimum(eta, 30)))
        y = rng.poisson(np.minimum(mu * (rng.gamma(theta, 1 / theta, n) if np.isfinite(theta) else 1.0), 1e8))
        absent = rng.choice([0.0, 0.1, 0.5, 0.9]) if zi else 0.0
        y = (y * (rng.random(n) >= absent)).astype(float)
        truth |= {"theta": float(f"{theta:.4g}"), "absent": float(absent)}
        if not y.any():
            return None
    if n <= design.X.shape[1] + 1:
        return None
    return Drawn(seed, formula, family, zi, reml, n_quad, design, zi_design, y, truth)
