"""Markdown as lines for a terminal, and where the last block of a growing text starts.

A block of CommonMark is final, and drawn for the last time, once the next one has started.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar, Final

from markdown_it import MarkdownIt
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement
from rich.rule import Rule
from rich.segment import Segment
from rich.syntax import Syntax
from rich.text import Text

from ws_chat.terminal.messages import visible

if TYPE_CHECKING:
    from markdown_it.rules_block import StateBlock
    from markdown_it.rules_inline import StateInline
    from markdown_it.token import Token
    from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType, RenderResult

Line = list[Segment]

_BODY: Final = r"(?:[^\n]|\n(?![ \t]*(?:\n|\Z))){1,4000}?"  # without an empty line
_FORMULA: Final = re.compile(
    # The dollars as pandoc has them: no space inside, no digit after them, so that prices are no formulas.
    rf"\$\$(?:{_BODY})\$\$|\\\[{_BODY}\\\]|\\\({_BODY}\\\)|\$(?![\s$])(?:\\[^\n]|[^\\$\n]){{1,1000}}?(?<!\s)\$(?!\d)"
)
_CLOSING: Final = {"$$": "$$", "\\[": "\\]"}


def _formula(state: StateInline, silent: bool) -> bool:
    """Take a formula as it is written: to Markdown, its backslashes and underscores would mean something else."""
    found = _FORMULA.match(state.src, state.pos) if state.src[state.pos] in "$\\" else None
    if not found:
        return False
    if not silent:
        state.push("text", "", 0).content = found[0]
    state.pos = found.end()
    return True


def _formula_block(state: StateBlock, line: int, end: int, silent: bool) -> bool:
    """Take lines from `$$` or `\\[` to its end as one paragraph: they may begin like lists or headings."""
    start = state.bMarks[line] + state.tShift[line]
    closing = _CLOSING.get(state.src[start : start + 2])
    if closing is None or state.is_code_block(line):
        return False
    start += 2
    for last in range(line, end):
        text = state.src[max(start, state.bMarks[last]) : state.eMarks[last]]
        if (at := text.find(closing)) >= 0:
            break
        if not text.strip() and last > line:
            return False
    else:
        at = -2  # its end may still come
    if at >= 0 and text[at + 2 :].strip():
        return False
    if not silent:
        state.push("paragraph_open", "p", 1).map = [line, last + 1]
        inline = state.push("inline", "", 0)
        inline.content = state.getLines(line, last + 1, state.blkIndent, keepLastLF=False).strip()
        inline.map, inline.children = [line, last + 1], []
        state.push("paragraph_close", "p", -1)
        state.line = last + 1
    return True


def _latex_space(state: StateInline, silent: bool) -> bool:
    r"""Keep the backslash of `\,` and `\;`: spaces of LaTeX without delimiters. Markdown has no use for these escapes."""
    if not state.src.startswith(("\\,", "\\;"), state.pos):
        return False
    if not silent:
        state.pending += state.src[state.pos : state.pos + 2]
    state.pos += 2
    return True


# HTML is parsed as text and shown: rich would leave it out.
_PARSER: Final = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
_PARSER.inline.ruler.before("escape", "formula", _formula)
_PARSER.inline.ruler.before("escape", "latex_space", _latex_space)
_PARSER.block.ruler.before("fence", "formula", _formula_block, {"alt": ["paragraph", "blockquote", "list"]})


def last_block(text: str) -> int:
    """Return the index where the last block of a text starts; the text before it is final."""
    complete = text[: text.rfind("\n") + 1]  # an incomplete line may still turn out to continue the block before it
    starts = [
        token.map[0] for token in _PARSER.parse(complete) if token.level == 0 and token.map and token.nesting >= 0
    ]
    if len(starts) < 2:
        return 0
    # Not `splitlines`: it also splits at U+2028 and others, which end no line for the parser.
    return sum(len(line) + 1 for line in complete.split("\n")[: starts[-1]])


def ends_in_table(text: str) -> bool:
    """Whether the last block is a table: its next row may change all of its lines."""
    tokens = _PARSER.parse(text)
    return bool(tokens) and tokens[-1].type == "table_close"


def markdown(text: str) -> RenderableType:
    return _Markdown(text)


def thoughts(text: str) -> RenderableType:
    return Text(text.strip("\n"), style="dim italic")


def render_lines(content: RenderableType, console: Console, width: int) -> list[Line]:
    """Return lines of `width` cells, without control codes, trailing spaces, and blank lines at either end."""
    lines = console.render_lines(content, console.options.update(width=max(width, 1), height=None), pad=False)
    clean = [_clean(line) for line in lines]
    while clean and not clean[0]:
        del clean[0]
    while clean and not clean[-1]:
        del clean[-1]
    return clean


def _clean(line: Line) -> Line:
    clean = [Segment(visible(text), style) for text, style, control in line if not control]
    while clean and not (clean[-1].style and clean[-1].style.bgcolor):
        text, style, _ = clean.pop()
        if text := text.rstrip(" "):
            clean.append(Segment(text, style))
            break
    return clean


class _Code(CodeBlock):
    """Code between two rules, without a frame, so that it can be copied."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Rule(self.lexer_name if self.lexer_name != "text" else "", style="dim", align="left")
        code = str(self.text).rstrip("\n")
        if code:
            yield Syntax(code, self.lexer_name, theme="ansi_dark", background_color="default", word_wrap=True)
        yield Rule(style="dim")


class _Heading(Heading):
    """A heading, aligned left as everything else is."""

    LEVEL_ALIGN: ClassVar[dict[str, JustifyMethod]] = {}


class _Markdown(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "fence": _Code,
        "code_block": _Code,
        "heading_open": _Heading,
    }

    def __init__(self, text: str) -> None:
        super().__init__("", hyperlinks=False)  # so that a link shows its address
        self.parsed = _PARSER.parse(text)
        for token in self.parsed:
            for child in token.children or ():
                _as_text(child)


def _as_text(token: Token) -> None:
    if token.type == "softbreak":
        token.type = "hardbreak"  # models break lines on purpose
    elif token.type == "image":
        token.type, token.tag = "text", ""
        token.content, token.children = f"[{token.content}] ({token.attrs.get('src')})", None
