"""What a model is made of: its configuration, and one table of tensors, whose axes say how to handle them.

`Params` is a plain pytree::

    {"embed": [V, D], "blocks": blocks, "final_norm": [D], "unembed": [V, D]}   # unembed: untied models only

(and `logit_cap []`, if the model has one), where `blocks` maps a tensor's name to an array. A model whose
layers all have the same shape keeps them stacked on a leading `L`, so that its forward pass is one
`lax.scan`. A model whose layers differ keeps a tuple of `L` such dicts. A sublayer without units (no heads,
no neurons) has no tensors at all.

Axis letters: `L` layers, `D` hidden, `N` query heads, `K` key/value heads, `H` head dim, `F` FFN width,
`X` experts, `V` vocabulary.
"""

import dataclasses
from typing import Any, Literal

import jax

from tyr_jax.model.rope import LongRopeScaling, Positions, paired_channels

Params = dict[str, Any]
Block = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class LayerShape:
    """Sizes of one decoder layer; zero heads or zero neurons mean that the sublayer is absent. In a mixture
    of experts, `ffn` is the width of every expert; other models have no `experts`."""

    heads: int
    kv_heads: int
    ffn: int
    experts: int = 0


Sublayer = Literal["attention", "ffn"]
Activation = Literal["silu", "gelu_tanh", "clamped"]

UNIT_AXES: dict[Sublayer, str] = {"attention": "N", "ffn": "F"}
"""The axis of the units that are pruned, by sublayer. Without any units, the sublayer is absent."""

AXES: dict[Sublayer, str] = {"attention": "DNKH", "ffn": "DXF"}
"""The axes that tensors of a sublayer can have."""


@dataclasses.dataclass(frozen=True)
class BlockTensor:
    """One tensor of every block, whatever the sizes of the blocks.

    `name`, `inputs`, `outputs`, `sublayer` and `rotary` are as in `TensorSpec`. `key` is the part that
    follows the block's own key. Without one, the tensor follows from the configuration (`type_of_layers`):
    it is neither stored nor trained.

    Raises:
        ValueError: the tensor has an axis that tensors of its sublayer cannot have, or has one twice; names
            both.
    """

    name: str
    key: str
    inputs: str
    outputs: str
    sublayer: Sublayer
    flag: str = ""
    """The field of `ModelConfig` that says whether it is there. If this is empty, it always is."""
    rotary: bool = False

    def __post_init__(self) -> None:
        allowed = AXES[self.sublayer]
        wrong = [axis for axis in self.axes if axis not in allowed or self.axes.count(axis) > 1]
        if wrong:
            raise ValueError(
                f"tensor '{self.name}' has axis {wrong[0]}: one of the {self.sublayer} can have each of "
                f"{', '.join(allowed)} once"
            )

    @property
    def axes(self) -> str:
        """Axis letters of its shape."""
        return self.inputs + self.outputs

    def key_of(self, layer: int) -> str:
        """Its key in the checkpoint, for block `layer`."""
        return f"model.layers.{layer}.{self.key}"


