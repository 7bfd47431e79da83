"""Preparation: what to look at, and what to count, before a model is fitted."""

from __future__ import annotations

from scglmm.pp._check_design import check_design
from scglmm.pp._stable_size import stable_size

__all__ = ["check_design", "stable_size"]
