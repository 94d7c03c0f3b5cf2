"""Prompts from users, and end-of-text tokens from model files."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tyr_jax.errors import UserError
from tyr_jax.evaluation.continuation import encode, stop_tokens, validate
from tyr_jax.evaluation.settings import GenerationSettings
from tyr_jax.io.checkpoint import LoadedModel, load_model


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LoadedModel:
    return load_model(str(tiny_model))


@pytest.mark.parametrize(
    "ids", [True, "2", 2.0, -1, 300, 10**30, {}, [[2]], [None], ["2"], [2, -1], [True], float("nan"), ""]
)
def test_what_is_no_token(ids: Any, model: LoadedModel) -> None:
    wrong = dataclasses.replace(model, generation_config={"eos_token_id": ids})
    with pytest.raises(UserError, match=r"'eos_token_id' in the generation_config\.json of .* from 0 to 299"):
        stop_tokens(wrong)


@pytest.mark.parametrize(("given", "found"), [(None, {2}), (5, {2, 5}), ([5, 6], {2, 5, 6}), ([], {2})])
def test_tokens_that_end_a_text(given: Any, found: set[int], model: LoadedModel) -> None:
    assert stop_tokens(dataclasses.replace(model, generation_config={"eos_token_id": given})) == found


def test_a_prompt_that_is_not_unicode() -> None:
    with pytest.raises(UserError, match=r"the prompt 'a\\udcff' is not Unicode text; give it in UTF-8"):
        validate(["a\udcff"], GenerationSettings())


def test_a_template_that_fails(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.tokenizer, "chat_template", "{{ 'x' * 10**12 }}")
    with pytest.raises(UserError, match=f"{model.source}: the model's chat template fails: it needs too"):
        encode(model, ["hi"], GenerationSettings(chat=True))
