"""Every public function, method and class has an example in its docstring that runs, and explains its parameters.

Public is what is in ``__all__`` of the package and of its public modules, and the methods of the classes among that.
"""

from __future__ import annotations

import doctest
import inspect
import re
from types import ModuleType

import pytest
import scanpy as sc
from anndata import AnnData
from matplotlib import pyplot as plt

import scglmm


def walk(module: ModuleType, prefix: str = "") -> dict[str, object]:
    """Public functions, classes and methods below a module by their names, those of modules in it last."""
    found: dict[str, object] = {}
    for name in sorted(module.__all__, key=lambda name: inspect.ismodule(getattr(module, name))):
        what = getattr(module, name)
        if inspect.ismodule(what):
            below = walk(what, f"{name}.").items()
            found |= {key: value for key, value in below if not any(value is known for known in found.values())}
            continue
        found[prefix + name] = what
        if inspect.isclass(what):
            methods = {key: value for key, value in vars(what).items() if inspect.isfunction(value)}
            found |= {f"{prefix}{name}.{key}": value for key, value in methods.items() if not key.startswith("_")}
    return found


PUBLIC = walk(scglmm)
CLASSES = {name: what for name, what in PUBLIC.items() if inspect.isclass(what)}
FUNCTIONS = {name: what for name, what in PUBLIC.items() if name not in CLASSES}
PROPERTIES = {
    f"{name}.{key}": value
    for name, what in CLASSES.items()
    for key, value in vars(what).items()
    if isinstance(value, property) and not key.startswith("_")
}


@pytest.fixture(scope="module")
def psychad():
    return scglmm.datasets.psychad()


@pytest.fixture(autouse=True)
def _quick(request, psychad, monkeypatch):
    """Nearly every example starts with these data, which take longer to read than anything that follows."""
    if "datasets.psychad" not in request.node.name:
        parts = {"obs": psychad.obs.copy(), "var": psychad.var.copy(), "uns": psychad.uns}
        monkeypatch.setattr(scglmm.datasets, "psychad", lambda: AnnData(psychad.X, **parts))


@pytest.fixture(autouse=True)
def _quiet():
    before = sc.settings.verbosity
    sc.settings.verbosity = 0
    plt.switch_backend("agg")
    yield
    plt.close("all")
    sc.settings.verbosity = before


def test_what_is_public():
    assert {"tl.nbmm", "get.nbmm_df", "pl.volcano", "pp.check_design", "datasets.psychad", "power", "glmm"} <= set(
        PUBLIC
    )
    assert {"GLMMResult", "GLMMResult.contrast", "mixed.Check", "mixed.check"} <= set(PUBLIC)


@pytest.mark.parametrize("name", PUBLIC)
def test_examples(name):
    tests = doctest.DocTestFinder(recurse=False).find(PUBLIC[name], name, globs={"scglmm": scglmm})
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    said: list[str] = []
    for test in tests:
        runner.run(test, out=said.append)
    assert runner.summarize(verbose=False).attempted > 0, "there is no example"
    assert runner.summarize(verbose=False).failed == 0, "".join(said)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_is_explained(name):
    doc = inspect.getdoc(FUNCTIONS[name])
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[\w ]*\n-{3,}|\Z)", doc, re.M | re.S)
    written = re.findall(r"^(\w[\w, *]*)$|^(\*\*\w+)$", section[1], re.M) if section else []
    documented = [parameter.strip("* ") for line in written for parameter in "".join(line).split(",")]
    assert documented == [key for key in inspect.signature(FUNCTIONS[name]).parameters if key != "self"]


@pytest.mark.parametrize("name", PROPERTIES)
def test_properties_are_explained(name):
    assert inspect.getdoc(PROPERTIES[name])
