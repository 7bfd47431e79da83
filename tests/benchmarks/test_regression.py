"""One commit against another: worktrees, the two processes, and what is called a difference."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks import regression  # noqa: E402
from benchmarks.measure import WorkerFailed  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    regression.write_data(folder, {"paired"}, scale=0.05)
    return folder


def test_a_tree_agrees_with_itself(data):
    sides = [regression.Side(ROOT, data) for _ in range(2)]
    try:
        found = regression.compare(*sides, regression.CASES["nested"], rounds=2)
        with pytest.raises(WorkerFailed, match="'nobody'"):
            sides[0].run(regression.Case("paired", "~ (1|nobody)"))
    finally:
        for side in sides:
            side.close()
    assert found["loglik"] == found["coef"] == found["se"] == found["status"] == found["lost"] == 0
    text, agree = regression.report("nested", found, 1e-9)
    assert agree
    assert "results agree" in text
    assert all(0 < ratio < 100 for ratio in found["cpu"])


def test_a_wrong_tree_is_refused(data, tmp_path):
    side = regression.Side(tmp_path, data)
    try:
        with pytest.raises(WorkerFailed, match="there is no scglmm"):
            side.run(regression.CASES["nested"])
    finally:
        side.close()


def _answer(**changes):
    answer = {"loglik": [-10.0, -20.0], "coef": [[1.0], [2.0]], "se": [[0.5], [0.5]], "status": ["ok", "ok"]}
    return answer | changes


def test_differences():
    assert not any(regression.differences(_answer(), _answer()).values())
    changed = _answer(loglik=[-10.0, -19.0], coef=[[1.0], [2.25]], se=[[0.5], [0.55]])
    found = regression.differences(_answer(), changed)
    assert found == pytest.approx({"loglik": 1.0, "coef": 0.5, "se": 0.1, "status": 0, "lost": 0})
    lost = regression.differences(_answer(), _answer(coef=[[1.0], [np.nan]], status=["ok", "not_converged"]))
    assert (lost["lost"], lost["status"]) == (1, 1)
    ratios = {"cpu": [1.0], "wall": [1.0], "base_cpu": [1.0]}
    assert not regression.report("x", lost | ratios, 1e-6)[1]
    assert not regression.report("x", found | ratios, 1e-6)[1]
    with pytest.raises(WorkerFailed, match="shape"):
        regression.differences(_answer(), _answer(coef=[[1.0, 1.0], [2.0, 2.0]]))


def test_worktrees_come_and_go(tmp_path):
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    try:
        subprocess.run([*git, "init", "--quiet"], check=True)
    except FileNotFoundError:
        pytest.skip("git is not here")
    for text in ("one", "two"):
        (tmp_path / "file").write_text(text)
        subprocess.run([*git, "add", "file"], check=True)
        subprocess.run([*git, "commit", "--quiet", "--message", text], check=True)
    with regression.worktree("HEAD~1", tmp_path) as tree:
        assert (tree / "file").read_text() == "one"
    assert not tree.exists()
    listed = subprocess.run([*git, "worktree", "list"], capture_output=True, text=True, check=True).stdout
    assert len(listed.splitlines()) == 1
    with pytest.raises(ValueError, match=r"no commit 'nowhere'"), regression.worktree("nowhere", tmp_path):
        pass
