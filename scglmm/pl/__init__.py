"""Plots of the results stored in an AnnData, and of the fit of one response."""

from __future__ import annotations

from scglmm.pl._check_model import check_model
from scglmm.pl._dispersion import dispersion
from scglmm.pl._donors import donors
from scglmm.pl._dotplot import dotplot
from scglmm.pl._forest import forest
from scglmm.pl._heatmap import heatmap
from scglmm.pl._ma import ma
from scglmm.pl._power import power
from scglmm.pl._qq import qq
from scglmm.pl._ranef import ranef
from scglmm.pl._status import status
from scglmm.pl._varpart import varpart
from scglmm.pl._volcano import volcano

__all__ = [
    "check_model",
    "dispersion",
    "donors",
    "dotplot",
    "forest",
    "heatmap",
    "ma",
    "power",
    "qq",
    "ranef",
    "status",
    "varpart",
    "volcano",
]
