"""Write the tables of the documentation from the records of `scripts/measure.py`.

A page marks where a table belongs. `fill_pages` writes everything between the two marks:

  <!-- measured: forward -->
  <!-- end -->

The name is that of a record in docs/measurements, or one of VIEWS, which combine figures from records.
"""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict, cast

from pictures import PICTURES

from tyr_jax.errors import UserError
from tyr_jax.files import read_json
from tyr_jax.problems.exact import best_known

ROOT = Path(__file__).parents[1]
RECORDS = ROOT / "docs" / "measurements"
MARKED = re.compile(r"(<!-- measured: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

Table = list[list[str]]
"""Rows of cells, the header first."""


class Record(TypedDict):
    """Results of a measurement, and how they were measured."""

    command: str
    commit: str
    date: str
    machine: str
    minutes: float
    tables: list[Table]
    results: dict[str, Any]


def read_record(name: str) -> Record:
    """Read the record of a measurement.

    Raises:
        UserError: There is no record.
    """
    path = RECORDS / f"{name}.json"
    if not path.is_file():
        raise UserError(f"{path} is missing: run `python scripts/measure.py {name}`")
    return cast(Record, read_json(path))


def markdown(table: Table) -> str:
    """A table in Markdown."""
    header, *rows = ("| " + " | ".join(row) + " |" for row in table)
    return "\n".join([header, "|---" * len(table[0]) + "|", *rows])


def origin(record: Record, timed: bool = True) -> str:
    """A line that says where the figures of a record come from and, if `timed`, how long they took. Of a
    record from several commits, only the last part was timed."""
    timed = timed and record["minutes"] >= 1 and " to " not in record["commit"]
    minutes = f", {record['minutes']:.0f} min" if timed else ""
    return (
        f"*`{record['command']}`, commit {record['commit']}, {record['date']}{minutes}, on "
        f"{record['machine']}.*"
    )


def whole(name: str) -> str:
    """All tables of a measurement, and a line that says where they come from."""
    record = read_record(name)
    return "\n\n".join([*map(markdown, record["tables"]), origin(record)])


def rows_of(table: Table, *begins: str) -> list[dict[str, str]]:
    """The rows whose first cells begin with these strings, each as a dictionary by column."""
    rows = [row for row in table[1:] if all(map(str.startswith, row[: len(begins)], begins))]
    return [dict(zip(table[0], row, strict=True)) for row in rows]


def number(text: str) -> float:
    """The number in a cell."""
    return float(text.replace(",", ""))


def headline() -> str:
    """Perplexities of the main results on text that is used neither for calibration nor for training."""
    record = read_record("main")
    (table,) = record["tables"]
    models = [name.partition(":")[0] for name in table[0][3:] if name.endswith(": perplexity, KL")]
    rows = [
        [
            size.partition(" (")[0],
            text.removesuffix(".txt"),
            dense,
            *(one.partition(",")[0] for one in found[: len(models)]),
        ]
        for size, text, dense, *found in table[1:]
        if not text.startswith(TRAINED_ON)
    ]
    shown = markdown([["block parameters left", "text", "dense", *models], *rows])
    return "\n\n".join([shown, origin(record, timed=False)])


TRAINED_ON = "builtin", "wikipedia"
"""Beginnings of the names of the texts that the models of the main results are pruned and trained on."""


def speed() -> str:
    """How many times faster each part is than the alternative that it is compared with, for parts that have
    been measured."""
    there = {name: read_record(name) for name in SPEEDS if (RECORDS / f"{name}.json").is_file()}
    tables = {name: record["tables"][0] for name, record in there.items()}
    rows = [["part", "compared with", "speed-up"]]
    if "forward" in tables:
        ratios = []
        for dtype in ("float32", "bfloat16"):
            ours, torch = (
                number(rows_of(tables["forward"], "2048", dtype, program)[0]["tokens/s"])
                for program in ("blocks and", "torch")
            )
            ratios.append(f"{ours / torch:.2f}×")
        part = "forward, 2,048 tokens: float32, bfloat16"
        rows.append([part, "transformers in torch", ", ".join(ratios)])
    if "search" in tables:
        scoring = rows_of(tables["search"], "50", "kept")[0]["ratio"]
        rows.append(["scoring a population at 50%", "one `vmap` at full width", f"{scoring}×"])
    if "pipeline" in tables:
        supernet, whole = (rows_of(tables["pipeline"], stage)[0]["ratio"] for stage in ("supernet", "all"))
        rows.append(["supernet of nine levels", "every level pruned by itself", f"{supernet}×"])
        rows.append(["the whole job at 50%", "the two plain versions above", f"{whole}×"])
    for method, part in (("lora", "LoRA"), ("full", "all weights")) if "recovery" in tables else ():
        ratio = rows_of(tables["recovery"], method, "tyr_jax")[0]["of torch's"]
        beside = "PEFT and torch" if method == "lora" else "torch"
        rows.append([f"recovery, {part}", f"the same training in {beside}", f"{ratio}×"])
    for engine in ("llama.cpp", "JAX") if "serving" in tables else ():
        run = rows_of(tables["serving"], engine, "128", "1")[0]
        part = f"pruned model in {engine}: first token, each token after"
        rows.append([part, "the dense model", f"{run['first token']}, {run['each token after']}"])
    return "\n\n".join([markdown(rows), " ".join(map(origin, there.values()))])


SPEEDS = "forward", "search", "pipeline", "recovery", "serving"
"""Measurements that compare speeds: this project's, and a pruned model's with the dense one's."""


def searches_by_problem(measurement: str) -> str:
    """What every search leaves of the excess on every group of problems of a measurement, the best by its
    mean over groups first. Those that do not differ from the best of a group are bold."""
    record = read_record(measurement)
    (table,) = record["tables"]
    groups = list(dict.fromkeys(row[0] for row in table[1:]))
    cells: dict[str, list[str]] = {}
    left: dict[str, float] = {}
    for group in groups:
        for row in rows_of(table, group):
            name, median = row["search"], row["excess left, median"]
            same = number(row["p against the best"]) > SIGNIFICANT
            cells.setdefault(name, []).append(f"**{median}**" if same else median)
            left[name] = left.get(name, 0.0) + number(median.removesuffix("%"))
    rows = [[f"`{name}`", *cells[name]] for name in sorted(cells, key=left.__getitem__)]
    return "\n\n".join([markdown([["search", *groups], *rows]), origin(record)])


SIGNIFICANT = 0.05
"""Searches whose p-value against the best one is larger than this count as equally good."""


def exact_problems() -> str:
    """What is known of the exact problems."""
    rows = [["problem", "removed", "budget", "KL at the start", "best known"]]
    for name, facts in best_known().items():
        _, removed, counted = name.split("-")
        rows.append([name, f"{removed}%", counted, f"{facts['start']:.4f}", f"{facts['kl']:.4f}"])
    return markdown(rows)


VIEWS: dict[str, Callable[[], str]] = {
    "headline": headline,
    "speed": speed,
    "searches-by-problem": functools.partial(searches_by_problem, "comparison"),
    "searches-exact": functools.partial(searches_by_problem, "exact"),
    "exact-problems": exact_problems,
}
"""Tables that combine figures from records, by name."""


def filled(text: str) -> str:
    """The text of a page with its tables filled in.

    Raises:
        UserError: A record is missing.
    """

    def fill(match: re.Match[str]) -> str:
        name = match[2]
        shown = VIEWS[name]() if name in VIEWS else whole(name)
        return f"{match[1]}{shown}\n{match[3]}"

    return MARKED.sub(fill, text)


def pages() -> list[Path]:
    """All pages that can have tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def fill_pages() -> None:
    """Write every table into its page, and draw the pictures."""
    for name, draw in PICTURES.items():
        if (RECORDS / f"{name}.json").is_file():
            draw(read_record(name)["results"], RECORDS)
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (new := filled(text)) != text:
            page.write_text(new, encoding="utf-8")
