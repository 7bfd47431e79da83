"""Examples in the docstrings of the public functions run, and every parameter is explained."""

from __future__ import annotations

import doctest
import inspect
import re

import pytest
import scanpy as sc
from matplotlib import pyplot as plt

import scglmm

PUBLIC = {
    f"{module.__name__.removeprefix('scglmm.')}.{name}": getattr(module, name)
    for module in (scglmm.pp, scglmm.tl, scglmm.get, scglmm.pl, scglmm.datasets, scglmm.mixed)
    for name in module.__all__
    if inspect.isfunction(getattr(module, name))
} | {"power": scglmm.power}


@pytest.fixture(autouse=True)
def _quiet():
    before = sc.settings.verbosity
    sc.settings.verbosity = 0
    plt.switch_backend("agg")
    yield
    plt.close("all")
    sc.settings.verbosity = before


@pytest.mark.parametrize("name", PUBLIC)
def test_examples(name):
    tests = doctest.DocTestFinder(recurse=False).find(PUBLIC[name], name, globs={"scglmm": scglmm})
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    said: list[str] = []
    for test in tests:
        runner.run(test, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)


@pytest.mark.parametrize("name", PUBLIC)
def test_there_is_an_example(name):
    assert ">>> " in PUBLIC[name].__doc__


@pytest.mark.parametrize("name", PUBLIC)
def test_every_parameter_is_explained(name):
    doc = inspect.getdoc(PUBLIC[name])
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[\w ]*\n-{3,}|\Z)", doc, re.M | re.S)
    written = re.findall(r"^(\w[\w, *]*)$", section[1], re.M) if section else []
    documented = [parameter.strip("* ") for line in written for parameter in line.split(",")]
    assert documented == list(inspect.signature(PUBLIC[name]).parameters)
