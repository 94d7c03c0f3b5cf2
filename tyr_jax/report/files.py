"""The files of a report, in the directory of a pruned model."""

from pathlib import Path

from tyr_jax.errors import UserError
from tyr_jax.evaluation.speed import read_speed
from tyr_jax.files import write_text
from tyr_jax.io import deci
from tyr_jax.io.checkpoint import load_config
from tyr_jax.report import card, page, tables
from tyr_jax.report.identity import gain_of
from tyr_jax.report.render import Table
from tyr_jax.report.tables import Record
from tyr_jax.workspace.records import read_recovery, read_summary


def write_report(directory: Path, summary: Record, recovery: Record | None = None) -> list[Path]:
    """Write `report.html` and `README.md` of the model in `directory`, and return their paths.

    `summary` is the record of its pruning, and `recovery` that of its training, if it was trained.

    Raises:
        UserError: the directory cannot be written, or has a benchmark that cannot be read.
    """
    trust = (directory / "modeling_pruned.py").is_file()
    files = {
        "report.html": page.render(summary, read_speed(directory), recovery),
        "README.md": card.render(summary, trust, recovery, runs_in_llama_cpp(directory)),
    }
    try:
        for name, content in files.items():
            write_text(directory / name, content)
    except OSError as error:
        raise UserError(f"cannot write {error.filename or directory}: {error.strerror or error}") from error
    return [directory / name for name in files]


def runs_in_llama_cpp(directory: Path) -> bool:
    """Whether the model in a directory can be written as a GGUF file."""
    try:
        deci.check(load_config(str(directory))[0])
    except UserError:
        return False
    return True


def renew_report(directory: Path) -> list[Path]:
    """Write `report.html` and `README.md` again, from the records in the model's directory.

    Raises:
        UserError: it is not the directory of a pruned model, or as `write_report`.
    """
    return write_report(directory, summary_of(directory), read_recovery(directory))


def summary_of(directory: Path) -> Record:
    """The summary of the model in a directory.

    Raises:
        UserError: it is not the directory of a pruned model.
    """
    summary = read_summary(directory)
    if summary is None:
        raise UserError(f"{directory} has no summary.json: name a directory that tyr_jax.prune wrote")
    return summary


def results_of(directory: Path) -> tuple[str, list[Table]]:
    """(a sentence, tables) that compare the model in a directory with the dense one.

    Raises:
        UserError: it is not the directory of a pruned model, or has a benchmark that cannot be read.
    """
    summary = summary_of(directory)
    found = tables.result_tables(summary, read_speed(directory), read_recovery(directory))
    return gain_of(summary), found
