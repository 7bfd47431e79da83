"""Formulas are not code: what an expression inside a formula may contain.

formulaic hands the pieces of a formula to Python's `eval`, where ``__import__('os')`` is as good as ``log(x)``. Here
nothing is ever handed to `eval`: an expression is parsed by `ast` into a syntax tree, the tree is checked against the
short list below, and `scglmm.formula.evaluate` computes the value of the nodes that are on it.

On the list are obs columns, numbers, text (as an argument of a function or in a comparison), the arithmetic
operators ``+ - * / // % **`` (``^`` is read as ``**``), one comparison at a time, lists of constants as arguments,
and calls of

* ``log, log1p, log2, log10, sqrt, exp`` (numpy's; ``log`` is the natural logarithm), plain or as ``np.log``;
* ``I, C, Q, center, scale, standardize, poly, bs, cs, cr, cc`` (formulaic's);
* inside ``C()``, the codings ``Treatment, Sum, Helmert, Diff, Poly`` and ``contr.treatment, contr.SAS, contr.sum,
  contr.helmert, contr.diff, contr.poly``.

formulaic's ``lag`` and ``hashed`` are left out: the order of the cells in an AnnData means nothing.
"""

from __future__ import annotations

import ast
import copy
import keyword
import re
import unicodedata
from dataclasses import dataclass, field

from .errors import FormulaError
from .lexer import MAX_DEPTH, Token, quoted, tokenize

MATHS = ("log", "log1p", "log2", "log10", "sqrt", "exp")
TRANSFORMS = ("I", "C", "Q", "center", "scale", "standardize", "poly", "bs", "cs", "cr", "cc")
CODINGS = ("Treatment", "Sum", "Helmert", "Diff", "Poly")
CONTR = ("treatment", "SAS", "sum", "helmert", "diff", "poly")

ALLOWED = (
    "Allowed are obs columns, numbers, + - * / // % **, comparisons and the functions "
    f"{', '.join((*MATHS, *TRANSFORMS))}\n(the first six also as np.log and so on); inside C() also "
    f"{', '.join(CODINGS)} and {', '.join('contr.' + name for name in CONTR)}.\nCompute anything else beforehand and "
    "store it as an obs column."
)

ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.Div, ast.FloorDiv, ast.Mod, ast.Pow)
COMPARISONS = (ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE)

_PIECES = {
    ast.Lambda: "a lambda",
    ast.ListComp: "a comprehension",
    ast.SetComp: "a comprehension",
    ast.DictComp: "a comprehension",
    ast.GeneratorExp: "a comprehension",
    ast.Subscript: "square brackets after a name",
    ast.JoinedStr: "an f-string",
    ast.NamedExpr: "an assignment",
    ast.Starred: "an unpacked argument",
    ast.IfExp: "an if",
    ast.BoolOp: "and/or; multiply two comparisons instead, as in I((x > 1) * (y > 2))",
    ast.Dict: "a dictionary",
    ast.Set: "a set",
    ast.Await: "await",
    ast.Yield: "yield",
    ast.YieldFrom: "yield",
    ast.Slice: "a slice",
}


@dataclass(frozen=True)
class Expression:
    """An expression that has passed the check.

    Attributes
    ----------
    text
        The expression in one spelling (spaces and quotes as Python would write them), columns with special characters
        in backticks. It is the name of the columns of the design that come of it.
    column
        The column, where the expression is nothing but a column; else None.
    columns
        Every obs column in it, in order.
    functions
        Every name it calls or that stands before a dot ("log", "np", "C", "Treatment", "contr").
    tree
        The checked syntax tree.
    """

    text: str
    column: str | None
    columns: tuple[str, ...]
    functions: tuple[str, ...]
    tree: ast.expr = field(compare=False, repr=False)

    @property
    def name(self) -> str:
        """Name in the output: the raw name of a column, else `text`."""
        return self.text if self.column is None else self.column


def column_expression(column: str) -> Expression:
    """Make the expression that is nothing but a column."""
    return Expression(quoted(column), column, (column,), (), ast.Name(column, ast.Load()))


