"""The formula of a zero inflation."""

from __future__ import annotations

from .grammar import Formula, parse_formula


def parse_inflation(text: str | None) -> Formula | None:
    """Parse a zero-inflation formula, which has fixed effects only; None for none.

    Raises
    ------
    FormulaError
        It cannot be read.
    ValueError
        It has a left side, a random effect or an offset.
    """
    if text is None or (isinstance(text, str) and text.replace(" ", "") in {"~0", "~-1"}):
        return None
    parsed = parse_formula(text)
    if parsed.response is not None:
        msg = f"ziformula={text!r} has a left side ({parsed.response!r}): start it with '~', as in '~ 1'."
        raise ValueError(msg)
    if parsed.random:
        msg = f"ziformula={text!r} has a random effect, {parsed.random[0]}: zero inflation takes fixed effects only."
        raise ValueError(msg)
    if parsed.offsets:
        msg = f"ziformula={text!r} has an offset: zero inflation takes none."
        raise ValueError(msg)
    return parsed
