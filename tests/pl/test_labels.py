from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib import pyplot as plt

import scglmm
from scglmm.pl._labels import PointLabels, _Label, _runs_through


def boxes(labels):
    """Bounding boxes of the names that are shown, in pixels."""
    return [note.get_window_extent() for note in labels.notes if note.get_visible()]


def assert_apart_and_within(labels, ax):
    frame = ax.get_window_extent()
    shown = boxes(labels)
    for a, b in itertools.combinations(shown, 2):
        assert not a.overlaps(b)
    for box in shown:
        assert frame.x0 <= box.x0
        assert box.x1 <= frame.x1
        assert frame.y0 <= box.y0
        assert box.y1 <= frame.y1


def cloud(n, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 1, (n, 2))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [1, 10, 30])
def test_names_do_not_overlap_and_stay_inside(seed, n):
    points = cloud(200, seed)
    fig, ax = plt.subplots(figsize=(3.5, 3.3), layout="constrained")
    ax.scatter(*points.T)
    chosen = np.argsort(-np.abs(points).sum(axis=1))[:n]
    labels = PointLabels(ax, points[chosen], [f"GENE{i}" for i in chosen], points)
    fig.canvas.draw()
    assert_apart_and_within(labels, ax)
    assert len(boxes(labels)) >= 0.9 * n


def test_a_lone_name_is_right_beside_its_point():
    fig, ax = plt.subplots(figsize=(3, 3))
    ax.set(xlim=(0, 1), ylim=(0, 1))
    labels = PointLabels(ax, np.array([[0.3, 0.5], [0.7, 0.5]]), ["a", "b"], np.array([[0.3, 0.5], [0.7, 0.5]]))
    fig.canvas.draw()
    left, right = (note.get_position() for note in labels.notes)
    assert left[0] < 0 < right[0]
    assert abs(left[1]) < 1
    assert not any(line.get_visible() for line in labels.lines)


def test_names_avoid_points():
    # the point is walled in on the right
    wall = np.column_stack([np.full(50, 0.52), np.linspace(0.4, 0.6, 50)])
    points = np.vstack([[[0.505, 0.5]], wall])
    fig, ax = plt.subplots(figsize=(3, 3))
    ax.set(xlim=(0, 1), ylim=(0, 1))
    labels = PointLabels(ax, points[:1], ["GENE"], points, 4.0)
    fig.canvas.draw()
    box = labels.notes[0].get_window_extent()
    assert not any(box.contains(*xy) for xy in ax.transData.transform(points))


def test_placed_again_when_size_limits_or_layout_change():
    points = cloud(100, 1)
    fig, axs = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
    axs[0].scatter(*points.T)
    labels = PointLabels(axs[0], points[:15], [f"GENE{i}" for i in range(15)], points)
    fig.canvas.draw()
    assert_apart_and_within(labels, axs[0])
    axs[1].set_ylabel("a label\nthat takes room\nfrom both axes", fontsize=30)
    fig.canvas.draw()
    assert_apart_and_within(labels, axs[0])
    fig.set_size_inches(4.5, 2.5)
    fig.canvas.draw()
    assert_apart_and_within(labels, axs[0])
    axs[0].set_xlim(-5, 5)
    fig.canvas.draw()
    assert_apart_and_within(labels, axs[0])


def test_the_same_at_any_resolution(tmp_path):
    points = cloud(100, 2)
    fig, ax = plt.subplots(figsize=(3.5, 3), layout="constrained")
    ax.scatter(*points.T)
    labels = PointLabels(ax, points[:8], [f"GENE{i}" for i in range(8)], points)
    fig.canvas.draw()
    before = [note.get_position() for note in labels.notes]
    for name in ("a.png", "a.pdf", "a.svg"):
        fig.savefig(tmp_path / name, dpi=300)
    fig.canvas.draw()
    np.testing.assert_allclose([note.get_position() for note in labels.notes], before, atol=1.5)
    assert_apart_and_within(labels, ax)


def test_a_line_through_a_name_is_seen_wherever_it_passes():
    rng = np.random.default_rng(1)
    half = np.array([12.0, 3.0])

    def label(anchor, centres):
        return _Label(np.asarray(anchor), half, centres, np.zeros(len(centres)), np.zeros(len(centres)))

    a = label([0.0, 0.0], np.vstack([rng.uniform(-100, 100, (40, 2)), [[80.0, 0.0], [0.0, -90.0]]]))
    b = label([50.0, 50.0], rng.uniform(-100, 100, (60, 2)))
    along = np.linspace(0, 1, 2001)[:, None]
    seen = np.array(
        [[np.all(abs(along * end - centre) < half, axis=1).any() for centre in b.centres] for end in a.centres]
    )
    np.testing.assert_array_equal(_runs_through(a, b), seen)
    assert 0.02 < seen.mean() < 0.5


def test_what_finds_no_place_is_told():
    fig, ax = plt.subplots(figsize=(1, 1))
    ax.set(xlim=(0, 1), ylim=(0, 1))
    labels = PointLabels(ax, np.array([[0.5, 0.5]]), ["a name much wider than the axes"], np.array([[0.5, 0.5]]))
    fig.canvas.draw()
    assert labels.left_out == ["a name much wider than the axes"]
    assert boxes(labels) == []


def test_nothing_to_name():
    fig, ax = plt.subplots()
    labels = PointLabels(ax, np.empty((0, 2)), [], np.zeros((3, 2)))
    fig.canvas.draw()
    assert labels.left_out == []


@pytest.mark.parametrize("plot", ["volcano", "ma"])
def test_adjust_text(toy, monkeypatch, plot):
    draw = getattr(scglmm.pl, plot)
    adata = toy.fitted(400, seed=1)
    with monkeypatch.context() as patched:
        patched.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(ImportError, match=r"pip install 'scglmm\[labels\]'"):
            draw(adata, "Dx[T.AD]", adjust_text=True)
    pytest.importorskip("adjustText")
    ax = draw(adata, "Dx[T.AD]", n_labels=4, adjust_text=True, show=False)
    best = scglmm.get.nbmm_df(adata, "Dx[T.AD]")["gene"][:4]
    assert set(best) <= {text.get_text() for text in ax.texts}
