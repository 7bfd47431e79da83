"""Tables of a run: CSV with everything, Markdown to be read, the criteria and whether they hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from . import metrics
from .methods import ORDER
from .picture import draw
from .realdata import RealNull
from .store import Store

PIVOTS = (
    ("type1_0.05", "Type I error at 5%, in percent"),
    ("type1_0.01", "Type I error at 1%, in percent"),
    ("type1_0.001", "Type I error at 0.1%, in percent"),
    ("fdr", "Observed false discovery rate at BH 5%, in percent"),
    ("power_bh", "Power at BH 5%, in percent"),
    ("size_adjusted", "Power at the method's own null 5% quantile, in percent"),
    ("at_fdr", "Power where the observed false discovery rate is 5%, in percent"),
    ("coverage", "Coverage of 95% intervals, in percent"),
    ("slope", "Slope of the estimated on the true log fold change, in percent"),
)
IDENTITY = ["panel", "scenario", "design"]


def write_report(scenarios: list, out: Path, folder: Path) -> None:
    """Write tables and figure of the results in `out` to `folder`."""
    tables: dict[str, list[pd.DataFrame]] = {}
    for scenario in scenarios:
        cell = metrics.load(Store(out, scenario))
        if cell is None:
            continue
        whole = metrics.summary(cell)
        adjusted = metrics.size_adjusted(cell)
        if not adjusted.empty:
            whole = whole.merge(adjusted, on="method")
        found = {"summary": whole, "by_variance": metrics.by_variance(cell), "by_fit": metrics.by_fit(cell)}
        if isinstance(scenario, RealNull):
            # All splits are of the same cells: their spread is not the error of their mean.
            found = {name: table.assign(**_without_errors(table)) for name, table in found.items()}
            found["splits"] = metrics.by_dataset(cell)
        else:
            found["by_mean"] = metrics.by_mean(cell)
        for name, table in found.items():
            if not table.empty:
                identity = dict(zip(IDENTITY, (scenario.panel, scenario.name, scenario.label), strict=True))
                tables.setdefault(name, []).append(table.assign(**identity)[[*IDENTITY, *table.columns]])
    if not tables:
        print("no results yet: no tables")
        return
    folder.mkdir(parents=True, exist_ok=True)
    joined = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    joined["criteria"] = criteria(joined)
    for name, table in joined.items():
        table.to_csv(folder / f"{name}.csv", index=False, float_format="%.5g")
    (folder / "tables.md").write_text(markdown(joined))
    draw(joined["summary"], folder / "type1.png")
    print(f"tables and figure in {folder}")


def _without_errors(table: pd.DataFrame) -> dict[str, float]:
    return {column: np.nan for column in table if column.endswith("_se")}


def criteria(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Check what the tests promise, cell by cell of the design."""
    rows: list[dict] = []
    summary = tables["summary"]
    for _, row in summary[summary["method"].isin(["moderated", "reml"])].iterrows():
        moderated = row["method"] == "moderated"
        simulated = not row["panel"].startswith("real")
        well_specified = simulated and not row["panel"].startswith("misspecified")
        if moderated and well_specified:
            _check(rows, row, "type1_0.05", *((0.035, 0.065) if row["design"].startswith("3") else (0.04, 0.06)))
            _check(rows, row, "type1_0.01", 0.006, 0.015)
            _check(rows, row, "type1_0.001", 0.0, 0.002)
        elif moderated and simulated:
            _check(rows, row, "type1_0.05", 0.0, 0.075)
        elif not simulated:
            _check(rows, row, "type1_0.05", 0.03 if moderated else 0.0, 0.07)
        else:
            _check(rows, row, "type1_0.05", 0.0, 0.065 if well_specified else 0.075)
        if well_specified:
            _check(rows, row, "coverage", 0.93, 0.97 if moderated else 1.0)
        if moderated and np.isfinite(row.get("size_adjusted_gain", np.nan)):
            low, high = row["size_adjusted_gain_low"], row["size_adjusted_gain_high"]
            least = 0.0 if row["panel"].startswith("within") else -0.01
            _add(rows, row, "size_adjusted_gain", row["size_adjusted_gain"], low, high, least, np.inf)
        if moderated:
            plain = summary[(summary["scenario"] == row["scenario"]) & (summary["method"] == "reml")]
            if len(plain):
                cost = row["seconds"] / plain["seconds"].iloc[0]
                _add(rows, row, "seconds, over reml", cost, cost, cost, 0.0, 2.0)
    deciles = tables.get("by_variance", pd.DataFrame(columns=["method", "decile", *IDENTITY]))
    top = deciles[(deciles["method"] == "moderated") & (deciles["decile"] == 10)]
    for _, row in top[~top["panel"].str.startswith("misspecified")].iterrows():
        _check(rows, row, "type1_0.05", 0.0, 0.10, name="type1_0.05, top decile of variance")
    return pd.DataFrame(rows)


def _check(rows: list[dict], row: pd.Series, column: str, lower: float, upper: float, name: str | None = None) -> None:
    value, se = row[column], np.nan_to_num(row[f"{column}_se"])
    if np.isfinite(value):
        _add(rows, row, name or column, value, value - 1.96 * se, value + 1.96 * se, lower, upper)


def _add(
    rows: list[dict], row: pd.Series, name: str, value: float, low: float, high: float, lower: float, upper: float
) -> None:
    holds = "yes" if lower <= value <= upper else "within error" if high >= lower and low <= upper else "no"
    rows.append(
        {column: row[column] for column in IDENTITY}
        | {"method": row["method"], "criterion": name, "value": value, "low": low, "high": high}
        | {"from": lower, "to": upper, "holds": holds}
    )


