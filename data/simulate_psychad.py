"""Make ``psychad_sim.h5ad``: simulated microglia of 249 donors with the published PsychAD figures.

Run ``python data/simulate_psychad.py``; it writes the file beside itself. The same seed gives the same data.

Every gene follows the model that scglmm fits, for cell i of donor d:

    y_i ~ NB2(mu_i, theta)
    log mu_i = log libSize_i + beta0 + beta_DxAD [Dx = AD] + beta_Age Age + beta_SexM [Sex = M] + u_d

with Age in years, natural logarithms and u_d ~ N(0, var_SubID). The truth is in ``var``.

PTPRG is the published example. Its published figures are estimates from one sample, so here the sample is
conditioned on them: the donor effects are drawn and then moved, by the smallest least-squares step, to where
the realised sample has the published donor variance, share of zeros and variance fractions and where donor
effects and covariates are uncorrelated; the counts are the best of several draws by a one-step estimate.
All other genes are plain draws.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse
from scipy.optimize import brentq
from scipy.special import digamma, polygamma

SEED = 20240913
TARGET = Path(__file__).resolve().parent / "psychad_sim.h5ad"

# One gene of 60,000 microglia from 249 donors, as published.
PTPRG = {"theta": 0.2443, "var_SubID": 0.4803, "beta_DxAD": 1.103, "beta_Age": -0.00726, "beta_SexM": -0.103}
PTPRG_ZEROS = 0.71
PTPRG_FRACTIONS = {
    "Dx": 0.0133,
    "Age": 0.00022,
    "Sex": 0.00012,
    "SubID": 0.0210,
    "CountNoise": 0.306,
    "Residuals": 0.659,
}
EFFECTS = ["beta_DxAD", "beta_Age", "beta_SexM"]

# Years. The standard deviation over cells is what the published fraction and effect of Age imply.
AGE_MEAN, AGE_SD = 75.0, 9.77


def draw_donors(rng: np.random.Generator, n_donors: int, n_cells: int) -> pd.DataFrame:
    """Draw donors: about `n_cells` cells shared out log-normally, half the cells AD, half male.

    The balance over cells, not over donors, is what the published fractions of Dx and Sex imply: divided by
    their squared effects they give a variance over cells of 0.25 for both.
    """
    n = np.exp(rng.normal(0.0, 0.9, n_donors))
    n = np.clip(np.round(n * n_cells / n.sum()), 10, 5000).astype(int)
    share = n / n.sum()

    def balanced() -> np.ndarray:
        labels = np.array([rng.permutation(n_donors) < n_donors / 2 for _ in range(500)])
        return labels[np.argmin(np.abs(labels @ share - 0.5))]

    is_ad, is_male = balanced(), balanced()
    age = rng.normal(0.0, 1.0, n_donors).clip(-2.5, 2.5) + 0.3 * is_ad
    age -= share @ age
    age = AGE_MEAN + AGE_SD * age / np.sqrt(share @ age**2)
    return pd.DataFrame(
        {
            "n": n,
            "Dx": pd.Categorical(np.where(is_ad, "AD", "Control"), categories=["Control", "AD"]),
            "Age": age.round(1),
            "Sex": pd.Categorical(np.where(is_male, "M", "F"), categories=["F", "M"]),
            "log_lib": rng.normal(9.02, 0.29, n_donors),
        },
        index=pd.Index([f"S{d + 1:03d}" for d in range(n_donors)], name="SubID"),
    )


def draw_cells(rng: np.random.Generator, donors: pd.DataFrame) -> pd.DataFrame:
    """Draw the library size of every cell and spread the donors' covariates over their cells."""
    code = np.repeat(np.arange(len(donors)), donors["n"])
    lib_size = np.exp(donors["log_lib"].to_numpy()[code] + rng.normal(0.0, 0.5, code.size))
    return pd.DataFrame(
        {
            "SubID": pd.Categorical.from_codes(code, categories=donors.index),
            "Dx": donors["Dx"].array[code],
            "Age": donors["Age"].to_numpy()[code],
            "Sex": donors["Sex"].array[code],
            "libSize": lib_size.round().astype(np.int32),
        },
        index=[f"cell{i + 1:05d}" for i in range(code.size)],
    )


