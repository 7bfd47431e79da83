"""`scglmm.pp.stable_size`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from anndata import AnnData
from scanpy import logging as logg

from scglmm.formula.columns import in_memory
from scglmm.inference.size import stable_shares
from scglmm.results.names import near_first
from scglmm.results.write import own
from scglmm.tl._counts import check_counts, find_counts

FEW = 50  # stable genes below which their share is hardly a size


def stable_size(
    adata: AnnData,
    sample: str | Sequence[str],
    *,
    min_count: float = 10.0,
    layer: str | None = None,
    use_raw: bool = False,
    key_added: str = "stable_size",
    copy: bool = False,
) -> AnnData | None:
    """Library sizes of cells, counted in genes that do not differ between samples.

    The default offset of :func:`scglmm.tl.nbmm` is the log of the cell's total count. Where some genes take a large
    share of the counts in one condition (an interferon response, antibody genes of plasma cells), all others then seem
    to go down there. Sizes counted in stable genes do not move with them. For every sample, the counts of its cells are
    summed; genes with at least `min_count` counts in every sample are normalised by the median of ratios (Anders and
    Huber 2010, doi 10.1186/gb-2010-11-10-r106), and the half of them that varies least between samples, beyond Poisson
    noise, is called stable. The size of a cell is its total count times the share of the stable genes in its sample.

    Parameters
    ----------
    adata
        Cells with raw counts.
    sample
        Column of `obs`, or several of them, that names the samples: the donor, or the donor under each treatment where
        treatments vary within donors (``["donor", "stim"]``). Cell types are fitted one by one: give each its own
        sizes, or use the sizes of all cells.
    min_count
        Counts that a gene must have in every sample to be looked at.
    layer, use_raw
        Where the counts are, as for :func:`scglmm.tl.nbmm`.
    key_added
        Column of `obs` that is written.
    copy
        Return a copy of `adata` instead of changing it.

    Returns
    -------
    None, or with `copy` the copy. Written are

    `adata.obs[key_added]`
        Size of every cell, in counts: use it as ``offset(log(stable_size))``.
    `adata.var[f"{key_added}_gene"]`
        Whether a gene is among the stable ones (with `use_raw`, genes that `adata` does not have are left out).

    Raises
    ------
    KeyError
        No such column or layer.
    ValueError
        Not counts; a missing value in `sample`; one sample only; cells without counts; no gene has `min_count` counts
        in every sample.

    Examples
    --------
    >>> adata = scglmm.datasets.psychad()
    >>> scglmm.pp.stable_size(adata, "SubID", min_count=5)
    >>> bool(adata.obs["stable_size"].min() > 0)
    True
    >>> scglmm.tl.nbmm(adata[:, :5].copy(), "~ offset(log(stable_size)) + Dx + (1|SubID)")
    """
    if not isinstance(adata, AnnData):
        msg = f"The first argument must be an AnnData, not {type(adata).__name__}."
        raise TypeError(msg)
    if not isinstance(key_added, str) or not key_added:
        msg = f"key_added must be the name of a column, not {key_added!r}."
        raise ValueError(msg)
    if isinstance(min_count, bool) or not isinstance(min_count, int | float | np.number) or not min_count > 0:
        msg = f"min_count must be a number above 0, not {min_count!r}."
        raise ValueError(msg)
    code = _samples(in_memory(adata.obs), [sample] if isinstance(sample, str) else list(sample))
    n = int(code.max()) + 1
    if n < 2:
        msg = f"There is only one sample in {sample!r}: what is stable is told from the differences between samples."
        raise ValueError(msg)
    source = find_counts(adata, layer, use_raw)
    summaries, _ = check_counts(adata, source, code, n)
    total = summaries[0].cell_total
    if not (total > 0).all():
        msg = (
            f"{int((total <= 0).sum()):,} cells have no counts at all, so they have no size: remove them "
            "(`sc.pp.filter_cells(adata, min_counts=1)`)."
        )
        raise ValueError(msg)
    sums = np.stack([each.gene_total for each in summaries])
    share, stable = stable_shares(sums, float(min_count))
    if not stable.any():
        msg = (
            f"No gene has min_count={min_count:g} counts in each of the {n:,} samples (the most that a gene has in its "
            f"least sample is {sums.min(axis=0).max():g}). Lower min_count, or leave out samples with few cells."
        )
        raise ValueError(msg)
    held = f"{share.min():.1%} to {share.max():.1%}"
    text = f"{stable.sum():,} genes are stable; they hold {held} of the counts of a sample"
    (logg.warning if stable.sum() < FEW else logg.info)(text)
    if copy:
        adata = adata.copy()
    own(adata)
    among = np.where(source.columns >= 0, stable[source.columns], False)
    obs, var = adata.obs.assign(**{key_added: total * share[code]}), adata.var.assign(**{f"{key_added}_gene": among})
    before = adata.obs
    try:
        adata.obs = obs
        adata.var = var
    except BaseException:
        adata.obs = before
        raise
    return adata if copy else None


def _samples(obs: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """Give every cell the number of its sample."""
    for name in columns:
        if name not in obs.columns:
            msg = f"{name!r} is not a column of `adata.obs`; the columns are {near_first(name, obs.columns)}."
            raise KeyError(msg)
        if (missing := int(obs[name].isna().sum())) > 0:
            msg = f"adata.obs[{name!r}] is missing (NaN) for {missing:,} of {len(obs):,} cells: leave them out."
            raise ValueError(msg)
    if not columns:
        msg = "sample names no column: give the one that names the donors."
        raise ValueError(msg)
    return obs.groupby(columns, observed=True, sort=False).ngroup().to_numpy()
