"""Tables as plain data, and how they are shown: in a terminal, on a page, in Markdown."""

import dataclasses
import io
import re
from collections.abc import Sequence
from typing import NamedTuple

import rich.table
from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.text import Text

from tyr_jax.formatting import printable, shown

TEXT_WIDTH = 120
"""Width of tables that are turned into text, in columns, as there is no terminal to set it."""

MARKUP = re.compile(r"[\\`*\[\]<>#|&~$!]|(?<![^\W_])_|_(?![^\W_])")
"""What Markdown may take for markup. An underscore within a word is not markup."""

Grid = Sequence[Sequence[object]]
"""The cells of a table: its header, then its rows."""


class Row(NamedTuple):
    """A row's `name` and `cells`. Consecutive rows `about` the same thing, such as a text, belong together. A
    `total` is set off."""

    name: str
    cells: Sequence[str]
    about: str = ""
    total: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A header and rows. The first column of the header is that of the rows' names."""

    columns: Sequence[str]
    rows: Sequence[Row]
    title: str = ""
    words: Sequence[str] = ()
    """Columns after the first that hold words. The others hold figures, and are right-aligned."""
    framed: bool = False
    """Whether a terminal draws lines around cells."""
    narrow: bool = False
    """Whether a terminal leaves no room between columns."""


def grid(table: Table) -> Grid:
    """The cells of a table, in which the name of every row says what the row is about."""
    named = [", ".join(filter(None, (row.about, row.name))) for row in table.rows]
    return [table.columns, *([name, *row.cells] for name, row in zip(named, table.rows, strict=True))]


def for_terminal(table: Table) -> rich.table.Table:
    """A table for a terminal. A separate line says what the rows after it are about."""
    lines = box.HEAVY_HEAD if table.framed else box.SIMPLE_HEAD
    title = Text(printable(table.title), style="table.title") if table.title else None
    header = any(table.columns)
    made = rich.table.Table(title=title, title_justify="left", box=lines, show_header=header)
    if table.narrow:
        made.padding = (0, 0)
    first, *others = table.columns
    # A word with too little room continues on the next line, instead of being cut.
    made.add_column(plain(first), no_wrap=table.narrow, overflow="fold")
    for column in others:
        words = column in table.words
        made.add_column(plain(column), justify="left" if words else "right", overflow="fold")
    about = ""
    for row in table.rows:
        if row.about not in ("", about):
            made.add_row(plain(row.about))
        about = row.about
        name = f"… {row.name}" if row.about else row.name
        made.add_row(*map(plain, (name, *row.cells)), style="bold" if row.total else None)
    return made


def plain(cell: str) -> Text:
    """A cell as literal text: names may hold what rich takes for markup, or what a terminal obeys."""
    return Text(printable(cell))


def as_text(tables: Sequence[Table]) -> str:
    """Tables as lines of text."""
    stream = io.StringIO()
    console = Console(file=stream, width=TEXT_WIDTH)
    for table in tables:
        console.print(for_terminal(table))
    lines = [line.rstrip() for line in stream.getvalue().splitlines()]
    return "\n".join(lines).strip("\n")


def html_table(rows: Grid) -> Markup:
    """An HTML table of `rows`, which scrolls on its own if it is too wide."""
    if not rows:
        return Markup("")
    cell = Markup("<{0}>{1}</{0}>")
    lines = [
        Markup("<tr>{}</tr>").format(
            Markup("").join(cell.format(Markup("td" if number else "th"), value) for value in row)
        )
        for number, row in enumerate(rows)
    ]
    return Markup('<div class="wide"><table>{}</table></div>').format(Markup("").join(lines))


def as_html(tables: Sequence[Table]) -> Markup:
    """Tables below one another, each with its title, as HTML."""
    part = Markup("<p>{}</p>{}")
    return Markup("").join(part.format(table.title, html_table(grid(table))) for table in tables)


def markdown_table(rows: Grid) -> str:
    """A Markdown table of `rows`, the first of them its header."""
    lines = ["| " + " | ".join(markdown(str(cell)) for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def markdown(text: str) -> str:
    """Text as one line of Markdown, with everything escaped that would act as Markdown or HTML."""
    return re.sub(MARKUP, r"\\\g<0>", printable(text))


def fenced(text: str) -> str:
    """Commands as a Markdown block of code, whatever backticks they contain."""
    text = shown(text)
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}bash\n{text}\n{fence}"
