"""Getters: tidy tables from the results stored in an AnnData."""

from __future__ import annotations

from scglmm.get._exchange import pertpy_df, stat_matrix
from scglmm.get._nbmm_df import nbmm_df

__all__ = ["nbmm_df", "pertpy_df", "stat_matrix"]
