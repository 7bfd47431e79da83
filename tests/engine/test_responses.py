from __future__ import annotations

import numpy as np
import pytest
from models import Cells, compile_model, simulate
from scipy.stats import nbinom

from scglmm.compression.nodes import make_nodes
from scglmm.compression.tables import DIRECT, accumulate
from scglmm.engine.laplace import laplace
from scglmm.engine.layout import NODE_A, NODE_E, NODE_Y, make_work
from scglmm.engine.responses import Responses
from scglmm.engine.structure import analyse


def responses_of(counts: np.ndarray, stratum, offset, tolerance=1e-10, *, compress=True, shift=0.0) -> Responses:
    nodes = make_nodes(stratum, offset, tolerance, compress=compress)
    table = accumulate(counts, np.arange(stratum.size), nodes, np.arange(counts.shape[1]))
    return Responses(nodes, table, shift)


def test_uncompressed_is_the_gene_itself():
    cells = simulate("crossed", cells=3)
    cells.y[::17] += DIRECT + 50
    counts = np.column_stack([np.zeros_like(cells.y), cells.y, np.minimum(cells.y, 2)])
    responses = responses_of(counts, cells.stratum, cells.offset, compress=False)
    expected = compile_model(cells).data
    found = responses[1]
    assert (found.start == expected.start).all()
    assert found.nodes == pytest.approx(expected.nodes, rel=1e-15)
    assert (found.y_sum == expected.y_sum).all()
    assert (found.exceed == expected.exceed).all()
    assert (found.tail == expected.tail).all()
    assert found.constant == pytest.approx(expected.constant, rel=1e-13)
    assert responses[2].exceed.size == 2
    empty = responses[0]
    assert empty.y_sum.tolist() == [0] * 72
    assert empty.constant == 0.0
    assert empty.tail.shape == (2, 0)


def test_types_are_those_the_kernels_were_compiled_for():
    cells = simulate("one")
    found = responses_of(cells.y[:, None], cells.stratum, cells.offset)[0]
    for array, expected in zip(found, compile_model(cells).data, strict=True):
        if isinstance(array, np.ndarray):
            assert array.dtype == expected.dtype
            assert array.flags["C_CONTIGUOUS"]


def test_compressed_sums_are_whole_and_exact():
    rng = np.random.default_rng(0)
    stratum = np.repeat([0, 1], [500, 300])
    offset = rng.normal(8, 1.2, 800)
    y = rng.poisson(np.exp(offset - 8)).astype(float)
    found = responses_of(y[:, None], stratum, offset)[0]
    assert found.y_sum.tolist() == [y[:500].sum(), y[500:].sum()]
    assert found.constant == pytest.approx(
        responses_of(y[:, None], stratum, offset, compress=False)[0].constant, rel=1e-12
    )


def test_a_shift_of_the_offset_moves_the_intercept():
    cells = simulate("one", cells=40, n_donors=6)
    plain = responses_of(cells.y[:, None], cells.stratum, cells.offset + 500.0, shift=500.0)[0]
    expected = responses_of(cells.y[:, None], cells.stratum, cells.offset)[0]
    assert plain.nodes[NODE_E] == pytest.approx(expected.nodes[NODE_E], rel=1e-12)
    assert plain.nodes[NODE_A] == pytest.approx(expected.nodes[NODE_A], abs=1e-10)
    assert plain.nodes[NODE_Y] == pytest.approx(expected.nodes[NODE_Y], abs=1e-10)
    assert plain.constant == pytest.approx(expected.constant, abs=1e-9)


# Simulated data with offsets of 40-fold and 10,000-fold range. -------------------------------------------------------


def ranges(fold: float, mean: float, theta: float) -> tuple[Cells, np.ndarray, np.ndarray]:
    """Donors with a random intercept, 150 cells each: a model on one stratum per donor."""
    rng = np.random.default_rng(int(fold) + int(10 * mean) % 1000)
    n_donors, per_donor = 10, 150
    donor = np.repeat(np.arange(n_donors), per_donor)
    offset = rng.uniform(-0.5, 0.5, donor.size) * np.log(fold)
    eta = mean + rng.normal(0, 0.4, n_donors)[donor] + offset
    y = rng.poisson(np.exp(eta) * rng.gamma(theta, 1 / theta, donor.size)).astype(float)
    one = np.ones((donor.size, 1))
    X = np.column_stack([one, donor % 2])
    return Cells(y, offset, X, [(donor, n_donors, one)], donor), donor, offset


@pytest.mark.parametrize("fold", [40, 1e4])
@pytest.mark.parametrize("theta", [0.01, 1.0, 100.0, 1e8])
@pytest.mark.parametrize("mean", [-10.0, -4.0, 0.0, 4.0, 10.0])
def test_compressed_against_uncompressed(fold, mean, theta):
    cells, donor, offset = ranges(fold, mean, theta)
    # As tl.nbmm chooses it: 1e-4 in the log-likelihood of the gene with most counts.
    tolerance = max(1e-14, min(1e-10, 1e-4 / (20 * max(1.0, cells.y.sum()))))
    model = compile_model(cells)
    data = responses_of(cells.y[:, None], donor, offset, tolerance)[0]
    for eta, log_theta in ((mean, np.log(theta)), (mean + 1, min(np.log(theta) + 1, np.log(1e8)))):
        for joint in (False, True):
            par = np.r_[[] if joint else [eta, 0.1], 0.4, log_theta]
            value, gradient, *_ = model.evaluate(par, joint=joint, beta=[eta, 0.1])
            beta, v, found = np.array([eta, 0.1]), np.zeros(10), np.empty(par.size)
            work = make_work(model.structure, model.X)
            compressed = laplace(data, model.structure, model.X, joint, True, par, beta, v, found, work)
            assert abs(compressed - value) <= min(1e-4, 1e-8 * abs(value))
            assert np.abs(found - gradient).max() <= 1e-6 * (1 + np.abs(gradient).max())


def test_too_few_nodes_are_badly_wrong():
    # The reason for choosing the number of nodes from the data: a tolerance that is not kept is seen at once.
    cells, donor, offset = ranges(1e4, 0.0, 1.0)
    model = compile_model(cells)
    par = np.array([0.0, 0.1, 0.4, 0.0])
    exact, *_ = model.evaluate(par, joint=False)
    errors = []
    for tolerance in (1e-3, 1e-6, 1e-10):
        data = responses_of(cells.y[:, None], donor, offset, tolerance)[0]
        beta, v, gradient = np.zeros(2), np.zeros(10), np.empty(4)
        work = make_work(model.structure, model.X)
        errors.append(abs(laplace(data, model.structure, model.X, False, True, par, beta, v, gradient, work) - exact))
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert errors[2] < 1e-7


def test_all_strata_in_one():
    # No random effect, no covariate: a plain negative binomial sample, in one stratum.
    rng = np.random.default_rng(1)
    offset = rng.normal(0, 1, 2000)
    y = rng.negative_binomial(1.5, 1.5 / (1.5 + np.exp(offset))).astype(float)
    data = responses_of(y[:, None], np.zeros(2000, int), offset)[0]
    structure, _ = analyse([], [], [], 1)
    X = np.ones((1, 1))
    par, work = np.array([0.2, 0.4]), make_work(structure, X)
    value = laplace(data, structure, X, False, True, par, np.zeros(1), np.zeros(0), np.empty(2), work)
    mu, theta = np.exp(0.2 + offset), np.exp(0.4)
    assert value == pytest.approx(nbinom.logpmf(y, theta, theta / (theta + mu)).sum(), rel=1e-10)
