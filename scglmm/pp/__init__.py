"""Preparation: what to look at before a model is fitted."""

from __future__ import annotations

from scglmm.pp._check_design import check_design

__all__ = ["check_design"]
