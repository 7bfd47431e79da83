"""Families by integer code: the one place where the engine branches on the distribution of the response.

A jitted function passed as an argument is not cached on disk, so the kernels are chosen by a code. A new family adds a
module with the three kernels of `scglmm.engine.nb2` and a branch to each function here.
"""

from __future__ import annotations

from numba import njit

from . import nb2

NB2 = 0


@njit(cache=True, nogil=True)
def score_curvature(family, E, A, Y, start, stop, scale, theta):
    """First derivative in eta of the log-likelihood of a stratum, and minus the second."""
    return nb2.score_curvature(E, A, Y, start, stop, scale, theta)


@njit(cache=True, nogil=True)
def derivatives(family, E, A, Y, start, stop, scale, theta):
    """As `score_curvature`, and dh/deta, dg/dlog(theta), dh/dlog(theta)."""
    return nb2.derivatives(E, A, Y, start, stop, scale, theta)


@njit(cache=True, nogil=True)
def log_likelihood(family, E, A, Y, start, stop, scale, theta):
    """The part of the log-likelihood of a stratum that is not linear in eta, and its derivative in log(theta)."""
    return nb2.log_likelihood(E, A, Y, start, stop, scale, theta)
