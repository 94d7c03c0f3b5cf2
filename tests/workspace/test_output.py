"""The output directory is complete or does not exist, and an old one is only replaced by a new one."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tyr_jax.errors import UserError
from tyr_jax.files import write_json, write_text
from tyr_jax.workspace import output
from tyr_jax.workspace.events import EventLog
from tyr_jax.workspace.manifest import note, seal
from tyr_jax.workspace.output import WorkPaths, staged_directory, staged_file
from tyr_jax.workspace.store import Store


def write(target: Path, overwrite: bool = False, content: str = "new") -> None:
    with staged_directory(target, overwrite, restart=False) as paths:
        assert paths.staging.parent.parent == target.resolve().parent
        (paths.staging / "config.json").write_text(content)


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A directory with something in it."""
    old = tmp_path / "old"
    old.mkdir()
    (old / "config.json").write_text("old")
    seal(old)
    return old


def test_a_new_directory(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    write(target)
    assert (target / "config.json").read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o755
    assert os.listdir(tmp_path / "a") == ["b"]


def test_an_empty_directory_is_as_good_as_none(tmp_path: Path) -> None:
    write(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["config.json", "manifest.json"]


def test_a_directory_in_use_is_replaced_only_if_asked(old: Path) -> None:
    with pytest.raises(UserError, match=r"old exists and is not empty; .*--overwrite"):
        write(old)
    assert (old / "config.json").read_text() == "old"
    (old / "report.html").touch()
    note([old / "report.html"])
    write(old, overwrite=True)
    assert sorted(os.listdir(old)) == ["config.json", "manifest.json"]
    assert os.listdir(old.parent) == ["old"]


def test_a_file_that_appears_while_a_directory_is_replaced_is_kept(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def late(source: Path, target: Path) -> None:
        if source == old:
            (old / "mine.txt").write_text("mine")
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    with pytest.raises(
        UserError, match=r"old is complete, but files appeared in .*; they are kept in .*old-"
    ):
        write(old, overwrite=True)
    assert sorted(os.listdir(old)) == ["config.json", "manifest.json"]
    (kept,) = old.parent.glob(".old-*/*")
    assert kept.read_text() == "mine"


def write_half(target: Path, error: BaseException) -> None:
    with staged_directory(target, overwrite=True, restart=False) as paths:
        (paths.staging / "config.json").write_text("half")
        raise error


@pytest.mark.parametrize("error", [UserError("no"), ValueError(), KeyboardInterrupt(), OSError(28, "full")])
def test_a_body_that_fails_leaves_all_as_it_was(error: BaseException, old: Path) -> None:
    for target in (old, old.parent / "a" / "b"):
        with pytest.raises(UserError if isinstance(error, OSError) else type(error)):
            write_half(target, error)
    assert os.listdir(old.parent) == ["old"]
    assert (old / "config.json").read_text() == "old"


def test_the_old_output_comes_back_when_the_new_one_cannot_take_its_place(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moves: list[str] = []
    replace = os.replace

    def fail_second(source: Any, target: Any) -> None:
        if ".unfinished-" not in str(source):
            moves.append(str(source))
        if len(moves) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(output.os, "replace", fail_second)
    with pytest.raises(UserError, match=r"could not finish writing .*old: No space left on device"):
        write(old, overwrite=True)
    assert len(moves) == 3
    assert os.listdir(old.parent) == ["old"]
    assert (old / "config.json").read_text() == "old"


def test_a_signal_after_the_output_is_in_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, remove = tmp_path / "new", shutil.rmtree

    def interrupted(path: Path, **options: Any) -> None:
        if target.exists():
            monkeypatch.setattr(shutil, "rmtree", remove)
            raise KeyboardInterrupt
        remove(path, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupted)

    def run() -> None:
        with staged_directory(target, False, False) as paths:
            (paths.staging / "config.json").write_text("new")
            (paths.finished / "record.json").write_text("{}")

    with pytest.raises(KeyboardInterrupt) as stopped:
        run()
    # There is nothing to continue.
    assert not str(stopped.value)
    assert os.listdir(tmp_path) == ["new"]


def test_files_are_no_directories(old: Path) -> None:
    file = old / "config.json"
    with pytest.raises(UserError, match=r"config\.json is a file; choose a directory"):
        write(file, overwrite=True)
    for below in (file / "a", file / "a" / "b"):
        with pytest.raises(UserError, match=r"cannot create output .*config\.json is a file"):
            write(below)
    assert file.read_text() == "old"


def test_names_that_the_disk_refuses(tmp_path: Path) -> None:
    # The system cannot even look up the longer name. The shorter is only too long with staging's suffix.
    for length in (300, 250):
        with pytest.raises(UserError, match=r"cannot write output directory .*File name too long"):
            write(tmp_path / ("x" * length))
    assert not os.listdir(tmp_path)


def test_a_link_to_an_output_is_followed(old: Path) -> None:
    link = old.parent / "link"
    link.symlink_to(old, target_is_directory=True)
    write(link, overwrite=True)
    assert link.is_symlink()
    assert (old / "config.json").read_text() == "new"


@pytest.mark.parametrize(
    "name", ["", "lock", "output", "finished", "finished/work", "settings.json", "events.jsonl"]
)
def test_planted_links_are_not_followed(name: str, tmp_path: Path) -> None:
    """If anything at the output's place is a link to other data, that data stays untouched."""
    outside, place = tmp_path / "outside", tmp_path / ".new.unfinished"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    planted = place / name if name else place
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.symlink_to(outside / "mine" if "." in name or name == "lock" else outside)
    with pytest.raises(UserError, match=r"is in the way|is a link|cannot write output directory"):
        write(tmp_path / "new")
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"mine": "mine"}
    assert not (tmp_path / "new").exists()


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root gives things away")
def test_a_directory_that_another_user_put_there_is_not_worked_in(tmp_path: Path) -> None:
    (tmp_path / ".new.unfinished").mkdir()
    os.chown(tmp_path / ".new.unfinished", 12345, 12345)
    with pytest.raises(UserError, match="it is not a directory of yours"):
        write(tmp_path / "new")
    os.chown(tmp_path, 12345, 12345)
    write(tmp_path / "new")


def left_by_a_run(place: Path) -> None:
    """A directory as a run that was killed leaves it."""
    (place / "finished" / "work").mkdir(parents=True)
    (place / "output").mkdir()
    (place / "lock").touch()


def test_planted_files_are_not_published(tmp_path: Path) -> None:
    left_by_a_run(tmp_path / ".new.unfinished")
    staging = tmp_path / ".new.unfinished" / "output"
    (staging / "config.py").write_text("import os")
    write(tmp_path / "new")
    assert sorted(os.listdir(tmp_path / "new")) == ["config.json", "manifest.json"]


def test_what_lies_in_the_place_and_is_not_ours_stays(tmp_path: Path) -> None:
    mine = tmp_path / ".new.unfinished" / "mine"
    left_by_a_run(mine.parent)
    mine.write_text("mine")
    write(tmp_path / "new")
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("name", ["mine", "output/thesis.tex", "finished/thesis.tex", "settings.json"])
def test_a_place_that_no_run_has_made_is_left_alone(name: str, tmp_path: Path) -> None:
    mine = tmp_path / ".new.unfinished" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(UserError, match="is in the way: no run has made it"):
        write(tmp_path / "new")
    assert mine.read_text() == "mine"
    assert not (tmp_path / "new").exists()


def test_one_at_a_time(old: Path, tmp_path: Path) -> None:
    with staged_directory(old, overwrite=True, restart=False) as paths:
        (paths.staging / "config.json").write_text("first")
        with pytest.raises(UserError, match="another run is writing"):
            write(old, overwrite=True, content="second")
    assert (old / "config.json").read_text() == "first"
    target = tmp_path / "file"
    with (
        pytest.raises(UserError, match="another run is writing"),
        staged_file(target, False, lambda path: True),
        staged_file(target, False, lambda path: True),
    ):
        pass
    assert os.listdir(tmp_path) == ["old"]


def test_what_comes_to_the_target_meanwhile_stays(tmp_path: Path) -> None:
    target = tmp_path / "new"

    def come() -> None:
        with staged_directory(target, overwrite=True, restart=False) as paths:
            (paths.staging / "config.json").write_text("new")
            target.mkdir()
            (target / "mine").write_text("mine")

    with pytest.raises(UserError, match="holds mine, which this program did not write"):
        come()
    assert (target / "mine").read_text() == "mine"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o007])
def test_files_have_the_permissions_of_the_umask(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with staged_directory(tmp_path / "new", overwrite=False, restart=False) as paths:
            (paths.staging / "config.json").touch(0o600)
        with staged_file(tmp_path / "file", False, lambda path: True) as staged:
            staged.touch(0o600)
        write_json(tmp_path / "json", {})
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o777 & ~mask
    for path in (tmp_path / "new" / "config.json", tmp_path / "file", tmp_path / "json"):
        assert path.stat().st_mode & 0o777 == 0o666 & ~mask


def test_a_directory_that_disappears_is_noticed_at_once(tmp_path: Path) -> None:
    def lose(lost: Callable[[WorkPaths], object]) -> None:
        with (
            staged_directory(tmp_path / "new", overwrite=False, restart=False) as paths,
            EventLog(paths.events) as log,
        ):
            store = Store(paths.finished)
            log.write("start")
            lost(paths)
            with pytest.raises(UserError, match="has disappeared"):
                store.save("piece")
            log.write("next")

    for lost in (
        lambda paths: shutil.rmtree(paths.staging.parent),
        lambda paths: paths.staging.parent.rename(tmp_path / "elsewhere"),
    ):
        with pytest.raises(UserError, match=r"events\.jsonl has disappeared"):
            lose(lost)
        assert not (tmp_path / "new").exists()


def test_a_link_in_the_place_of_a_file_is_replaced(tmp_path: Path) -> None:
    mine, link = tmp_path / "mine", tmp_path / "report.html"
    mine.write_text("mine")
    link.symlink_to(mine)
    write_text(link, "ours")
    assert (mine.read_text(), link.read_text(), link.is_symlink()) == ("mine", "ours", False)


def test_json_files_end_in_a_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"a": [1]})
    assert (tmp_path / "x.json").read_text() == '{\n  "a": [\n    1\n  ]\n}\n'


def test_what_is_wrong_with_an_input_is_not_said_of_the_output(tmp_path: Path) -> None:
    def read(name: str) -> None:
        with staged_directory(tmp_path / "runs" / "new", overwrite=False, restart=False):
            (tmp_path / name).read_text()

    with pytest.raises(OSError, match="File name too long"):
        read("x" * 300)
    assert not os.listdir(tmp_path)
