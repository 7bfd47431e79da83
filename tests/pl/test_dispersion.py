from __future__ import annotations

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

import scglmm


@pytest.fixture
def adata(toy):
    adata = toy.fitted(200)
    fit = adata.varm["nbmm_fit"]
    fit.loc[fit.index[:4], "theta"] = np.inf
    fit["var[SubID:stim]"] = np.exp(np.random.default_rng(0).normal(-1, 1, 200))
    adata.uns["nbmm"]["fit_columns"] = np.array(list(fit.columns), dtype=object)
    return adata


def points(ax):
    return np.vstack([c.get_offsets() for c in ax.collections if c.get_offsets().size])


def test_panels(adata, assert_readable):
    panels = scglmm.pl.dispersion(adata, show=False)
    assert_readable(panels[0].get_figure())
    assert [ax.get_ylabel() for ax in panels] == ["theta", "sd of SubID", "sd of SubID:stim"]
    fit = adata.varm["nbmm_fit"]
    fitted = fit[~fit["status"].astype(str).isin(["too_few_counts", "not_converged"])]
    assert all(len(points(ax)) == len(fitted) for ax in panels)
    assert panels[0].texts[0].get_text() == f"∞: {np.isinf(fitted['theta']).sum()}"
    assert panels[1].texts[0].get_text() == f"0: {(fitted['var[SubID]'] == 0).sum()}"
    assert not panels[2].texts
    inside = points(panels[2])
    expected = {tuple(xy) for xy in np.round(fitted[["mean", "var[SubID:stim]"]].to_numpy() ** [1, 0.5], 9)}
    assert {tuple(xy) for xy in np.round(inside, 9)} <= expected


def test_one_panel(adata, assert_readable):
    _, ax = plt.subplots()
    assert scglmm.pl.dispersion(adata, "theta", ax=ax, show=False) is ax
    fig = scglmm.pl.dispersion(adata, ["var[SubID]"], return_fig=True)
    assert_readable(fig)
    assert isinstance(fig.axes[0], Axes)


def test_trend(adata):
    mean = np.array([1.0, 0.1, 10.0])
    adata.uns["nbmm"]["moderation"] = {"trend": {"mean": mean, "var[SubID]": np.array([0.3, 0.5, 0.2])}}
    panels = scglmm.pl.dispersion(adata, show=False)
    lines = [[line for line in ax.lines if line.get_label() == "trend"] for ax in panels]
    assert [len(found) for found in lines] == [0, 1, 0]
    np.testing.assert_array_equal(lines[1][0].get_xdata(), [0.1, 1, 10])
    np.testing.assert_array_equal(lines[1][0].get_ydata(), [0.5, 0.3, 0.2])
    assert "trend" in [text.get_text() for text in panels[0].get_legend().get_texts()]
    adata.uns["nbmm"]["moderation"] = {"other": 1}
    assert not scglmm.pl.dispersion(adata, "theta", show=False).lines


def test_groups(toy):
    adata = toy.fitted_groups()
    panels = scglmm.pl.dispersion(adata, group="T/NK", show=False)
    assert panels[0].get_legend().get_title().get_text() == "T/NK"
    adata.uns["nbmm"]["moderation"] = {
        "T∕NK": {"trend": {"mean": np.array([0.1, 1.0]), "theta": np.array([1.0, 2.0])}},
    }
    ax = scglmm.pl.dispersion(adata, "theta", group="T/NK", show=False)
    assert [line.get_label() for line in ax.lines] == ["trend"]


def test_a_few_wild_values_do_not_take_the_room(adata):
    fit = adata.varm["nbmm_fit"]
    ok = fit.index[(fit["status"] == "ok") & np.isfinite(fit["theta"])]
    fit.loc[ok[0], "theta"] = 1e-12
    ax = scglmm.pl.dispersion(adata, "theta", show=False)
    assert ax.get_ylim()[0] > 1e-6
    assert points(ax)[:, 1].min() >= ax.get_ylim()[0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"columns": "var[x]"}, KeyError, r"No column 'var\[x\]' to show. Columns: 'var\[SubID\]'"),
        ({"columns": []}, ValueError, "`columns` is empty"),
        ({"ax": True}, ValueError, "`ax` takes one panel, and there are 3"),
    ],
)
def test_errors(adata, arguments, error, message):
    if "ax" in arguments:
        arguments = {"ax": plt.subplots()[1]}
    with pytest.raises(error, match=message):
        scglmm.pl.dispersion(adata, **arguments)


def test_nothing_was_fitted(toy):
    adata = toy.fitted()
    adata.varm["nbmm_fit"]["theta"] = np.nan
    with pytest.raises(ValueError, match="No gene was fitted"):
        scglmm.pl.dispersion(adata)
