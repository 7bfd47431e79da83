"""Tools: functions that fit models and write their results to an AnnData."""

from __future__ import annotations

from scglmm.tl._contrast import contrast
from scglmm.tl._diagnose import diagnose
from scglmm.tl._lrt import lrt
from scglmm.tl._nbmm import nbmm
from scglmm.tl._refresh import refresh
from scglmm.tl._shrink import shrink
from scglmm.tl._varpart import varpart

__all__ = ["contrast", "diagnose", "lrt", "nbmm", "refresh", "shrink", "varpart"]
