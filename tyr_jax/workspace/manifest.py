"""The manifest of an output directory: the files that this package wrote there, with their contents' hashes.

A name is no proof: `README.md` may be the user's own. What a manifest lists, and what still has the hash that
it lists, is ours. All else in a directory is foreign.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from tyr_jax.files import sha256
from tyr_jax.workspace.records import Recovery, Summary
from tyr_jax.workspace.schema import Fault, Many, Named, Record, read, write


class Manifest(Record):
    """The sha256 of every file, by its path within the directory, and the names of the `parts`: directories
    within it that have manifests of their own, such as one for each of several sparsities."""

    file = "manifest.json"
    mend = "move the directory away, or choose another with --output"

    files: Named[str]
    parts: Many[str]

    def faults(self) -> Iterator[Fault]:
        """Names that lead out of the directory: nothing there is deleted because a manifest says so."""
        for name in self.files:
            if not is_within(name):
                yield Fault("files", name, "name files within the directory")
        for name in self.parts:
            if not is_within(name) or len(PurePosixPath(name).parts) != 1:
                yield Fault("parts", name, "name directories directly within the directory")


def is_within(name: str) -> bool:
    """Whether a relative path stays within its directory, on any operating system."""
    parts = PurePosixPath(name).parts
    own = not PurePosixPath(name).is_absolute() and not PureWindowsPath(name).anchor and "\\" not in name
    return own and bool(parts) and ".." not in parts


def seal(directory: Path) -> None:
    """Write the manifest of a new output `directory` whose files are complete, and those of its parts, which
    have records of their own."""
    parts = [path for path in sorted(directory.iterdir()) if path.is_dir() and _has_record(path)]
    for part in parts:
        seal(part)
    listed = (path for path in _files(directory) if not any(path.is_relative_to(part) for part in parts))
    files = {path.relative_to(directory).as_posix(): sha256(path) for path in listed}
    write(directory, Manifest(files=files, parts=[part.name for part in parts]))


def note(paths: Iterable[Path]) -> None:
    """Enter files that were just written into the manifests of their directories, if these have one.

    Raises:
        UserError: a manifest cannot be read.
    """
    for path in paths:
        if (manifest := read(Manifest, path.parent)) is not None:
            files = manifest.files | {path.name: sha256(path)}
            write(path.parent, Manifest(files=files, parts=manifest.parts))


def is_ours(path: Path) -> bool:
    """Whether the manifest of its directory lists a file, and the file is still what it lists.

    Raises:
        UserError: there is a manifest, but it cannot be read.
    """
    manifest = read(Manifest, path.parent)
    return manifest is not None and _is_listed(path, path.name, manifest)


def foreign_in(directory: Path) -> Path | None:
    """The first file or folder in a directory that this package did not write, or that was changed since, or
    None. Without a manifest, nothing in it counts as ours.

    Raises:
        UserError: there is a manifest, but it cannot be read.
    """
    manifest = read(Manifest, directory)
    if manifest is None:
        return next(iter(sorted(directory.iterdir())), None)
    parts = [directory / name for name in manifest.parts if not (directory / name).is_symlink()]
    for path in _files(directory):
        if any(path.is_relative_to(part) for part in parts) or path == directory / Manifest.file:
            continue
        if not _is_listed(path, path.relative_to(directory).as_posix(), manifest):
            return path
    return next(filter(None, (foreign_in(part) for part in parts if part.is_dir())), None)


def delete(directory: Path) -> None:
    """Delete what the manifest of a directory lists, and the directories that are empty then."""
    manifest = read(Manifest, directory)
    if manifest is not None:
        for part in manifest.parts:
            delete(directory / part)
        for name in (*manifest.files, Manifest.file):
            (directory / name).unlink(missing_ok=True)
    for folder in sorted((path for path in directory.rglob("*") if path.is_dir()), reverse=True):
        with contextlib.suppress(OSError):
            folder.rmdir()
    with contextlib.suppress(OSError):
        directory.rmdir()


def _files(directory: Path) -> Iterator[Path]:
    """Everything below a directory that is not a directory, in order, and directories that are empty."""
    for path in sorted(directory.iterdir()):
        within = [*_files(path)] if path.is_dir() and not path.is_symlink() else []
        yield from within or [path]


def _is_listed(path: Path, name: str, manifest: Manifest) -> bool:
    regular = path.is_file() and not path.is_symlink()
    return regular and name in manifest.files and sha256(path) == manifest.files[name]


def _has_record(directory: Path) -> bool:
    return any((directory / record.file).is_file() for record in (Summary, Recovery))
