from __future__ import annotations

import pytest

import scglmm
from scglmm.datasets import _tables


def test_sleepstudy():
    table = scglmm.datasets.sleepstudy()
    assert table.columns.to_list() == ["Reaction", "Days", "Subject"]
    assert table["Subject"].value_counts().eq(10).all()
    assert len(table["Subject"].cat.categories) == 18
    # the table that Belenky's subject 308 starts
    assert table.loc[0].to_list() == [249.56, 0, "308"]
    assert table["Reaction"].mean() == pytest.approx(298.507892)


def test_arabidopsis():
    table = scglmm.datasets.arabidopsis()
    assert table.shape == (625, 8)
    assert (table["total.fruits"] == 0).sum() == 126
    assert (table.groupby("gen", observed=True)["popu"].nunique() == 1).all()
    assert len(table["gen"].cat.categories) == 24
    assert table["gen"].cat.categories[:4].to_list() == ["4", "5", "6", "11"]
    assert len(table["popu"].cat.categories) == 9


def test_missing_file(monkeypatch, tmp_path):
    monkeypatch.setattr(_tables, "_checkout", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none\.csv is neither in the installed package"):
        _tables._read("none.csv", [])
