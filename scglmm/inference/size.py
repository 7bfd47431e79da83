"""Library sizes that do not count the genes whose share differs between samples.

The log of the total count is the right offset as long as the changing genes are few among the counts. Where one
programme of genes takes a large share of them in one condition, every other gene seems to go down there. Genes that are
alike in all samples, whatever their labels, are then the measure of size.
"""

from __future__ import annotations

import numpy as np


def stable_shares(sums: np.ndarray, min_count: float) -> tuple[np.ndarray, np.ndarray]:
    """Share of the counts of every sample that lies in stable genes.

    Genes with at least `min_count` counts in every sample are normalised by the median of ratios (Anders and Huber
    2010, doi 10.1186/gb-2010-11-10-r106). The half of them whose logarithms vary least between samples, beyond Poisson
    noise, is called stable. No labels are used.

    Parameters
    ----------
    sums
        (samples, genes) counts, two samples or more.
    min_count
        Counts that a gene must have in every sample.

    Returns
    -------
    (samples,) shares, and (genes,) bool: which genes are stable; none of them where no gene has the counts.
    """
    usable = np.flatnonzero(sums.min(axis=0) >= min_count)
    stable = np.zeros(sums.shape[1], np.bool_)
    if usable.size:
        logs = np.log(sums[:, usable])
        deviation = logs - logs.mean(axis=0)
        deviation -= np.median(deviation, axis=1, keepdims=True)
        excess = deviation.var(axis=0, ddof=1) - (1 / sums[:, usable]).mean(axis=0)
        stable[usable[excess <= np.median(excess)]] = True
    return sums[:, stable].sum(axis=1) / sums.sum(axis=1), stable
