"""Fetch news to measure on, from a wheel in the package registry.

These are 300 stories of Australian radio and television from 2000 and 2001 (Lee, Pincombe and Welsh 2005).

  python scripts/fetch_news.py news.txt
"""

import dataclasses
import tempfile
import zipfile
from pathlib import Path
from typing import Annotated

import tyro

from tyr_jax.cli import command
from tyr_jax.errors import UserError
from tyr_jax.io.registry import fetch_wheel

WHEEL = "gensim==4.4.0"
WITHIN = "gensim/test/test_data/lee_background.cor"


@dataclasses.dataclass(frozen=True)
class Fetch:
    """Where to write the news."""

    output: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """A new text file, with one story per line."""


def file_of_wheel(within: str, what: str, output: Path) -> bytes:
    """A file of the wheel, for a new file `output`, whose directory is made.

    Raises:
        UserError: `output` exists, or the wheel cannot be fetched.
    """
    if output.exists():
        raise UserError(f"{output} exists; remove it, or name another file")
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        wheel = fetch_wheel(WHEEL, f"{what} (28 MB)", Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(within)


def main(fetch: Fetch) -> None:
    """Fetch the wheel and write its stories."""
    fetch.output.write_bytes(file_of_wheel(WITHIN, "news to measure on", fetch.output))


if __name__ == "__main__":
    command.execute(main, Fetch, None, prog="python scripts/fetch_news.py", description=__doc__)
