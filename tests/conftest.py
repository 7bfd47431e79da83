"""Fixtures shared by all tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

REFERENCE = Path(__file__).resolve().parents[1].parent / "shared" / "reference"


@pytest.fixture(scope="session")
def reference() -> Path:
    """Folder with the large reference data; tests that need it skip where it is absent."""
    if not REFERENCE.is_dir():
        pytest.skip("the reference data are not here")
    return REFERENCE


@pytest.fixture(scope="session")
def toy() -> ModuleType:
    """Load the generator of toy data, `tests/toy.py`."""
    spec = importlib.util.spec_from_file_location("toy", Path(__file__).with_name("toy.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


THIRD_PARTY_NOTICES = (
    # anndata 0.13 and scanpy 1.12 with pandas 3.1
    "The '(future.infer_string|mode.chained_assignment)' option is deprecated",
    "The (inplace|copy) keyword",
    # anndata on the Zarr formats, and zarr 3 on the record arrays in which scanpy keeps ranked genes
    ".*zarr v[23] ",
    "Consolidated metadata is currently not part",
    "This setting will be removed in 0.14",
    "The data type .* does not have a Zarr V3 specification",
)
"""Deprecations between other packages: warnings are errors in the tests, but these are nobody's of ours."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the notices of other packages pass, also under `-W error`."""
    for item in items:
        for message in THIRD_PARTY_NOTICES:
            item.add_marker(pytest.mark.filterwarnings(f"ignore:{message}"))
