"""The grammar: what a formula is taken apart into, and where errors point."""

from __future__ import annotations

import formulaic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scglmm.formula import Formula, FormulaError, RandomTerm, parse_formula
from scglmm.formula.terms import parse_terms, spell


def random_terms(text: str) -> list[str]:
    return [str(term) for term in parse_formula(text).random]


def terms(text: str) -> list[str]:
    parsed = parse_terms(text)
    return (["1"] if parsed.intercept else []) + [spell(term) for term in parsed.terms]


def test_the_formula_of_the_readme():
    formula = parse_formula("~ offset(log(libSize)) + Dx + Age + Sex + (1|SubID)")
    assert formula == Formula(
        text="~ offset(log(libSize)) + Dx + Age + Sex + (1|SubID)",
        response=None,
        fixed="Dx + Age + Sex",
        offsets=("log(libSize)",),
        random=(RandomTerm("1", "SubID"),),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(1|g)", ["(1|g)"]),
        ("( 1 | g )", ["(1|g)"]),
        ("(x|g)", ["(1 + x|g)"]),
        ("(1 + x|g)", ["(1 + x|g)"]),
        ("(x + 1|g)", ["(1 + x|g)"]),
        ("(0 + x|g)", ["(0 + x|g)"]),
        ("(-1 + x|g)", ["(0 + x|g)"]),
        ("(x - 1|g)", ["(0 + x|g)"]),
        ("(x||g)", ["(1|g)", "(0 + x|g)"]),
        ("(x + z||g)", ["(1|g)", "(0 + x|g)", "(0 + z|g)"]),
        ("(0 + x||g)", ["(0 + x|g)"]),
        ("(1||g)", ["(1|g)"]),
        ("(a*b|g)", ["(1 + a + b + a:b|g)"]),
        ("(log(x)|g)", ["(1 + log(x)|g)"]),
        ("(1|a/b)", ["(1|a)", "(1|a:b)"]),
        ("(1|a/b/c)", ["(1|a)", "(1|a:b)", "(1|a:b:c)"]),
        ("(1|a:b/c)", ["(1|a:b)", "(1|a:b:c)"]),
        ("(x||a/b)", ["(1|a)", "(0 + x|a)", "(1|a:b)", "(0 + x|a:b)"]),
        ("(1|a:b)", ["(1|a:b)"]),
        ("(1|a) + (1|b)", ["(1|a)", "(1|b)"]),
        ("(1|g) + (0 + x|g)", ["(1|g)", "(0 + x|g)"]),
        ("(1|`my donor`)", ["(1|`my donor`)"]),
        ("(`my x`|g)", ["(1 + `my x`|g)"]),
        ("(1|`g`)", ["(1|g)"]),
        ("(1|donor.id)", ["(1|donor.id)"]),
    ],
)
def test_random_terms(text: str, expected: list[str]):
    assert random_terms(f"~ {text}") == expected
    assert random_terms(f"~ {text} + x + w") == expected
    assert random_terms(f"~ x + {text} + w") == expected


def test_columns_of_a_group():
    assert parse_formula("~ (1|`my donor`:stim)").random[0].columns == ("my donor", "stim")
    assert parse_formula("~ (1|`a:b`)").random[0].columns == ("a:b",)


@pytest.mark.parametrize(
    ("text", "fixed"),
    [
        ("~ 1", "1"),
        ("~", "1"),
        ("~ (1|g)", "1"),
        ("~ offset(a)", "1"),
        ("~ 0 + Dx + (1|g)", "0 + Dx"),
        ("~ (1|g) - 1 + x", "- 1 + x"),
        ("~ (1|g) + x", "x"),
        ("~ x + (1|g) + y", "x + y"),
        ("~ x - 1", "x - 1"),
        ("~ a*b - a:b", "a*b - a:b"),
        ("~ `my col` + C(x, Treatment('a  b'))", "`my col` + C(x, Treatment('a  b'))"),
        ("~ x +\n  y\t+ (1 |\n g)", "x + y"),
        ("~ offset + x", "offset + x"),
    ],
)
def test_fixed(text: str, fixed: str):
    assert " ".join(parse_formula(text).fixed.split()) == " ".join(fixed.split())