BLOCK_TENSORS = (
    BlockTensor("layer_type", "", "", "", "attention", "mixed"),
    BlockTensor("attn_norm", "input_layernorm.weight", "", "D", "attention", "pre_norms"),
    BlockTensor("q", "self_attn.q_proj.weight", "D", "NH", "attention", rotary=True),
    BlockTensor("k", "self_attn.k_proj.weight", "D", "KH", "attention", rotary=True),
    BlockTensor("v", "self_attn.v_proj.weight", "D", "KH", "attention"),
    BlockTensor("o", "self_attn.o_proj.weight", "NH", "D", "attention"),
    BlockTensor("q_bias", "self_attn.q_proj.bias", "", "NH", "attention", "qkv_bias", rotary=True),
    BlockTensor("k_bias", "self_attn.k_proj.bias", "", "KH", "attention", "qkv_bias", rotary=True),
    BlockTensor("v_bias", "self_attn.v_proj.bias", "", "KH", "attention", "qkv_bias"),
    BlockTensor("o_bias", "self_attn.o_proj.bias", "", "D", "attention", "out_bias"),
    BlockTensor("q_norm", "self_attn.q_norm.weight", "", "H", "attention", "qk_norm", rotary=True),
    BlockTensor("k_norm", "self_attn.k_norm.weight", "", "H", "attention", "qk_norm", rotary=True),
    BlockTensor("wide_q_norm", "self_attn.q_norm.weight", "", "NH", "attention", "wide_qk_norm", rotary=True),
    BlockTensor("wide_k_norm", "self_attn.k_norm.weight", "", "KH", "attention", "wide_qk_norm", rotary=True),
    BlockTensor("sinks", "self_attn.sinks", "", "N", "attention", "sinks"),
    BlockTensor("attn_post_norm", "post_attention_layernorm.weight", "", "D", "attention", "post_norms"),
    BlockTensor("mlp_norm", "post_attention_layernorm.weight", "", "D", "ffn", "pre_norms"),
    BlockTensor("gate", "mlp.gate_proj.weight", "D", "F", "ffn", "one_ffn"),
    BlockTensor("up", "mlp.up_proj.weight", "D", "F", "ffn", "one_ffn"),
    BlockTensor("down", "mlp.down_proj.weight", "F", "D", "ffn", "one_ffn"),
    BlockTensor("router", "mlp.gate.weight", "D", "X", "ffn", "experts"),
    BlockTensor("gate", "mlp.experts.gate_proj.weight", "D", "XF", "ffn", "experts"),
    BlockTensor("up", "mlp.experts.up_proj.weight", "D", "XF", "ffn", "experts"),
    BlockTensor("down", "mlp.experts.down_proj.weight", "XF", "D", "ffn", "experts"),
    BlockTensor("gate_bias", "mlp.gate_proj.bias", "", "F", "ffn", "mlp_bias"),
    BlockTensor("up_bias", "mlp.up_proj.bias", "", "F", "ffn", "mlp_bias"),
    BlockTensor("down_bias", "mlp.down_proj.bias", "", "D", "ffn", "mlp_bias"),
    BlockTensor("router_bias", "mlp.router.bias", "", "X", "ffn", "expert_bias"),
    BlockTensor("gate_bias", "mlp.experts.gate_proj.bias", "", "XF", "ffn", "expert_bias"),
    BlockTensor("up_bias", "mlp.experts.up_proj.bias", "", "XF", "ffn", "expert_bias"),
    BlockTensor("down_bias", "mlp.experts.down_proj.bias", "X", "D", "ffn", "expert_bias"),
    BlockTensor("mlp_post_norm", "post_feedforward_layernorm.weight", "", "D", "ffn", "post_norms"),
)
"""All tensors that `tyr_jax.model.decoder` can use, in checkpoint order. Whatever handles tensors (loading,
saving, pruning, compressing) depends only on their axes. So a new one needs a row here, a flag in
`ModelConfig` and its use in the decoder."""

