"""What the docstrings of all plots say in the same words."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable

_PARAMETERS = {
    "adata": "Object with results of :func:`scglmm.tl.nbmm`.",
    "key": "Name of the result.",
    "coef": 'Coefficient, for instance "Dx[T.AD]". Needed where the model has more than one besides the intercept.',
    "group": "Group, for results with `groupby`. Needed where more than one was fitted.",
    "padj_cutoff": "Genes with an adjusted p-value below this are significant.",
    "gene_symbols": "Column of `adata.var` with the names to write; `genes` are looked up in it as well.",
    "adjust_text": "Place the names with the package adjustText (``pip install 'scglmm[labels]'``) instead of with "
    "our own placement, which leaves out a name rather than let two overlap, and follows changes of size and zoom.",
    "title": "Title, instead of the one that says what is shown; an empty one leaves it out.",
    "figsize": "Width and height of a new figure, in inches. By default one column of a journal wide (3.5).",
    "show": "Show the figure; by default as set in ``scanpy.settings.autoshow``.",
    "ax": "Axes to draw on.",
    "return_fig": "Return the figure.",
}
_FIGURE = ("title", "figsize", "show", "ax", "return_fig")
_RETURNS = "The figure with `return_fig=True`, otherwise the axes with `show=False`, otherwise nothing."


def document(function: Callable) -> Callable:
    """Fill in the shared parts of a plot's docstring.

    A line ``{name}`` becomes the description of that parameter, ``{figure}`` those of the five that end every
    signature, and ``{returns}`` what all plots return.
    """
    doc = inspect.getdoc(function)
    doc = doc.replace("{figure}", "\n".join(f"{{{name}}}" for name in _FIGURE)).replace("{returns}", _RETURNS)
    function.__doc__ = re.sub(r"^\{(\w+)\}$", _parameter, doc, flags=re.MULTILINE)
    return function


def _parameter(found: re.Match[str]) -> str:
    indented = textwrap.fill(_PARAMETERS[found[1]], 110, initial_indent="    ", subsequent_indent="    ")
    return f"{found[1]}\n{indented}"
