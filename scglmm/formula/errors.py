"""The two kinds of trouble with a formula."""

from __future__ import annotations


class FormulaError(ValueError):
    """A formula that cannot be read, or asks for what no data could give."""


class DesignError(ValueError):
    """A formula that these data cannot answer: a term that is constant, a level that no cell has, aliased columns.

    Another set of cells may well answer it, so a run over groups of cells skips the group and keeps the reason.
    """


def pass_memory_error(error: Exception) -> None:
    """Raise MemoryError where that is behind an error of formulaic: it is nothing that a user could put right.

    formulaic turns whatever goes wrong with a factor into an error of its own.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            raise MemoryError(str(cause) or "no memory is left for the design") from None
        cause = cause.__cause__ or cause.__context__


def point_at(text: str, position: int, message: str) -> FormulaError:
    """Error with the first line of `message`, the formula, a caret under `position`, and the rest of `message`."""
    what, _, advice = message.partition("\n")
    lines = [what, f"    {text}", f"    {' ' * min(position, len(text))}^", *([advice] if advice else [])]
    return FormulaError("\n".join(lines))