def markdown(tables: dict[str, pd.DataFrame]) -> str:
    """Tables as text: a row per scenario, a column per method, Monte-Carlo standard errors in parentheses."""
    summary = tables["summary"]
    parts = ["# Calibration: tables\n", _counts(summary)]
    for column, title in PIVOTS:
        if column in summary and summary[column].notna().any():
            parts += [f"## {title}\n", _pivot(summary, column)]
    if "size_adjusted_gain" in summary:
        parts += [
            "## Size-adjusted power minus that of edgeR-QL, in points, with paired 95% intervals\n",
            _gains(summary),
        ]
    seconds = _pivot(summary, "seconds", lambda value, _: f"{value:.2f}")
    parts += ["## Seconds of processor time per data set, median\n", seconds]
    if "by_variance" in tables:
        parts += ["## Type I error at 5% by decile of the true variance, in percent\n", _deciles(tables["by_variance"])]
    if "by_fit" in tables and (tables["by_fit"]["judged_by"] == "reml").any():
        parts += [
            "## Type I error at 5% of singular and interior fits (by REML), in percent\n",
            _fits(tables["by_fit"]),
        ]
    if "splits" in tables:
        parts += ["## Real cells: share of p < 5% in every split, in percent\n", _splits(tables["splits"])]
    failing = tables["criteria"]
    if len(failing):
        failing = failing[failing["holds"] != "yes"]
        parts += ["## Criteria that do not hold\n", _failing(failing) if len(failing) else "All hold.\n"]
    return "\n".join(parts)


def table(header: list[str], rows: list[list[str]]) -> str:
    """Write a Markdown table, numbers to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def percent(value: float, se: float = np.nan) -> str:
    """5.1 (0.2); nothing where there is no value."""
    if not np.isfinite(value):
        return ""
    digits = 2 if value < 0.02 else 1
    error = f" ({100 * se:.{digits}f})" if np.isfinite(se) else ""
    return f"{100 * value:.{digits}f}{error}"


def _order(names) -> list[str]:
    return sorted(set(names), key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


def _counts(summary: pd.DataFrame) -> str:
    n = summary.groupby("scenario", sort=False)[["datasets", "null_genes"]].min()
    low, high = n.min(), n.max()
    return (
        f"{len(n)} scenarios, {low['datasets']} to {high['datasets']} data sets and {low['null_genes']:,} to "
        f"{high['null_genes']:,} null genes in each. Standard errors, clustered by data set, in parentheses.\n"
    )


def _pivot(summary: pd.DataFrame, column: str, form: Callable[[float, float], str] = percent) -> str:
    methods = [m for m in _order(summary["method"]) if summary.loc[summary["method"] == m, column].notna().any()]
    rows = []
    for scenario, group in summary.groupby("scenario", sort=False):
        group = group.set_index("method")
        errors = group.get(f"{column}_se", pd.Series(np.nan, group.index))
        cells = [form(group[column][m], errors[m]) if m in group.index else "" for m in methods]
        if any(cells):
            rows.append([str(scenario), *cells])
    return table(["scenario", *methods], rows)


def _gains(summary: pd.DataFrame) -> str:
    def form(row: pd.Series) -> str:
        value, low, high = 100 * row[["size_adjusted_gain", "size_adjusted_gain_low", "size_adjusted_gain_high"]]
        return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"

    known = summary[summary["size_adjusted_gain"].notna()]
    methods = _order(known["method"])
    rows = []
    for scenario, group in known.groupby("scenario", sort=False):
        group = group.set_index("method")
        rows.append([str(scenario), *(form(group.loc[m]) if m in group.index else "" for m in methods)])
    return table(["scenario", *methods], rows)


def _deciles(deciles: pd.DataFrame) -> str:
    rows = []
    for (scenario, method), group in deciles.groupby(["scenario", "method"], sort=False):
        if method in ("reml", "moderated", "edgeR-QL", "PyDESeq2"):
            rows.append([str(scenario), str(method), *(percent(v) for v in group["type1_0.05"])])
    return table(["scenario", "method", *(str(b) for b in range(1, 11))], rows)


def _fits(fits: pd.DataFrame) -> str:
    rows = []
    by_reml = fits[fits["judged_by"] == "reml"]
    for (scenario, method), group in by_reml.groupby(["scenario", "method"], sort=False):
        group = group.set_index("fit")
        cells = [percent(group["type1_0.05"][f], group["type1_0.05_se"][f]) for f in ("singular", "interior")]
        rows.append([str(scenario), str(method), percent(group["share"]["singular"]), *cells])
    return table(["scenario", "method", "share singular", "singular", "interior"], rows)


def _splits(splits: pd.DataFrame) -> str:
    methods = _order(splits["method"])
    wide = splits.pivot_table(index="dataset", columns="method", values="type1_0.05")
    singular = splits[splits["method"] == "reml"].set_index("dataset")["singular"]
    rows = [[str(d + 1), percent(singular.get(d, np.nan)), *(percent(wide[m][d]) for m in methods)] for d in wide.index]
    means = [percent(wide[m].mean()) for m in methods]
    rows.append(["mean", percent(singular.mean() if len(singular) else np.nan), *means])
    return table(["split", "singular (REML)", *methods], rows)


def _failing(failing: pd.DataFrame) -> str:
    def limit(value: float) -> str:
        return f"{value:g}" if np.isfinite(value) else "any"

    rows = [
        [
            r["scenario"],
            r["method"],
            r["criterion"],
            f"{r['value']:.4g} ({r['low']:.4g} to {r['high']:.4g})",
            f"{limit(r['from'])} to {limit(r['to'])}",
            r["holds"],
        ]
        for _, r in failing.iterrows()
    ]
    return table(["scenario", "method", "criterion", "value (95% interval)", "wanted", "holds"], rows)
