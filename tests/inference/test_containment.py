"""Containment degrees of freedom: the designs one can count, and random ones against dense matrices."""

from __future__ import annotations

import numpy as np
import pytest
from fitting import frame_of, intercepts
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scglmm.inference.containment import Carrier, _rank_beside_one, constant_within, find_carrier, levels_to_spare
from scglmm.inference.frame import RandomTerm

J = 12
DONOR = np.repeat(np.arange(J), 10)
N = DONOR.size
ONE = np.ones(N)
STIM = np.tile([0, 0, 0, 0, 0, 1, 1, 1, 1, 1], J)
SAMPLE = DONOR * 2 + STIM
DX = (DONOR % 2).astype(float)
AGE = 50 + 3.0 * DONOR + DONOR % 3
BATCH = np.arange(N) % 7
QUALITY = np.random.default_rng(0).normal(size=N)


def df_of(X: list[np.ndarray], terms, j: int) -> tuple[int, int, float] | None:
    """Term, column and degrees of freedom of the j-th coefficient."""
    frame, _ = frame_of(np.column_stack(X), terms)
    carrier = find_carrier(frame, np.eye(len(X))[j])
    return None if carrier is None else (carrier.term, column_of(carrier), carrier.df)


def column_of(carrier: Carrier) -> int:
    """Find the column that a carrier is."""
    np.testing.assert_array_equal(np.sort(np.abs(carrier.direction)), [0.0] * (carrier.direction.size - 1) + [1.0])
    return int(carrier.direction.argmax())


def slope(covariate: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, int, np.ndarray]:
    return codes, codes.max() + 1, np.column_stack([np.ones(codes.size), covariate])


def test_effects_of_donors():
    """J - p, whatever cells have besides."""
    X = [ONE, DX, AGE]
    for j in range(3):
        assert df_of(X, intercepts(DONOR), j) == (0, 0, J - 3)
        assert df_of([*X, QUALITY, STIM], intercepts(DONOR), j) == (0, 0, J - 3)
    assert df_of([ONE], intercepts(DONOR), 0) == (0, 0, J - 1)


def test_effects_of_cells_have_no_carrier():
    X = [ONE, DX, QUALITY, STIM]
    assert df_of(X, intercepts(DONOR), 2) is None
    assert df_of(X, intercepts(DONOR), 3) is None
    assert df_of(X, intercepts(DONOR, SAMPLE), 2) is None
    assert df_of(X, [], 1) is None


def test_a_treatment_within_donors():
    """Donors - 1 for `stim + (1|ind) + (1|ind:stim)` in either order of the terms, and for `stim + (stim|ind)`."""
    X = [ONE, STIM]
    assert df_of(X, intercepts(DONOR, SAMPLE), 1) == (1, 0, J - 1)
    assert df_of(X, intercepts(SAMPLE, DONOR), 1) == (0, 0, J - 1)
    assert df_of(X, intercepts(DONOR, SAMPLE), 0) == (0, 0, J - 1)
    assert df_of(X, [slope(STIM, DONOR)], 1) == (0, 1, J - 1)
    uncorrelated = [*intercepts(DONOR), (DONOR, J, STIM[:, None].astype(float))]
    assert df_of(X, uncorrelated, 1) == (1, 0, J - 1)
    assert df_of(X, uncorrelated, 0) == (0, 0, J - 1)
    # without the samples, stim varies within every level
    assert df_of(X, intercepts(DONOR), 1) is None


def by_levels(factor: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, int, np.ndarray]:
    """``(0 + factor|codes)``."""
    return codes, codes.max() + 1, (factor[:, None] == np.unique(factor)).astype(float)


def test_effects_for_every_level_of_a_factor():
    """`(0 + stim|ind)` is `(stim|ind)`: its columns together carry what is constant in donors."""
    X = [ONE, DX, STIM]
    for terms in ([by_levels(STIM, DONOR)], [by_levels(np.arange(N) % 3, DONOR)]):
        frame, _ = frame_of(np.column_stack(X), terms)
        for j in (0, 1):
            carrier = find_carrier(frame, np.eye(3)[j])
            assert np.ptp(carrier.direction) < 1e-12 < carrier.direction[0]
            assert carrier.df == J - 2
    frame, _ = frame_of(np.column_stack(X), [by_levels(STIM, DONOR)])
    assert find_carrier(frame, np.eye(3)[2]).df == J - 2
    assert find_carrier(frame_of(np.column_stack(X), [by_levels(BATCH, DONOR)])[0], np.eye(3)[2]) is None


def test_every_donor_has_one_condition():
    """`(0 + stim|ind)` where nothing says how the effects of a donor go together: those of one condition are left."""
    condition = DONOR % 4 // 2
    frame, _ = frame_of(np.column_stack([ONE, DX]), [by_levels(condition, DONOR)])
    assert find_carrier(frame, np.eye(2)[1]).df == J // 2 - 2


