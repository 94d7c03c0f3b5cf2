"""The data of tasks in a user's directory: read within limits first, and only from that directory."""

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from tyr_jax import confinement
from tyr_jax.confinement import Limits
from tyr_jax.errors import UserError, first_line
from tyr_jax.files import sha256

LIMITS = Limits(seconds=60)


@contextlib.contextmanager
def built_in(cache: Path, directory: Path) -> Iterator[None]:
    """Let `datasets` read data from `directory`, the current one, and keep what it builds in `cache`.

    It identifies local data by name alone. From its usual cache, it would reuse what it built from another
    directory, or before a file changed. A process with limits builds the data, which is then only opened.
    """
    before, load = datasets.config.HF_DATASETS_CACHE, datasets.load_dataset

    def load_built(path: str, name: str | None = None, **options: Any) -> Any:
        arguments = (path, name, options, str(directory), str(cache))
        what = f"the data of '{path}' in --data-dir {directory} cannot be read"
        if why := confinement.call(what, "tyr_jax.evaluation.task_data:build", *arguments, limits=LIMITS):
            raise ValueError(why)
        return load(path, name, **options)

    datasets.config.HF_DATASETS_CACHE, datasets.load_dataset = cache, load_built
    try:
        yield
    finally:
        datasets.config.HF_DATASETS_CACHE, datasets.load_dataset = before, load


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Keep `datasets` from logging what an exception says anyway, and from showing brief progress bars."""
    level, shown = datasets.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not shown:
            datasets.enable_progress_bars()


def build(path: str, name: str | None, options: dict[str, Any], directory: str, cache: str) -> str:
    """Build the data called `path` and `name` in `directory`, and return why that fails, or nothing.

    Raises:
        UserError: it names files outside the directory.
    """
    datasets.config.HF_DATASETS_CACHE = Path(cache)
    try:
        with contextlib.chdir(directory), silent():
            known = {key: value for key, value in options.items() if key not in ("split", "streaming")}
            found = datasets.load_dataset_builder(path, name, **known).config.data_files or {}
            for file in (file for files in found.values() for file in files):
                if not Path(file).resolve().is_relative_to(Path(directory).resolve()):
                    raise UserError(
                        f"the data of '{path}' in --data-dir {directory} names {file}, outside of it"
                    )
            datasets.load_dataset(path, name, **options)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # of `datasets`, of its readers, of the network
        return reasons(error)
    return ""


def reasons(error: BaseException) -> str:
    """The message of an error, and that of its root cause."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    return ": ".join(dict.fromkeys(first_line(each).rstrip(".")[:300] for each in (causes[0], causes[-1])))


def digest(directory: Path) -> str:
    """The sha256 of the names and contents of all files in a directory."""
    files = {str(path.relative_to(directory)): path for path in directory.rglob("*") if path.is_file()}
    whole = hashlib.sha256()
    for name in sorted(files):
        whole.update(f"{sha256(files[name])} {name}\n".encode())
    return whole.hexdigest()
