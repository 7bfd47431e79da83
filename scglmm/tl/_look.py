"""One group of cells of a result: what its genes' counts and fits say, and fits without single cells and donors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed

from scglmm.formula import Design, build_design, parse_inflation
from scglmm.formula.columns import in_memory
from scglmm.inference.genes import GENES_PER_TASK, Options
from scglmm.inference.leave_out import Estimates, Study, join
from scglmm.inference.one_step import OneStep
from scglmm.inference.tasks import one_blas_thread
from scglmm.inference.wald import two_sided
from scglmm.results.diagnosed import JOINED, PER_COEFFICIENT, REASONS, diagnosed_column
from scglmm.results.read import StoredResult
from scglmm.results.table import NOT_SELECTED

from ._cells import Cells, columns_of, fitted_cells, largest
from ._prepare import singularity
from ._table import TOO_FEW_COUNTS

if TYPE_CHECKING:
    from anndata import AnnData

GONE = 0.5  # an effect is driven by what takes more than this share of it away
TRIED = 3  # cells, and donors, that are left out of a fit at most, for each effect
WORTH = 0.2  # share of the effect that one has to take away, to first order, to be left out besides the first
HUGE_EFFECT = 10.0  # natural log, over the range of a covariate
HUGE_VARIANCE = 9.0
TINY_THETA = 0.01
AGREE = 0.01  # log-likelihoods that differ by more are not those of the same data


class Look:
    """One group of cells: its genes, and those that are fitted again."""

    def __init__(
        self,
        adata: AnnData,
        result: StoredResult,
        entry: Mapping[str, Any],
        group: str | None,
        coefficients: Sequence[str],
        mask: np.ndarray | None,
        alpha: float,
    ) -> None:
        self.adata, self.result, self.group, self.alpha = adata, result, group, float(alpha)
        self.cells = fitted_cells(adata, result, group)
        self.entry = entry
        have = result.coefficients_in(group)
        self.coefficients = [name for name in coefficients if name in have]
        # the design spells names as the formula does, the result as they can be stored; their order is the same
        self.places = [have.index(name) for name in self.coefficients]
        self.fit = result.table("fit", group)
        self.status = self.fit["status"].astype(str).to_numpy(object)
        self.inflation, self.cells = _with_inflation(adata, self.cells, entry)
        _check_cells(self.cells, have, entry, result, group)
        self.present = ~np.isin(self.status, [TOO_FEW_COUNTS, NOT_SELECTED]) & (self.cells.source.columns >= 0)
        estimated = self.present & np.isfinite(result.table("se", group)[self.coefficients].to_numpy(float)).any(axis=1)
        if mask is None:
            padj = result.table("padj", group)[self.coefficients].to_numpy(float)
            self.wanted = estimated[:, None] & (padj < self.alpha)
        else:
            known = np.isfinite(result.table("se", group)[self.coefficients].to_numpy(float))
            self.wanted = (estimated & mask)[:, None] & known
        self.positions = np.flatnonzero(self.wanted.any(axis=1))
        random = self.cells.design.random
        self.grouping = random[0].group if random else ""
        self.levels = np.asarray(random[0].levels if random else [], dtype=object)
        self.codes = random[0].codes if random else np.zeros(self.cells.rows.size, np.int64)
        self.reasons = np.full(adata.n_vars, "", dtype=object)

    @property
    def n_genes(self) -> int:
        """Genes that are fitted again."""
        return self.positions.size

    def columns(self, n_jobs: int, progress: Any) -> dict[str, Any]:
        """Build the columns of the table."""
        reasons: list[list[str]] = [[] for _ in self.status]
        per_gene = self._sums(reasons)
        per_effect = self._effects(n_jobs, progress, reasons)
        order = {reason: place for place, reason in enumerate(REASONS)}
        joined = [JOINED.join(sorted(set(found), key=order.__getitem__)) for found in reasons]
        self.reasons = np.array(joined, dtype=object)
        columns = {diagnosed_column(self.group, None, "reasons"): pd.Categorical(joined)}
        columns |= {diagnosed_column(self.group, None, name): values for name, values in per_gene.items()}
        return columns | per_effect

    # ------------------------------------------------------------------------------------------------ sums

    def _sums(self, reasons: list[list[str]]) -> dict[str, Any]:
        """Look at all genes: their counts, and what is stored of their fits."""
        cell, cell_count, donor, donor_count, total = largest(
            self.cells.source.matrix, self.cells.rows, self.codes, max(1, self.levels.size)
        )
        n = self.status.size
        shares: dict[str, Any] = {}
        for name, names, at, count in (
            ("cell", self.adata.obs_names.to_numpy(object)[self.cells.rows], cell, cell_count),
            ("donor", self.levels, donor, donor_count),
        ):
            share, who = np.full(n, np.nan), np.full(n, "", dtype=object)
            there = self.present.copy()
            columns = self.cells.source.columns[there]
            there[there] = total[columns] > 0
            columns = self.cells.source.columns[there]
            if names.size:
                share[there] = count[columns] / total[columns]
                who[there] = [str(v) for v in names[at[columns]]]
            shares |= {name: pd.Categorical(who), f"{name}_share": share}
        theta = self.fit["theta"].to_numpy(float)
        variances = self.fit[[c for c in self.fit if c.startswith("var[")]].to_numpy(float)
        # over the range of its column an effect is a ratio of two means
        spread = np.ptp(self.cells.design.X, axis=0)[self.places]
        coef = self.result.table("coef", self.group)[self.coefficients].to_numpy(float)
        found = {
            "counts_in_one_donor": (shares["donor_share"] == 1) & (self.levels.size > 1),
            "counts_in_one_cell": shares["cell_share"] > GONE,
            "separated": self.status == "separated",
            "not_converged": self.status == "not_converged",
            "huge_effect": (np.abs(coef) * spread > HUGE_EFFECT).any(axis=1),
            "huge_variance": (variances > HUGE_VARIANCE).any(axis=1),
            "tiny_theta": theta < TINY_THETA,
        }
        for reason, where in found.items():
            for gene in np.flatnonzero(where & self.present):
                reasons[gene].append(reason)
        return shares

    # ------------------------------------------------------------------------------------------------ effects

    def _effects(self, n_jobs: int, progress: Any, reasons: list[list[str]]) -> dict[str, Any]:
        """Look at effects with cells and donors left out."""
        n, k = self.wanted.shape
        numbers = {name: np.full((n, k), np.nan) for name in PER_COEFFICIENT if "effect" in name or "pval" in name}
        flags = {name: np.zeros((n, k), bool) for name in ("one_cell", "one_donor")}
        names = {name: np.full((n, k), "", dtype=object) for name in ("cell", "donor")}
        if self.positions.size:
            self._look_again(numbers, flags, names, n_jobs, progress)
        for flag, where in flags.items():
            for gene in np.flatnonzero(where.any(axis=1)):
                reasons[gene].append(flag)
        columns = {}
        for j, coef in enumerate(self.coefficients):
            for name in PER_COEFFICIENT:
                values = names[name][:, j] if name in names else (flags.get(name, numbers.get(name)))[:, j]
                columns[diagnosed_column(self.group, coef, name)] = pd.Categorical(values) if name in names else values
        return columns

    def _look_again(
        self,
        numbers: dict[str, np.ndarray],
        flags: dict[str, np.ndarray],
        names: dict[str, np.ndarray],
        n_jobs: int,
        progress: Any,
    ) -> None:
        study = self._study()
        genes = np.arange(self.positions.size)
        n_levels = max(1, self.levels.size)
        tasks = np.array_split(genes, -(-genes.size // GENES_PER_TASK))
        with one_blas_thread(), Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator") as parallel:
            base = join(list(parallel(delayed(study.fit)(some) for some in tasks)))
            self._check_same(base)
            one_step = OneStep(study)
            wanted = [np.array(self.places)[self.wanted[position]] for position in self.positions]
            found = list(
                parallel(
                    delayed(_candidates_of)(one_step, gene, base.of(gene), wanted[gene], self.codes, n_levels)
                    for gene in genes.tolist()
                )
            )
            # a donor that is left out for several genes is left out once
            levels = sorted({level for _, donors in found for level in donors}) if self.levels.size else []
            those = [np.array([gene for gene in genes if level in found[gene][1]]) for level in levels]
            results = parallel(
                delayed(study.fit)(some, self.codes != level) for some, level in zip(those, levels, strict=True)
            )
            without_donor: list[list[tuple[str, Estimates]]] = [[] for _ in genes]
            for some, level, result in zip(those, levels, results, strict=True):
                for i, gene in enumerate(some):
                    without_donor[gene].append((str(self.levels[level]), result.of(i)))
            cell_names = self.adata.obs_names.to_numpy(object)[self.cells.rows]
            results = parallel(delayed(_without_cells)(study, gene, found[gene][0]) for gene in genes)
            pval = two_sided(base.beta / base.se, base.df)
            numbers["effect"][self.positions] = base.beta[:, self.places]
            numbers["pval"][self.positions] = pval[:, self.places]
            for gene, without in zip(genes.tolist(), results, strict=True):
                without_cell = [(str(cell_names[cell]), one) for cell, one in without]
                for what, tried in (("cell", without_cell), ("donor", without_donor[gene])):
                    self._keep_worst(what, gene, base.of(gene), tried, numbers, flags, names)
                progress(1)

    def _keep_worst(
        self,
        what: str,
        gene: int,
        base: Estimates,
        tried: Sequence[tuple[str, Estimates]],
        numbers: dict[str, np.ndarray],
        flags: dict[str, np.ndarray],
        names: dict[str, np.ndarray],
    ) -> None:
        """Write down for every effect without which cell or donor least of it is left."""
        position = self.positions[gene]
        for j in np.flatnonzero(self.wanted[position]):
            place = self.places[j]
            worst = _worst(base, tried, place)
            if worst is None:
                continue
            name, effect, p, statistic = worst
            names[what][position, j] = name
            numbers[f"effect_without_{what}"][position, j] = effect
            numbers[f"pval_without_{what}"][position, j] = p
            flags[f"one_{what}"][position, j] = self._drives(
                base.beta[place], numbers["pval"][position, j], base.se[place], effect, p, statistic
            )

    def _drives(self, effect: float, pval: float, se: float, without: float, p: float, statistic: float) -> bool:
        """Whether what is left shows that what was left out drives the effect."""
        if np.isnan(without):
            return True
        if abs(effect - without) < se:  # an effect of nearly nothing is easily gone
            return False
        if without * np.sign(effect) < (1 - GONE) * abs(effect):
            return True
        return bool(pval <= self.alpha < p and abs(statistic) < GONE * abs(effect / se))

    def _study(self) -> Study:
        cells, entry = self.cells, self.entry
        family = str(entry.get("family", "nbinom2"))
        return Study(
            design=cells.design,
            inflation=self.inflation,
            offset=cells.offset,
            counts=columns_of(cells, self.positions),
            options=Options(method=cells.method, null=False, family=family, n_quad=int(entry.get("n_quad", 1))),
            singularity=singularity(family, self.inflation is not None),
        )

    def _check_same(self, base: Estimates) -> None:
        """Check that the fits are those of the result."""
        stored = self.fit["loglik"].to_numpy(float)[self.positions]
        off = np.abs(base.loglik - stored)
        known = np.isfinite(stored)
        if not base.known or not (off[known] <= AGREE + 1e-6 * np.abs(stored[known])).all():
            msg = (
                f"The cells or counts are not those that the result {self.result.key!r} was fitted to (they, a column "
                "of obs, or the genes behind total counts changed): run `scglmm.tl.nbmm` again."
            )
            raise ValueError(msg)


def _candidates_of(
    one_step: OneStep, gene: int, base: Estimates, wanted: np.ndarray, codes: np.ndarray, n_levels: int
) -> tuple[list[int], list[int]]:
    """Cells and donors to leave out of the fit of a gene."""
    moves = one_step.moves(gene)
    y = one_step.study.counts[:, [gene]].toarray().ravel()
    towards, size = -np.sign(base.beta[wanted]), np.abs(base.beta[wanted])
    cells = _candidates(None if moves is None else moves.cells[:, wanted] * towards, size, y)
    by_donor = np.bincount(codes, y, n_levels)
    return cells, _candidates(None if moves is None else moves.donors[:, wanted] * towards, size, by_donor)


def _without_cells(study: Study, gene: int, cells: Sequence[int]) -> list[tuple[int, Estimates]]:
    """Fit a gene without each of some cells."""
    found = []
    for cell in cells:
        kept = np.ones(study.offset.size, bool)
        kept[cell] = False
        found.append((cell, study.fit(np.array([gene]), kept).of(0)))
    return found


def _candidates(towards: np.ndarray | None, size: np.ndarray, counts: np.ndarray) -> list[int]:
    """Cells or donors to leave out: the one with the most counts, and those that take the most of an effect away."""
    found = [int(np.argmax(counts))] if counts.size else []
    if towards is None or not towards.size:
        return found
    for column, whole in zip(towards.T, size, strict=True):
        first = np.argsort(-column, kind="stable")[:TRIED]
        found += [int(i) for rank, i in enumerate(first) if rank == 0 or column[i] > WORTH * whole]
    return list(dict.fromkeys(found))


def _worst(
    base: Estimates, tried: Sequence[tuple[str, Estimates]], place: int
) -> tuple[str, float, float, float] | None:
    """Name, effect, p-value and statistic of that without which least of the effect is left."""
    sign, worst, least = np.sign(base.beta[place]), None, np.inf
    for name, found in tried:
        effect = found.beta[place]
        if np.isnan(effect) and not found.known and not found.lost[place]:
            continue  # too few donors are left for any gene: it says nothing about this one
        left = -np.inf if np.isnan(effect) else effect * sign
        if worst is None or left < least:
            statistic = effect / found.se[place]
            p = float(two_sided(np.array([statistic]), np.array([found.df[place]]))[0])
            worst, least = (name, float(effect), p, float(statistic)), left
    return worst


def _with_inflation(adata: AnnData, cells: Cells, entry: Mapping[str, Any]) -> tuple[Design | None, Cells]:
    """Code the zero inflation on the cells; those that it cannot use are no cells of the result."""
    zi = parse_inflation(None if entry.get("ziformula") is None else str(entry["ziformula"]))
    if zi is None:
        return None, cells
    design = build_design(zi, in_memory(adata.obs).iloc[cells.rows], na_action="drop")
    if design.kept.all():
        return design, cells
    rows = cells.rows[design.kept]
    main = build_design(cells.design.formula, in_memory(adata.obs).iloc[rows])
    return design, replace(cells, rows=rows, design=main, offset=cells.offset[design.kept])


def _check_cells(
    cells: Cells, have: Sequence[str], entry: Mapping[str, Any], result: StoredResult, group: str | None
) -> None:
    """Check that the cells are as many, and the coefficients those, of the result."""
    n = int(entry["n_cells"] if group is None else entry["groups"]["n_cells"][group])
    if cells.rows.size != n or len(cells.design.columns) != len(have):
        msg = (
            f"`adata` has {cells.rows.size} cells for the formula {str(entry['formula'])!r}, but the result "
            f"{result.key!r} was fitted to {n}, with the coefficients {', '.join(have)}: run `scglmm.tl.nbmm` again."
        )
        raise ValueError(msg)
