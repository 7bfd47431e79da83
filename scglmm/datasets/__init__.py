"""Data sets that come with the package."""

from __future__ import annotations

from ._psychad import psychad

__all__ = ["psychad"]