def test_an_interaction_of_donors_and_samples():
    """`Dx * stim + (1|ind) + (1|ind:stim)`: two groups of donors, each with its own difference."""
    X = [ONE, DX, STIM, DX * STIM]
    terms = intercepts(DONOR, SAMPLE)
    assert df_of(X, terms, 1) == (0, 0, J - 2)
    assert df_of(X, terms, 2) == (1, 0, J - 2)
    assert df_of(X, terms, 3) == (1, 0, J - 2)
    assert df_of(X, [slope(STIM, DONOR)], 3) == (0, 1, J - 2)


def test_donors_with_one_sample_do_not_count():
    """Three donors lack one condition: nothing is learned from them about a difference within donors."""
    seen = ~((DONOR < 3) & (STIM == 1))
    X, terms = [ONE[seen], STIM[seen]], intercepts(DONOR[seen], SAMPLE[seen])
    assert df_of(X, terms, 1) == (1, 0, J - 3 - 1)


def test_crossed():
    X = [ONE, DX, QUALITY]
    terms = intercepts(DONOR, BATCH)
    assert df_of(X, terms, 1) == (0, 0, J - 2)
    assert df_of(X, terms, 0) == (1, 0, 7 - 1)  # the coarser of the two
    of_batch = (BATCH > 3).astype(float)
    assert df_of([ONE, DX, of_batch], terms, 2) == (1, 0, 7 - 2)


def test_nested_in_three_levels():
    site = DONOR // 3
    of_site = (site > 1).astype(float)
    in_site = (DONOR % 3 == 0).astype(float)
    X = [ONE, of_site, in_site, STIM]
    terms = intercepts(site, DONOR, SAMPLE)
    assert df_of(X, terms, 0) == (0, 0, 4 - 2)
    assert df_of(X, terms, 1) == (0, 0, 4 - 2)
    assert df_of(X, terms, 2) == (1, 0, J - 4 - 1)
    assert df_of(X, terms, 3) == (2, 0, 2 * J - J - 1)


def test_no_degrees_of_freedom_left():
    """Every site has one group, and there are two sites."""
    site = DONOR // 6
    assert df_of([ONE, site.astype(float)], intercepts(site, DONOR), 1) == (0, 0, 0)


@pytest.mark.parametrize(("scale", "shift"), [(1e-6, 0), (1e6, 0), (1, 1e4), (1e-4, -3)])
def test_units_do_not_matter(scale, shift):
    X = [ONE, DX, scale * (AGE + shift), scale * QUALITY]
    terms = [slope(scale * QUALITY, DONOR)]
    assert [df_of(X, terms, j) for j in range(4)] == [(0, 0, J - 3), (0, 0, J - 3), (0, 0, J - 3), (0, 1, J - 1)]


def test_contrasts():
    """Three groups of donors: any comparison of them is one of donors, with the same degrees of freedom."""
    X = np.column_stack([ONE, DONOR % 3 == 1, DONOR % 3 == 2, STIM]).astype(float)
    frame, _ = frame_of(X, intercepts(DONOR))
    for contrast in ([0, 1, -1, 0], [0, 0.5, 0.5, 0], [1, 1, 0, 0]):
        assert find_carrier(frame, np.array(contrast, float)).df == J - 3
    assert find_carrier(frame, np.array([0, 1.0, 0, 1])) is None


# ------------------------------------------------------------------------------------------------------- dense matrices


def dense(terms) -> dict[tuple[int, int], np.ndarray]:
    """Columns of every component, written out."""
    Z = {}
    for r, (codes, levels, covariates) in enumerate(terms):
        indicator = (codes[:, None] == np.arange(levels)).astype(float)
        for j in range(covariates.shape[1]):
            Z[r, j] = indicator * covariates[:, [j]]
    return Z


def rank(columns: list[np.ndarray]) -> int:
    return np.linalg.matrix_rank(np.hstack(columns), tol=1e-8)


def degrees_of_freedom(X: np.ndarray, terms, r: int, j: int) -> int:
    """rank[X, Z_r, Z_coarser] - rank[X, Z_coarser]."""
    codes, Z = terms[r][0], dense(terms)
    coarser = [X]
    for (other, k), z in Z.items():
        within = all(np.unique(terms[other][0][codes == level]).size == 1 for level in np.unique(codes))
        if (other, k) != (r, j) and within:
            coarser.append(z)
    return rank([*coarser, Z[r, j]]) - rank(coarser)


@st.composite
def designs(draw: st.DrawFn):
    """Up to three terms, nested or crossed, intercepts or slopes; columns that are constant in levels or not."""
    n = draw(st.integers(4, 24))
    whole = st.integers(0, 3)
    factors = []
    for _ in range(draw(st.integers(1, 3))):
        codes = np.array(draw(st.lists(st.integers(0, 5), min_size=n, max_size=n)))
        if factors and draw(st.booleans()):
            codes = codes % 3 + 3 * factors[-1]  # nested in the one before
        factors.append(np.unique(codes, return_inverse=True)[1])
    terms = []
    columns = [np.ones(n)]
    for codes in factors:
        levels = int(codes.max()) + 1
        of_level = np.array(draw(st.lists(whole, min_size=levels, max_size=levels)))
        columns.append(of_level[codes])
        z = np.array(draw(st.lists(whole, min_size=n, max_size=n)))
        columns.append(z)
        kind = draw(st.sampled_from(["intercept", "slope", "both"]))
        parts = {"intercept": [np.ones(n)], "slope": [z], "both": [np.ones(n), z]}[kind]
        if kind != "intercept":
            assume(z.any())
        terms.append((codes, levels, np.column_stack(parts).astype(float)))
    X = np.column_stack([columns[0], *draw(st.permutations(columns[1:]))])[:, : draw(st.integers(1, 4))].astype(float)
    assume(np.linalg.matrix_rank(X) == X.shape[1])
    contrast = np.eye(X.shape[1])[draw(st.integers(0, X.shape[1] - 1))]
    return X, terms, contrast


