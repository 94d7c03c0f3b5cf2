"""The model card of a pruned model: what it is, how good, how to run it, how it was made."""

import importlib.resources

import jinja2

from tyr_jax.report.page import command_of, fate_of, title_of
from tyr_jax.report.render import fenced, grid, markdown, markdown_table
from tyr_jax.report.tables import Record, quality_table, recovery_table
from tyr_jax.workspace.records import written_model


def render(summary: Record, trust: bool, recovery: Record | None = None) -> str:
    """The card of the model of `summary`; `trust`: whether it brings a modelling file; `recovery`: what a
    training won back, if it was trained."""
    source = importlib.resources.files(__package__).joinpath("card.md").read_text(encoding="utf-8")
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
    units = written_model(summary)["units"]
    return environment.from_string(source).render(
        title=markdown(title_of(summary)),
        model=markdown(summary["settings"]["model"]),
        heads=f"{units['attention']['removed']:,} of {units['attention']['total']:,}",
        neurons=f"{units['ffn']['removed']:,} of {units['ffn']['total']:,}",
        figures=markdown_table(grid(quality_table(summary))),
        fate=fate_of(summary),
        trust=trust,
        command=fenced(command_of(summary, recovery)),
        recovery=recovery,
        sources=markdown(", ".join(recovery["sources"])) if recovery else "",
        recovered=markdown_table(grid(recovery_table(recovery, digits=2))) if recovery else "",
    )