def draw_truth(rng: np.random.Generator, n_genes: int) -> pd.DataFrame:
    """Draw the parameters of the genes; `mean` is the mean count per cell aimed at.

    Most genes are rare, as in nuclei. Overdispersion 1/theta falls and donor variance falls a little with the
    mean. A tenth of the genes has no donor variance; a quarter has an effect of Dx.
    """
    mean = 10 ** (-2.7 + 4.0 * np.linspace(0.0, 1.0, n_genes) ** 1.5)
    theta = np.clip(np.exp(0.9 + 0.35 * np.log(mean) + rng.normal(0.0, 1.2, n_genes)), 0.05, 50.0)
    donor_var = np.clip(0.15 * mean**-0.1 * np.exp(rng.normal(0.0, 0.9, n_genes)), 0.0, 1.5)
    sign = rng.choice([-1.0, 1.0], (n_genes, 3))
    size = rng.uniform([0.2, 0.004, 0.1], [1.2, 0.02, 0.5], (n_genes, 3))
    present = rng.random((n_genes, 3)) < [0.25, 0.2, 0.1]
    truth = pd.DataFrame(np.where(present, sign * size, 0.0), columns=EFFECTS)
    truth["var_SubID"] = np.where(rng.random(n_genes) < 0.1, 0.0, donor_var)
    truth["theta"] = theta
    truth["mean"] = mean
    # Very variable abundant genes would outgrow the cells' library sizes.
    truth.loc[(truth["mean"] > 1.0) & (truth["theta"] < 0.5), "theta"] = 0.5
    # The rows come in order of the mean: shuffle, so that any few genes cover the range.
    return truth.iloc[rng.permutation(n_genes)].reset_index(drop=True)


def design(donors: pd.DataFrame) -> np.ndarray:
    """Return the donors' covariates in the order of `EFFECTS`."""
    return np.column_stack([donors["Dx"] == "AD", donors["Age"], donors["Sex"] == "M"]).astype(float)


def draw_counts(rng: np.random.Generator, mu: np.ndarray, theta: float) -> np.ndarray:
    """Draw NB2 counts as gamma-mixed Poisson counts."""
    return rng.poisson(mu * rng.gamma(theta, 1.0 / theta, mu.size))


def null_rate(fractions: dict[str, float], theta: float) -> float:
    """Return the expected count of the intercept-only model that the trigamma `fractions` imply.

    CountNoise + Residuals = D/(G+D) and Residuals = psi1(theta)/(G+D), with D = psi1(1/(1/lambda + 1/theta))
    (Nakagawa, Johnson & Schielzeth 2017); solved for lambda.
    """
    d_inf = polygamma(1, theta)
    d = d_inf * (1.0 + fractions["CountNoise"] / fractions["Residuals"])
    return brentq(lambda rate: polygamma(1, 1.0 / (1.0 / rate + 1.0 / theta)) - d, 1e-3, 1e3)


