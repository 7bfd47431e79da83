"""Getters: tidy tables from the results stored in an AnnData."""

from __future__ import annotations

from scglmm.get._diagnose_df import diagnose_df
from scglmm.get._exchange import pertpy_df, stat_matrix
from scglmm.get._joint_df import joint_df
from scglmm.get._lrt_df import lrt_df
from scglmm.get._nbmm_df import nbmm_df
from scglmm.get._shrunken_df import shrunken_df

__all__ = ["diagnose_df", "joint_df", "lrt_df", "nbmm_df", "pertpy_df", "shrunken_df", "stat_matrix"]
