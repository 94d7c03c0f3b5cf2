"""The files of a report, in the directory of a pruned model."""

import os
from collections.abc import Iterable
from pathlib import Path

from tyr_jax.errors import UserError
from tyr_jax.files import as_text, read_json, write_text
from tyr_jax.io import deci, hf
from tyr_jax.io.checkpoint import load_config
from tyr_jax.io.config_values import read_values
from tyr_jax.report import card, page, tables
from tyr_jax.report.identity import gain_of, portable_values
from tyr_jax.report.render import Table
from tyr_jax.workspace import events, manifest
from tyr_jax.workspace.manifest import Manifest
from tyr_jax.workspace.records import Recovery, Speed, Summary
from tyr_jax.workspace.schema import read

PAGES = "report.html", "README.md"
"""Names of the files of a report."""


def write_report(
    directory: Path, summary: Summary, recovery: Recovery | None = None, kept: Iterable[str] = ()
) -> list[Path]:
    """Write those of `report.html` and `README.md` of the model in `directory` that are not `kept`, and
    return their paths.

    `summary` is the record of its pruning, and `recovery` that of its training, if it was trained.

    Raises:
        UserError: the directory cannot be written, or has a benchmark that cannot be read.
    """
    trust = (directory / "modeling_pruned.py").is_file()
    files = {
        "report.html": page.render(summary, read(Speed, directory), recovery),
        "README.md": card.render(summary, trust, recovery, runs_in_llama_cpp(directory)),
    }
    written = [directory / name for name in files if name not in kept]
    try:
        for path in written:
            write_text(path, files[path.name])
        manifest.note(written)
    except OSError as error:
        raise UserError(f"cannot write {error.filename or directory}: {error.strerror or error}") from error
    return written


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
    """Write `report.html` and `README.md` again, from the records in the model's directory. One that this
    package did not write, or that was changed since, stays as it is. Returns the paths of those written.

    Raises:
        UserError: it is not the directory of a pruned model, or as `write_report`.
    """
    kept = [page.name for page in changed_pages(directory)]
    return write_report(directory, summary_of(directory), read(Recovery, directory), kept)


def changed_pages(directory: Path) -> list[Path]:
    """The files of a report that stay when it is renewed: those that this package did not write, or that were
    changed since."""
    pages = (directory / name for name in PAGES)
    return [page for page in pages if os.path.lexists(page) and not manifest.is_ours(page)]


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


def portable_records(directory: Path) -> dict[str, str | None]:
    """The records of the model in a directory as they may be published, without the folders of the maker's
    machine: contents of files, by name, or None for a file that stays here.

    Raises:
        UserError: a record cannot be read.
    """
    found: dict[str, str | None] = {Manifest.file: None}
    for name in (Summary.file, Recovery.file, Speed.file):
        if (path := directory / name).is_file():
            found[name] = as_text(portable_values(read_json(path)))
    if (log := directory / events.NAME).is_file():
        found[events.NAME] = events.as_lines(portable_values(events.read_entries(log)))
    return found