class ConditionedGene:
    """A gene whose donor effects and intercept are conditioned on published figures.

    `share` are the donors' shares of the cells, `weight` their weights 1/(variance + 1/information) in the
    estimation of the fixed effects, `rate` and `total_variance` the expected count of the null model and the
    variance of the linear predictor over cells that the published fractions imply.
    """

    def __init__(self, rng: np.random.Generator, donors: pd.DataFrame, obs: pd.DataFrame) -> None:
        self.x = design(donors)
        self.code = obs["SubID"].cat.codes.to_numpy()
        self.offset = np.log(obs["libSize"].to_numpy())
        self.share = donors["n"].to_numpy() / len(obs)
        self.theta, self.variance = PTPRG["theta"], PTPRG["var_SubID"]
        self.beta = np.array([PTPRG[name] for name in EFFECTS])
        self.rate = null_rate(PTPRG_FRACTIONS, self.theta)
        explained = sum(PTPRG_FRACTIONS[term] for term in ("Dx", "Age", "Sex", "SubID"))
        self.total_variance = explained / PTPRG_FRACTIONS["Residuals"] * polygamma(1, self.theta)
        self.u = rng.normal(0.0, np.sqrt(self.variance), len(donors))
        self.beta0 = 0.0
        self._condition()

    @property
    def effect(self) -> np.ndarray:
        """Linear predictor of each donor without intercept and offset."""
        return self.x @ self.beta + self.u

    @property
    def mu(self) -> np.ndarray:
        """Expected count of each cell."""
        return np.exp(self.offset + self.beta0 + self.effect[self.code])

    def information(self) -> np.ndarray:
        """Return the expected information of each donor's cells on the donor's level."""
        mu = self.mu
        return np.bincount(self.code, mu / (1.0 + mu / self.theta))

    def _intercept(self) -> float:
        """Return the intercept at which the null model's expected count is `rate`."""
        effect, weight = self.effect, self.weight
        center = weight @ effect / weight.sum()
        spread = weight @ (effect - center) ** 2 / weight.sum()
        return float(np.log(self.rate / np.exp(self.offset).mean()) - center - spread / 2.0)

    def _predicted(self) -> tuple[np.ndarray, np.ndarray]:
        """Return each donor's shrinkage and its centred linear predictor with the shrunken effect.

        The published fractions rest on predicted donor effects, which are nearer to zero than the true ones.
        """
        shrink = self.variance * self.weight
        predicted = self.x @ self.beta + shrink * self.u
        return shrink, predicted - self.share @ predicted

    def _constraints(self) -> tuple[np.ndarray, np.ndarray]:
        """Return what must be zero, and its gradient with respect to the donor effects."""
        x1 = np.column_stack([np.ones(len(self.u)), (self.x - self.x.mean(0)) / self.x.std(0)])
        weighted = (x1 * (self.weight / self.weight.sum())[:, None]).T
        shrink, predicted = self._predicted()
        mu = self.mu
        zero = (1.0 + mu / self.theta) ** -self.theta
        slope = np.bincount(self.code, -zero * mu / (1.0 + mu / self.theta)) / mu.size
        value = [
            *(weighted @ self.u),
            weighted[0] @ self.u**2 - self.variance,
            self.share @ predicted**2 - self.total_variance,
            zero.mean() - PTPRG_ZEROS,
        ]
        gradient = [*weighted, 2.0 * weighted[0] * self.u, 2.0 * self.share * shrink * predicted, slope]
        return np.array(value), np.array(gradient)

    def _condition(self) -> None:
        for _ in range(200):
            self.weight = 1.0 / (self.variance + 1.0 / self.information())
            self.beta0 = self._intercept()
            value, gradient = self._constraints()
            if np.abs(value).max() < 1e-8:
                return
            # Least-squares step on to the constraints, damped because weights and intercept move along.
            self.u -= 0.5 * np.linalg.lstsq(gradient, value, rcond=None)[0]
            if np.abs(self.u).max() > 10.0:
                break
        msg = "the donor effects of PTPRG could not be conditioned on the published figures: too few donors"
        raise ValueError(msg)

    def misfit(self, y: np.ndarray) -> float:
        """Return the chi-square distance of the one-step estimates from counts `y` to the published ones."""
        mu, theta = self.mu, self.theta
        info = self.information()
        noise = np.bincount(self.code, (y - mu) / (1.0 + mu / theta)) / info
        weight = 1.0 / (self.variance + 1.0 / info)
        x1 = np.column_stack([np.ones(len(info)), self.x - self.x.mean(0)])
        # All in units of the noise of the counts alone: the donor effects are conditioned already.
        step = np.linalg.solve((x1.T * weight) @ x1, (x1.T * weight) @ noise)
        chi2 = step @ ((x1.T * info) @ x1) @ step
        residual = self.u + noise - x1 @ step
        excess = weight**2 @ (residual**2 - 1.0 / info) / (weight**2).sum() - self.variance
        chi2 += excess**2 * info.sum() / (4.0 * self.variance)
        score = digamma(y + theta) - digamma(theta) + np.log(theta / (theta + mu)) + (mu - y) / (theta + mu)
        chi2 += score.sum() ** 2 / (score**2).sum()
        zeros = np.mean(y == 0) - PTPRG_ZEROS
        return float(chi2 + zeros**2 * y.size / (PTPRG_ZEROS * (1.0 - PTPRG_ZEROS)))

    def draw(self, rng: np.random.Generator, n_draws: int) -> np.ndarray:
        """Return the best of `n_draws` draws of the counts by `misfit`."""
        mu = self.mu
        return min((draw_counts(rng, mu, self.theta) for _ in range(n_draws)), key=self.misfit)

    def fractions(self) -> dict[str, float]:
        """Return the variance fractions (trigamma) at the true parameters and predicted donor effects."""
        part = self.x * self.beta
        q = np.append(self.share @ part**2 - (self.share @ part) ** 2, self.variance)
        g = self.share @ self._predicted()[1] ** 2
        d_inf = polygamma(1, self.theta)
        d = polygamma(1, 1.0 / (1.0 / self.rate + 1.0 / self.theta))
        values = [*(g / (g + d) * q / q.sum()), (d - d_inf) / (g + d), d_inf / (g + d)]
        return dict(zip(PTPRG_FRACTIONS, map(float, values), strict=True))


