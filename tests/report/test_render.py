"""Tables always show names as plain text, never as markup."""

import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from tyr_jax.report.render import (
    Row,
    Table,
    as_html,
    as_text,
    fenced,
    for_terminal,
    html_table,
    markdown,
    markdown_table,
)

NAMES = [
    "c[/x]",
    "notes[old].txt",
    "[red]loud[/red]",
    "[link=https://a.b]x[/link]",
    "a|b",
    "`code`",
    "[x](javascript:alert)",
    "<script>alert(1)</script>",
    "<!-- gone -->",
    "a\nb\r\nc",
    "\x1b[31mred\x07",
    "back\\slash\\",
    "**bold** __bold__ _i_ snake_case",
    "# title $x$ ~~s~~ ![i](u) &lt;",
    "名前 📦 é",
    "",
]
EACH = pytest.mark.parametrize("name", NAMES)


def table(name: str) -> Table:
    rows = [Row(name, [name, "1.00"], about=name), Row("all", ["", "2.00"], total=True)]
    return Table(["", name, "figures"], rows, f"of {name}", words=[name])


@EACH
def test_a_terminal_shows_what_a_name_is(name: str) -> None:
    shown = as_text([table(name)])
    escaped = "".join(each if each.isprintable() else repr(each)[1:-1] for each in name)
    assert shown.splitlines()[0] == f"of {escaped}".rstrip()
    assert shown.count(escaped) >= 4
    assert "\x1b" not in shown


def test_a_header_of_nothing_is_not_shown() -> None:
    rows = [Row("supernet", ("1 GB",))]
    assert as_text([Table(["", ""], rows)]).split() == ["supernet", "1", "GB"]
    assert len(as_text([Table(["", ""], rows, "disk")]).split("\n")) == 3


@EACH
@pytest.mark.parametrize("framed", [False, True])
@pytest.mark.parametrize("width", [1, 20, 80])
def test_no_terminal_is_too_narrow_or_too_plain(name: str, framed: bool, width: int) -> None:
    made = table(name)
    stream = io.TextIOWrapper(io.BytesIO(), "ascii", errors="replace")
    console = Console(file=stream, width=width, force_terminal=True)
    console.print(for_terminal(Table(made.columns, made.rows, made.title, made.words, framed, not framed)))
    stream.flush()


class Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.add(tag)

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@EACH
def test_a_page_shows_what_a_name_is(name: str) -> None:
    reader = Words()
    reader.feed(as_html([table(name)]) + html_table([[name], [name]]))
    reader.close()
    assert reader.tags == {"p", "div", "table", "tr", "th", "td"}
    assert "".join(reader.words).count(name) >= 5


@EACH
def test_a_card_shows_what_a_name_is(name: str) -> None:
    """Every character with a meaning in Markdown follows an odd number of backslashes."""
    text = markdown(name)
    assert "\n" not in text
    for found in re.finditer(r"[`*\[\]<>#|&~$!]", text):
        before = text[: found.start()]
        assert (len(before) - len(before.rstrip("\\"))) % 2 == 1
    assert "snake_case" in text or "snake" not in name
    header, rule, row = markdown_table([["", name], [name, "1"]]).splitlines()
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in (header, rule, row)} == {3}


@pytest.mark.parametrize("text", ["plain", "a `b`", "```\n# out", "a\n`````\nb\n", "\x1b[31m"])
def test_a_block_of_code_ends_where_it_should(text: str) -> None:
    opening, *inner, closing = fenced(text).split("\n")
    fence = opening.removesuffix("bash")
    assert closing == fence
    assert set(fence) == {"`"}
    assert not any(line.strip().startswith(fence) for line in inner)
    assert "\x1b" not in fenced(text)
