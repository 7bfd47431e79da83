from __future__ import annotations

import pytest

import scglmm


def test_a_bar_per_status(toy, assert_readable):
    adata = toy.fitted(200, share_untested=0.2)
    ax = scglmm.pl.status(adata, show=False)
    assert_readable(ax.get_figure())
    counts = adata.varm["nbmm_fit"]["status"].astype(str).value_counts()
    labels = [label.get_text() for label in ax.get_yticklabels()]
    assert labels[0] == "ok"
    assert [bar.get_width() for bar in ax.patches] == counts[labels].tolist()
    assert ax.texts[0].get_text() == f"{counts['ok']:,} ({100 * counts['ok'] / 200:.0f}%)"


def test_groups(toy, assert_readable):
    adata = toy.fitted_groups()
    ax = scglmm.pl.status(adata, title="Cell types", show=False)
    assert_readable(ax.get_figure())
    assert [label.get_text() for label in ax.get_yticklabels()] == ["T/NK", "Mono", "B|naive"]
    assert [text.get_text() for text in ax.texts] == ["skipped: Sex is constant"]
    totals = [sum(bar.get_width() for bar in row) for row in zip(*ax.containers, strict=True)]
    assert totals == [60, 0, 60]
    assert ax.get_legend().get_title().get_text() == "Cell types"
    one = scglmm.pl.status(adata, group="T/NK", show=False)
    assert [label.get_text() for label in one.get_yticklabels()] == ["T/NK"]


def test_a_long_reason_is_wrapped(toy, assert_readable):
    adata = toy.fitted_groups()
    reason = "skipped: only 2 donors have Dx = AD, and a coefficient between donors needs 3 of each level at least"
    adata.uns["nbmm"]["groups"].loc["Mono", "status"] = reason
    ax = scglmm.pl.status(adata, show=False)
    assert_readable(ax.get_figure())
    assert ax.texts[0].get_text().count("\n") == 1


def test_errors(toy):
    with pytest.raises(ValueError, match="was not fitted: skipped"):
        scglmm.pl.status(toy.fitted_groups(), group="Mono")
    with pytest.raises(ValueError, match="not fitted with `groupby`"):
        scglmm.pl.status(toy.fitted(), group="Mono")