@settings(max_examples=200, deadline=None, derandomize=True)
@given(designs())
def test_random_designs_against_dense_matrices(design):
    X, terms, contrast = design
    frame, _ = frame_of(X, terms)
    carrier = find_carrier(frame, contrast)
    x = (X @ contrast)[:, None]
    Z = dense(terms)
    columns = [(terms[r][1], r, j) for (r, j), z in Z.items() if rank([z, x]) == rank([z])]
    if carrier is None:
        assert not columns
        return
    r, direction = carrier.term, carrier.direction
    z = sum(direction[j] * Z[r, j] for j in range(direction.size))
    z[np.abs(z) < 1e-10] = 0
    assert rank([z, x]) == rank([z])
    assert all((terms[r][1], r) <= found[:2] for found in columns)
    if np.count_nonzero(direction) == 1:
        assert (terms[r][1], r, column_of(carrier)) == min(columns)
    else:
        assert not any(found[1] == r for found in columns)
    assert carrier.df == degrees_of_freedom(X, terms, r, int(np.abs(direction).argmax()))


def dense_levels_to_spare(X: list[np.ndarray], own: np.ndarray, coarser: list[np.ndarray]) -> int:
    """What the indicators of a grouping factor add to the rank."""
    others = np.column_stack([*X, *(np.eye(c.max() + 1)[c] for c in coarser)])
    return np.linalg.matrix_rank(np.column_stack([others, np.eye(own.max() + 1)[own]])) - np.linalg.matrix_rank(others)


@pytest.mark.parametrize("n_donors", [2, 3, 4, 12])
def test_levels_to_spare(n_donors):
    cells = n_donors > DONOR
    X = [ONE[cells], DX[cells], STIM[cells].astype(float), QUALITY[cells]]
    donor, sample, batch = DONOR[cells], SAMPLE[cells], BATCH[cells]
    site = donor // 2
    for terms in ([donor], [donor, sample], [donor, batch], [sample, donor], [site, donor]):
        frame, _ = frame_of(np.column_stack(X), intercepts(*terms))
        for r, own in enumerate(terms):
            coarser = [
                c
                for c in terms
                if c.max() < own.max() and np.unique(np.stack([own, c]), axis=1).shape[1] == np.unique(own).size
            ]
            exact = dense_levels_to_spare(X, own, coarser)
            found = levels_to_spare(frame, r)
            assert (found == 0) == (exact == 0)
            assert found <= exact
    frame, _ = frame_of(np.column_stack(X), intercepts(donor))
    assert (levels_to_spare(frame, 0) == 0) == (n_donors == 2)
    assert constant_within(frame, 0).tolist() == [True, True, False, False]


def test_a_fixed_effect_of_every_donor_leaves_none():
    X = np.column_stack([np.eye(J)[DONOR], STIM])
    frame, _ = frame_of(X, intercepts(DONOR))
    assert levels_to_spare(frame, 0) == 0


def test_a_slope_of_a_covariate_that_is_constant_within_levels():
    """Said elsewhere; there is a variance between levels all the same."""
    for terms in ([slope(AGE, DONOR)], [*intercepts(DONOR), (DONOR, J, AGE[:, None])]):
        frame, _ = frame_of(np.column_stack([ONE, AGE]), terms)
        assert all(levels_to_spare(frame, r) > 0 for r in range(len(terms)))


@given(seed=st.integers(0, 10_000), n_levels=st.integers(1, 8), slopes=st.booleans())
@settings(deadline=None)
def test_one_component_is_taken_out_level_by_level(seed, n_levels, slopes):
    """The rank of a dense matrix, also with levels in which the covariate is 0 and with columns within its span."""
    rng = np.random.default_rng(seed)
    n = 20
    codes = np.concatenate([np.arange(n_levels), rng.integers(0, n_levels, n - n_levels)])
    covariate = rng.integers(0, 3, n).astype(float) if slopes else np.ones(n)
    assume(covariate.any())
    X = np.column_stack([np.ones(n), codes % 2, rng.integers(0, 2, n), rng.normal(size=n)])
    X = X[:, np.abs(X).max(axis=0) > 0]
    Z = covariate[:, None] * (codes[:, None] == np.arange(n_levels))
    term = RandomTerm("d", ["x"], codes, n_levels, covariate[:, None], np.array([2.0]), np.eye(1))
    expected = np.linalg.matrix_rank(np.hstack([X, Z]))
    assert _rank_beside_one(X / np.abs(X).max(axis=0), term, 0) == expected
