"""The cells of the design.

A scenario says how data sets are drawn. The values are those of real cells (docs/calibration.md, "What is simulated"):
in a data set the mean, the donor standard deviation and theta differ between genes, since methods that borrow from
other genes live on how alike the genes are.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace

SIMULATION = 2  # raised when the simulation changes, so that results of another one are not mixed in

BETWEEN, WITHIN = "between", "within"
MISFITS = ("none", "lognormal-poisson", "t", "skewed", "donor theta", "correlated")


@dataclass(frozen=True)
class Scenario:
    """How data sets are drawn.

    Attributes
    ----------
    name, panel
        Of the scenario, and of the group of scenarios that are shown together.
    design
        `"between"`: the treatment is given to donors; `"within"`: every donor has treated and untreated cells.
    n
        Donors per group (between) or donors (within).
    cells, ratio
        Mean number of cells per sample (a donor, or a donor under one treatment), and largest over smallest.
    datasets, n_genes, share_de
        Data sets, genes in each, share of the genes with an effect.
    effect
        Absolute log fold change of those; half go up, half down.
    mean
        Range of the mean count per cell, log-uniform over genes.
    sd, sd_slope, sd_spread
        Donor standard deviation: median at one count per cell, its change per log mean, and the standard deviation of
        its logarithm around that trend.
    share_zero, share_far
        Share of genes without donor variance, and share with three times the standard deviation.
    heterogeneity
        Within: standard deviation of the effect of a sample relative to that of the donor (drawn anew for each gene).
    theta, theta_slope, theta_spread
        As for the donor standard deviation.
    misfit
        What is not as the model assumes, one of `MISFITS`.
    """

    name: str
    panel: str
    design: str = BETWEEN
    n: int = 4
    cells: int = 150
    ratio: float = 1.0
    datasets: int = 50
    n_genes: int = 500
    share_de: float = 0.2
    effect: float = 0.8
    mean: tuple[float, float] = (0.02, 5.0)
    sd: float = 0.3
    sd_slope: float = -0.1
    sd_spread: float = 0.5
    share_zero: float = 0.1
    share_far: float = 0.03
    heterogeneity: float = 0.5
    theta: float = 2.0
    theta_slope: float = 0.35
    theta_spread: float = 0.7
    misfit: str = "none"

    @property
    def fingerprint(self) -> str:
        """Changes with everything that changes the data sets."""
        values = asdict(self)
        for name in ("panel", "datasets"):
            del values[name]
        return hashlib.sha256(repr((SIMULATION, sorted(values.items()))).encode()).hexdigest()[:8]

    @property
    def label(self) -> str:
        """The design as tables and axes name it."""
        return f"{self.n} paired" if self.design == WITHIN else f"{self.n}v{self.n}"


def effect_between(n: int) -> float:
    """Log fold change that about half of the genes with an effect show at this number of donors per group."""
    return round(1.5 / n**0.5, 2)


def effect_within(n: int) -> float:
    """Log fold change of the same kind for paired donors."""
    return round(1.0 / n**0.5, 2)


def grid() -> list[Scenario]:
    """List the full design."""
    sizes = (3, 4, 6, 10, 20)
    scenarios = [Scenario(f"between-{n}v{n}", "donor-level, balanced", n=n, effect=effect_between(n)) for n in sizes]
    scenarios += [
        Scenario(f"between-{n}v{n}-unequal", "donor-level, unequal", n=n, effect=effect_between(n), ratio=30.0)
        for n in sizes
    ]
    scenarios += [_within(f"within-{n}", "within donors, balanced", n) for n in sizes]
    scenarios += [_within(f"within-{n}-unequal", "within donors, unequal", n, ratio=30.0) for n in (4, 10)]
    for low, high, name in ((0.02, 0.02, "low"), (0.2, 0.2, "medium"), (5.0, 5.0, "high")):
        scenarios.append(
            Scenario(f"between-4v4-{name}", "counts per cell", n=4, effect=effect_between(4), mean=(low, high))
        )
    for n in (4, 10):
        scenarios.append(
            Scenario(
                f"between-{n}v{n}-small-variances",
                "small donor variances",
                n=n,
                effect=round(effect_between(n) / 2, 2),
                sd=0.08,
                sd_spread=0.7,
                share_zero=0.15,
            )
        )
    scenarios += [
        Scenario(f"between-{n}v{n}-null", "no effects at all", n=n, share_de=0.0, effect=0.0) for n in (4, 10)
    ]
    for misfit in MISFITS[1:]:
        name = misfit.replace(" ", "-")
        scenarios += [
            Scenario(f"between-{n}v{n}-{name}", f"misspecified: {misfit}", n=n, effect=effect_between(n), misfit=misfit)
            for n in (4, 10)
        ]
    scenarios += [prototype(n) for n in (3, 5, 10)]
    return scenarios


def prototype(n: int) -> Scenario:
    """Build the design on which moderation was first tried: much information, half the genes with a strong effect."""
    return Scenario(
        f"prototype-{2 * n}",
        "prototype",
        n=n,
        cells=200,
        n_genes=1600,
        share_de=0.5,
        effect=0.8,
        mean=(0.02, 2.0),
        sd=0.4,
        sd_slope=0.0,
        sd_spread=0.33,
        share_zero=0.0,
        share_far=0.0,
        datasets=50,
    )


def smoke() -> list[Scenario]:
    """List a few small data sets of each kind, to see whether everything runs."""
    chosen = ("between-4v4", "within-4", "between-4v4-t")
    return [replace(s, name=f"smoke-{s.name}", n_genes=240, datasets=2, cells=60) for s in grid() if s.name in chosen]


def _within(name: str, panel: str, n: int, ratio: float = 1.0) -> Scenario:
    return Scenario(name, panel, design=WITHIN, n=n, cells=100, ratio=ratio, effect=effect_within(n))
