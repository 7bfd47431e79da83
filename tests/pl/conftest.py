"""Figures are drawn without a screen and closed after each test."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable

import pytest
import scanpy as sc
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy import sparse

import scglmm


@pytest.fixture(autouse=True)
def _figures():
    plt.switch_backend("agg")
    yield
    plt.close("all")


@pytest.fixture
def log():
    """What scanpy's logger says."""
    before = sc.settings.logfile, sc.settings.verbosity
    sc.settings.logfile = stream = io.StringIO()
    sc.settings.verbosity = 2
    yield stream
    sc.settings.logfile, sc.settings.verbosity = before


def visible_texts(fig: Figure) -> list[Text]:
    """Every text that is drawn: tick labels outside the limits are not, though they count as visible."""
    outside = set()
    for ax in fig.findobj(plt.Axes):
        for axis, limits in ((ax.xaxis, ax.get_xlim()), (ax.yaxis, ax.get_ylim())):
            low, high = sorted(limits)
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                if not low <= tick.get_loc() <= high or not axis.get_visible() or not tick.label1.get_visible():
                    outside |= {tick.label1, tick.label2}
    return [t for t in fig.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in outside]


@pytest.fixture(scope="session")
def assert_readable() -> Callable[[Figure], None]:
    """Check that no text of a figure is cut off, and that no two overlap."""

    def check(fig: Figure) -> None:
        fig.canvas.draw()
        texts = visible_texts(fig)
        assert texts
        extents = [text.get_window_extent() for text in texts]
        for text, extent in zip(texts, extents, strict=True):
            assert extent.x0 >= -1, text
            assert extent.x1 <= fig.bbox.x1 + 1, text
            assert extent.y0 >= -1, text
            assert extent.y1 <= fig.bbox.y1 + 1, text
        for (a, first), (b, second) in itertools.combinations(zip(texts, extents, strict=True), 2):
            # descenders of one line may reach into the room above the next
            across = min(first.x1, second.x1) - max(first.x0, second.x0)
            along = min(first.y1, second.y1) - max(first.y0, second.y0)
            assert across < 1.5 or along < 1.5, (a, b)

    return check


@pytest.fixture(scope="session")
def small(toy):
    """Twelve donors, 240 cells and eight genes, fitted."""
    adata = toy.make_adata(n_genes=8, n_cells=240, n_donors=12, seed=3)
    verbosity, sc.settings.verbosity = sc.settings.verbosity, 0
    scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + Age + (1|SubID)", n_jobs=1)
    sc.settings.verbosity = verbosity
    return adata


@pytest.fixture(scope="session")
def paired(toy):
    """Six donors, each before and after, and a gene without counts before."""
    adata = toy.make_adata(n_genes=4, n_cells=240, n_donors=6, seed=5)
    adata.obs["stim"] = ["before", "after"] * 120
    adata.obs["stim"] = adata.obs["stim"].astype("category").cat.reorder_categories(["before", "after"])
    counts = adata.X.toarray()
    counts[(adata.obs["stim"] == "before").to_numpy(), 3] = 0
    adata.X = sparse.csr_matrix(counts)
    verbosity, sc.settings.verbosity = sc.settings.verbosity, 0
    scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + stim + (1|SubID) + (1|SubID:stim)", n_jobs=1)
    sc.settings.verbosity = verbosity
    return adata
