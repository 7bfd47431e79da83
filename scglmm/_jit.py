"""The two decorators of the engine's kernels.

`kernel` is called from other kernels only: leaving out the wrappers that unpack Python objects halves the time to
compile. `entry` is called from Python as well. Both divide as numpy does (no exception, so no branch) and release
the GIL.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy"}

# Reassociation lets sums use vector instructions; infinities and NaN keep their meaning.
_SUMS = {"reassoc", "contract", "nsz", "arcp"}

entry = njit(**_OPTIONS, no_cfunc_wrapper=True)
kernel = njit(**_OPTIONS, no_cpython_wrapper=True, no_cfunc_wrapper=True)
# Fused multiplication and addition alone, which round once instead of twice.
exact_kernel = njit(**_OPTIONS, no_cpython_wrapper=True, no_cfunc_wrapper=True, fastmath={"contract"})
sum_kernel = njit(**_OPTIONS, no_cpython_wrapper=True, no_cfunc_wrapper=True, fastmath=_SUMS)

# Flags for kernels. A plain True or False is a type of its own to numba, for which the callee would be compiled again.
YES, NO = np.bool_(True), np.bool_(False)
