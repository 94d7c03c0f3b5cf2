"""An output replaces only what this package wrote, and nothing that is in use."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tyr_jax.errors import UserError
from tyr_jax.files import write_json
from tyr_jax.workspace.ownership import check_directory, check_file


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A directory like that of a run with several sparsities."""
    ours = tmp_path / "runs"
    for name in ("0.25", "0.5"):
        model = ours / name
        model.mkdir(parents=True)
        for file in (
            *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
            *("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "report.html"),
            *("model.safetensors.index.json", "chat_template.jinja", "modeling_pruned.py", "README.md"),
            *("model-q4_k_m.gguf", "recovery.json", "benchmark.json"),
        ):
            (model / file).touch()
        write_json(model / "summary.json", {"versions": {"tyr_jax": "0.0"}})
    (ours / "events.jsonl").touch()
    return ours


def test_what_is_ours_is_replaced_if_asked(ours: Path) -> None:
    for directory in (ours, ours / "0.5"):
        check_directory(directory, overwrite=True)
        with pytest.raises(UserError, match=r"exists and is not empty; .*--overwrite"):
            check_directory(directory, overwrite=False)


@pytest.mark.parametrize(
    "name", ["notes.txt", "0.5/thesis.tex", "photos/cat.jpg", "model.bin", "0.25/x/config.json"]
)
def test_what_is_not_ours_is_not(name: str, ours: Path) -> None:
    (ours / name).parent.mkdir(exist_ok=True)
    (ours / name).touch()
    with pytest.raises(UserError, match=r"holds .*, which this program did not write"):
        check_directory(ours, overwrite=True)


def test_a_model_of_anybody_is_not_ours(ours: Path) -> None:
    for record in ("{}", "[]", "nonsense", '{"versions": 3}', '{"versions": {"other": "1"}}'):
        (ours / "0.5" / "summary.json").write_text(record)
        with pytest.raises(UserError, match="did not write"):
            check_directory(ours, overwrite=True)


def test_a_link_is_not_ours(ours: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    (ours / "0.5" / "vocab.json").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match=r"0\.5/vocab\.json, which this program did not write"):
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
