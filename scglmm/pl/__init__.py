"""Plots of the results stored in an AnnData."""

from __future__ import annotations

from scglmm.pl._power import power
from scglmm.pl._varpart import varpart
from scglmm.pl._volcano import volcano

__all__ = ["power", "varpart", "volcano"]
