"""The decorators of the engine's kernels.

`kernel` is called from other kernels only: leaving out the wrappers that unpack Python objects halves the time to
compile. `entry` is called from Python as well, and so is `brief`, which keeps the GIL: for what takes some microseconds
it costs more to give it up and wait for it again. All divide as numpy does (no exception, so no branch).

None lets the compiler reorder or fuse arithmetic. A kernel is compiled into every entry that calls it and optimised
again there; which of the copies a process runs depends on what it has compiled and what it has loaded from numba's
cache. With arithmetic as written all copies give the same bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit


def _digest() -> str:
    """Digest of all files with kernels."""
    package = Path(__file__).parent
    texts = [path.read_bytes() for path in sorted(package.glob("*/*.py"))]
    kernels = [text for text in texts if b"scglmm._jit import" in text]
    return hashlib.sha256(b"".join([Path(__file__).read_bytes(), *kernels])).hexdigest()


_KERNELS = _digest()


def _decorator(**options: Any) -> Callable[[Callable], Any]:
    """`njit` with a cache that any change of any kernel invalidates.

    numba looks at the file of a function only, and would go on using old copies of the kernels that it calls.
    """
    jit = njit(cache=True, error_model="numpy", no_cfunc_wrapper=True, **options)

    def decorate(function: Callable) -> Any:
        compiled = jit(function)
        file = getattr(getattr(compiled, "_cache", None), "_cache_file", None)
        if hasattr(file, "_source_stamp"):
            file._source_stamp = (file._source_stamp, _KERNELS)
        return compiled

    return decorate


entry = _decorator(nogil=True)
brief = _decorator(nogil=False)
kernel = _decorator(nogil=True, no_cpython_wrapper=True)

# Flags for kernels. A plain True or False is a type of its own to numba, for which the callee would be compiled again.
YES, NO = np.bool_(True), np.bool_(False)
