from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import scglmm


def donor_points(ax):
    return {c.get_label(): c.get_offsets() for c in ax.collections if c.get_label() in {"donors", "no counts"}}


def estimates(ax):
    return [line for line in ax.lines if line.get_label() == "estimate"]


def rates(adata, gene, by):
    """Counts per 10,000 of exposure."""
    frame = adata.obs[by].assign(y=adata[:, gene].X.toarray().ravel(), e=adata.obs["libSize"])
    summed = frame.groupby(by, observed=True)[["y", "e"]].sum()
    return 1e4 * summed["y"] / summed["e"]


def test_a_point_per_donor(small, assert_readable):
    ax = scglmm.pl.donors(small, "GENE2", show=False)
    assert_readable(ax.get_figure())
    expected = rates(small, "GENE2", ["SubID"])
    np.testing.assert_allclose(np.sort(donor_points(ax)["donors"][:, 1]), np.sort(expected))
    assert [label.get_text() for label in ax.get_xticklabels()] == [
        "Control\n(n = 4)",
        "AD\n(n = 4)",
        "MCI\n(n = 4)",
    ]
    places = np.round(donor_points(ax)["donors"][:, 0])
    assert sorted(places) == [0] * 4 + [1] * 4 + [2] * 4
    assert ax.get_legend().get_title().get_text() == "GENE2"
    assert ax.get_ylabel() == "counts per 10,000"


def test_estimates_are_those_stored(small):
    gene = "GENE2"
    ax = scglmm.pl.donors(small, gene, show=False)
    (line,) = estimates(ax)
    coef = small.varm["nbmm_coef"].loc[gene]
    age = small.obs.groupby("SubID", observed=True)["Age"].first().mean()
    base = coef["(Intercept)"] + age * coef["Age"]
    expected = 1e4 * np.exp(base + np.array([0, coef["Dx[T.AD]"], coef["Dx[T.MCI]"]]))
    np.testing.assert_allclose(line.get_ydata(), expected)
    # the interval of the AD donors, from the stored covariance
    lower = small.varm["nbmm_vcov"][small.var_names.get_loc(gene)]
    vcov = np.zeros((4, 4))
    vcov[np.tril_indices(4)] = lower
    vcov = vcov + np.tril(vcov, -1).T
    columns = list(coef.index)
    c = np.array([{"(Intercept)": 1, "Dx[T.AD]": 1, "Age": age}.get(name, 0) for name in columns])
    dof = small.varm["nbmm_dof"].loc[gene][c != 0].min()
    half = stats.t.ppf(0.975, dof) * np.sqrt(c @ vcov @ c)
    segments = [line.get_ydata() for line in ax.lines if len(line.get_xdata()) == 2 and line.get_label() != "estimate"]
    ends = min(segments, key=lambda ends: abs(np.log(np.prod(ends)) - 2 * np.log(expected[1])))
    np.testing.assert_allclose(ends, expected[1] * np.exp([-half, half]))


def test_columns_with_names_used_inside(toy):
    adata = toy.make_adata(n_genes=4, n_cells=240)
    adata.obs = adata.obs.rename(columns={"Dx": "y", "SubID": "donor", "Age": "x"})
    scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + y + x + (1|donor)")
    for column in ("y", "x"):
        ax = scglmm.pl.donors(adata, "GENE1", x=column, show=False)
        assert sum(len(xy) for xy in donor_points(ax).values()) == 12


def test_many_long_levels(toy, assert_readable):
    adata = toy.make_adata(n_genes=4, n_cells=480, n_donors=24)
    levels = [f"Braak stage {numeral}" for numeral in ("0", "I", "II", "III", "IV", "V")]
    adata.obs["stage"] = pd.Categorical(np.array(levels)[adata.obs["SubID"].cat.codes % 6], categories=levels)
    scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + stage + (1|SubID)")
    ax = scglmm.pl.donors(adata, "GENE1", show=False)
    assert_readable(ax.get_figure())
    assert [label.get_text() for label in ax.get_xticklabels()] == [f"{level} (n = 4)" for level in levels]


def test_tests_are_written(small):
    table = scglmm.get.nbmm_df(small, "Dx[T.AD]").set_index("gene").loc["GENE2"]
    texts = [text.get_text() for text in scglmm.pl.donors(small, "GENE2", show=False).texts]
    assert texts[0] == "reference"
    assert f"log$_2$FC {table['log2_fc']:.2f}".replace("-", "−") in texts[1]


def test_numeric_covariate(small, assert_readable):
    gene = "GENE2"
    ax = scglmm.pl.donors(small, gene, x="Age", show=False)
    assert_readable(ax.get_figure())
    ages = small.obs.groupby("SubID", observed=True)["Age"].first()
    np.testing.assert_allclose(np.sort(donor_points(ax)["donors"][:, 0]), np.sort(ages))
    (line,) = estimates(ax)
    slope = np.polyfit(line.get_xdata(), np.log(line.get_ydata()), 1)[0]
    assert slope == pytest.approx(small.varm["nbmm_coef"].loc[gene, "Age"])


def test_paired_donors_are_connected(paired, assert_readable):
    ax = scglmm.pl.donors(paired, "GENE1", show=False)
    assert_readable(ax.get_figure())
    assert len(donor_points(ax)["donors"]) == 12
    lines = [line for line in ax.lines if line.get_color() == "#BFBFBF"]
    assert len(lines) == 6


def test_gene_without_counts_in_one_condition(paired, log, assert_readable):
    ax = scglmm.pl.donors(paired, "GENE3", show=False)
    assert_readable(ax.get_figure())
    assert len(donor_points(ax)["no counts"]) == 6
    assert estimates(ax) == []
    assert "GENE3 has no estimate (status separated)" in log.getvalue()
    assert "no counts" in [text.get_text() for text in ax.get_legend().get_texts()]


