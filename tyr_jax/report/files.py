"""The files of a report, in the directory of a pruned model."""

from pathlib import Path

from tyr_jax.errors import UserError
from tyr_jax.files import as_text, read_json, write_text
from tyr_jax.io import deci, hf
from tyr_jax.io.checkpoint import load_config
from tyr_jax.io.config_values import read_values
from tyr_jax.report import card, page, tables
from tyr_jax.report.identity import gain_of, portable_values
from tyr_jax.report.render import Table
from tyr_jax.workspace import events
from tyr_jax.workspace.records import Recovery, Speed, Summary
from tyr_jax.workspace.schema import read


def write_report(directory: Path, summary: Summary, recovery: Recovery | None = None) -> list[Path]:
    """Write `report.html` and `README.md` of the model in `directory`, and return their paths.

    `summary` is the record of its pruning, and `recovery` that of its training, if it was trained.

    Raises:
        UserError: the directory cannot be written, or has a benchmark that cannot be read.
    """
    trust = (directory / "modeling_pruned.py").is_file()
    files = {
        "report.html": page.render(summary, read(Speed, directory), recovery),
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
        # Its keys were known, or ignored, when the dense model was read.
        keys = read_values(directory / hf.CONFIG)
        deci.check(load_config(str(directory), ignore_keys=keys)[0])
    except UserError:
        return False
    return True


def renew_report(directory: Path) -> list[Path]:
    """Write `report.html` and `README.md` again, from the records in the model's directory.

    Raises:
        UserError: it is not the directory of a pruned model, or as `write_report`.
    """
    return write_report(directory, summary_of(directory), read(Recovery, directory))


def summary_of(directory: Path) -> Summary:
    """The summary of the model in a directory.

    Raises:
        UserError: it is not the directory of a pruned model.
    """
    summary = read(Summary, directory)
    if summary is None:
        raise UserError(
            f"{directory} has no summary.json: name a directory that `python -m tyr_jax.prune` "
            "wrote, or that `finetune` made of one"
        )
    return summary


def results_of(directory: Path) -> tuple[str, list[Table]]:
    """(a sentence, tables) that compare the model in a directory with the dense one.

    Raises:
        UserError: it is not the directory of a pruned model, or has a benchmark that cannot be read.
    """
    summary, recovery = summary_of(directory), read(Recovery, directory)
    found = tables.result_tables(summary, read(Speed, directory), recovery)
    return gain_of(summary, recovery), found


def portable_records(directory: Path) -> dict[str, str]:
    """The records of the model in a directory as they may be published, without the folders of the maker's
    machine: contents of files, by name.

    Raises:
        UserError: a record cannot be read.
    """
    found = {}
    for name in (Summary.file, Recovery.file, Speed.file):
        if (path := directory / name).is_file():
            found[name] = as_text(portable_values(read_json(path)))
    if (log := directory / events.NAME).is_file():
        found[events.NAME] = events.as_lines(portable_values(events.read_entries(log)))
    return found
