"""What a run found, for people: a page with figures (`report.html`) and a model card (`README.md`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tyr_jax.errors import UserError
from tyr_jax.evaluation.speed import read_speed
from tyr_jax.report import card, page


def write_report(
    directory: Path, summary: Mapping[str, Any], recovery: Mapping[str, Any] | None = None
) -> list[Path]:
    """Write `report.html` and `README.md` of the model in `directory` that has this `summary`, and was
    trained then, if it has a `recovery`.

    Raises:
        UserError: the directory cannot be written, or has a benchmark that cannot be read.
    """
    trust = (directory / "modeling_pruned.py").is_file()
    files = {
        "report.html": page.render(summary, read_speed(directory), recovery),
        "README.md": card.render(summary, trust, recovery),
    }
    try:
        for name, content in files.items():
            (directory / name).write_text(content, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {error.filename or directory}: {error.strerror or error}") from error
    return [directory / name for name in files]