def test_offsets_stand_anywhere():
    formula = parse_formula("~ x + offset(log(a)) + (1|g) + offset( `b c` ) + y + offset(log(a)+z)")
    assert formula.offsets == ("log(a)", "`b c`", "log(a) + z")
    assert formula.fixed == "x + y"


@pytest.mark.parametrize(
    ("text", "response"), [("y ~ x", "y"), ("log(y) ~ x", "log(y)"), ("`HLA-A` ~ 1", "`HLA-A`"), ("~ x", None)]
)
def test_response(text: str, response: str | None):
    assert parse_formula(text).response == response


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a", ["1", "a"]),
        ("a + b", ["1", "a", "b"]),
        ("a*b", ["1", "a", "b", "a:b"]),
        ("a:b", ["1", "a:b"]),
        ("a/b", ["1", "a", "a:b"]),
        ("(a + b)/c", ["1", "a", "b", "a:b:c"]),
        ("a/(b + c)", ["1", "a", "a:b", "a:c"]),
        ("a*b*c - a:b:c", ["1", "a", "b", "c", "a:b", "a:c", "b:c"]),
        ("a*b - b:a", ["1", "a", "b"]),
        ("(a + b + c)**2", ["1", "a", "b", "c", "a:b", "a:c", "b:c"]),
        ("(a + b)^2", ["1", "a", "b", "a:b"]),
        ("a:b + a", ["1", "a", "a:b"]),
        ("a + a", ["1", "a"]),
        ("a:a", ["1", "a"]),
        ("0 + a", ["a"]),
        ("-1 + a", ["a"]),
        ("a - 1", ["a"]),
        ("a + 0", ["a"]),
        ("0 + a + 1", ["1", "a"]),
        ('log( x )+C(g,Treatment( "b" ))', ["1", "log(x)", "C(g, Treatment('b'))"]),
        ("I(x^2)", ["1", "I(x ** 2)"]),
        ("log(`my col`)", ["1", "log(`my col`)"]),
        ("n.genes", ["1", "n.genes"]),
        ("class + lambda", ["1", "class", "lambda"]),
    ],
)
def test_terms(text: str, expected: list[str]):
    assert terms(text) == expected
    # the spelling of the result is a formula for the same terms
    assert terms(str(parse_terms(text))) == expected


def test_a_term_is_the_same_in_any_order():
    assert terms("a:b + b:a") == ["1", "a:b"]


