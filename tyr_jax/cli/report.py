"""Write the report and the model card of a pruned model anew: `python -m tyr_jax.report DIR`.

DIR is what `python -m tyr_jax.prune` wrote. Both are made at the end of a run;
this makes them again from its `summary.json`.
"""

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from tyr_jax.cli import command
from tyr_jax.report.files import renew_report


@dataclasses.dataclass(frozen=True)
class ReportSettings:
    """What to report on."""

    directory: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIR")]
    """The directory of a pruned model."""


def run(settings: ReportSettings) -> None:
    """Write both files, say where.

    Raises:
        UserError: the directory is not that of a pruned model, or cannot be written.
    """
    command.tell_written(renew_report(settings.directory))


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the report."""
    command.execute(run, ReportSettings, arguments, prog="python -m tyr_jax.report", description=__doc__)


if __name__ == "__main__":
    main()
