"""Data sets that come with the package."""

from __future__ import annotations

from ._psychad import psychad
from ._tables import arabidopsis, sleepstudy

__all__ = ["arabidopsis", "psychad", "sleepstudy"]
