"""The two kinds of trouble with a formula."""

from __future__ import annotations


class FormulaError(ValueError):
    """A formula that cannot be read, or asks for what no data could give."""


class DesignError(ValueError):
    """A formula that these data cannot answer: a term that is constant, a level that no cell has, aliased columns.

    Another set of cells may well answer it, so a run over groups of cells skips the group and keeps the reason.
    """


def point_at(text: str, position: int, message: str) -> FormulaError:
    """Error with the first line of `message`, the formula, a caret under `position`, and the rest of `message`."""
    what, _, advice = message.partition("\n")
    lines = [what, f"    {text}", f"    {' ' * min(position, len(text))}^", *([advice] if advice else [])]
    return FormulaError("\n".join(lines))
