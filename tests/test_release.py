"""What is released agrees with itself: versions, requirements, files."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

import scglmm

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONDA_NAMES = {"matplotlib": "matplotlib-base"}


def test_versions_agree():
    version = PROJECT["project"]["version"]
    assert scglmm.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f'version: "{version}"' in (ROOT / "recipe" / "recipe.yaml").read_text()


def test_requirements_of_the_conda_recipe():
    recipe = (ROOT / "recipe" / "recipe.yaml").read_text()
    run = re.search(r"^  run:\n((?:    - .*\n)+)", recipe, re.M)[1]
    listed = [line.removeprefix("    - ") for line in run.splitlines()]
    expected = ["python >=${{ python_min }}"]
    for requirement in PROJECT["project"]["dependencies"]:
        name, minimum = requirement.split(">=")
        expected.append(f"{CONDA_NAMES.get(name, name)} >={minimum}")
    assert listed == expected
    python = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert f'python_min: "{python}"' in recipe


def test_pythons_agree():
    classifiers = PROJECT["project"]["classifiers"]
    minors = sorted(int(c.rsplit(".", 1)[1]) for c in classifiers if re.search(r":: 3\.\d+$", c))
    assert PROJECT["project"]["requires-python"] == f">=3.{minors[0]}"


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CODE_OF_CONDUCT.md"])
def test_files(name):
    assert (ROOT / name).stat().st_size > 100


def test_typed():
    assert (Path(scglmm.__file__).parent / "py.typed").is_file()
