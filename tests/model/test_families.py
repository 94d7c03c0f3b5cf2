"""Families as data: the built-in entries, and entries from outside the package."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from tyr_jax.errors import UserError
from tyr_jax.model.families import FAMILIES, load_family, register_family
from tyr_jax.model.family import Family

OWN = Family("own", "LlamaForCausalLM", tensors={"qk_norm": True, "mlp_bias": "use_bias"})


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """Forget the families that a test registers."""
    before = dict(FAMILIES)
    yield
    FAMILIES.clear()
    FAMILIES.update(before)


def test_the_entries_are_under_their_names() -> None:
    known = (
        "llama mistral ministral qwen2 qwen3 smollm3 granite phi3 gemma3_text gemma2 glm4 exaone4 olmo2 olmo3"
    )
    known += " qwen3_moe mixtral olmoe gpt_oss"
    assert list(FAMILIES) == known.split()
    for name, family in FAMILIES.items():
        assert family.model_type == name
        register_family(family)


def test_what_a_family_reads() -> None:
    assert {"use_bias", "head_dim"} <= OWN.read_keys
    assert "sliding_window" not in OWN.read_keys
    assert "sliding_window" in FAMILIES["mistral"].read_keys
    assert "max_window_layers" in FAMILIES["qwen3"].read_keys
    assert "logits_scaling" in FAMILIES["granite"].read_keys


def test_a_family_may_come_twice() -> None:
    register_family(OWN)
    register_family(dataclasses.replace(OWN))
    assert FAMILIES["own"] == OWN


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "there is another family with model_type 'llama'"),
        (
            {"tensors": {"v_norm": True}},
            "has tensors 'v_norm', .* qkv_bias, out_bias, qk_norm, wide_qk_norm, sinks, mlp_bias",
        ),
        ({"defaults": {"logit_scale": 1.0}}, "has a default of 'logit_scale', which nothing reads"),
    ],
)
def test_families_that_cannot_be_registered(changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        register_family(dataclasses.replace(OWN, **changes))
    assert "own" not in FAMILIES


def test_a_family_by_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from tyr_jax.model.families import Family\nOWN = Family('own', 'LlamaForCausalLM')\nOTHER = 3\n"
    (tmp_path / "own_family.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert load_family("own_family:OWN") is FAMILIES["own"]
    assert load_family("own_family:OWN") is FAMILIES["own"]
    with pytest.raises(UserError, match="'own_family:OTHER' is of type int, but must be of type Family"):
        load_family("own_family:OTHER")
