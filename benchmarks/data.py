"""Data that the benchmarks run on: the bundled data or any h5ad."""

from __future__ import annotations

import argparse

import anndata as ad

import scglmm
from benchmarks.simulate import FORMULA


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Parser with the options that every benchmark on real data has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--h5ad", help="counts; the bundled simulated data by default")
    parser.add_argument("--formula", default=FORMULA)
    parser.add_argument("--genes", type=int, help="use only so many genes")
    return parser


def load(options: argparse.Namespace) -> ad.AnnData:
    """Read the data before any clock starts."""
    adata = ad.read_h5ad(options.h5ad) if options.h5ad else scglmm.datasets.psychad()
    return adata[:, : options.genes].copy() if options.genes else adata