def simulate(
    n_donors: int = 249, n_cells: int = 60_000, n_genes: int = 400, n_draws: int = 200, seed: int = SEED
) -> ad.AnnData:
    """Simulate the data set.

    Parameters
    ----------
    n_donors
        Number of donors; below about 50 the published figures of PTPRG cannot be met.
    n_cells
        Number of cells, approximately.
    n_genes
        Number of genes with PTPRG, which is the first.
    n_draws
        Number of draws of the counts of PTPRG, of which the best is kept.
    seed
        Seed; donors and every gene have streams of their own.

    Returns
    -------
    Counts as float32 in compressed rows, covariates in ``obs``, the true parameters in ``var``, the variance
    fractions of PTPRG, expected and published, in ``uns["PTPRG"]``.
    """
    obs_seed, truth_seed, *gene_seeds = np.random.SeedSequence(seed).spawn(n_genes + 2)
    rng = np.random.default_rng(obs_seed)
    donors = draw_donors(rng, n_donors, n_cells)
    obs = draw_cells(rng, donors)
    x, code = design(donors), obs["SubID"].cat.codes.to_numpy()
    rng = np.random.default_rng(gene_seeds[0])
    ptprg = ConditionedGene(rng, donors, obs)
    columns = [ptprg.draw(rng, n_draws)]
    truth = draw_truth(np.random.default_rng(truth_seed), n_genes - 1)
    intercepts = [ptprg.beta0]
    for gene, gene_seed in zip(truth.itertuples(), gene_seeds[1:], strict=True):
        rng = np.random.default_rng(gene_seed)
        u = rng.normal(0.0, np.sqrt(gene.var_SubID), n_donors)
        effect = x @ [gene.beta_DxAD, gene.beta_Age, gene.beta_SexM] + u
        rate = obs["libSize"].to_numpy() * np.exp(effect)[code]
        intercepts.append(np.log(gene.mean / rate.mean()))
        columns.append(draw_counts(rng, rate * gene.mean / rate.mean(), gene.theta))
    counts = sparse.hstack([sparse.csc_matrix(y[:, None].astype(np.float32)) for y in columns], format="csr")
    if np.any(np.asarray(counts.sum(axis=1)).ravel() > obs["libSize"].to_numpy()):
        msg = "a cell has more counts in the simulated genes than its library size: lower the means"
        raise ValueError(msg)

    var = pd.concat([pd.DataFrame([PTPRG]), truth.drop(columns="mean")], ignore_index=True)
    var = var[[*EFFECTS, "var_SubID", "theta"]]
    var.insert(0, "beta0", intercepts)
    var["mean"] = [y.mean() for y in columns]
    var["zeros"] = [np.mean(y == 0) for y in columns]
    var.index = ["PTPRG", *(f"SIM{j:03d}" for j in range(1, n_genes))]
    return ad.AnnData(
        counts, obs=obs, var=var, uns={"PTPRG": {"expected": ptprg.fractions(), "published": PTPRG_FRACTIONS}}
    )


def main() -> None:
    """Write the data set and print what it holds."""
    parser = argparse.ArgumentParser(description="Simulate the PsychAD-like microglia.")
    parser.add_argument("target", nargs="?", type=Path, default=TARGET, help="file to write")
    target = parser.parse_args().target
    adata = simulate()
    # Under a temporary name first, so that a broken run never leaves half a file under the real one.
    partial = target.with_name(f"{target.name}.partial")
    try:
        adata.write_h5ad(partial, compression="gzip", compression_opts=9)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{target}: {adata.n_obs} cells, {adata.n_vars} genes, {target.stat().st_size / 1e6:.1f} MB")
    print(pd.DataFrame(adata.uns["PTPRG"]).round(5))
    print(adata.var.describe().round(3).to_string())


if __name__ == "__main__":
    main()
