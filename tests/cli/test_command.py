"""What commands print: tables and lines, in any terminal and with any names."""

import dataclasses
import io

import pytest
from rich.console import Console

from tyr_jax.cli import command
from tyr_jax.report.render import Row, Table

CELLS = ["notes[old].txt", "c[/x]", "every 8th window, held out", "560.496", "a" * 50]


@pytest.mark.parametrize("framed", [True, False])
@pytest.mark.parametrize("width", [1, 20, 40, 66, 80, 200])
def test_no_cell_gets_lost(width: int, framed: bool) -> None:
    table = Table(["text", *"abcd"], [Row(CELLS[0], CELLS[1:])], title="of [red]d", framed=framed)
    stream = io.StringIO()
    command.show([table], Console(file=stream, width=width))
    shown = stream.getvalue()
    assert "…" not in shown
    # A cell without room is wrapped. All of its letters must then follow each other down the column.
    columns = [line.replace("│", "┃").split("┃") for line in shown.splitlines() if "│" in line]
    if framed:
        joined = ["".join(part[index].strip() for part in columns) for index in range(1, 6)]
        assert [cell.replace(" ", "") for cell in joined] == [cell.replace(" ", "") for cell in CELLS]
    assert sum(letter == "a" for letter in shown) >= 50


@dataclasses.dataclass(frozen=True)
class Sized:
    """What to do."""

    size: int = 3
    """One,
    `two`,
    three."""


def test_the_help_of_an_option_is_one_paragraph(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.parse(Sized, ["--help"], prog="size", description="Sizes.")
    assert "One, `two`, three. (default: 3)" in capsys.readouterr().out
    assert command.parse(Sized, ["--size", "4"], prog="size", description="Sizes.") == Sized(4)


def test_a_line_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    command.say("written to a[/b]\x1b[2J\nc")
    assert capsys.readouterr().out == "written to a[/b]\\x1b[2J\\nc\n"


FRAMED = """\
╭─ Unrecognized options ────────────╮
│ Unrecognized options: --sed, 3    │
│ ───────────────────────────────── │
│ Perhaps you meant:                │
│     --seed INT                    │
│ ───────────────────────────────── │
│ For full helptext, run prog --help │
╰───────────────────────────────────╯
"""

PLAIN = """\
 Missing argument
 ---------------------------------
  Missing value for argument '--seed'. Expected 1 values.
  --------------------------------
  For full helptext, run prog --help
"""


@pytest.mark.parametrize(
    ("box", "told"),
    [
        (FRAMED, "unrecognised arguments: --sed, 3; perhaps --seed was meant"),
        (PLAIN, "--seed needs a value"),
    ],
)
def test_an_error_is_one_sentence_in_any_terminal(box: str, told: str) -> None:
    """The parser frames its messages, but not where stdout is ASCII."""
    assert command.sentence(box) == told
