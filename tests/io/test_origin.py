"""Name and licence of a model. What its files say is only accepted in the expected form."""

from pathlib import Path

import pytest

from tyr_jax.io.checkpoint import load_model
from tyr_jax.io.origin import Origin, licence_of_card, origin_of_directory, origin_of_gguf


def test_of_a_directory(tmp_path: Path) -> None:
    directory = tmp_path / "my-model"
    directory.mkdir()
    assert origin_of_directory(str(directory), directory, {}) == Origin("my-model")
    (directory / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n")
    named = {"_name_or_path": "someone/Model-1B"}
    expected = Origin("Model-1B", "someone/Model-1B", "apache-2.0")
    assert origin_of_directory(str(directory), directory, named) == expected
    assert origin_of_directory(str(directory), directory, {"_name_or_path": "/home/me/x"}).hub_id is None


def test_of_the_hub(tmp_path: Path) -> None:
    assert origin_of_directory("someone/Model-1B", tmp_path, {}) == Origin("Model-1B", "someone/Model-1B")


@pytest.mark.parametrize("licence", ["[a, b]", ": : {", "'a b'", "3", ""])
def test_odd_cards_name_no_licence(licence: str, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    assert licence_of_card(path) is None
    path.write_text("no metadata")
    assert licence_of_card(path) is None
    path.write_text(f"---\nlicense: {licence}\n---\n")
    assert licence_of_card(path) is None


def test_of_a_gguf_file() -> None:
    values = {
        "general.name": "Model 1B",
        "general.license": "mit",
        "general.base_model.0.repo_url": "https://huggingface.co/someone/Model-1B",
    }
    assert origin_of_gguf(Path("x.gguf"), values) == Origin("Model 1B", "someone/Model-1B", "mit")
    odd = {"general.name": 3, "general.license": "a b", "general.repo_url": "javascript:alert(1)"}
    assert origin_of_gguf(Path("x.gguf"), odd) == Origin("x")


@pytest.mark.smollm2
def test_of_the_builtin_model() -> None:
    expected = Origin("SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0")
    assert load_model("builtin").origin == expected
