"""``python -m scglmm.demo``: the table and the pictures of the README's first command."""

from __future__ import annotations

import runpy
import sys

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

from scglmm import demo


@pytest.fixture(autouse=True)
def _backend():
    before = mpl.get_backend()
    yield
    plt.close("all")
    mpl.use(before)


def test_demo(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "new" / "figures"
    monkeypatch.setattr(sys, "argv", ["scglmm.demo", str(folder)])
    monkeypatch.delitem(sys.modules, "scglmm.demo")
    runpy.run_module("scglmm.demo", run_name="__main__")
    out = capsys.readouterr().out
    assert "60,005 cells, 249 donors, 400 genes" in out
    assert demo.FORMULA in out
    assert f"Top genes for {demo.COEFFICIENT}" in out
    head = next(line for line in out.splitlines() if "log_fc" in line and "padj" in line)
    assert head.split() == ["gene", "log_fc", "log2_fc", "se", "statistic", "df", "pval", "padj", "mean", "status"]
    assert "of 400 genes tested have padj < 0.05" in out
    pictures = sorted(path.name for path in folder.iterdir())
    assert pictures == ["varpart.png", "varpart_top.png", "volcano.png"]
    for path in folder.iterdir():
        assert path.stat().st_size > 10_000
        assert f"wrote {path}" in out
