"""The model card of a pruned model: what it is, how good, how to run it, how it was made."""

import importlib.resources

import jinja2

from tyr_jax.report.page import (
    Report,
    TableRows,
    command_of,
    fate_of,
    quality_rows,
    recovery_rows,
    size_rows,
    title_of,
)


def markdown_table(rows: TableRows) -> str:
    """A Markdown table of `rows`, the first of them its header."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|---" * len(rows[0]) + "|", *lines[1:]])


def render(report: Report, trust: bool, recovery: Report | None = None) -> str:
    """The card of the model of `report`; `trust`: whether it brings a modelling file; `recovery`: what a
    training won back, if it was trained."""
    source = importlib.resources.files(__package__).joinpath("card.md").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    units = (report["searched"] or report["uniform"])["units"]
    return environment.from_string(source).render(
        title=title_of(report),
        model=report["settings"]["model"],
        heads=f"{units['attention']['removed']:,} of {units['attention']['total']:,}",
        neurons=f"{units['ffn']['removed']:,} of {units['ffn']['total']:,}",
        figures=markdown_table([*quality_rows(report), *size_rows(report)[1:]]),
        fate=fate_of(report),
        trust=trust,
        command=command_of(report, recovery),
        recovery=recovery,
        recovered=markdown_table(recovery_rows(recovery)) if recovery else "",
    )
