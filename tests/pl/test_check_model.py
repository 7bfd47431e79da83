"""Pictures of a fit."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

import scglmm


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(1)
    data = pd.DataFrame({"x": rng.normal(size=240), "z": rng.normal(size=240), "g": np.repeat(np.arange(24), 10)})
    data["y"] = 1 + 0.3 * data["x"] + rng.normal(size=24)[data["g"]] + rng.normal(size=240)
    data["count"] = rng.poisson(np.exp(data["y"]))
    return data


@pytest.fixture(scope="module")
def fits(data):
    return {
        "gaussian": scglmm.glmm("y ~ x + z + (x|g)", data),
        "nbinom2": scglmm.glmm("count ~ x + z + (1|g)", data, family="nbinom2"),
        "plain": scglmm.glmm("count ~ x", data, family="poisson"),
        "zi": scglmm.glmm("count ~ x + (1|g)", data, family="poisson", ziformula="~ 1"),
    }


@pytest.mark.parametrize(("name", "n"), [("gaussian", 7), ("nbinom2", 7), ("plain", 4), ("zi", 6)])
def test_panels_that_apply(fits, name, n):
    axes = scglmm.pl.check_model(fits[name], show=False, n_sim=10)
    assert len(axes) == n
    titles = [ax.get_title(loc="left") for ax in axes]
    assert titles[:4] == [
        "Posterior predictive check",
        "Residuals against fitted",
        "Scale–location",
        "Quantile residuals",
    ]
    assert len(set(titles)) == n
    assert all(ax.get_xlabel() for ax in axes)


@pytest.mark.parametrize("name", ["gaussian", "nbinom2"])
def test_nothing_is_cut_and_no_labels_overlap(fits, name):
    fig = scglmm.pl.check_model(fits[name], return_fig=True, n_sim=10)
    assert isinstance(fig, Figure)
    fig.draw_without_rendering()
    width, height = fig.bbox.size
    for ax in fig.axes:
        box = ax.get_tightbbox()
        assert box.x0 >= -1
        assert box.x1 <= width + 1
        assert box.y0 >= -1
        assert box.y1 <= height + 1
        labels = [t.get_window_extent() for t in ax.get_yticklabels() if t.get_text() and t.get_visible()]
        for a, b in pairwise(labels):
            assert min(a.y1, b.y1) - max(a.y0, b.y0) < 1


@pytest.mark.parametrize("reach", [3.0, 30.0, 3000.0])
def test_fitted_means_on_a_logarithmic_axis(reach, assert_readable):
    rng = np.random.default_rng(2)
    data = pd.DataFrame({"x": np.tile(np.linspace(0, 1, 20), 6), "g": np.repeat(np.arange(6), 20)})
    data["y"] = rng.poisson(2 * np.exp(np.log(reach) * data["x"]))
    fit = scglmm.glmm("y ~ x + (1|g)", data, family="poisson")
    assert_readable(scglmm.pl.check_model(fit, panels=["fitted", "scale"], return_fig=True))


def test_panels_by_name(fits):
    assert len(scglmm.pl.check_model(fits["nbinom2"], panels="quantile", show=False)) == 1
    axes = scglmm.pl.check_model(fits["nbinom2"], panels=["influence", "ranef", "collinearity"], show=False)
    assert [ax.get_title(loc="left") for ax in axes] == ["Influential groups", "Random effects", "Collinearity"]


def test_the_same_picture_twice(fits):
    pieces = [
        scglmm.pl.check_model(fits["nbinom2"], panels="fitted", show=False)[0].collections[0].get_offsets()
        for _ in range(2)
    ]
    np.testing.assert_array_equal(*pieces)


def test_refused(fits, data):
    with pytest.raises(TypeError, match=r"a fit of scglmm\.glmm, not DataFrame"):
        scglmm.pl.check_model(data)
    with pytest.raises(ValueError, match="panels='qq' is not one of 'predictive'"):
        scglmm.pl.check_model(fits["plain"], panels="qq")
    with pytest.raises(ValueError, match="cannot be drawn: the model has no random effects"):
        scglmm.pl.check_model(fits["plain"], panels=["influence"])
    with pytest.raises(ValueError, match="No panels"):
        scglmm.pl.check_model(fits["plain"], panels=[])
