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
_BLOCKS = {
    "figure": "{title}\n{figsize}\n{show}\n{ax}\n{return_fig}",
    "grid": """genes
    Genes to show, in this order. By default those with the smallest p-values, similar ones together.
coef
    One coefficient or several. By default all but the intercept; in results with several groups it has to be
    chosen, where there is more than one.
{key}
group
    One group or several, for results with `groupby`. By default all that were fitted.
n_genes
    Number of genes where none are named, in turn the best of each contrast.""",
    "grid_colours": """cluster
    Put genes with similar fold changes together (average linkage). By default unless `genes` are named.
vmax
    Fold change of the darkest colours. By default the largest, apart from the topmost 2% of them.
cmap
    Diverging colormap. The default can be read by the colour-blind.
swap_axes
    Genes in columns instead of rows.""",
    "named_genes": """n_labels
    Number of significant genes to name, those with the smallest p-values.
genes
    Name these genes instead, significant or not.""",
}
_RETURNS = "The figure with `return_fig=True`, otherwise the axes with `show=False`, otherwise nothing."


def document(function: Callable) -> Callable:
    """Fill in the shared parts of a plot's docstring.

    A line ``{name}`` becomes the description of that parameter, ``{figure}`` those of the five that end every
    signature, ``{grid}``, ``{grid_colours}`` and ``{named_genes}`` those that some plots share, and ``{returns}`` what
    all plots return.
    """
    doc = inspect.getdoc(function).replace("{returns}", _RETURNS)
    for name, text in _BLOCKS.items():
        doc = doc.replace(f"{{{name}}}", text)
    function.__doc__ = re.sub(r"^\{(\w+)\}$", _parameter, doc, flags=re.MULTILINE)
    return function


def _parameter(found: re.Match[str]) -> str:
    indented = textwrap.fill(_PARAMETERS[found[1]], 110, initial_indent="    ", subsequent_indent="    ")
    return f"{found[1]}\n{indented}"
