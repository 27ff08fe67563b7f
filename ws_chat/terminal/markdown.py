"""Markdown as lines for a terminal, and where in a text that still grows its last block begins.

A block of CommonMark is settled when the next one has begun, so each is drawn for the last time then, and never again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

from markdown_it import MarkdownIt
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement
from rich.rule import Rule
from rich.segment import Segment
from rich.syntax import Syntax
from rich.text import Text

from ws_chat.terminal.visible import visible

if TYPE_CHECKING:
    from markdown_it.token import Token
    from rich.console import Console, ConsoleOptions, JustifyMethod, RenderableType, RenderResult

Line = list[Segment]

# HTML would be left out of what is shown; it is text, as everything is that a terminal cannot do.
_PARSER: Final = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])


def last_block(text: str) -> int:
    """Return where the last block of a text begins, in characters; what stands before it does not change any more."""
    complete = text[: text.rfind("\n") + 1]  # a line that is not over may still turn out to go on with the block before
    begins = [
        token.map[0] for token in _PARSER.parse(complete) if token.level == 0 and token.map and token.nesting >= 0
    ]
    if len(begins) < 2:
        return 0
    return sum(map(len, complete.splitlines(keepends=True)[: begins[-1]]))


def ends_in_table(text: str) -> bool:
    """Whether the last block is a table, whose lines may all change with its next row."""
    tokens = _PARSER.parse(text)
    return bool(tokens) and tokens[-1].type == "table_close"


def markdown(text: str) -> RenderableType:
    """Return Markdown as what rich draws."""
    return _Markdown(text)


def thoughts(text: str) -> RenderableType:
    """Return the reasoning of a model as what rich draws."""
    return Text(text.strip("\n"), style="dim italic")


def lines_of(drawn: RenderableType, console: Console, width: int) -> list[Line]:
    """Return the lines that something takes at a width, in cells. Nothing in them moves the cursor."""
    lines = console.render_lines(drawn, console.options.update(width=max(width, 1), height=None), pad=False)
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
    """Code between two rules, with nothing beside it that would be copied along."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Rule(self.lexer_name if self.lexer_name != "text" else "", style="dim", align="left")
        code = str(self.text).rstrip("\n")
        if code:
            yield Syntax(code, self.lexer_name, theme="ansi_dark", background_color="default", word_wrap=True)
        yield Rule(style="dim")


class _Heading(Heading):
    """A heading, which stands at the left as all else does."""

    LEVEL_ALIGN: ClassVar[dict[str, JustifyMethod]] = {}


class _Markdown(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "fence": _Code,
        "code_block": _Code,
        "heading_open": _Heading,
    }

    def __init__(self, text: str) -> None:
        super().__init__("", hyperlinks=False)  # a link shows where it leads to
        self.parsed = _PARSER.parse(text)
        for token in self.parsed:
            for child in token.children or ():
                _as_text(child)


def _as_text(token: Token) -> None:
    if token.type == "softbreak":
        token.type = "hardbreak"  # models break lines where they mean to
    elif token.type == "image":
        token.type, token.tag = "text", ""
        token.content, token.children = f"[{token.content}] ({token.attrs.get('src')})", None
