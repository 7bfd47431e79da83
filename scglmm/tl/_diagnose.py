"""Suspicious genes, and why: what a look at the numbers behind every significant result would find."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from joblib import Parallel, delayed
from scanpy import logging as logg
from scipy import sparse

from scglmm.compression.chunks import chunks
from scglmm.formula import Design, build_design, parse_inflation
from scglmm.inference.genes import GENES_PER_TASK, Options
from scglmm.inference.leave_out import Estimates, Study, join
from scglmm.inference.one_step import OneStep
from scglmm.inference.wald import two_sided
from scglmm.results.diagnosed import JOINED, PER_COEFFICIENT, REASONS, diagnosed_column
from scglmm.results.read import StoredResult, read_result
from scglmm.results.table import NOT_SELECTED
from scglmm.results.writable import strings
from scglmm.results.write import assign, check_target

from ._cells import Cells, fitted_cells
from ._options import selected_genes
from ._prepare import singularity
from ._table import TOO_FEW_COUNTS
from ._workers import effective_jobs, progress_bar

if TYPE_CHECKING:
    from anndata import AnnData

GONE = 0.5  # an effect is driven by what takes more than this share of it away
TRIED = 3  # cells, and donors, that are left out of a fit at most, for each effect
WORTH = 0.2  # share of the effect that one has to take away, to first order, to be left out besides the first
HUGE_EFFECT = 10.0  # natural log, over the range of a covariate
HUGE_VARIANCE = 9.0
TINY_THETA = 0.01
ROWS = 50_000  # that are looked at at once
AGREE = 0.01  # log-likelihoods that differ by more are not those of the same data


def diagnose(
    adata: AnnData,
    *,
    key: str = "nbmm",
    coef: str | Sequence[str] | None = None,
    mask_var: np.ndarray | Sequence[bool] | str | None = None,
    alpha: float = 0.05,
    n_jobs: int | None = None,
    copy: bool = False,
) -> AnnData | None:
    """Find suspicious genes, and say why: one cell or one donor drives the effect, all counts are in one donor, ...

    Sums of the counts and what is stored of the fits are looked at for every gene. Effects that are significant are
    estimated again without single cells and without single donors (levels of the first grouping factor): those that
    would move it most to first order (Pregibon 1981, doi 10.1214/aos/1176345513) or have the most counts. One that
    takes more than half of the effect away, turns its sign, leaves nothing to estimate it from, or takes the p-value
    from below to above `alpha` with more than half of the statistic, *drives* the effect.

    A gene that is listed is not wrong: it is worth a look (:func:`scglmm.pl.donors`) before it is believed.

    Parameters
    ----------
    adata
        With a result of :func:`scglmm.tl.nbmm`, and the counts that it was fitted to.
    key
        Name of the result.
    coef
        One coefficient or several; by default all but the intercept.
    mask_var
        Genes whose effects are estimated again, significant or not: a boolean array over `adata.var_names` or the name
        of a boolean column of `adata.var`. By default those that are significant.
    alpha
        Adjusted p-value below which an effect is significant.
    n_jobs
        Workers; `scanpy.settings.n_jobs` by default.
    copy
        Return a copy with the results instead of writing to `adata`.

    Returns
    -------
    None, or the copy. Written, nothing of it unless the whole call succeeded:

    ``adata.varm["nbmm_diagnose"]``
        DataFrame, one row per gene. `reasons` (empty for most genes): `one_cell`, `one_donor`, `counts_in_one_donor`,
        `counts_in_one_cell` (more than half of them), `separated`, `not_converged`, `huge_effect` (above 10, natural
        log, over the range of the covariate), `huge_variance` (of random effects, above 9), `tiny_theta` (below 0.01).
        The `cell` and `donor` with the most counts of the gene, and their shares (`cell_share`, `donor_share`). For
        each coefficient ``{coef}|effect`` (natural log), ``|pval``, ``|cell``, ``|effect_without_cell``,
        ``|pval_without_cell``, ``|one_cell``, and the same for the donor.
        :func:`scglmm.get.diagnose_df` makes it a list of genes and reasons.
    ``adata.uns["nbmm"]["diagnose"]``
        `alpha`, the coefficients, the grouping factor whose levels were left out, the number of genes estimated again.

    Effects and p-values are those of each gene's own fit, also where the result is moderated.

    Raises
    ------
    KeyError
        No such result or coefficient, or columns or counts that the model needs are gone.
    ValueError
        The cells or counts are not those of the result, or `alpha` is no probability.

    Notes
    -----
    An effect that is the same without every single cell and donor may still rest on two of them. With few donors every
    one of them matters: an effect between 3 and 3 donors that loses half of its size without one is no surprise.

    Examples
    --------
    >>> import scglmm
    >>> adata = scglmm.datasets.psychad()[:, :20].copy()
    >>> scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + (1|SubID)")
    >>> scglmm.tl.diagnose(adata)
    >>> list(scglmm.get.diagnose_df(adata).columns[:3])
    ['gene', 'reason', 'coef']
    """
    check_target(adata, key, "key")
    result = read_result(adata, key)
    entry = _check(adata, result, alpha, n_jobs, copy)
    coefficients = _coefficients(result, coef)
    mask = None if mask_var is None else selected_genes(adata, mask_var)
    looks = [_Look(adata, result, entry, group, coefficients, mask, alpha) for group in result.fitted_groups]
    if copy:
        adata = adata.copy()
        entry = adata.uns[result.key]
    total = sum(look.n_genes for look in looks)
    start = logg.info(f"looking at {total} genes with cells and donors left out")
    columns: dict[str, Any] = {}
    with progress_bar(total) as bar:
        for look in looks:
            columns |= look.columns(effective_jobs(n_jobs), bar.update)
    table = f"{result.key}_diagnose"
    entry = dict(entry)
    entry["diagnose"] = {
        "alpha": float(alpha),
        "coefficients": strings(coefficients),
        "grouping": looks[0].grouping,
        "n_genes": total,
    }
    # so that the next run of the result removes it
    entry["varm_keys"] = strings(dict.fromkeys([*np.atleast_1d(entry["varm_keys"]), table]))
    new = pd.DataFrame(columns, index=adata.var_names.copy())
    found = np.unique(np.concatenate([np.flatnonzero(look.reasons != "") for look in looks])).size

    def finish() -> None:
        logg.info(f"    finished: {found} suspicious genes", time=start, deep=f"added\n    .varm['{table}']")

    assign(adata, {table: new}, result.key, entry, finish=finish)
    return adata if copy else None


def _check(adata: AnnData, result: StoredResult, alpha: Any, n_jobs: Any, copy: bool) -> Mapping[str, Any]:
    number = isinstance(alpha, int | float | np.number) and not isinstance(alpha, bool)
    if not number or not 0 < alpha <= 1:
        msg = f"alpha must be a probability, above 0 and at most 1, not {alpha!r}."
        raise ValueError(msg)
    if n_jobs is not None and (not isinstance(n_jobs, int | np.integer) or n_jobs == 0):
        msg = f"n_jobs must be a whole number other than 0 (-1 for all processors) or None, not {n_jobs!r}."
        raise ValueError(msg)
    if copy and adata.isbacked:
        msg = "copy=True would read a backed AnnData into memory: use copy=False, or `adata.to_memory()`."
        raise ValueError(msg)
    entry = adata.uns.get(result.key)
    if not isinstance(entry, Mapping) or "formula" not in entry or "varm_keys" not in entry:
        msg = (
            f"`adata.uns` has no entry {result.key!r}, which knows the formula of the run: run `scglmm.tl.nbmm` again."
        )
        raise KeyError(msg)
    if "source" in entry:
        msg = f"{result.key!r} holds contrasts of the result {entry['source']!r}: give key={entry['source']!r}."
        raise ValueError(msg)
    return entry


def _coefficients(result: StoredResult, coef: str | Sequence[str] | None) -> list[str]:
    asked = result.tested if coef is None else [coef] if isinstance(coef, str) else list(coef)
    return list(dict.fromkeys(result.find_coefficient(name) for name in asked))


class _Look:
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
        with Parallel(n_jobs=n_jobs, prefer="threads", return_as="generator") as parallel:
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
    design = build_design(zi, adata.obs.iloc[cells.rows], na_action="drop")
    if design.kept.all():
        return design, cells
    rows = cells.rows[design.kept]
    main = build_design(cells.design.formula, adata.obs.iloc[rows])
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


def _blocks(matrix: Any) -> Iterator[tuple[int, int, sparse.csr_array]]:
    """First row, first column and rows, some at a time; for every column, rows come in increasing order."""
    for chunk in chunks(matrix):
        step = ROWS if chunk.matrix.format == "csr" else max(1, chunk.matrix.shape[0])
        for first in range(0, chunk.matrix.shape[0], step):
            part = chunk.matrix if step >= chunk.matrix.shape[0] else chunk.matrix[first : first + step]
            yield chunk.row + first, chunk.column, sparse.csr_array(part)


def columns_of(cells: Cells, genes: np.ndarray) -> sparse.csc_array:
    """Read the counts (n, G) of genes at positions in `adata.var`, on the cells."""
    matrix = cells.source.matrix
    columns = np.array([cells.column(int(gene)) for gene in genes], np.int64)
    rows, places, values = [], [], []
    for chunk in chunks(matrix, int(columns.min()), int(columns.max()) + 1) if columns.size else []:
        inside = np.flatnonzero((columns >= chunk.columns.start) & (columns < chunk.columns.stop))
        part = chunk.matrix[:, columns[inside] - chunk.column].tocoo()
        rows.append(chunk.row + part.row)
        places.append(inside[part.col])
        values.append(part.data.astype(np.float64))
    shape = (matrix.shape[0], columns.size)
    if not rows:
        return sparse.csc_array(shape)[cells.rows]
    at = np.concatenate(rows), np.concatenate(places)
    return sparse.csc_array(sparse.csr_array((np.concatenate(values), at), shape=shape)[cells.rows])


def largest(matrix: Any, rows: np.ndarray, codes: np.ndarray, n_levels: int) -> tuple[np.ndarray, ...]:
    """Of every column of a matrix the cell and the level with the most counts, and how many, and the total count.

    Cells are numbered as `rows` is, codes are those of `rows`.
    """
    m = matrix.shape[1]
    number = np.full(matrix.shape[0], -1, np.int64)
    number[rows] = np.arange(rows.size)
    cell, count, by_level = np.zeros(m, np.int64), np.zeros(m), np.zeros((n_levels, m))
    for first, column, block in _blocks(matrix):
        inside = np.flatnonzero(number[first : first + block.shape[0]] >= 0)
        if not inside.size:
            continue
        here = slice(column, column + block.shape[1])
        own = block[inside].astype(np.float64)
        numbers = number[first + inside]
        at = codes[numbers], np.arange(inside.size)
        by_level[:, here] += sparse.csr_array((np.ones(inside.size), at), shape=(n_levels, inside.size)) @ own
        top = own.max(axis=0).toarray().ravel()
        row = np.repeat(numbers, np.diff(own.indptr))
        hit = (own.data == top[own.indices]) & (top[own.indices] > count[here][own.indices])
        # backwards, so that the first of several stays
        cell[here][own.indices[hit][::-1]] = row[hit][::-1]
        count[here] = np.maximum(count[here], top)
    return cell, count, by_level.argmax(axis=0), by_level.max(axis=0), by_level.sum(axis=0)