# (formula, what the message says, what stands above the caret)
ERRORS = [
    ("Dx + (1|donor)", "begins with '~'", "D"),
    ("y ~ x ~ z", "second '~'", "~ z"),
    ("~ x + 1|g", "needs parentheses", "|g"),
    ("~ x | g", "needs parentheses", "| g"),
    ("~ (1|g", "never closed", "(1|g"),
    ("~ log(x", "never closed", "(x"),
    ("~ (1|g))", "closes nothing", ")"),
    ("~ (|g)", "nothing before", "|g)"),
    ("~ (1|)", "nothing after", "|)"),
    ("~ (1||)", "nothing after", "||)"),
    ("~ (1|a/)", "nothing after '/'", "/)"),
    ("~ (1|a:)", "nothing after ':'", ":)"),
    ("~ (1|a//b)", "joined by ':' or '/'", "//b"),
    ("~ a $ b", "no meaning", "$"),
    ("~ a; b", "no meaning", ";"),
    ("~ {a}", "no meaning", "{"),
    ("~ x - (1|g)", "minus", "- (1|g)"),
    ("~ x - offset(z)", "minus", "- offset"),
    ("~ ((1|g))", "on its own", "(1|g))"),
    ("~ (x + (1|g))", "on its own", "(1|g))"),
    ("~ (1|(a|b))", "inside of one another", "(a|b)"),
    ("~ ((1|a)|b)", "inside of one another", "|a"),
    ("~ (1|a|b)", "second '|'", "|b"),
    ("~ (1|||g)", "too many bars", "|||"),
    ("~ (x ||| g)", "too many bars", "|||"),
    ("~ a:(1|g)", "on its own", "(1|g)"),
    ("~ (1|g):a", "on its own", ":a"),
    ("~ (1|g)*a", "on its own", "*a"),
    ("~ (a + b):(1|g)", "on its own", ":(1"),
    ("~ log(1|g)", "inside of log()", "|g"),
    ("~ (offset(x)|g)", "offset cannot be part", "offset"),
    ("~ (1 + offset(x)|g)", "offset cannot be part", "offset"),
    ("~ a:offset(b)", "An offset stands on its own", "offset"),
    ("~ offset(a)*b", "An offset stands on its own", "*b"),
    ("~ log(offset(b))", "An offset stands on its own", "offset"),
    ("~ offset()", "nothing in this offset", "offset"),
    ("~ offset(3)", "no obs column", "3)"),
    ("~ offset(offset(a))", "inside an offset", "offset(a))"),
    ("~ (1|a*b)", "(1|a:b)", "*b"),
    ("~ (1|a+b)", "(1|a) + (1|b)", "+b"),
    ("~ (1|factor(a))", "one obs column", "factor"),
    ("~ (1|1)", "one obs column", "1)"),
    ("~ (1|a:a)", "twice", "a)"),
    ("~ (0|g)", "no effects", "0|g"),
    ("~ (1|g) + (1|g)", "twice", "(1|g)"),
    ("~ (1|g) + (x|g)", "twice, once in (1|g) and once in (1 + x|g)", "(x|g)"),
    ("~ (1|a) + (1|a/b)", "twice", "(1|a/b)"),
    ("~ (1|a:b) + (1|b:a)", "twice", "(1|b:a)"),
    ("~ (0 + x|g) + (x||g)", "'x' for the group 'g' is in the formula twice", "(x||g)"),
    ("~ .", "all columns", "."),
    ("~ a + . + b", "all columns", ". +"),
    ("~ a b", "no operator between 'a' and 'b'", "b"),
    ("~ `a` `b`", "no operator", "`b`"),
    ("~ log(x) y", "no operator", "y"),
    ("~ a + ", "nothing after '+'", "+"),
    ("~ + + a", "nothing after '+'", "+ +"),
    ("~ a * + b", "nothing after '*'", "* +"),
    ("~ * a", "cannot stand here", "* a"),
    ("~ a + ()", "a term is missing", ")"),
    ("~ 2x", "backticks", "2x"),
    ("~ 2*x", "I(2 * x)", "2*x"),
    ("~ x + 2", "is no term", "2"),
    ("~ (0 + x)", "outside of parentheses", "0 + x"),
    ("~ a*b - a:c", "no term 'a:c'", "a:c"),
    ("~ x > 3", "I(x > 3)", "> 3"),
    ("~ x == 'a'", "I(x > 3)", "== 'a'"),
    ("~ 'a'", "Text in quotes", "'a'"),
    ("~ log('a)", "quote is never closed", "'a)"),
    ("~ `a", "backtick is never closed", "`a"),
    ("~ ``", "no column name", "``"),
    ("~ a[0]", "cannot stand here", "[0]"),
    ("~ libSize**2", "I(libSize**2)", "libSize"),
    ("~ Age + libSize^2", "I(libSize**2)", "libSize"),
    ("~ (libSize)**2", "I(libSize**2)", "(libSize"),
    ("~ log(x)**2", "I(log(x)**2)", "log(x)**2"),
    ("~ (a + b)**0.5", "whole number", "0.5"),
    ("~ (a + b)**c", "whole number", "c"),
    ("(1|g) ~ x", "to the right of '~'", "|g"),
    ("y z ~ x", "cannot be read", "y z"),
    ("~ a*b*c*d*e*f*g*h*i*j*k", "more than 1,000 terms", "*k"),
    ("~ " + "(" * 60 + "a" + ")" * 60, "nested", "((((((((((a"),
]


@pytest.mark.parametrize(("text", "message", "place"), ERRORS, ids=[text[:30] for text, _, _ in ERRORS])
def test_errors_point_at_the_place(text: str, message: str, place: str):
    with pytest.raises(FormulaError) as caught:
        parse_formula(text)
    lines = str(caught.value).split("\n")
    assert message in " ".join(lines)
    line = text.strip()
    above = next(i for i, found in enumerate(lines) if found.strip() == line)
    caret = lines[above + 1]
    assert caret.strip() == "^"
    assert lines[above][caret.index("^") :].startswith(place)


