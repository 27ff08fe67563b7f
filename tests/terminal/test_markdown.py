"""Markdown in the terminal: what is shown, and that nothing changes which has been shown for good."""

from __future__ import annotations

import io
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from ws_chat.terminal.markdown import last_block, markdown, render_lines
from ws_chat.terminal.messages import visible
from ws_chat.terminal.screen import LIVE_LINES, GrowingText

PIECES = ["word ", "\n", "\n\n", "# ", "- ", "1. ", "    ", "```", "```py\n", "> ", "|", "x | y\n- | -\n", "---\n"]
PIECES += [
    "**",
    "*",
    "_",
    "`",
    "[x](http://e)",
    "![",
    "](",
    "<b>",
    "&#27;",
    "~~",
    "===\n",
    "\\",
    "$$",
    "\\[",
    "\\]\n",
    "日本",
    "🎈",
    "\t",
    "\x1b[",
]


def console(width=40):
    return Console(file=io.StringIO(), width=width, height=24, force_terminal=True)


def shown(lines):
    return ["".join(segment.text for segment in line) for line in lines]


def drawn(text, width=40):
    return shown(render_lines(markdown(text), console(width), width))


def grown(pieces, width=40, room=100):
    growing, lines = GrowingText(console(width), markdown), []
    for piece in pieces:
        growing.add(piece)
        lines += growing.settle()
        lines += growing.live(room)[0]
    return shown(lines + growing.end())


@given(st.lists(st.sampled_from(PIECES), max_size=25), st.sampled_from([1, 10, 40]))
@settings(max_examples=60)
def test_however_it_comes_the_same_is_shown(pieces, width):
    with patch("ws_chat.terminal.screen.LIVE_LINES", 1000):  # what is given up earlier may have changed by the end
        whole = grown(["".join(pieces)], width, room=1000)
        lines = grown(pieces, width, room=1000)

    assert [line for line in lines if line] == [line for line in whole if line]
    assert all(line == visible(line) for line in lines)


def test_what_html_and_images_and_links_say_is_shown():
    assert drawn("<div>one</div>") == ["<div>one</div>"]
    assert drawn("![cat](http://c)") == ["[cat] (http://c)"]
    assert drawn("[bank](http://evil)") == ["bank (http://evil)"]
    assert drawn("one\ntwo") == ["one", "two"]


@pytest.mark.parametrize(
    "formula",
    [r"\( a^2 \)", r"\(x\,dx\)", "$a_1 *b* c_2$", r"$$\frac{a}{b}\\$$", r"\[ a_1 \, b_2 \]"],
)
def test_a_formula_is_shown_as_it_is_written(formula):
    assert drawn(f"See {formula}.", 80) == [f"See {formula}."]
    assert drawn(f"- {formula} *and*", 80) == [f" • {formula} and"]


def test_latex_spaces_outside_of_formulas_keep_their_backslash():
    assert drawn(r"x\,dx\;dy, *a\,b*, \*c\* and `d\,e`") == [r"x\,dx\;dy, a\,b, *c* and d\,e"]


def test_a_formula_of_several_lines_is_no_list():
    lines = [r"\[", r"a_1 \\", "- b_1", "= c", r"\]"]
    assert drawn("Text\n" + "\n".join(lines) + "\n\nEnd") == ["Text", "", *lines, "", "End"]
    assert drawn("From $5 to $10, *really*") == ["From $5 to $10, really"]


def test_code_has_nothing_beside_it():
    first, *code, last = drawn("```python\ndef f():\n    return 1\n```")
    assert code == ["def f():", "    return 1"]
    assert first.startswith("python ─")
    assert set(last) == {"─"}


@pytest.mark.parametrize(
    ("text", "before"),
    [
        ("one\n\ntwo", ""),  # it may still become anything
        ("one\n\ntwo\n", "one\n\n"),
        ("one\n#", ""),
        ("```\none\n\ntwo\n", ""),
        ("- one\n\n  two\n\nthree\n", "- one\n\n  two\n\n"),
        ("one\n===\ntwo\n", "one\n===\n"),
        ("one\u2028two\n\nthree\n", "one\u2028two\n\n"),  # not the end of a line
    ],
)
def test_the_last_block_is_all_that_may_change(text, before):
    assert text[: last_block(text)] == before


def test_a_long_block_gives_up_its_first_lines():
    growing = GrowingText(console(), markdown)
    growing.add("".join(f"- {number}\n" for number in range(LIVE_LINES + 5)))
    given_up, left = growing.live(100)

    assert (len(given_up), len(left)) == (5, LIVE_LINES)
    assert growing.live(100) == ([], left)
    assert growing.end() == left


def test_a_table_is_kept_as_its_columns_may_still_widen():
    growing = GrowingText(console(), markdown)
    growing.add("|a|b|\n|-|-|\n" + "|c|d|\n" * 50)
    given_up, left = growing.live(10)

    assert (given_up, len(left)) == ([], 10)
    assert len(growing.end()) == 52


def test_control_characters_are_shown():
    assert visible("a\tb\nc") == "a\tb\nc"
    assert visible("\x1b[1m\x9b\r\n\x00\x7f\ud800é") == "␛[1m<9b>\n␀␡\ufffdé"
