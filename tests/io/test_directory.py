"""Links and files that are not what they should be, in a model's directory."""

import os
from pathlib import Path

import pytest

from tyr_jax.errors import UserError
from tyr_jax.io import directory
from tyr_jax.io.directory import check_directory

TEXTS = (
    *("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"),
    *("special_tokens_map.json", "added_tokens.json", "merges.txt", "tokenizer.model", "chat_template.jinja"),
    *("model.safetensors.index.json", "additional_chat_templates/tool_use.jinja"),
)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model directory next to a secret file."""
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "model" / "additional_chat_templates").mkdir(parents=True)
    return tmp_path / "model"


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_leads_out(name: str, model: Path) -> None:
    (model / name).symlink_to(model.parent / "secret")
    with pytest.raises(UserError, match=f"{name} is a link that leads out of .*, to .*secret"):
        check_directory(model)


@pytest.mark.parametrize("name", TEXTS)
def test_texts_that_are_none(name: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = model / name
    os.mkfifo(path)
    with pytest.raises(UserError, match=f"{name}': it is not a regular file"):
        check_directory(model)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match=f"{name}': it is not a regular file"):
        check_directory(model)
    path.rmdir()
    path.symlink_to(path)
    with pytest.raises(UserError, match=f"{name} is a link that leads nowhere"):
        check_directory(model)
    path.unlink()
    path.write_text("four")
    monkeypatch.setattr(directory, "MAX_TEXT_BYTES", 3)
    with pytest.raises(UserError, match=f"{name} has more than 3 bytes"):
        check_directory(model)


def test_a_folder_of_templates_that_leads_out(model: Path) -> None:
    (model / "additional_chat_templates").rmdir()
    (model.parent / "elsewhere").mkdir()
    (model.parent / "elsewhere" / "default.jinja").touch()
    (model / "additional_chat_templates").symlink_to(model.parent / "elsewhere")
    with pytest.raises(UserError, match=r"default\.jinja is a link that leads out"):
        check_directory(model)


def test_what_is_allowed(model: Path) -> None:
    """Links inside the directory, weights from elsewhere, and a directory that is itself a link."""
    (model / "my.json").write_text("{}")
    (model / "config.json").symlink_to("my.json")
    (model / "model.safetensors").symlink_to(model.parent / "secret")
    (model / "gone.safetensors").symlink_to(model.parent / "nothing")
    check_directory(model)
    (model.parent / "alias").symlink_to(model)
    check_directory(model.parent / "alias")


def test_the_cache_of_the_hub(tmp_path: Path) -> None:
    """Its snapshots may link to blobs of the same model, but not of another model."""
    for name in ("models--a--b", "models--c--d"):
        (tmp_path / name / "snapshots" / "1234").mkdir(parents=True)
        (tmp_path / name / "blobs").mkdir()
        (tmp_path / name / "blobs" / "5678").write_text("{}")
    snapshot = tmp_path / "models--a--b" / "snapshots" / "1234"
    (snapshot / "config.json").symlink_to("../../blobs/5678")
    (snapshot / "additional_chat_templates").mkdir()
    (snapshot / "additional_chat_templates" / "rag.jinja").symlink_to("../../../blobs/5678")
    check_directory(snapshot)
    (snapshot / "tokenizer.json").symlink_to("../../../models--c--d/blobs/5678")
    with pytest.raises(UserError, match=r"tokenizer\.json is a link that leads out"):
        check_directory(snapshot)
    (snapshot / "tokenizer.json").unlink()
    # This blob is itself a planted link.
    (tmp_path / "models--a--b" / "blobs" / "9").symlink_to("/etc/passwd")
    (snapshot / "tokenizer.json").symlink_to("../../blobs/9")
    with pytest.raises(UserError, match=r"leads out of the model's directory, to /etc/passwd"):
        check_directory(snapshot)


def test_a_directory_that_cannot_be_listed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the directory .*gone"):
        check_directory(tmp_path / "gone")
