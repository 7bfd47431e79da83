"""Pseudobulk: counts summed over the cells of a sample; PyDESeq2 on them."""

from __future__ import annotations

import importlib.util
import os
import time
import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .simulate import TREATED, DataSet
from .store import Result


@dataclass(frozen=True)
class Pseudobulk:
    """Sums over the cells of each sample.

    Attributes
    ----------
    counts
        (samples, genes).
    obs
        `donor`, `treatment`, `libSize` (sum over the cells) of each sample.
    paired
        Whether donors have both treatments: they are then a factor of the design.
    known_size
        Whether `libSize` is to be used for normalisation.
    """

    counts: np.ndarray
    obs: pd.DataFrame
    paired: bool
    known_size: bool


def pseudobulk(data: DataSet) -> Pseudobulk:
    """Sum over the cells of each donor under each treatment."""
    keys = data.obs["donor"].astype(str) + "_" + data.obs["treatment"].astype(str)
    names, first, sample = np.unique(keys, return_index=True, return_inverse=True)
    indicator = sample[None, :] == np.arange(names.size)[:, None]
    obs = data.obs.iloc[first][["donor", "treatment"]].set_axis(names)
    obs["libSize"] = indicator @ data.obs["libSize"].to_numpy()
    counts = np.round(indicator.astype(float) @ data.counts).astype(np.int64)
    return Pseudobulk(counts, obs, data.within, data.known_size)


def size_factors(bulk: Pseudobulk) -> np.ndarray:
    """Known library sizes as size factors of geometric mean 1."""
    size = bulk.obs["libSize"].to_numpy()
    return size / np.exp(np.mean(np.log(size)))


def available() -> bool:
    """Whether PyDESeq2 is installed."""
    return importlib.util.find_spec("pydeseq2") is not None


def pydeseq2(data: DataSet) -> Result:
    """Wald test of PyDESeq2 with its defaults, but without its independent filtering."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pydeseq2.dds import DeseqDataSet
        from pydeseq2.default_inference import DefaultInference
        from pydeseq2.ds import DeseqStats

        class KnownSizeFactors(DeseqDataSet):
            def fit_size_factors(self, *args, **kwargs):
                self.obs["size_factors"] = known
                self.layers["normed_counts"] = self.X / known[:, None]
                self.var["_normed_means"] = self.layers["normed_counts"].mean(axis=0)

        bulk = pseudobulk(data)
        known = size_factors(bulk)
        genes = [f"g{g}" for g in range(bulk.counts.shape[1])]
        counts = pd.DataFrame(bulk.counts, index=bulk.obs.index, columns=genes)
        inference = DefaultInference(n_cpus=1)
        start = time.process_time()
        cls = KnownSizeFactors if data.known_size else DeseqDataSet
        fitted = cls(
            counts=counts,
            metadata=bulk.obs[["donor", "treatment"]],
            design="~donor + treatment" if bulk.paired else "~treatment",
            inference=inference,
            quiet=True,
        )
        fitted.deseq2()
        test = DeseqStats(
            fitted, contrast=["treatment", TREATED, "ctrl"], independent_filter=False, inference=inference, quiet=True
        )
        test.summary()
    table = test.results_df.reindex(genes)
    return Result.of(
        len(genes),
        time.process_time() - start,
        p=table["pvalue"],
        beta=table["log2FoldChange"] * np.log(2),
        se=table["lfcSE"] * np.log(2),
        df=np.full(len(genes), np.inf),
    )
