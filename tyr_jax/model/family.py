"""What distinguishes a family of models from others: its tensors, and how its `config.json` is read."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from tyr_jax.model.spec import Activation

DEFAULTS: dict[str, Any] = {
    "num_key_value_heads": None,
    "head_dim": None,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False,
    "max_position_embeddings": None,
}
"""Keys that are read for every family, with their values when absent, unless the family's entry says
otherwise. Where they are `None`, the number of key/value heads and the head dimension follow from other
keys."""

WINDOW = "sliding_window"

LOCAL_BASE = "rope_local_base_freq"

OPTIONAL = frozenset(
    {WINDOW, "use_sliding_window", "max_window_layers", "no_rope_layers", "no_rope_layer_interval"}
    | {"sliding_window_pattern", LOCAL_BASE}
)
"""Keys that are read only for families whose `defaults` have them."""

ACTIVATION_KEYS: dict[Activation, tuple[str, str]] = {
    "silu": ("hidden_act", "silu"),
    "gelu_tanh": ("hidden_activation", "gelu_pytorch_tanh"),
    "clamped": ("hidden_act", "silu"),
}
"""The key that names an activation, and its name there."""

Sliding = Literal["all", "listed", "from_max_window_layers", "without_rotary", "by_pattern"]
"""Which layers have the window of `sliding_window`: all, or those that `layer_types` lists. Where a model has
no `layer_types`: also all, those from layer `max_window_layers` on, those without rotary embeddings, or all
but every `sliding_window_pattern`-th."""

EXPERT_COUNTS = ("num_experts", "num_local_experts")
"""Keys that give the number of experts. Versions of transformers write one or the other."""

EXPERTS_PER_TOKEN = "num_experts_per_tok"


@dataclasses.dataclass(frozen=True)
class Experts:
    """How the `config.json` of a family describes its mixture of experts."""

    count: str = "num_experts"
    """The key with the number of experts, one of `EXPERT_COUNTS`."""
    width: str = "intermediate_size"
    """The key with the width of an expert."""
    norm_routing: Literal[True] | str = True
    """Whether the weights of a token's experts are divided by their sum: always, or if this key is true."""

    @property
    def read_keys(self) -> frozenset[str]:
        """Keys that are read."""
        norm = set() if self.norm_routing is True else {self.norm_routing}
        return frozenset({*EXPERT_COUNTS, EXPERTS_PER_TOKEN, self.width} | norm)


@dataclasses.dataclass(frozen=True)
class Family:
    """One family of models."""

    model_type: str
    """Its name in `config.json`."""
    architecture: str
    """The transformers class of the family's causal language model, `…ForCausalLM`."""
    models: str = ""
    """Models that belong to it, for the documentation."""
    tensors: Mapping[str, Literal[True] | str] = dataclasses.field(default_factory=dict)
    """Optional tensors of the family's blocks, by their flag in `ModelConfig`: always there (`True`), or
    there if this key of `config.json` is true."""
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Keys that are read, with the values that transformers uses when they are absent, where these differ
    from the common `DEFAULTS`, or of keys in `OPTIONAL`."""
    rope: tuple[float, float] = (10000.0, 1.0)
    """Base of the rotary embeddings, and share of the channels that are rotated, when `config.json` does not
    say."""
    rope_given: bool = False
    """Whether `config.json` must describe the rotary embeddings: transformers' default has a scaling, which
    is not assumed here."""
    rope_by_type: bool = False
    """Whether layers with a window have rotary embeddings of their own. Without `rope_parameters` for both
    types of layer, these are plain, with the base `rope_local_base_freq` or that of `rope`."""
    sliding: Sliding = "all"
    """Which layers have the sliding window, if the model has one."""
    multipliers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Keys that give a factor, which is 1 if absent, by the field of `ModelConfig` that has it."""
    experts: Experts | None = None
    """How the mixture of experts is described, if layers have one."""
    caps: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Keys that give a soft-cap, which is absent if null, by the field of `ModelConfig` that has it."""
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Tensors of a block that have another key than Llama's, by the tensor's name in `BLOCK_TENSORS`."""
    fused: tuple[str, ...] = ()
    """Modules that hold several tensors: `qkv_proj`, `gate_up_proj`."""
    neighbours: bool = False
    """Whether channels 2i and 2i + 1 are rotated as a pair, not half of the rotated channels with the other
    half."""
    pre_norms: bool = True
    """Whether a norm precedes each sublayer."""
    post_norms: bool = False
    """Whether a norm follows each sublayer."""
    global_rotary: bool = True
    """Whether layers without a window have rotary embeddings, in a model with a window."""
    norm_offset: float = 0.0
    """What is added to the stored scales of norms."""
    embed_by_width: bool = False
    """Whether embeddings are multiplied by √D."""
    activation: Activation = "silu"
    """What gates the neurons. If `config.json` says so in another way than `hidden_act: silu`, `checked` has
    that key."""
    packed: bool = False
    """Whether the matrices of all experts of a layer are stored as one."""
    quantised: frozenset[str] = frozenset()
    """What `quantization_config` may name as `quant_method`: weights are then read as plain numbers."""
    published_code: frozenset[str] = frozenset()
    """Classes that an `auto_map` may name, because their code is that of transformers."""
    checked: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    """Keys that must have one of these values when present."""
    harmless: frozenset[str] = frozenset()
    """Keys that do not change the function."""

    @property
    def read_keys(self) -> frozenset[str]:
        """Keys that are read for this family, in addition to those that every model must have."""
        of_tensors = {key for key in self.tensors.values() if key is not True}
        return (
            frozenset(DEFAULTS)
            | of_tensors
            | (self.defaults.keys() & OPTIONAL)
            | {*self.multipliers.values(), *self.caps.values()}
            | (self.experts.read_keys if self.experts else set())
        )

    @property
    def width(self) -> str:
        """The key with the width of an FFN."""
        return self.experts.width if self.experts else "intermediate_size"
