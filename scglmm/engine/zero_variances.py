"""Moves of the search that put variances to 0, and that take them away from there.

The point sigma = 0 is stationary whatever the data say, so a search may stop near it for no reason, or pass it by: the
derivative in sigma^2 decides (`scglmm.engine.boundary`).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from .covariance import TermParameters, reduced_root, root_of
from .search import RISES, THETA_STOP, Search

SMALL_PSI = 0.03  # a standard deviation below this is tested against 0
ZERO_PSI = 1e-3  # a standard deviation below this is 0, unless the criterion rises from there
RESTART_PSI = 0.1  # where the search starts again when 0 turns out to be a saddle
WEAK = 4.0  # a standard deviation within this many standard errors of 0 may have a better optimum at 0
NEAR = 20.0  # but not where the log-likelihood at 0 is lower by more than this, the other parameters unchanged
MAX_REFUSALS, MAX_LIMITS = 3, 3  # how often the same question is asked again


class _Candidate(NamedTuple):
    """Directions of a term that may have no variance."""

    number: int
    term: TermParameters
    root: np.ndarray  # entries of Lambda without them
    entries: np.ndarray  # which parameters that puts to 0


def settle_variances(search: Search) -> bool:
    """Put directions of little variance to 0 where the criterion does not rise from there.

    Returns
    -------
    Whether anything changed, so that the search has to go on.
    """
    if search.intercepts and np.abs(search.par[search.sds]).min(initial=math.inf) > SMALL_PSI:
        return False
    # What is 0 already can be settled together; what is merely small changes the others when it is taken away.
    zero = _small_directions(search, ZERO_PSI)
    if zero and _settle(search, zero):
        return True
    return any(_settle(search, [candidate]) for candidate in _small_directions(search, SMALL_PSI))


def _small_directions(search: Search, small: float) -> list[_Candidate]:
    """Terms with directions of little variance that are still free, and their roots without them."""
    candidates = []
    for index, term in enumerate(search.terms):
        root, zero = reduced_root(search.par[term.entries], term.c, small)
        new = search.free[term.entries] & zero[term.column]
        if new.any() and search.refused[index] < MAX_REFUSALS:
            candidates.append(_Candidate(index, term, root, term.entries[new]))
    return candidates


def _settle(search: Search, candidates: list[_Candidate]) -> bool:
    """Put the directions of some terms to 0, look whether the criterion rises there, and keep what does not."""
    before = search.save()
    for candidate in candidates:
        search.par[candidate.term.entries] = candidate.root
    search.v[:] = 0.0  # the effects mean something else after a change of Lambda: start their mode afresh
    if not math.isfinite(search.evaluate()):
        for candidate in candidates:
            search.refused[candidate.number] += 1
        search.restore(before)
        return False
    rises = [search.steepest_rise(candidate.term) for candidate in candidates]
    changed = False
    for (index, term, _, entries), rise in zip(candidates, rises, strict=True):
        if rise <= RISES:
            search.free[entries] = False
            changed = True
            continue
        search.refused[index] += 1
        search.par[term.entries] = before["par"][term.entries]
        # At an optimum the derivative in sigma^2, gradient / (2 sigma), has fallen to 0. Where it is still what it
        # is at 0, the search has stopped on the flat top of the saddle at sigma = 0.
        sds = np.intersect1d(entries, search.sds)
        flat = np.abs(before["gradient"][sds]) >= 0.2 * rise * np.abs(before["par"][sds])
        if term.c > 1 or flat.any():
            search.par[sds] = np.where(np.abs(search.par[sds]) < RESTART_PSI, RESTART_PSI, search.par[sds])
            changed = True
    if not changed:
        search.restore(before)
        return False
    search.v[:] = 0.0
    if search.has_theta and not search.at_limit and search.limits < MAX_LIMITS:
        search.theta_stop = THETA_STOP  # with other variances the Poisson limit is another question
    return True


def release_variances(search: Search) -> bool:
    """Set free again what was put to 0 when the criterion rises from there now that the rest has moved."""
    fixed = [
        (index, term)
        for index, term in enumerate(search.terms)
        if not search.free[term.entries].all() and index not in search.released
    ]
    if not fixed or not math.isfinite(search.evaluate()):
        return False
    changed = False
    for index, term in fixed:
        if search.steepest_rise(term) > RISES:
            search.released.add(index)
            entries = term.entries[~search.free[term.entries]]
            search.free[entries] = True
            search.par[np.intersect1d(entries, search.sds)] = RESTART_PSI
            changed = True
    if changed:
        search.v[:] = 0.0
    return changed


def try_zero_variances(search: Search) -> bool:
    """Look for a second maximum where variances that are hardly different from 0 are 0.

    A grouping factor with two levels often has one. Each term is tried once, and all weak terms at once.

    Returns
    -------
    Whether a better point was found.
    """
    weak = [index for index, term in enumerate(search.terms) if index not in search.tried and _is_weak(search, term)]
    tries = [[(index, math.inf)] for index in weak]
    if len(weak) > 1:
        tries.append([(index, math.inf) for index in weak])
    tries += [
        [(index, _weakest_direction(search, term))]
        for index, term in enumerate(search.terms)
        if term.c > 1 and index not in search.tried
    ]
    search.tried.update(range(len(search.terms)))
    moved = [_try_without(search, directions) for directions in tries]  # all of them, not up to the first
    return any(moved)


def _try_without(search: Search, directions: list[tuple[int, float]]) -> bool:
    """Search again with the directions of some terms at 0 whose standard deviation is at most a bound."""
    before, before_free = search.save(), search.free.copy()
    for index, bound in directions:
        term = search.terms[index]
        root, zero = reduced_root(search.par[term.entries], term.c, bound)
        search.par[term.entries] = root
        search.free[term.entries[zero[term.column]]] = False
    if (search.free == before_free).all():
        return False
    search.v[:] = 0.0
    if search.evaluate() > before["value"] - NEAR:
        search.climb()
        if search.value > before["value"] + 1e-7:
            return True
    search.restore(before)
    search.free = before_free
    return False


def _weakest_direction(search: Search, term: TermParameters) -> float:
    """Smallest standard deviation among the directions of a term that have any variance."""
    root = root_of(search.par[term.entries], term.c)
    values = np.linalg.eigvalsh(root @ root.T)
    values = values[values > 1e-12 * max(1.0, values[-1])]
    return 1.000001 * math.sqrt(values[0]) if values.size else 0.0


def _is_weak(search: Search, term: TermParameters) -> bool:
    """Whether every standard deviation of a term is within a few standard errors of 0."""
    if term.c == 1:
        at = term.entries[0]
        return bool(search.free[at] and abs(search.par[at]) < WEAK * math.sqrt(max(0.0, search.metric[at, at])))
    free = search.free[term.entries]
    sds = term.entries[term.diagonal & free]
    error = np.sqrt(np.maximum(0.0, search.metric[sds, sds]))
    return bool(free.any() and (np.abs(search.par[sds]) < WEAK * error).all())
