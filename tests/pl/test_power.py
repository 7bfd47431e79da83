"""`scglmm.pl.power`."""

from __future__ import annotations

import numpy as np
import pytest

import scglmm

GENE = {"mean": 0.5, "theta": 1.0, "var_donor": 0.2}


def curves(ax):
    return [line for line in ax.lines if len(line.get_xdata()) > 1 and line.get_linewidth() > 1]


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def test_power_against_donors():
    table = scglmm.power(log2_fc=1, n_donors=range(4, 41, 2), n_cells=[20, 200], **GENE)
    ax = scglmm.pl.power(table, show=False)
    assert ax.get_xlabel() == "donors (in all)"
    assert ax.get_ylabel() == "power"
    assert ax.get_legend().get_title().get_text() == "cells per donor"
    assert texts(ax) == ["20", "200"]
    for line, m in zip(curves(ax), [20, 200], strict=True):
        rows = table[table["n_cells"] == m]
        np.testing.assert_array_equal(line.get_xdata(), rows["n_donors"])
        np.testing.assert_array_equal(line.get_ydata(), rows["power"])
    target = [line for line in ax.lines if list(line.get_ydata()) == [0.8, 0.8]]
    assert len(target) == 1
    assert ax.get_ylim() == (0, 1)


def test_solved_tables_have_what_was_solved_upwards():
    table = scglmm.power(log2_fc=[0.5, 1.0, 2.0], n_cells=[50, 500], power=[0.8, 0.9], **GENE)
    ax = scglmm.pl.power(table, show=False)
    assert ax.get_ylabel() == "donors"
    assert ax.get_xlabel() == "log$_2$ fold change"
    assert len(curves(ax)) == 4
    assert texts(ax) == ["50", "500", "power 0.8", "0.9"]
    ax = scglmm.pl.power(table[table["target_power"] == 0.9], show=False, title="How many?")
    assert ax.get_ylabel() == "donors for power 90%"
    assert texts(ax) == ["cells per donor 50", "500"]


def test_what_is_not_reached_is_not_drawn():
    table = scglmm.power(log2_fc=1, n_donors=[6, 16, 20, 30], power=0.8, **GENE)
    line = curves(scglmm.pl.power(table, show=False))[0]
    assert list(line.get_xdata()) == [16, 20, 30]
    with pytest.raises(ValueError, match="no study is large enough"):
        scglmm.pl.power(table[:1], x="n_donors", show=False)


def test_logarithmic_axis_of_cells():
    table = scglmm.power(log2_fc=1, n_donors=12, n_cells=[10, 100, 1000], **GENE)
    assert scglmm.pl.power(table, show=False).get_xscale() == "log"
    assert scglmm.pl.power(table, show=False, log=False).get_xscale() == "linear"
    assert scglmm.pl.power(table, show=False).get_legend() is None


def test_genes(toy):
    adata = toy.fitted()
    genes = adata.var_names[adata.varm["nbmm_fit"]["theta"].notna()][:3].tolist()
    table = scglmm.power(adata, genes, log2_fc=1, n_donors=range(6, 20), n_cells=[50, 500], donor="SubID")
    ax = scglmm.pl.power(table, show=False)
    assert ax.get_legend().get_title().get_text() == "gene"
    assert sorted(texts(ax)) == sorted([*genes, "cells per donor 50", "500"])
    one = table[table["gene"] == genes[0]]
    assert texts(scglmm.pl.power(one, show=False)) == ["50", "500"]


def test_choices():
    table = scglmm.power(log2_fc=[1, 2], n_donors=[6, 8, 10], n_cells=[10, 100], **GENE)
    ax = scglmm.pl.power(table, x="log2_fc", hue="n_cells", style="n_donors", palette=["red", "black"], show=False)
    assert [line.get_color() for line in curves(ax)] == ["red"] * 3 + ["black"] * 3
    fig = scglmm.pl.power(table, palette={10: "red"}, hue="n_cells", target=None, return_fig=True)
    assert fig.axes[0].lines[0].get_color() == "red"
    assert scglmm.pl.power(table, show=False, ax=fig.axes[0]) is fig.axes[0]


def test_errors():
    table = scglmm.power(log2_fc=[1, 2], n_donors=[6, 8, 10], n_cells=[10, 100], **(GENE | {"theta": [1, 2]}))
    with pytest.raises(ValueError, match="do not suffice to tell 'theta' apart"):
        scglmm.pl.power(table)
    with pytest.raises(KeyError, match="x='donors' is not a column of the table: 'n_donors'"):
        scglmm.pl.power(table, x="donors")
    with pytest.raises(TypeError, match=r"must be a table from scglmm\.power"):
        scglmm.pl.power({"power": 1})
    with pytest.raises(ValueError, match="Nothing varies"):
        scglmm.pl.power(table[:1])
    with pytest.raises(ValueError, match="1 colours for 2 values"):
        scglmm.pl.power(table[table["theta"] == 1], hue="n_cells", palette=["red"])
    many = scglmm.power(log2_fc=np.linspace(0.5, 2, 9), n_donors=range(4, 30), n_cells=100, **GENE)
    with pytest.raises(ValueError, match="has 9 values, and there are 7 colours"):
        scglmm.pl.power(many)