def parse_expression(text: str) -> Expression:
    """Parse and check an expression.

    Parameters
    ----------
    text
        What stands in a formula as one factor, for instance ``log(libSize)`` or ``C(Dx, Treatment("AD"))``.

    Raises
    ------
    FormulaError
        It cannot be read, or holds something that is not on the list; the message names the piece.
    """
    text = text.strip()
    tokens = tokenize(text)
    if len(tokens) == 1 and tokens[0].is_column:
        return column_expression(tokens[0].column)
    python, aliases = _to_python(tokens)
    try:
        tree = ast.parse(python, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = f" ({error.msg})" if isinstance(error, SyntaxError) else ""
        msg = f"{text!r} cannot be read{reason}.\n{ALLOWED}"
        raise FormulaError(msg) from None
    checker = _Checker(aliases)
    tree = checker.value(tree, 0)
    if not checker.columns:
        msg = f"{text!r} uses no obs column, so it is the same for every cell."
        raise FormulaError(msg)
    if isinstance(tree, ast.Name):
        return column_expression(tree.id)
    columns = tuple(dict.fromkeys(checker.columns))
    return Expression(unparse(tree), None, columns, tuple(dict.fromkeys(checker.functions)), tree)


def unparse(node: ast.expr) -> str:
    """Spelling of a checked tree: as Python writes it, columns that Python could not read in backticks."""
    spelled = copy.deepcopy(node)
    for name in ast.walk(spelled):
        if isinstance(name, ast.Name) and not _plain(name.id):
            name.id = f"`{name.id}`"
    return ast.unparse(spelled)


def _plain(name: str) -> bool:
    """Whether Python reads `name` as the name of a variable."""
    return name.isidentifier() and not keyword.iskeyword(name) and _normal(name)


def _normal(name: str) -> bool:
    """Whether Python leaves `name` as it is: it turns the micro sign into a Greek mu, for instance."""
    return unicodedata.normalize("NFKC", name) == name


def _to_python(tokens: list[Token]) -> tuple[str, dict[str, str]]:
    """Text that Python can parse, with a stand-in for every column that Python could not read.

    ``^`` becomes ``**``, as R users mean it. Positions are of no interest any more: gaps between tokens are kept only
    to keep apart what the user kept apart.
    """
    taken = {token.text for token in tokens}
    stand_ins: dict[str, str] = {}
    pieces = []
    end = 0
    for token in tokens:
        pieces.append(" " if token.start > end else "")
        end = token.end
        if token.kind == "backtick" or (token.kind == "name" and not _normal(token.text)):
            if token.column not in stand_ins:
                i = len(stand_ins)
                while f"column_{i}" in taken:
                    i += 1
                taken.add(f"column_{i}")
                stand_ins[token.column] = f"column_{i}"
            pieces.append(f" {stand_ins[token.column]} ")
        else:
            pieces.append("**" if token.is_operator("^") else token.text)
    return "".join(pieces).strip(), {stand_in: column for column, stand_in in stand_ins.items()}


class _Checker:
    """Walk over a syntax tree that accepts what is on the list and refuses the rest."""

    def __init__(self, aliases: dict[str, str]) -> None:
        self.aliases = aliases
        self.columns: list[str] = []
        self.functions: list[str] = []

    def value(self, node: ast.expr, depth: int) -> ast.expr:
        """Check an expression that stands for one value per cell, or for a number."""
        if depth > MAX_DEPTH:
            msg = f"An expression in the formula is nested more than {MAX_DEPTH} deep."
            raise FormulaError(msg)
        if isinstance(node, ast.Constant) and type(node.value) in {int, float}:
            return node
        if isinstance(node, ast.Name):
            return self._column(node)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ARITHMETIC):
            left, right = self.value(node.left, depth + 1), self.value(node.right, depth + 1)
            return ast.BinOp(left, node.op, right)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            return ast.UnaryOp(node.op, self.value(node.operand, depth + 1))
        if isinstance(node, ast.Compare):
            return self._comparison(node, depth)
        if isinstance(node, ast.Call):
            return self._call(node, depth)
        raise self._refused(node)

    def _column(self, node: ast.Name) -> ast.Name:
        aliased = node.id in self.aliases
        column = self.aliases.get(node.id, node.id)
        if column.startswith("__") and not aliased:
            msg = (
                f"{column!r} is refused in a formula: names that begin with two underscores are Python's own. "
                f"An obs column of that name is written in backticks.\n{ALLOWED}"
            )
            raise FormulaError(msg)
        self.columns.append(column)
        return ast.Name(column, ast.Load())

    def _comparison(self, node: ast.Compare, depth: int) -> ast.expr:
        if len(node.ops) > 1:
            msg = (
                f"{self._spell(node)!r} compares more than two things at once. Multiply two comparisons instead, "
                "as in I((1 < x) * (x < 3))."
            )
            raise FormulaError(msg)
        if not isinstance(node.ops[0], COMPARISONS):
            raise self._refused(node)
        sides = [side if _is_text(side) else self.value(side, depth + 1) for side in (node.left, node.comparators[0])]
        return ast.Compare(sides[0], node.ops, [sides[1]])

    def _call(self, node: ast.Call, depth: int) -> ast.expr:
        function = _function_name(node.func)
        if function is None or function in self.aliases:
            raise self._refused(node)
        if function == "Q":
            column = node.args[0].value if len(node.args) == 1 and isinstance(node.args[0], ast.Constant) else None
            if node.keywords or not isinstance(column, str) or not column or "`" in column:
                msg = f"{self._spell(node)!r} is refused: Q() takes the name of one obs column in quotes."
                raise FormulaError(msg)
            self.columns.append(column)
            return ast.Name(column, ast.Load())
        if not node.args:
            msg = f"{self._spell(node)!r} is empty: the obs column stands first in the parentheses."
            raise FormulaError(msg)
        self.functions.append(function.partition(".")[0])
        if isinstance(node.args[0], ast.Starred):
            raise self._refused(node.args[0])
        coding = function == "C"
        args = [self.value(node.args[0], depth + 1)]
        args += [self._argument(arg, depth + 1, coding and i == 0) for i, arg in enumerate(node.args[1:])]
        keywords = []
        for word in node.keywords:
            if word.arg is None or word.arg.startswith("_"):
                msg = f"{self._spell(node)!r} is refused in a formula: {word.arg or '**'} is no argument.\n{ALLOWED}"
                raise FormulaError(msg)
            value = self._argument(word.value, depth + 1, coding and word.arg == "contrasts")
            keywords.append(ast.keyword(word.arg, value))
        return ast.Call(node.func, args, keywords)

    def _argument(self, node: ast.expr, depth: int, coding: bool) -> ast.expr:
        """Check an argument after the first: a constant, a list of constants, a coding, or a value."""
        if coding:
            return self._coding(node)
        if isinstance(node, ast.Constant) and (node.value is None or type(node.value) in {bool, str}):
            return node
        if isinstance(node, (ast.List, ast.Tuple)):
            for element in node.elts:
                if not _is_literal(element):
                    raise self._refused(element)
            return node
        return self.value(node, depth)

    def _coding(self, node: ast.expr) -> ast.expr:
        """Check the second argument of C()."""
        if isinstance(node, ast.Constant) and node.value is None:
            return node
        name = _coding_name(node.func if isinstance(node, ast.Call) else node)
        if name is None:
            msg = (
                f"{self._spell(node)!r} is no coding of a factor. The second argument of C() is one of "
                f"{', '.join(CODINGS)} or {', '.join('contr.' + c for c in CONTR)}; to choose the reference level "
                'write C(x, Treatment("level")).'
            )
            raise FormulaError(msg)
        if isinstance(node, ast.Call):
            for argument in (*node.args, *(word.value for word in node.keywords)):
                elements = argument.elts if isinstance(argument, (ast.List, ast.Tuple)) else [argument]
                for element in elements:
                    if not _is_literal(element):
                        raise self._refused(element)
            for word in node.keywords:
                if word.arg is None:
                    raise self._refused(word.value)
        return node

    def _spell(self, node: ast.expr) -> str:
        """Spelling of a piece that may not have passed the check."""
        try:
            spelled = copy.deepcopy(node)
            for name in ast.walk(spelled):
                if isinstance(name, ast.Name) and name.id in self.aliases:
                    name.id = f"`{self.aliases[name.id]}`"
            text = ast.unparse(spelled)
        except RecursionError:
            return "..."
        return text if len(text) <= 80 else text[:77] + "..."

    def _refused(self, node: ast.expr) -> FormulaError:
        """Error about a piece that is not on the list."""
        piece = self._spell(node)
        what, hint = _PIECES.get(type(node)), ""
        if isinstance(node, ast.Call):
            what = f"a call of {self._spell(node.func)}"
        elif isinstance(node, ast.Attribute):
            what = "a dot after a name"
            if re.fullmatch(r"[^\W\d][\w.]*", piece):
                hint = f" For the obs column {piece!r} write `{piece}`, in backticks."
        elif isinstance(node, ast.Constant):
            what = "text in this place" if _is_text(node) else f"a constant of type {type(node.value).__name__}"
        elif isinstance(node, (ast.List, ast.Tuple)):
            what = "a list in this place"
        msg = f"{piece!r} is refused in a formula{f' ({what})' if what else ''}.{hint}\n{ALLOWED}"
        return FormulaError(msg)


def _function_name(node: ast.expr) -> str | None:
    """Name of an allowed function ("log", "np.log", "bs"), else None."""
    if isinstance(node, ast.Name) and node.id in (*MATHS, *TRANSFORMS):
        return node.id
    if (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "np"
        and node.attr in MATHS
    ):
        return f"np.{node.attr}"
    return None


def _coding_name(node: ast.expr) -> str | None:
    """Name of an allowed coding ("Treatment", "contr.sum"), else None."""
    if isinstance(node, ast.Name) and node.id in CODINGS:
        return node.id
    if (
        isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "contr"
        and node.attr in CONTR
    ):
        return f"contr.{node.attr}"
    return None


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and type(node.value) is str


def _is_literal(node: ast.expr) -> bool:
    """Whether a node is a number (with or without a sign), text, True, False or None."""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        return isinstance(node.operand, ast.Constant) and type(node.operand.value) in {int, float}
    return isinstance(node, ast.Constant) and (node.value is None or type(node.value) in {int, float, str, bool})