DERIVED = frozenset(tensor.name for tensor in BLOCK_TENSORS if not tensor.key) | {"logit_cap"}
"""Tensors that follow from the configuration: of a block, and the soft-cap of the logits outside."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything the forward function depends on; hashable, so it can be a static argument of `jit`."""

    family: str
    vocab: int
    hidden: int
    head_dim: int
    layers: tuple[LayerShape, ...]
    norm_eps: float = 1e-5
    positions: tuple[Positions, ...] = (Positions(),)
    """How each layer treats positions; a single entry holds for all layers."""
    rotated: int | None = None
    """Channels of a head that are rotated by position; None for all."""
    max_positions: int = 2048
    tied: bool = False
    keys: tuple[tuple[str, str], ...] = ()
    """Tensors of a block that have another key than in `BLOCK_TENSORS`, with that key."""
    fused: tuple[str, ...] = ()
    """Modules of a checkpoint that hold several of our tensors."""
    neighbours: bool = False
    """Whether a checkpoint rotates channels 2i and 2i + 1 as a pair, not half of the rotated channels with
    the other."""
    attention_scale: float | None = None
    """What attention scores are multiplied by; None for 1 / √H."""
    query_scalar: float | None = None
    """The same in another form: scores are divided by its square root."""
    embed_scale: float = 1.0
    """What token embeddings are multiplied by."""
    residual_scale: float = 1.0
    """What the outputs of sublayers are multiplied by."""
    logit_divisor: float = 1.0
    """What logits are divided by."""
    logit_cap: float | None = None
    """The c of logits c · tanh(z / c); None for none."""
    score_cap: float | None = None
    """The same for attention scores."""
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    expert_bias: bool = False
    """Whether the router and the experts have biases."""
    sinks: bool = False
    """Whether each head has an attention sink: a score without a value."""
    qk_norm: bool = False
    wide_qk_norm: bool = False
    """Whether queries and keys are normed over all heads together. Heads must then stay together."""
    pre_norms: bool = True
    """Whether what enters a sublayer is normed."""
    post_norms: bool = False
    """Whether a sublayer's output is normed before it is added to the residual stream."""
    norm_offset: float = 0.0
    """What is added to the scales of norms in a checkpoint."""
    activation: Activation = "silu"
    """What gates the neurons."""
    routed: int = 0
    """How many experts each token is sent to, or all if a layer has fewer; 0 for models without experts."""
    packed: bool = False
    """Whether a checkpoint has the matrices of all experts as one, those of gate and up together."""
    norm_routing: bool = True
    """Whether the weights of a token's experts are divided by their sum."""

    @property
    def experts(self) -> bool:
        """Whether the model is a mixture of experts."""
        return self.routed > 0

    @property
    def one_ffn(self) -> bool:
        """Whether layers have a single FFN instead of experts."""
        return not self.experts

    @property
    def tensors(self) -> tuple[BlockTensor, ...]:
        """Tensors of a block that has both sublayers."""
        there = (tensor for tensor in BLOCK_TENSORS if not tensor.flag or getattr(self, tensor.flag))
        keys = dict(self.keys)
        return tuple(dataclasses.replace(one, key=keys.get(one.name, one.key)) for one in there)

    @property
    def axes(self) -> dict[str, str]:
        """Axis letters of the tensors of a block, by name."""
        return {tensor.name: tensor.axes for tensor in self.tensors}

    @property
    def hidden_axes(self) -> dict[str, int]:
        """The axis `D` of every weight that has one, by name, counted from the end."""
        outside = {"embed": "VD", "unembed": "VD", "final_norm": "D"}
        tensors = (outside | self.axes).items()
        return {name: axes.index("D") - len(axes) for name, axes in tensors if "D" in axes}

    def sizes(self, layer: int = 0) -> dict[str, int]:
        """Sizes of the axes of a layer's tensors, by letter."""
        shape = self.layers[layer]
        sizes = {"D": self.hidden, "H": self.head_dim, "N": shape.heads, "K": shape.kv_heads}
        return sizes | {"F": shape.ffn, "X": shape.experts}

    @property
    def context(self) -> int:
        """The longest sequence, in tokens, that the decoder computes correctly."""
        scalings = (each.scaling for each in self.layer_types)
        shorter = [one.original_max_positions for one in scalings if isinstance(one, LongRopeScaling)]
        return min([self.max_positions, *shorter])

    @property
    def mixed(self) -> bool:
        """Whether layers treat positions differently; each block then has its `layer_type`."""
        return len(self.positions) > 1

    @property
    def channels(self) -> tuple[int, ...]:
        """Which of a checkpoint's channels `H` come first, second, and so on here; empty if all stay."""
        order = paired_channels(self.head_dim, self.rotated or self.head_dim, self.neighbours)
        return () if order == tuple(range(self.head_dim)) else order

    @property
    def layer_types(self) -> tuple[Positions, ...]:
        """The different ways in which layers treat positions."""
        return tuple(dict.fromkeys(self.positions))

    def scale_of(self, name: str) -> float:
        """The factor that turns a checkpoint's values of tensor `name` into ours.

        The model's multipliers become part of the weights, so that the decoder needs none; it always divides
        scores by √H. With tied embeddings, `embed_scale` also reaches the head, and the last norm divides it
        out.
        """
        normed = self.qk_norm or self.wide_qk_norm
        if name in ("q_norm", "wide_q_norm") or (name in ("q", "q_bias") and not normed):
            if self.query_scalar is not None:
                return (self.head_dim / self.query_scalar) ** 0.5
            return 1.0 if self.attention_scale is None else self.attention_scale * self.head_dim**0.5
        if name == "final_norm":
            return 1.0 / (self.logit_divisor * (self.embed_scale if self.tied else 1.0))
        if name == "embed":
            return self.embed_scale
        return self.residual_scale if name in ("o", "o_bias", "down", "down_bias") else 1.0

    def offset_of(self, name: str) -> float:
        """What is added to the values of tensor `name` in a checkpoint, before they are scaled."""
        return self.norm_offset if name.endswith("norm") else 0.0

    @property
    def depth(self) -> int:
        """`L`, the number of decoder layers."""
        return len(self.layers)

    @property
    def uniform(self) -> bool:
        """Whether every layer has the same shape (and blocks are therefore stacked)."""
        return len(set(self.layers)) <= 1

    @property
    def dense_shape(self) -> LayerShape:
        """The shape shared by every layer of a uniform model."""
        if not self.uniform:
            raise ValueError("the layers of this model differ; ask `layers[l]`")
        return self.layers[0]
