"""One data set: counts of cells, and the truth of every gene.

For gene g, cell i of sample s (a donor, or a donor under one treatment):

    y ~ NB2(mean, theta_g),   log mean = log(m_g) + log(size_i) + beta_g treated + u_donor (+ w_sample)

The library size is known to every method: whether it is a good offset is another question (`composition`).
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp

from .scenarios import WITHIN, Scenario

MIN_CELLS = 10  # genes seen in fewer cells are tested by no method
TREATED = "trt"
COEFFICIENT = f"treatment[T.{TREATED}]"
GENES_AT_ONCE = 64
FACTORS = 3  # that correlated donor effects share
MAX_SD = 1.5  # of random effects, whatever the spread over genes
MAX_EFFECT = 4.5  # of one donor, 90-fold: the exponential of a heavy tail has no mean


@dataclass(frozen=True)
class DataSet:
    """What every method gets.

    Attributes
    ----------
    counts
        (cells, genes).
    obs
        One row per cell: `donor`, `treatment` (`ctrl`, `trt`), `libSize`.
    truth
        One row per gene: `beta` (natural log), `variance` of the random effect that carries the contrast, `mean`,
        `theta`, and `kept`: whether it is seen in enough cells to be tested.
    within
        Whether donors are paired.
    known_size
        Whether `libSize` is the truth; otherwise pseudobulk methods normalise as they usually do.
    """

    counts: sp.csr_array
    obs: pd.DataFrame
    truth: pd.DataFrame
    within: bool
    known_size: bool = True

    def kept(self) -> DataSet:
        """Leave out the genes that are not tested."""
        kept = self.truth["kept"].to_numpy()
        return DataSet(self.counts[:, kept], self.obs, self.truth[kept], self.within, self.known_size)


def simulate(scenario: Scenario, index: int) -> DataSet:
    """Draw data set `index` of a scenario; the same one each time."""
    rng = np.random.default_rng([zlib.crc32(scenario.name.encode()), index])
    truth = draw_truth(scenario, rng)
    obs, sample, donor = draw_cells(scenario, rng)
    counts = draw_counts(scenario, truth, obs, sample, donor, rng)
    truth["kept"] = np.bincount(counts.indices, minlength=scenario.n_genes) >= MIN_CELLS
    return DataSet(counts, obs, truth.drop(columns="donor_sd"), scenario.design == WITHIN)


def draw_truth(scenario: Scenario, rng: np.random.Generator) -> pd.DataFrame:
    """Draw the parameters of the genes: `DataSet.truth` and `donor_sd`."""
    n = scenario.n_genes
    mean = np.exp(rng.uniform(*np.log(scenario.mean), n))
    beta = np.zeros(n)
    n_de = round(scenario.share_de * n)
    beta[:n_de] = scenario.effect * np.where(np.arange(n_de) % 2, 1.0, -1.0)
    theta = scenario.theta * mean**scenario.theta_slope * np.exp(rng.normal(0, scenario.theta_spread, n))
    donor_sd = _standard_deviations(scenario, mean, rng)
    carrier = donor_sd
    if scenario.design == WITHIN:
        carrier = scenario.heterogeneity * _standard_deviations(scenario, mean, rng)
    return pd.DataFrame(
        {"beta": beta, "variance": carrier**2, "mean": mean, "theta": theta, "donor_sd": donor_sd},
    )


def _standard_deviations(scenario: Scenario, mean: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Log-normal around a trend, some exactly 0, some far above."""
    n = mean.size
    sd = scenario.sd * mean**scenario.sd_slope * np.exp(rng.normal(0, scenario.sd_spread, n))
    which = rng.uniform(size=n)
    sd[which < scenario.share_zero] = 0.0
    sd[which > 1 - scenario.share_far] *= 3.0
    return np.minimum(sd, MAX_SD)


