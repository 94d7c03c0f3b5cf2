"""Families of models as data: what tells one family's models from another's.

All families share the decoder of `tyr_jax.model.decoder`. They differ in which of its optional tensors they
have, and in the keys of their `config.json` and what absent ones stand for. Everything else, from loading to
compressing and writing, goes by the axes of the tensors that a model then has (`BLOCK_TENSORS` in
`tyr_jax.model.spec`, where a tensor that the decoder is yet to learn gets its row).

A family from outside the package is one `Family` in a module of one's own (`examples/family.py` is one),
which `load_family("my_module:FAMILY")` registers, or `register_family(FAMILY)` where it is at hand. A key of
`config.json` that no entry mentions is an error that names it. So an entry mentions every key that its models
have beyond the common ones: in `tensors` or `defaults` if it is read, in `checked` if one value is supported,
in `harmless` if it does not change the function.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from tyr_jax.errors import UserError
from tyr_jax.model.spec import BLOCK_TENSORS
from tyr_jax.plugins import load_object

DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "max_position_embeddings": None,
}
"""Keys that are read for every family, with what they are when absent, unless its entry says otherwise; with
`None`, numbers of heads and their dimension follow from other keys."""

WINDOW = "sliding_window"
"""A key that is read for families whose `defaults` have it."""


@dataclasses.dataclass(frozen=True)
class Family:
    """One family of models."""

    model_type: str
    """Its name in `config.json`."""
    architecture: str
    """The class in transformers that a causal language model of it has, `…ForCausalLM`."""
    tensors: Mapping[str, Literal[True] | str] = dataclasses.field(default_factory=dict)
    """Optional tensors that its blocks have, by their flag in `ModelConfig`: always (`True`), or where this
    key of `config.json` is true."""
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Keys that are read, with the values that transformers takes when they are absent, where these are not
    the common `DEFAULTS`."""
    checked: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    """Keys that must have one of these values when present."""
    harmless: frozenset[str] = frozenset()
    """Keys that do not change the function."""

    @property
    def read_keys(self) -> frozenset[str]:
        """Keys that are read for this family, beside those that every model must have."""
        of_tensors = {key for key in self.tensors.values() if key is not True}
        return frozenset(DEFAULTS) | of_tensors | (self.defaults.keys() & {WINDOW})


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    tensors={"qkv_bias": "attention_bias", "out_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    defaults={"max_position_embeddings": 2048},
    checked={"sliding_window": (None,)},
)

MISTRAL = Family(
    model_type="mistral",
    architecture="MistralForCausalLM",
    defaults={"num_key_value_heads": 8, "max_position_embeddings": 131072, "sliding_window": 4096},
    checked={"attention_bias": (False,), "mlp_bias": (False,)},
)

QWEN2 = Family(
    model_type="qwen2",
    architecture="Qwen2ForCausalLM",
    tensors={"qkv_bias": True},
    defaults={"num_key_value_heads": 32, "max_position_embeddings": 32768},
    checked={"use_sliding_window": (False, None)},
    # Without `use_sliding_window` these two are ignored.
    harmless=frozenset({"sliding_window", "max_window_layers"}),
)

QWEN3 = Family(
    model_type="qwen3",
    architecture="Qwen3ForCausalLM",
    tensors={"qk_norm": True, "qkv_bias": "attention_bias", "out_bias": "attention_bias"},
    defaults={"num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768},
    checked={"use_sliding_window": (False, None)},
    harmless=frozenset({"sliding_window", "max_window_layers"}),
)

FAMILIES: dict[str, Family] = {family.model_type: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3)}
"""All families that can be read, by `model_type`."""


def register_family(family: Family) -> None:
    """Add a family to `FAMILIES`; one that is there already may be added again.

    Raises:
        UserError: there is another family of this `model_type`; or it has tensors that the decoder does not
            know, or a default of a key that is not read.
    """
    name = family.model_type
    if FAMILIES.get(name, family) != family:
        raise UserError(f"there is another family with model_type '{name}': give yours another model_type")
    flags = list(dict.fromkeys(tensor.flag for tensor in BLOCK_TENSORS if tensor.flag))
    unknown = [flag for flag in family.tensors if flag not in flags]
    if unknown:
        raise UserError(
            f"family '{name}' has tensors '{unknown[0]}', which the decoder does not know: it knows "
            f"{', '.join(flags)}"
        )
    unread = sorted(family.defaults.keys() - family.read_keys)
    if unread:
        raise UserError(
            f"family '{name}' has a default of '{unread[0]}', which nothing reads: put it into `checked` or "
            "`harmless`"
        )
    FAMILIES[name] = family


def load_family(reference: str) -> Family:
    """Register the family that `reference`, `module:ATTRIBUTE`, names; it may be registered already.

    Raises:
        UserError: there is no such thing, or it is no family, or one that cannot be registered.
    """
    family: Family = load_object(reference, "family", Family)
    register_family(family)
    return family
