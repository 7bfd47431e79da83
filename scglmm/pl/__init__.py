"""Plots of the results stored in an AnnData, and of the fit of one response."""

from __future__ import annotations

from scglmm.pl._check_model import check_model
from scglmm.pl._varpart import varpart
from scglmm.pl._volcano import volcano

__all__ = ["check_model", "varpart", "volcano"]
