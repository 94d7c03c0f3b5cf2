"""Show the results of a pruned model: `python -m tyr_jax.report DIR`.

DIR is what `python -m tyr_jax.prune` wrote, or `finetune` from a pruned model.
This prints the quality and size of every model of the run, how they continue
its --prompt, and the speed-up, if `python -m tyr_jax.benchmark` has measured
it. It also writes the report and the model card anew, unless they were
changed since it wrote them.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from tyr_jax.cli import command
from tyr_jax.report.files import changed_pages, renew_report, results_of


@dataclasses.dataclass(frozen=True)
class ReportSettings:
    """What to report on."""

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """The directory of a pruned model."""


def run(settings: ReportSettings) -> None:
    """Write both files, show the results, and say where the files are.

    Raises:
        UserError: the directory is not that of a pruned model, or cannot be written.
    """
    written = renew_report(settings.directory)
    sentence, found = results_of(settings.directory)
    command.show(found)
    command.say(sentence)
    command.tell_written(written)
    command.tell_kept(changed_pages(settings.directory))


def main(arguments: list[str]) -> None:
    """Entry point of the report."""
    command.execute(run, ReportSettings, arguments, prog="python -m tyr_jax.report", description=__doc__)
