"""An output replaces only what this package wrote, and nothing that is in use."""

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tyr_jax.errors import UserError
from tyr_jax.files import sha256, write_json
from tyr_jax.workspace.manifest import delete, note, seal
from tyr_jax.workspace.ownership import check_directory, check_file


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A directory like that of a run with several sparsities."""
    ours = tmp_path / "runs"
    for name in ("0.25", "0.5"):
        model = ours / name
        (model / "additional_chat_templates").mkdir(parents=True)
        for file in ("config.json", "model.safetensors", "README.md", "additional_chat_templates/tool.jinja"):
            (model / file).write_text(f"{name} {file}")
        write_json(model / "summary.json", {"versions": {"tyr_jax": "0.0"}})
    (ours / "events.jsonl").touch()
    seal(ours)
    return ours


def test_what_is_ours_is_replaced_if_asked(ours: Path) -> None:
    for directory in (ours, ours / "0.5"):
        check_directory(directory, overwrite=True)
        with pytest.raises(UserError, match=r"exists and is not empty; .*--overwrite"):
            check_directory(directory, overwrite=False)


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "vocab.json", "0.5/model-mine_IQ2.gguf", "0.5/thesis.tex", "photos/cat.jpg"),
        *("0.25/additional_chat_templates/thesis.docx", "0.25/x/config.json", "0.5/events.jsonl"),
    ],
)
def test_what_is_not_ours_is_not(name: str, ours: Path) -> None:
    """Whatever it is called."""
    (ours / name).parent.mkdir(exist_ok=True)
    (ours / name).touch()
    with pytest.raises(UserError, match=rf"holds {name}, which this program did not write"):
        check_directory(ours, overwrite=True)


@pytest.mark.parametrize(
    ("field", "name"),
    [
        *(("files", name) for name in ("../mine", "/mine", "a/../../mine", "C:\\mine", "..\\mine", "")),
        *(
            ("parts", name)
            for name in ("../mine", "/mine", ".", "0.5/..", "0.5/additional_chat_templates", "C:")
        ),
    ],
)
def test_a_manifest_speaks_of_its_own_directory_alone(
    field: str, name: str, ours: Path, tmp_path: Path
) -> None:
    """Nothing else is deleted because a stranger's manifest lists it."""
    mine = tmp_path / "mine"
    mine.write_text("mine")
    manifest = json.loads((ours / "manifest.json").read_text())
    if field == "files":
        manifest[field][name] = sha256(mine)
    else:
        manifest[field].append(name)
    write_json(ours / "manifest.json", manifest)
    for use in (functools.partial(check_directory, ours, overwrite=True), functools.partial(delete, ours)):
        with pytest.raises(UserError, match=rf"{field} .*within the directory"):
            use()
    assert mine.read_text() == "mine"
    assert (ours / "0.5" / "README.md").exists()


def test_an_empty_directory_is_not_ours(ours: Path) -> None:
    (ours / "0.5" / "mine").mkdir()
    with pytest.raises(UserError, match=r"holds 0\.5/mine, which"):
        check_directory(ours, overwrite=True)


@pytest.mark.parametrize(
    "name", ["0.5/README.md", "0.25/additional_chat_templates/tool.jinja", "events.jsonl"]
)
def test_what_was_changed_is_not_ours_any_more(name: str, ours: Path) -> None:
    (ours / name).write_text("my own notes")
    with pytest.raises(UserError, match=rf"holds {name}, which .* or which was changed since"):
        check_directory(ours, overwrite=True)
    # Unless the command that changed it says so.
    note([ours / name])
    if Path(name).parent.name in ("0.5", ""):
        check_directory(ours, overwrite=True)


def test_results_of_several_runs_in_a_directory_of_the_users_are_not_one_of_ours(ours: Path) -> None:
    (ours / "manifest.json").unlink()
    with pytest.raises(UserError, match="which this program did not write"):
        check_directory(ours, overwrite=True)
    check_directory(ours / "0.5", overwrite=True)


def test_a_model_of_anybody_is_not_ours(ours: Path) -> None:
    """Nor is a directory whose manifest is damaged."""
    for manifest in ("{}", "[]", "nonsense", '{"format_version": 1, "files": 3}'):
        (ours / "0.5" / "manifest.json").write_text(manifest)
        with pytest.raises(UserError, match=r"manifest\.json.*choose another with --output"):
            check_directory(ours / "0.5", overwrite=True)
    (ours / "0.5" / "manifest.json").unlink()
    with pytest.raises(UserError, match="did not write"):
        check_directory(ours / "0.5", overwrite=True)


def test_a_link_is_not_ours(ours: Path, tmp_path: Path) -> None:
    """Even where it leads to the same contents."""
    config = ours / "0.5" / "config.json"
    config.rename(tmp_path / "mine")
    config.symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match=r"0\.5/config\.json, which this program did not write"):
        check_directory(ours, overwrite=True)


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_that_is_read_is_replaced(overwrite: bool, ours: Path, tmp_path: Path) -> None:
    model, text = ours / "0.5", ours / "events.jsonl"
    for target, read in ((model, model), (ours, model), (tmp_path, model), (ours, text), (tmp_path, text)):
        with pytest.raises(UserError, match=r"a directory that it lies in; choose another"):
            check_directory(target, overwrite, [read])
    check_directory(model / "pruned", overwrite, [model])


def test_nothing_that_is_worked_in_is_replaced(
    ours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ours / "0.5")
    for target in (".", "..", "../..", str(ours), "../0.5"):
        with pytest.raises(UserError, match="is the current directory or a directory that it lies in"):
            check_directory(Path(target), overwrite=True)
    check_directory(Path("../0.25"), overwrite=True)


def make_link(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize("make", [Path.mkdir, make_link, os.mkfifo])
@pytest.mark.parametrize("overwrite", [False, True])
def test_only_regular_files_are_replaced(
    make: Callable[[Path], None], overwrite: bool, tmp_path: Path
) -> None:
    make(tmp_path / "x")
    with pytest.raises(UserError, match=r"is not a regular file|is a directory"):
        check_file(tmp_path / "x", overwrite, lambda path: True)
    with pytest.raises(UserError, match="is not a regular file"):
        check_file(Path("/dev/null"), overwrite, lambda path: True)


def test_files_are_replaced_if_asked_and_ours(tmp_path: Path) -> None:
    check_file(tmp_path / "x", False, lambda path: False)
    (tmp_path / "x").touch()
    with pytest.raises(UserError, match=r"exists; .*--overwrite"):
        check_file(tmp_path / "x", False, lambda path: True)
    with pytest.raises(UserError, match="was not written by this program"):
        check_file(tmp_path / "x", True, lambda path: False)
    check_file(tmp_path / "x", True, lambda path: True)


def test_a_link_that_leads_back_to_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match="loop is a link that leads back to itself; remove it"):
        check_directory(tmp_path / "loop", overwrite=True)
