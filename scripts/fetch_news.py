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


def main(fetch: Fetch) -> None:
    """Fetch the wheel and write its stories."""
    if fetch.output.exists():
        raise UserError(f"{fetch.output} exists; remove it, or name another file")
    fetch.output.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        wheel = fetch_wheel(WHEEL, "news to measure on (28 MB)", Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            fetch.output.write_bytes(archive.read(WITHIN))


if __name__ == "__main__":
    command.execute(main, Fetch, None, prog="python scripts/fetch_news.py", description=__doc__)
