"""Getters: tidy tables from the results stored in an AnnData."""

from __future__ import annotations

from scglmm.get._joint_df import joint_df
from scglmm.get._nbmm_df import nbmm_df

__all__ = ["joint_df", "nbmm_df"]