def draw_cells(scenario: Scenario, rng: np.random.Generator) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Draw the cells: `obs`, and sample and donor of every cell."""
    n_samples = 2 * scenario.n
    size = np.exp(np.linspace(0, np.log(scenario.ratio), n_samples))
    n_cells = np.maximum(5, np.round(rng.permutation(size / size.mean()) * scenario.cells)).astype(int)
    treated = np.arange(n_samples) % 2
    donor_of = np.arange(n_samples) // 2 if scenario.design == WITHIN else np.arange(n_samples)
    sample = np.repeat(np.arange(n_samples), n_cells)
    depth = rng.normal(0, 0.15, n_samples)
    lib_size = 5000 * np.exp(depth[sample] + rng.normal(0, 0.4, sample.size))
    obs = pd.DataFrame(
        {
            "donor": pd.Categorical([f"d{d:02d}" for d in donor_of[sample]]),
            "treatment": pd.Categorical(np.where(treated[sample], TREATED, "ctrl"), categories=["ctrl", TREATED]),
            "libSize": lib_size,
        },
        index=[f"c{i}" for i in range(sample.size)],
    )
    return obs, sample, donor_of[sample]


def draw_counts(
    scenario: Scenario,
    truth: pd.DataFrame,
    obs: pd.DataFrame,
    sample: np.ndarray,
    donor: np.ndarray,
    rng: np.random.Generator,
) -> sp.csr_array:
    """Draw the counts of cells with these library sizes, in genes with these parameters."""
    log_size = np.log(obs["libSize"].to_numpy())
    log_size = log_size - np.log(np.mean(np.exp(log_size)))
    treated = (obs["treatment"] == TREATED).to_numpy()
    n_samples, n_donors = sample.max() + 1, donor.max() + 1
    of_donors, of_samples = rng.normal(size=(n_donors, FACTORS)), rng.normal(size=(n_samples, FACTORS))
    blocks = []
    for begin in range(0, scenario.n_genes, GENES_AT_ONCE):
        genes = truth.iloc[begin : begin + GENES_AT_ONCE]
        effects = (genes["donor_sd"].to_numpy() * _effects(scenario.misfit, of_donors, len(genes), rng))[donor]
        if scenario.design == WITHIN:
            sd = np.sqrt(genes["variance"].to_numpy())
            effects += (sd * _effects(scenario.misfit, of_samples, len(genes), rng))[sample]
        effects = np.clip(effects, -MAX_EFFECT, MAX_EFFECT)
        log_mean = np.log(genes["mean"].to_numpy()) + np.outer(treated, genes["beta"]) + effects + log_size[:, None]
        theta = np.broadcast_to(genes["theta"].to_numpy(), log_mean.shape)
        if scenario.misfit == "donor theta":
            theta = theta * np.exp(rng.normal(0, 0.7, (n_donors, len(genes))))[donor]
        blocks.append(sp.csr_array(rng.poisson(np.exp(log_mean) * _overdispersion(scenario.misfit, theta, rng))))
    return sp.csr_array(sp.hstack(blocks), dtype=np.float64)


def _effects(misfit: str, common: np.ndarray, n_genes: int, rng: np.random.Generator) -> np.ndarray:
    """Random effects of mean 0 and variance 1: levels × genes.

    `common` holds factors of the levels that genes share, for effects that are correlated between genes.
    """
    shape = (common.shape[0], n_genes)
    if misfit == "t":
        return rng.standard_t(4, shape) / np.sqrt(2)
    if misfit == "skewed":
        return (rng.gamma(1.5, size=shape) - 1.5) / np.sqrt(1.5)  # skewness 1.6
    own = rng.normal(size=shape)
    if misfit != "correlated":
        return own
    loadings = rng.normal(size=(common.shape[1], n_genes))
    return np.sqrt(0.5) * (common @ (loadings / np.sqrt(np.sum(loadings**2, axis=0))) + own)


def _overdispersion(misfit: str, theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Factors of mean 1 and variance 1/theta: gamma, which makes NB2, or log-normal."""
    if misfit == "lognormal-poisson":
        variance = np.log1p(1 / theta)
        return np.exp(rng.normal(-variance / 2, np.sqrt(variance)))
    return rng.standard_gamma(theta) / theta
