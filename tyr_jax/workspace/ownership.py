"""What an output may replace: only what this package wrote, and nothing that is in use."""

from collections.abc import Callable, Iterable
from pathlib import Path

from tyr_jax.errors import UserError
from tyr_jax.files import resolved
from tyr_jax.workspace.manifest import foreign_in


def check_directory(target: Path, overwrite: bool, inputs: Iterable[Path] = ()) -> None:
    """Check that `target` can become an output directory, and may be replaced if it exists.

    Args:
        target: the path that the user gave; links are followed.
        overwrite: whether a directory that this package wrote may be replaced.
        inputs: files and directories that the command reads.

    Raises:
        UserError: `target` is a file or is below one; it is or contains the current directory or an input; it
            is not empty (unless `overwrite`); or it contains a file that this package did not write,
            or that was changed since.
    """
    final = resolved(target)
    if final == final.parent:
        raise UserError(f"output {target} is the root of the file system; choose a directory with --output")
    if final.exists() and not final.is_dir():
        raise UserError(f"output {target} is a file; choose a directory with --output")
    above = next(parent for parent in final.parents if parent.exists())
    if not above.is_dir():
        raise UserError(f"cannot create output {target}: {above} is a file; choose another with --output")
    _check_unused(final, target, inputs)
    if not final.is_dir() or not any(final.iterdir()):
        return
    if not overwrite:
        raise UserError(
            f"output directory {target} exists and is not empty; choose another with --output, or replace "
            "it with --overwrite"
        )
    if (foreign := foreign_in(final)) is not None:
        raise UserError(
            f"output directory {target} holds {foreign.relative_to(final)}, which this program did not "
            "write, or which was changed since, so --overwrite does not replace it; move it, or choose "
            "another with --output"
        )


def _check_unused(final: Path, target: Path, inputs: Iterable[Path]) -> None:
    """Check that a directory neither is nor contains the current directory or an input.

    Raises:
        UserError: it does.
    """
    used = {"the current directory": Path.cwd(), **{str(path): resolved(path) for path in inputs}}
    for name, path in used.items():
        if final.exists() and path.exists() and final in (path, *path.parents):
            raise UserError(
                f"output {target} is {name} or a directory that it lies in; choose another with --output"
            )


def check_file(target: Path, overwrite: bool, ours: Callable[[Path], bool]) -> None:
    """Check that `target` can become an output file, and may be replaced if it exists.

    Args:
        target: the path that the user gave.
        overwrite: whether an existing file may be replaced.
        ours: whether this package wrote a file.

    Raises:
        UserError: `target` is a directory, a link or a device; it exists (unless `overwrite`); or it is not
            one of `ours`.
    """
    if target.is_dir():
        raise UserError(f"output {target} is a directory; choose a file with --output")
    if not target.exists() and not target.is_symlink():
        return
    if target.is_symlink() or not target.is_file():
        raise UserError(f"output {target} is not a regular file; choose another with --output")
    if not overwrite:
        raise UserError(f"{target} exists; choose another with --output, or replace it with --overwrite")
    if not ours(target):
        raise UserError(
            f"{target} was not written by this program, or was changed since, so --overwrite does not "
            "replace it; move it, or choose another with --output"
        )
