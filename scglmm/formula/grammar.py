"""lme4's grammar of random effects (Bates et al. 2015, doi 10.18637/jss.v067.i01, section 2.1).

A formula is a sum. Its random-effect terms ``(effects | group)`` and its ``offset(...)`` are taken out here, and what
is left is the fixed part, which `scglmm.formula.terms` expands:

=================  ==============================================================================
``(1|g)``          random intercept
``(x|g)``          intercept and slope, correlated; the same as ``(1 + x|g)``
``(x||g)``         uncorrelated: ``(1|g) + (0 + x|g)``
``(0 + x|g)``      slope without intercept
``(1|a:b)``        one level for every combination of a and b in the data
``(1|a/b)``        b nested in a: ``(1|a) + (1|a:b)``
=================  ==============================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import FormulaError, point_at
from .lexer import Token, check_balanced, closing, quoted, tokenize
from .safety import parse_expression
from .terms import Terms, parse_terms

NESTED = "Random-effect terms cannot stand inside of one another: '|' is used once in a term."


@dataclass(frozen=True)
class RandomTerm:
    """One random-effect term.

    Attributes
    ----------
    effects
        The left side, expanded: "1", "1 + x", "0 + x".
    group
        The obs columns of the grouping factor joined by ":", in backticks where a name needs them.
    """

    effects: str
    group: str

    @property
    def columns(self) -> tuple[str, ...]:
        """The obs columns of the grouping factor."""
        return tuple(token.column for token in tokenize(self.group) if token.is_column)

    def __str__(self) -> str:
        """Spelling in a formula."""
        return f"({self.effects}|{self.group})"


@dataclass(frozen=True)
class Formula:
    """A formula in its parts.

    Attributes
    ----------
    text
        What the user wrote.
    response
        The left side, or None.
    fixed
        The fixed part as the user wrote it, without offsets and random-effect terms; "1" where nothing is left.
    offsets
        What stands inside each ``offset(...)``; they are added up.
    random
        The random-effect terms, shorthand expanded.
    """

    text: str
    response: str | None
    fixed: str
    offsets: tuple[str, ...]
    random: tuple[RandomTerm, ...]


def parse_formula(text: str) -> Formula:
    """Read a formula.

    Parameters
    ----------
    text
        For instance ``"~ offset(log(libSize)) + Dx + Age + (1|SubID)"``. Line breaks count as spaces.

    Returns
    -------
    The parts. Every piece has been checked: the algebra of the fixed part and of the effects, and that no expression
    holds anything but what `scglmm.formula.safety` lists. Whether the columns exist is for `build_design` to say.

    Raises
    ------
    FormulaError
        A ValueError whose message shows the formula with a caret under the place.
    """
    if not isinstance(text, str):
        msg = f"A formula is text such as '~ Dx + (1|donor)', not {type(text).__name__}."
        raise TypeError(msg)
    line = text.translate({ord(c): " " for c in "\n\r\t\f\v"}).strip()
    tokens = tokenize(line)
    check_balanced(tokens, line)
    _check_bars(tokens, line)
    tildes = [i for i, token in enumerate(tokens) if token.is_operator("~")]
    if not tildes:
        msg = f"A formula begins with '~', as in '~ {line or 'Dx + (1|donor)'}'."
        raise point_at(line, 0, msg)
    if len(tildes) > 1:
        raise point_at(line, tokens[tildes[1]].start, "There is a second '~'; a formula has one.")
    response = _response(tokens[: tildes[0]], line)
    return _Sum(line).read(text, response, tokens[tildes[0] + 1 :])


class _Sum:
    """Take the right side of a formula apart."""

    def __init__(self, line: str) -> None:
        self.line = line
        self.fixed: list[Token] = []
        self.offsets: list[str] = []
        self.random: list[RandomTerm] = []
        self.seen: dict[tuple[frozenset[str], str | frozenset[str]], RandomTerm] = {}

    def read(self, text: str, response: str | None, tokens: list[Token]) -> Formula:
        for sign, summand in _summands(tokens):
            if summand and summand[0].is_operator("(") and _bars(summand[1:-1]):
                self.check_whole(sign, summand, "a random-effect term", closing(summand, 0, self.line))
                self.add_random(summand)
            elif len(summand) > 1 and _is_offset(summand, 0):
                self.check_whole(sign, summand, "an offset", closing(summand, 1, self.line))
                self.add_offset(summand)
            else:
                self.check_fixed(summand)
                # the plus that joined this summand to one that has been taken out
                idle = sign is None or (sign.text == "+" and not self.fixed and summand)
                self.fixed += summand if idle else [sign, *summand]
        if self.fixed:
            parse_terms(self.fixed, self.line)
        fixed = _text(self.fixed, self.line) or "1"
        return Formula(text, response, fixed, tuple(self.offsets), tuple(self.random))

    def check_whole(self, sign: Token | None, summand: list[Token], what: str, end: int) -> None:
        """Check that a term stands on its own, and is added."""
        if sign is not None and sign.text == "-":
            message = f"There is a minus before {what}. It can only be added; to leave it out, do not write it."
            raise point_at(self.line, sign.start, message)
        if end + 1 < len(summand):
            after = summand[end + 1]
            message = f"{what.capitalize()} stands on its own: join it to the others by '+', not by {after.text!r}."
            raise point_at(self.line, after.start, message)

    def check_fixed(self, summand: list[Token]) -> None:
        """Check that no random-effect term and no offset hides in a fixed term."""
        for i, token in enumerate(summand):
            if token.is_operator("|", "||"):
                inside = _opening(summand, i)
                if inside >= 0:
                    if inside > 0 and summand[inside - 1].kind == "name":
                        message = f"'|' means nothing inside of {summand[inside - 1].text}()."
                        raise point_at(self.line, token.start, message)
                    message = (
                        "A random-effect term stands on its own: join it to the others by '+', outside of other "
                        "parentheses and interactions."
                    )
                    raise point_at(self.line, summand[inside].start, message)
                message = "A random-effect term needs parentheses, as in (1|donor)."
                raise point_at(self.line, token.start, message)
            if _is_offset(summand, i):
                message = "An offset stands on its own: join it to the others by '+', outside of other parentheses."
                raise point_at(self.line, token.start, message)

    def add_offset(self, summand: list[Token]) -> None:
        inner = summand[2:-1]
        if not inner:
            raise point_at(self.line, summand[0].start, "There is nothing in this offset, as in offset(log(libSize)).")
        for i, token in enumerate(inner):
            if _is_offset(inner, i):
                raise point_at(self.line, token.start, "An offset inside an offset: write them as two terms.")
        source = self.line[inner[0].start : inner[-1].end]
        try:
            self.offsets.append(parse_expression(source).text)
        except FormulaError as error:
            raise point_at(self.line, inner[0].start, str(error)) from None

    def add_random(self, summand: list[Token]) -> None:
        inner = summand[1:-1]
        bars = _bars(inner)
        first = bars[0]
        bar = inner[first]
        if len(bars) > 1:
            message = "There is a second '|' in this random-effect term; one separates the effects from the group."
            raise point_at(self.line, inner[bars[1]].start, message)
        left, right = inner[:first], inner[first + 1 :]
        if not left:
            message = f"There is nothing before {bar.text!r}. For a random intercept write (1|donor)."
            raise point_at(self.line, bar.start, message)
        if not right:
            message = f"There is nothing after {bar.text!r}: the grouping factor is missing, as in (1|donor)."
            raise point_at(self.line, bar.start, message)
        for i, token in enumerate(left):
            if token.is_operator("|", "||"):
                raise point_at(self.line, token.start, NESTED)
            if _is_offset(left, i):
                raise point_at(self.line, token.start, "An offset cannot be part of a random-effect term.")
        effects = parse_terms(left, self.line)
        if not effects.intercept and not effects.terms:
            raise point_at(self.line, left[0].start, "This random-effect term has no effects. Write (1|donor).")
        for group in _groups(right, self.line):
            for part in _parts(effects, correlated=bar.text == "|"):
                self.add_term(part, group, summand[0].start)

    def add_term(self, effects: Terms, group: list[str], position: int) -> None:
        """Add one term, unless one of its effects has been there for the same group."""
        term = RandomTerm(str(effects), ":".join(quoted(column) for column in group))
        keys: list[str | frozenset[str]] = ["1"] if effects.intercept else []
        keys += [frozenset(factor.text for factor in product) for product in effects.terms]
        for key in keys:
            if (frozenset(group), key) in self.seen:
                earlier = self.seen[frozenset(group), key]
                what = "intercept" if key == "1" else f"effect of {':'.join(sorted(key))!r}"
                again = "" if earlier == term else f", once in {earlier} and once in {term}"
                message = f"The random {what} for the group {term.group!r} is in the formula twice{again}. Keep one."
                raise point_at(self.line, position, message)
            self.seen[frozenset(group), key] = term
        self.random.append(term)


def _parts(effects: Terms, *, correlated: bool) -> list[Terms]:
    """Split the effects of ``(x||g)`` into independent ones."""
    if correlated:
        return [effects]
    return ([Terms(True, ())] if effects.intercept else []) + [Terms(False, (term,)) for term in effects.terms]


def _groups(tokens: list[Token], line: str) -> list[list[str]]:
    """Columns of the grouping factors that the right side of a bar stands for."""
    groups: list[list[str]] = []
    columns: list[str] = []
    expected = True
    for i, token in enumerate(tokens):
        if expected:
            if not token.is_column or (i + 1 < len(tokens) and tokens[i + 1].is_operator("(")):
                if any(other.is_operator("|", "||") for other in tokens):
                    raise point_at(line, token.start, NESTED)
                message = (
                    "A grouping factor is one obs column, or several joined by ':' or '/'. Numbers and text in a "
                    "grouping column are taken as levels as they are; anything else is better stored as a new obs "
                    "column."
                )
                raise point_at(line, token.start, message)
            if token.column in columns:
                message = f"The column {token.column!r} is twice in this grouping factor."
                raise point_at(line, token.start, message)
            columns.append(token.column)
            expected = False
        elif token.is_operator(":", "/"):
            if i + 1 == len(tokens):
                message = f"There is nothing after {token.text!r} in this grouping factor."
                raise point_at(line, token.start, message)
            if token.text == "/":
                groups.append(list(columns))
            expected = True
        elif token.is_operator("*", "+"):
            message = (
                f"{token.text!r} cannot stand in a grouping factor. For two crossed factors write (1|a) + (1|b); for "
                "b nested in a write (1|a/b); for the combinations of both write (1|a:b)."
            )
            raise point_at(line, token.start, message)
        else:
            message = f"{token.text!r} cannot stand here: columns of a grouping factor are joined by ':' or '/'."
            raise point_at(line, token.start, message)
    return [*groups, columns]


def _response(tokens: list[Token], line: str) -> str | None:
    """Read the left side of a formula."""
    if not tokens:
        return None
    for i, token in enumerate(tokens):
        if token.is_operator("|", "||") or _is_offset(tokens, i):
            raise point_at(line, token.start, "Random-effect terms and offsets stand to the right of '~'.")
    source = line[tokens[0].start : tokens[-1].end]
    try:
        return parse_expression(source).text
    except FormulaError as error:
        raise point_at(line, tokens[0].start, str(error)) from None


def _check_bars(tokens: list[Token], line: str) -> None:
    for token in tokens:
        if token.kind == "operator" and token.text.startswith("|||"):
            message = "There are too many bars: (x|g) is correlated, (x||g) uncorrelated."
            raise point_at(line, token.start, message)


def _summands(tokens: list[Token]) -> list[tuple[Token | None, list[Token]]]:
    """Split at the ``+`` and ``-`` outside of parentheses; each summand with the sign before it."""
    parts: list[tuple[Token | None, list[Token]]] = [(None, [])]
    depth = 0
    for token in tokens:
        depth += token.is_operator("(") - token.is_operator(")")
        if depth == 0 and token.is_operator("+", "-"):
            parts.append((token, []))
        else:
            parts[-1][1].append(token)
    return parts if parts[0][1] else parts[1:]


def _bars(tokens: list[Token]) -> list[int]:
    """Positions of the bars outside of further parentheses."""
    depth = 0
    found = []
    for i, token in enumerate(tokens):
        depth += token.is_operator("(") - token.is_operator(")")
        if depth == 0 and token.is_operator("|", "||"):
            found.append(i)
    return found


def _is_offset(tokens: list[Token], i: int) -> bool:
    """Whether ``offset(`` stands at position `i`."""
    return (
        i + 1 < len(tokens)
        and tokens[i].kind == "name"
        and tokens[i].text == "offset"
        and tokens[i + 1].is_operator("(")
    )


def _opening(tokens: list[Token], i: int) -> int:
    """Position of the innermost parenthesis that is open at `i`."""
    depth = 0
    for j in range(i - 1, -1, -1):
        depth += tokens[j].is_operator(")") - tokens[j].is_operator("(")
        if depth < 0:
            return j
    return -1


def _text(tokens: list[Token], line: str) -> str:
    """Text of tokens that need not be neighbours, as the user spaced them."""
    pieces = []
    for before, token in zip([None, *tokens], tokens, strict=False):
        spaced = before is not None and (before.end != token.start)
        pieces.append(" " if spaced else "")
        pieces.append(token.text)
    return "".join(pieces)
