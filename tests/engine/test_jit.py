"""Kernels: arithmetic as it is written, and a cache that knows of all of them."""

from __future__ import annotations

import importlib
import pkgutil

import pytest
from numba.core.dispatcher import Dispatcher

import scglmm.compression
import scglmm.engine
from scglmm import _jit


def kernels():
    for package in (scglmm.engine, scglmm.compression):
        for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
            for value in vars(importlib.import_module(info.name)).values():
                if isinstance(value, Dispatcher):
                    yield value


def test_arithmetic_is_as_written():
    """A kernel is compiled into every entry that calls it: reordered sums would differ between these copies."""
    found = list(kernels())
    assert len(found) > 50
    assert not any(kernel.targetoptions.get("fastmath") for kernel in found)


def test_the_cache_is_tied_to_all_kernels():
    stamps = [kernel._cache._cache_file._source_stamp for kernel in kernels()]
    assert {stamp[1] for stamp in stamps} == {_jit._digest()}


@pytest.mark.parametrize("name", ["nb2.py", "mode.py"])
def test_the_digest_sees_every_kernel(name, tmp_path, monkeypatch):
    package = tmp_path / "scglmm"
    (package / "engine").mkdir(parents=True)
    (package / "_jit.py").write_text("")
    for each in ("nb2.py", "mode.py"):
        (package / "engine" / each).write_text("from scglmm._jit import kernel\n")
    (package / "engine" / "fit.py").write_text("import math\n")
    monkeypatch.setattr(_jit, "__file__", str(package / "_jit.py"))
    before = _jit._digest()
    (package / "engine" / "fit.py").write_text("import cmath\n")
    assert _jit._digest() == before
    (package / "engine" / name).write_text("from scglmm._jit import kernel  # changed\n")
    assert _jit._digest() != before
