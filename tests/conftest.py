"""Fixtures shared by all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

REFERENCE = Path(__file__).resolve().parents[1].parent / "shared" / "reference"


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder with the large reference data; tests that need it skip where it is absent."""
    if not REFERENCE.is_dir():
        pytest.skip("the reference data are not here")
    return REFERENCE
