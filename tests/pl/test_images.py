"""Pictures of all plots against those that were looked at and found good.

After an intended change draw them again, and look at them before they are committed::

    SCGLMM_DRAW_BASELINE=1 pytest tests/pl/test_images.py
"""

from __future__ import annotations

import os
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import scanpy as sc
from matplotlib.testing.compare import compare_images
from PIL import Image

import scglmm

BASELINE = Path(__file__).with_name("baseline")
DRAW = bool(os.environ.get("SCGLMM_DRAW_BASELINE"))
TOLERANCE = 1.0
"""Largest root mean square difference, of 255. Every minor version of matplotlib renders type in its own way, and then
everything moves: pictures are compared under the version that drew them, and left out under others."""

pl = scglmm.pl
RESULTS = {
    "volcano": lambda a: pl.volcano(a, "Dx[T.AD]", n_labels=8, log2fc_cutoff=0.2, return_fig=True),
    "ma": lambda a: pl.ma(a, "Dx[T.AD]", n_labels=8, return_fig=True),
    "varpart_violin": lambda a: pl.varpart(a, return_fig=True),
    "varpart_bar": lambda a: pl.varpart(a, n_genes=12, sort_by="SubID", return_fig=True),
    "forest": lambda a: pl.forest(a, coef=["Dx[T.AD]", "Dx[T.MCI]"], n_genes=8, return_fig=True),
    "dispersion": lambda a: pl.dispersion(a, return_fig=True),
    "qq": lambda a: pl.qq(a, "Dx[T.AD]", return_fig=True),
    "status": lambda a: pl.status(a, return_fig=True),
    "heatmap": lambda a: pl.heatmap(a, n_genes=12, return_fig=True),
    "dotplot": lambda a: pl.dotplot(a, n_genes=12, return_fig=True),
}
GROUPS = {
    "forest_groups": lambda a: pl.forest(a, "GENE3", coef="Dx[T.AD]", return_fig=True),
    "heatmap_groups": lambda a: pl.heatmap(a, coef="Age", swap_axes=True, return_fig=True),
    "dotplot_groups": lambda a: pl.dotplot(a, coef="Dx[T.AD]", n_genes=10, return_fig=True),
    "status_groups": lambda a: pl.status(a, return_fig=True),
}
FITTED = {
    "donors": ("small", lambda a: pl.donors(a, "GENE2", compare_cells=True, return_fig=True)),
    "donors_numeric": ("small", lambda a: pl.donors(a, "GENE2", x="Age", return_fig=True)),
    "donors_paired": ("paired", lambda a: pl.donors(a, "GENE1", return_fig=True)),
    "ranef": ("small", lambda a: pl.ranef(a, "GENE2", color="Dx", return_fig=True)),
}


@pytest.fixture(autouse=True)
def _plain():
    """Give every picture the same settings, whatever the user's."""
    verbosity, sc.settings.verbosity = sc.settings.verbosity, 0
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.use("agg")
        yield
    sc.settings.verbosity = verbosity


def check(name, fig, tmp_path):
    drawn = tmp_path / f"{name}.png"
    stored = BASELINE / f"{name}.png"
    fig.savefig(drawn, dpi=100, metadata={"Software": f"matplotlib {mpl.__version__}"})
    if DRAW:
        BASELINE.mkdir(exist_ok=True)
        stored.write_bytes(drawn.read_bytes())
        pytest.skip(f"drawn: {stored}")
    with Image.open(stored) as image:
        by = image.info["Software"].split()[1]
    if by.split(".")[:2] != mpl.__version__.split(".")[:2]:
        pytest.skip(f"drawn by matplotlib {by}, this is {mpl.__version__}")
    assert compare_images(stored, drawn, TOLERANCE) is None


@pytest.mark.parametrize("name", RESULTS)
def test_results(toy, name, tmp_path):
    check(name, RESULTS[name](toy.fitted(300, seed=2)), tmp_path)


@pytest.mark.parametrize("name", GROUPS)
def test_groups(toy, name, tmp_path):
    check(name, GROUPS[name](toy.fitted_groups()), tmp_path)


@pytest.mark.parametrize("name", FITTED)
def test_refitted(request, name, tmp_path):
    fixture, draw = FITTED[name]
    check(name, draw(request.getfixturevalue(fixture)), tmp_path)


def test_a_change_is_noticed(toy, tmp_path):
    if DRAW:
        pytest.skip("there is nothing to compare with")
    fig = RESULTS["forest"](toy.fitted(300, seed=2))
    fig.axes[0].lines[-1].set_xdata(np.array([0.9]))
    with pytest.raises(AssertionError):
        check("forest", fig, tmp_path)


def test_every_plot_has_a_picture():
    drawn = {name.split("_")[0] for name in [*RESULTS, *GROUPS, *FITTED]}
    # These two draw no result of `tl.nbmm`: their structure is tested in test_power.py and tests/glmm.
    assert drawn | {"power", "check_model"} == set(pl.__all__)
