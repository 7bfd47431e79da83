"""``scglmm demo`` is ``python -m scglmm.demo``."""

from __future__ import annotations

from pathlib import Path


def test_demo(run, monkeypatch):
    asked = []
    monkeypatch.setattr("scglmm.demo.main", asked.append)
    assert run("demo").exit_code == run("demo", "a/b").exit_code == 0
    assert asked == ["figures", "a/b"]
    monkeypatch.setattr("scglmm.demo.main", lambda folder: Path("/nowhere/at/all").read_text())
    done = run("demo")
    assert done.exit_code == 1
    assert "No such file or directory: '/nowhere/at/all'" in done.stderr
