"""Configuration of the documentation, built with ``sphinx-build -W --keep-going -n docs docs/_build/html``.

Nothing is downloaded for a build and no notebook is executed: tutorials are shown with the outputs they are committed
with, which the tests make again.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from importlib.metadata import metadata
from pathlib import Path

from docutils.nodes import Element
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import NumpyDocstring

DOCS = Path(__file__).parent
ROOT = DOCS.parent
ONLINE = os.environ.get("READTHEDOCS") == "True"

# --------------------------------------------------------------------------------------------------------- the project

info = metadata("scglmm")
project = info["Name"]
author = info["Author"]
copyright = f"2026, {author}"
version = release = info["Version"]

# ----------------------------------------------------------------------------------------------------------- extensions

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_autodoc_typehints",
    "sphinx_click",
    "sphinx_copybutton",
]

source_suffix = {".rst": "restructuredtext", ".md": "myst-nb", ".ipynb": "myst-nb"}  # autosummary writes the first
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
templates_path = ["_templates"]
default_role = "literal"
nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 4
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

autosummary_generate = True
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"
napoleon_google_docstring = False
napoleon_use_rtype = True
typehints_defaults = "braces"
always_use_bars_union = True

intersphinx_mapping = (
    {
        "python": ("https://docs.python.org/3", None),
        "numpy": ("https://numpy.org/doc/stable", None),
        "pandas": ("https://pandas.pydata.org/docs", None),
        "matplotlib": ("https://matplotlib.org/stable", None),
        "anndata": ("https://anndata.readthedocs.io/en/stable", None),
        "scanpy": ("https://scanpy.readthedocs.io/en/stable", None),
    }
    if ONLINE
    else {}
)
"""The only thing that needs a network: links into the documentation of others, where it is hosted."""

nitpicky = True
nitpick_ignore = [
    # what glmm() makes a result from, and what its method distribution() returns: no names for users
    ("py:class", "scglmm.mixed._data.ModelData"),
    ("py:class", "scglmm.mixed._distribution.Distribution"),
    ("py:class", "scglmm.inference.response_fit.ResponseFit"),
]
nitpick_ignore_regex = [
    # names of other packages: nobody knows them without intersphinx
    (r"py:.*", r"(anndata|collections|matplotlib|numpy|os|pandas|scanpy|typing)\..*"),
]

# -------------------------------------------------------------------------------------------------------- how it looks

html_theme = "sphinx_book_theme"
html_title = f"scglmm {release}"
html_theme_options = {
    "show_toc_level": 2,
    "navigation_with_keys": False,
    "navbar_persistent": [],  # the search is in the sidebar
    "use_download_button": False,
}
html_static_path = ["_static"]
html_css_files = ["scglmm.css"]
html_copy_source = False
html_show_sourcelink = False

# ---------------------------------------------------------------------------------- what is kept outside of this folder

NOTEBOOKS = DOCS / "tutorials"
TITLES = {"calibration/bias": "Calibration: low counts", "calibration/composition": "Calibration: composition"}
"""Of tables that the benchmarks write without one."""
PAGES_OF_THE_ROOT = {"changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md"}
ON_THE_SITE = {
    "CHANGELOG.md": "/changelog.md",
    "CONTRIBUTING.md": "/contributing.md",
    "README.md": "/index.md",
    "docs/": "/",
    "tutorials/": "/tutorials/",
}
"""Where links to files of the repository lead on the site; links to other files of it become plain text."""


def copy_notebooks() -> None:
    """Copy the tutorials into the source folder, as Sphinx reads nothing outside of it."""
    NOTEBOOKS.mkdir(exist_ok=True)
    wanted = {path.name: path for path in (ROOT / "tutorials").glob("*.ipynb")}
    for old in NOTEBOOKS.glob("*.ipynb"):
        if old.name not in wanted:
            old.unlink()
    for name, path in wanted.items():
        target = NOTEBOOKS / name
        if not target.is_file() or target.read_bytes() != path.read_bytes():
            shutil.copyfile(path, target)


def relink(text: str, folder: Path) -> str:
    """Let links of a page in `folder`, written for readers of the repository, lead to the pages of the site."""

    def replace(match: re.Match[str]) -> str:
        image, label, target = match[1], match[2], match[3]
        if image or re.match(r"[a-z]+:|#|/", target):
            return match[0]
        path, hash_, anchor = target.partition("#")
        full = Path(os.path.normpath(folder / path))
        inside = full.relative_to(ROOT).as_posix() if full.is_relative_to(ROOT) else ""
        for start, there in ON_THE_SITE.items():
            if inside.startswith(start) and full.suffix in (".md", ".ipynb"):
                return f"[{label}]({there}{inside.removeprefix(start)}{hash_}{anchor})"
        return label if full.exists() else match[0]

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", replace, text)


def read_source(app: Sphinx, name: str, source: list[str]) -> None:
    """Fill pages that stand in the root of the repository, and mend the links of all."""
    if name in PAGES_OF_THE_ROOT:
        source[0] = relink((ROOT / PAGES_OF_THE_ROOT[name]).read_text(), ROOT)
    elif app.env.doc2path(name).suffix == ".ipynb":
        notebook = json.loads(source[0])
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = relink("".join(cell["source"]), ROOT / "tutorials")
        source[0] = json.dumps(notebook)
    elif app.env.doc2path(name).suffix == ".md":
        source[0] = relink(source[0], Path(app.env.doc2path(name)).parent)
    if name == "index":
        pages = [path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.glob("*.md")]
        pages += [f"benchmarks/{path.stem}" for path in DOCS.glob("benchmarks/*.md")]
        rest = [page for page in sorted(pages) if page != "index" and not re.search(rf"^{page}$", source[0], re.M)]
        source[0] = source[0].replace("\nOTHERS\n", "".join(f"\n{page}" for page in rest) + "\n")
    title = TITLES.get(name, name.replace("/", ": ").capitalize())
    if name.startswith(("calibration/", "benchmarks/")) and not source[0].startswith("# "):
        source[0] = f"# {title}\n\n{source[0]}"


# ----------------------------------------------------------------------------------------------------------- docstrings


def parse_returns_as_text(self: NumpyDocstring, section: str) -> list[str]:
    """Read a section Returns as what it is here: text, since types stand in the signature alone."""
    lines = self._dedent(self._consume_to_next_section())
    if lines and lines[0] == ":":  # put there by sphinx_autodoc_typehints, to the same end
        lines = lines[1:]
    return [*self._format_block(":returns: ", lines), ""]


NumpyDocstring._parse_returns_section = parse_returns_as_text


PUBLIC_NAMES = {
    "anndata._core.anndata.AnnData": "anndata.AnnData",
    "matplotlib.axes._axes.Axes": "matplotlib.axes.Axes",
    "numpy.random._generator.Generator": "numpy.random.Generator",
    "pandas.core.frame.DataFrame": "pandas.DataFrame",
    "pandas.core.series.Series": "pandas.Series",
}
"""Where a class of an annotation is documented, as opposed to where it is defined."""


def name_in_public(app: Sphinx, env: BuildEnvironment, node: pending_xref, text: Element) -> None:
    """Let intersphinx look for a class under the name by which its users know it."""
    node["reftarget"] = PUBLIC_NAMES.get(node["reftarget"], node["reftarget"])


def setup(app: Sphinx) -> None:
    """Register what this file adds to Sphinx."""
    copy_notebooks()
    app.connect("missing-reference", name_in_public, priority=100)
    app.connect("source-read", read_source)


sys.dont_write_bytecode = True