def test_cells_as_replicates(small, assert_readable):
    adata = small.copy()
    ax = scglmm.pl.donors(adata, "GENE2", compare_cells=True, show=False)
    assert_readable(ax.get_figure())
    naive, model = estimates(ax)
    with pytest.warns(UserWarning, match="no random effect"):
        scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + Age", key_added="naive")
    coef = adata.varm["naive_coef"].loc["GENE2"]
    ratio = np.diff(np.log(naive.get_ydata()))[0]
    assert ratio == pytest.approx(coef["Dx[T.AD]"], abs=1e-6)
    assert len(model.get_ydata()) == 3


def test_cells_as_replicates_are_beside_many_donors(toy):
    adata = toy.make_adata(n_genes=3, n_cells=480, n_donors=48)
    scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx + (1|SubID)")
    ax = scglmm.pl.donors(adata, "GENE1", compare_cells=True, show=False)
    naive, _ = estimates(ax)
    points = np.vstack([xy for xy in donor_points(ax).values() if len(xy)])[:, 0]
    for place, at in enumerate(naive.get_xdata()):
        own = points[np.abs(points - place) < 0.5]
        assert own.max() + 0.05 < at < place + 0.5


def test_without_random_effects_donors_have_to_be_named(toy):
    adata = toy.make_adata(n_genes=4)
    with pytest.warns(UserWarning, match="no random effect"):
        scglmm.tl.nbmm(adata, "~ offset(log(libSize)) + Dx")
    with pytest.raises(ValueError, match="say with `donor` which column"):
        scglmm.pl.donors(adata, "GENE1")
    ax = scglmm.pl.donors(adata, "GENE1", donor="SubID", show=False)
    assert sum(len(xy) for xy in donor_points(ax).values()) == 12


def test_offset_that_is_not_a_library_size(toy):
    adata = toy.make_adata(n_genes=4)
    # the median of an even number of cells: the two in the middle are hardly apart
    adata.obs["size"] = adata.obs["libSize"] / adata.obs["libSize"].median()
    scglmm.tl.nbmm(adata, "~ offset(log(size)) + Dx + (1|SubID)")
    ax = scglmm.pl.donors(adata, "GENE1", show=False)
    assert ax.get_ylabel() == "counts in a cell of median exposure"
    other = scglmm.pl.donors(adata, "GENE1", exposure=2, show=False)
    assert other.get_ylabel() == "counts per 2"
    y, other_y = (np.sort(donor_points(a)["donors"][:, 1]) for a in (ax, other))
    np.testing.assert_allclose(other_y, 2 * y, rtol=1e-4)


def test_colours_of_scanpy(small):
    adata = small.copy()
    adata.uns["Dx_colors"] = ["#ff0000", "#00ff00", "#0000ff"]
    ax = scglmm.pl.donors(adata, "GENE2", show=False)
    (points,) = [c for c in ax.collections if c.get_label() == "donors"]
    assert {tuple(colour) for colour in points.get_facecolors()[:, :3].round()} == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}


def test_group(toy):
    adata = toy.make_adata(n_genes=4, n_cells=240)
    adata.obs["cell_type"] = pd.Categorical(np.where(np.arange(240) % 3 > 0, "T/NK", "B"))
    part = adata[adata.obs["cell_type"] == "T/NK"].copy()
    scglmm.tl.nbmm(part, "~ offset(log(libSize)) + Dx + (1|SubID)")
    # as a result with groups stores it
    for name, table in list(part.varm.items()):
        adata.varm[name] = table.add_prefix("T∕NK|") if isinstance(table, pd.DataFrame) else table[:, None, :]
    adata.uns["nbmm"] = dict(part.uns["nbmm"]) | {
        "groupby": "cell_type",
        "groups": pd.DataFrame({"status": ["ok"]}, index=["T∕NK"]),
    }
    ax, alone = scglmm.pl.donors(adata, "GENE1", show=False), scglmm.pl.donors(part, "GENE1", show=False)
    for kind, xy in donor_points(alone).items():
        np.testing.assert_allclose(np.sort(donor_points(ax)[kind][:, 1]), np.sort(xy[:, 1]))
    np.testing.assert_allclose(estimates(ax)[0].get_ydata(), estimates(alone)[0].get_ydata())
    assert ax.get_legend().get_title().get_text() == "GENE1, T/NK"


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"gene": "x"}, KeyError, "No gene 'x'"),
        ({"gene": ["GENE1"]}, TypeError, "`gene` must be the name of one gene"),
        ({"x": "Sex"}, KeyError, "'Sex' is not a column in the fixed part of the formula. Columns: 'Dx', 'Age'"),
        ({"donor": "subid"}, KeyError, "No column 'subid' in `adata.obs`. Columns: 'SubID'"),
        ({"key": "x"}, KeyError, "No result 'x'"),
        ({"level": 95}, ValueError, "`level` must be between 0 and 1, not 95"),
        ({"exposure": 0}, ValueError, "`exposure` must be above 0, not 0"),
        ({"palette": ["red"]}, ValueError, "1 colours for 3 names"),
    ],
)
def test_errors(small, arguments, error, message):
    with pytest.raises(error, match=message):
        scglmm.pl.donors(small, **({"gene": "GENE1"} | arguments))


def test_the_model_is_gone(small):
    adata = small.copy()
    del adata.uns["nbmm"]
    with pytest.raises(KeyError, match="no entry 'nbmm' with the formula"):
        scglmm.pl.donors(adata, "GENE1")