def test_nothing_but_text():
    with pytest.raises(TypeError, match="int"):
        parse_formula(3)
    with pytest.raises(ValueError, match="'~'"):
        parse_formula("")
    with pytest.raises(ValueError, match=r"10,000"):
        parse_formula("~ " + "a + " * 5000 + "a")


# -------------------------------------------------------------------------------------------- generated formulas

names = st.from_regex(r"\A[A-Za-z_][A-Za-z0-9_.]{0,6}\Z").filter(lambda name: not name.startswith("__"))
odd = st.text(st.characters(exclude_characters="`", exclude_categories=["C", "Z"]), min_size=1, max_size=6).map(
    lambda name: f"`{name} 1`"
)
columns = st.one_of(names.filter(lambda name: name != "offset"), odd)
space = st.sampled_from(["", " ", "  ", "\n"])


@st.composite
def formulas(draw: st.DrawFn) -> tuple[str, list[str], list[str], list[tuple[str, str]]]:
    fixed = draw(st.lists(columns, unique=True, max_size=4))
    offsets = draw(st.lists(columns, max_size=2))
    pairs = draw(
        st.lists(
            st.tuples(st.sampled_from(["1", "1 + {}", "0 + {}"]), columns, st.lists(columns, min_size=1, max_size=2)),
            max_size=3,
            unique_by=lambda pair: frozenset(pair[2]),
        )
    )
    random = [(e.format(x), ":".join(g)) for e, x, g in pairs if len(set(g)) == len(g)]
    pieces = [(0, c) for c in fixed] + [(1, f"offset({o})") for o in offsets] + [(2, f"({e}|{g})") for e, g in random]
    order = draw(st.permutations(range(len(pieces))))
    # fixed terms, offsets and random terms keep their own order
    queues = [[p for kind, p in pieces if kind == k] for k in range(3)]
    text = (draw(space) + "+" + draw(space)).join(queues[pieces[i][0]].pop(0) for i in order)
    return f"~{draw(space)}{text}", fixed, offsets, random


@given(formulas())
@settings(max_examples=150, deadline=None)
def test_round_trip(case: tuple[str, list[str], list[str], list[tuple[str, str]]]):
    text, fixed, offsets, random = case
    formula = parse_formula(text)
    assert [spell(term) for term in parse_terms(formula.fixed).terms] == fixed
    assert list(formula.offsets) == offsets
    assert [(term.effects, term.group) for term in formula.random] == random
    again = " + ".join([formula.fixed, *(f"offset({o})" for o in formula.offsets), *map(str, formula.random)])
    second = parse_formula(f"~ {again}")
    assert (second.offsets, second.random) == (formula.offsets, formula.random)
    assert parse_terms(second.fixed) == parse_terms(formula.fixed)


@st.composite
def algebra(draw: st.DrawFn, depth: int = 3) -> str:
    if depth == 0 or draw(st.booleans()):
        return draw(st.sampled_from("abcd"))
    operator = draw(st.sampled_from(["+", "+", ":", "*", "/"]))
    left, right = draw(algebra(depth - 1)), draw(algebra(depth - 1))
    return f"({left} {operator} {right})"


@given(algebra())
@settings(max_examples=150, deadline=None)
def test_the_algebra_is_that_of_formulaic(text: str):
    expected = [frozenset(str(factor) for factor in term.factors) for term in formulaic.Formula(text)]
    found = [frozenset(factor.text for factor in term) for term in parse_terms(text).terms]
    assert set(found) == set(expected) - {frozenset({"1"})}
    assert len(found) == len(set(found))


PIECES = [*"ab01~+-*/:^|()., '\"`\\[]{}=<>", "offset(", "log(", "**", "||", "(1|g)"]


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
@settings(max_examples=300, deadline=None)
def test_any_text_is_read_or_refused(text: str):
    try:
        formula = parse_formula("~" + text)
    except FormulaError:
        return
    parse_terms(formula.fixed)
