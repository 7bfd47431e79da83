"""Rates of one scenario, with Monte-Carlo standard errors clustered by data set.

Genes of a data set share its donors' library sizes and, with methods that borrow, their prior, so they are not
independent repetitions: a rate is a ratio of sums over data sets, its standard error that of a ratio estimator over
them. Size-adjusted power, whose threshold is estimated too, is bootstrapped over data sets.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from scipy import stats

from .methods import ORDER, REFERENCE
from .store import TRUTH, Store

LEVELS = (0.05, 0.01, 0.001)
MEAN_BINS = (0.0, 0.05, 0.2, 1.0, np.inf)
N_BOOT = 400
LARGE = 10.0  # a log fold change beyond this is not an estimate but an infinite one that was cut off


@dataclass(frozen=True)
class Cell:
    """Results of the methods on the data sets of a scenario that all of them have: arrays (data sets, genes).

    Attributes
    ----------
    truth
        `beta`, `variance`, `mean`, `theta`, `kept`.
    methods
        Name -> fields of `store.Result`.
    """

    truth: dict[str, np.ndarray]
    methods: dict[str, dict[str, np.ndarray]]

    @property
    def null(self) -> np.ndarray:
        """Genes without an effect that are tested."""
        return self.truth["kept"] & (self.truth["beta"] == 0)

    @property
    def de(self) -> np.ndarray:
        """Genes with an effect, tested or not."""
        return self.truth["beta"] != 0

    @property
    def n(self) -> int:
        """Number of data sets."""
        return self.null.shape[0]


def load(store: Store) -> Cell | None:
    """Read the data sets that every method has; methods that have run on less than half of them are left out."""
    done = {name: set(store.indices(name)) for name in store.methods()}
    most = max((len(indices) for indices in done.values()), default=0)
    for name in [name for name, indices in done.items() if 2 * len(indices) < most]:
        print(f"{store.folder.name}: {name} has only {len(done.pop(name))} of {most} data sets and is left out")
    common = sorted(set.intersection(set(store.indices(TRUTH)), *done.values()))
    if not done or not common:
        return None
    truth = store.read(TRUTH, common)
    truth["kept"] = truth["kept"].astype(bool)
    names = sorted(done, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    return Cell(truth, {name: store.read(name, common) for name in names})


def clustered(hits: np.ndarray, of: np.ndarray) -> tuple[float, float]:
    """Share of hits among the entries `of`, both (data sets, genes) bool, and its standard error."""
    return ratio((hits & of).sum(axis=1), of.sum(axis=1))


def ratio(total: np.ndarray, size: np.ndarray) -> tuple[float, float]:
    """Ratio of sums over data sets and its standard error."""
    n = total.size
    if size.sum() == 0:
        return np.nan, np.nan
    rate = total.sum() / size.sum()
    if n < 2:
        return rate, np.nan
    residual = total - rate * size
    return rate, float(np.sqrt(n / (n - 1) * np.sum(residual**2)) / size.sum())


def summary(cell: Cell) -> pd.DataFrame:
    """One row per method: type I errors, FDR and power, coverage, bias, seconds."""
    return pd.DataFrame([{"method": name, **_row(cell, fields)} for name, fields in cell.methods.items()])


def _row(cell: Cell, fields: dict[str, np.ndarray]) -> dict[str, float]:
    p, beta, truth = fields["p"], fields["beta"], cell.truth["beta"]
    tested = np.isfinite(p)
    null = cell.null & tested
    row: dict[str, float] = {"datasets": cell.n, "null_genes": int(null.sum())}
    row["untested"] = 1 - tested[cell.truth["kept"]].mean()
    for level in LEVELS:
        _put(row, f"type1_{level:g}", clustered(p < level, null))
    if cell.de.any():
        found = _benjamini_hochberg(p) < 0.05
        false, true = (found & cell.null).sum(axis=1), (found & cell.de).sum(axis=1)
        _put(row, "fdr", _mean(false / np.maximum(false + true, 1)))
        _put(row, "power_bh", clustered(found, cell.de))
        _put(row, "power_0.05", clustered(p < 0.05, cell.de))
        known = cell.de & np.isfinite(beta) & (np.abs(beta) < LARGE)
        error = np.where(known, np.sign(truth) * (beta - truth), 0.0)
        _put(row, "bias", ratio(error.sum(axis=1), known.sum(axis=1)))
        squares = np.where(known, truth**2, 0.0).sum(axis=1)
        _put(row, "slope", ratio(np.where(known, beta * truth, 0.0).sum(axis=1), squares))
    _put(row, "coverage", coverage(cell, fields, cell.truth["kept"]))
    row["seconds"] = float(np.median(fields["seconds"]))
    return row


def coverage(cell: Cell, fields: dict[str, np.ndarray], among: np.ndarray) -> tuple[float, float]:
    """Share of 95% intervals that hold the true log fold change."""
    p, se, df = fields["p"], fields["se"].astype(float), fields["df"].astype(float)
    known = among & np.isfinite(p) & np.isfinite(se) & (df > 0)
    quantile = np.full(df.shape, np.nan)
    quantile[known] = stats.t.ppf(0.975, np.minimum(df[known], 1e9))  # a t of 1e9 degrees of freedom is a z
    with np.errstate(invalid="ignore"):
        covered = np.abs(fields["beta"] - cell.truth["beta"]) <= quantile * se
    return clustered(covered, known)


def size_adjusted(cell: Cell, seed: int = 0) -> pd.DataFrame:
    """Power at each method's own null 5% quantile, and at the threshold where the observed FDR is 5%.

    Genes that a method does not test count as not found. Differences to `methods.REFERENCE` are paired: the same data
    sets are drawn for both.
    """
    if not cell.de.any():
        return pd.DataFrame()
    rng = np.random.default_rng(seed)
    draws = np.vstack([np.ones(cell.n), rng.multinomial(cell.n, np.full(cell.n, 1 / cell.n), N_BOOT)])
    power = {name: _powers(cell, fields["p"], draws) for name, fields in cell.methods.items()}
    rows = []
    for name, values in power.items():
        row = {"method": name}
        for k, kind in enumerate(("size_adjusted", "at_fdr")):
            row[kind], row[f"{kind}_se"] = values[k, 0], values[k, 1:].std(ddof=1)
            if REFERENCE in power and name != REFERENCE:
                difference = values[k] - power[REFERENCE][k]
                row[f"{kind}_gain"] = difference[0]
                row[f"{kind}_gain_low"], row[f"{kind}_gain_high"] = np.quantile(difference[1:], [0.025, 0.975])
        rows.append(row)
    return pd.DataFrame(rows)


def _powers(cell: Cell, p: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """(2, draws): size-adjusted power, and power at observed FDR 5%, for weights of the data sets."""
    p = np.where(np.isfinite(p), p, 1.0)
    dataset = np.broadcast_to(np.arange(cell.n)[:, None], p.shape)
    null, de = _sorted(p, cell.null, dataset), _sorted(p, cell.de, dataset)
    either = _sorted(p, cell.null | cell.de, dataset)
    false = cell.null[cell.null | cell.de][either[2]]
    result = np.empty((2, draws.shape[0]))
    for b, weight in enumerate(draws):
        w_null, w_de, w_all = weight[null[1]], weight[de[1]], weight[either[1]]
        below = np.cumsum(w_null)
        threshold = _last(null[0], below <= 0.05 * below[-1])
        result[0, b] = w_de[de[0] <= threshold].sum() / w_de.sum()
        discoveries = np.cumsum(w_all)
        threshold = _last(either[0], np.cumsum(w_all * false) <= 0.05 * discoveries)
        result[1, b] = w_de[de[0] <= threshold].sum() / w_de.sum()
    return result


def _sorted(p: np.ndarray, among: np.ndarray, dataset: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    order = np.argsort(p[among], kind="stable")
    return p[among][order], dataset[among][order], order


def _last(values: np.ndarray, holds: np.ndarray) -> float:
    at = np.flatnonzero(holds)
    return values[at[-1]] if at.size else -1.0


def by_variance(cell: Cell, n_bins: int = 10) -> pd.DataFrame:
    """Type I error at 5% by decile of the true variance that carries the contrast."""
    variance = cell.truth["variance"]
    if not np.isfinite(variance).all():
        return pd.DataFrame()
    null = cell.null
    rank = np.full(null.shape, -1)
    order = np.argsort(np.argsort(variance[null], kind="stable"), kind="stable")
    rank[null] = order * n_bins // max(1, null.sum())
    rows = []
    for name, fields in cell.methods.items():
        for b in range(n_bins):
            inside = null & (rank == b) & np.isfinite(fields["p"])
            row = {"method": name, "decile": b + 1, "sd": float(np.sqrt(variance[rank == b].mean()))}
            _put(row, "type1_0.05", clustered(fields["p"] < 0.05, inside))
            rows.append(row)
    return pd.DataFrame(rows)


def by_mean(cell: Cell) -> pd.DataFrame:
    """Type I error, power at p < 5% and coverage by mean count per cell."""
    rows = []
    for name, fields in cell.methods.items():
        for low, high in pairwise(MEAN_BINS):
            inside = (cell.truth["mean"] >= low) & (cell.truth["mean"] < high)
            if not inside.any():
                continue
            row = {"method": name, "mean": f"{low:g} to {high:g}"}
            for level in LEVELS[:2]:
                of = cell.null & inside & np.isfinite(fields["p"])
                _put(row, f"type1_{level:g}", clustered(fields["p"] < level, of))
            _put(row, "power_0.05", clustered(fields["p"] < 0.05, cell.de & inside))
            _put(row, "coverage", coverage(cell, fields, cell.truth["kept"] & inside))
            rows.append(row)
    return pd.DataFrame(rows)


def by_fit(cell: Cell) -> pd.DataFrame:
    """Type I error of singular and interior fits apart, as judged by REML without moderation and by the method."""
    rows = []
    reml = cell.methods.get("reml")
    for name, fields in cell.methods.items():
        kinds = {"reml": reml, "own": fields if np.isfinite(fields["variance"]).any() else None}
        for whose, judge in kinds.items():
            if judge is None:
                continue
            for fit, inside in (("singular", judge["variance"] == 0), ("interior", judge["variance"] > 0)):
                of = cell.null & inside & np.isfinite(fields["p"])
                row = {"method": name, "judged_by": whose, "fit": fit, "share": of.sum() / max(1, cell.null.sum())}
                for level in LEVELS:
                    _put(row, f"type1_{level:g}", clustered(fields["p"] < level, of))
                rows.append(row)
    return pd.DataFrame(rows)


def by_dataset(cell: Cell) -> pd.DataFrame:
    """Shares of p < 5% and 1%, and of singular fits, of each data set."""
    rows = []
    for name, fields in cell.methods.items():
        p = np.where(cell.null, fields["p"], np.nan)
        n = np.isfinite(p).sum(axis=1)
        for d in range(cell.n):
            row = {"method": name, "dataset": d, "tested": n[d]}
            row |= {f"type1_{level:g}": (p[d] < level).sum() / max(1, n[d]) for level in LEVELS}
            variance = fields["variance"][d]
            row["singular"] = np.mean(variance[np.isfinite(variance)] == 0) if np.isfinite(variance).any() else np.nan
            rows.append(row)
    return pd.DataFrame(rows)


def _put(row: dict, name: str, value: tuple[float, float]) -> None:
    row[name], row[f"{name}_se"] = value


def _mean(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(values.size)) if values.size > 1 else np.nan


def _benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    adjusted = np.full(p.shape, np.nan)
    for d in range(p.shape[0]):
        tested = np.isfinite(p[d])
        if tested.any():
            adjusted[d, tested] = stats.false_discovery_control(p[d, tested], method="bh")
    return adjusted
