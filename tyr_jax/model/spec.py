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
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

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


@dataclasses.dataclass(frozen=True)
class TensorSpec:
    """One tensor: our name and axes, and where Hugging Face keeps it.

    A projection maps `inputs` axes to `outputs` axes; ours is `[*inputs, *outputs]` while the checkpoint
    stores the matrix `[outputs, inputs]`. Everything else (norms, biases, embeddings) has no `inputs`
    and is stored as it is, flattened to the checkpoint's rank.
    """

    name: str
    key: str
    inputs: str
    outputs: str
    shape: tuple[int, ...]
    sublayer: Sublayer | None = None
    """Which sublayer it belongs to; none outside the blocks."""
    rotary: bool = False
    """Whether its channels `H` are rotated by rotary embeddings."""
    channels: tuple[int, ...] = ()
    """Which of the checkpoint's channels `H` come first, second, and so on here; empty if all stay."""
    offset: float = 0.0
    """What is added to the checkpoint's values."""
    scale: float = 1.0
    """What they are then multiplied by."""

    @property
    def axes(self) -> str:
        """Axis letters of `shape`."""
        return self.inputs + self.outputs

    @property
    def is_norm(self) -> bool:
        """Whether it is the scale of a norm, so that a scale of ones leaves the normalised values
        unchanged."""
        return self.name.endswith("norm")

    @property
    def verbatim(self) -> bool:
        """Whether a checkpoint has the same values."""
        return self.scale == 1 and self.offset == 0

    @property
    def checkpoint_shape(self) -> tuple[int, ...]:
        """Shape of the tensor in a Hugging Face checkpoint."""
        if self.inputs:
            rank = len(self.inputs)
            return (math.prod(self.shape[rank:]), math.prod(self.shape[:rank]))
        return self.shape if "V" in self.axes else (math.prod(self.shape),)

    def from_checkpoint(self, array: np.ndarray) -> np.ndarray:
        """Checkpoint layout → ours. A tensor whose values change becomes float32."""
        ours = np.ascontiguousarray(array.T if self.inputs else array).reshape(self.shape)
        if self.channels:
            ours = np.take(ours, self.channels, axis=self.axes.index("H"))
        return ours if self.verbatim else from_stored(ours.astype(np.float32), self.offset, self.scale)

    def to_checkpoint(self, array: np.ndarray) -> np.ndarray:
        """Our layout → checkpoint layout. A tensor whose values change becomes float32."""
        shape = self.checkpoint_shape
        if self.channels:
            array = np.take(array, np.argsort(self.channels), axis=self.axes.index("H"))
        if not self.verbatim:
            array = to_stored(array.astype(np.float32), self.offset, self.scale)
        return np.ascontiguousarray(array.reshape(shape[::-1]).T) if self.inputs else array.reshape(shape)


def from_stored(values: Any, offset: float, scale: float) -> Any:
    """Our values, from those of a checkpoint, in float32."""
    return (values + np.float32(offset)) * np.float32(scale)


def to_stored(values: Any, offset: float, scale: float) -> Any:
    """The values of a checkpoint, from ours, in float32."""
    return values / np.float32(scale) - np.float32(offset)


def along(axis: str, entries: Any, axes: str) -> Any:
    """`entries [U]` along `axis`, or `[X, U]` per expert, reshaped to broadcast against a tensor with these
    `axes`."""
    sizes = dict(zip(("X" + axis)[-entries.ndim :], entries.shape, strict=True))
    return entries.reshape([sizes.get(letter, 1) for letter in axes])


def taken(array: Any, index: Any, axis: str, axes: str) -> Any:
    """The entries `index [U']` along `axis` of an array with these `axes`; those of `index [X, U']` if each
    expert has its own. Indices that are too large count as the last."""
    place, xp = axes.index(axis), np if isinstance(array, np.ndarray) else jnp
    if index.ndim == 1:
        return xp.take(array, index, axis=place, mode="clip")
    index = xp.minimum(index, array.shape[place] - 1)
    return xp.take_along_axis(array, along(axis, index, axes), axis=place)


def model_specs(config: ModelConfig) -> tuple[TensorSpec, ...]:
    """Tensors outside the blocks."""
    vocab_by_hidden = (config.vocab, config.hidden)
    specs = [
        TensorSpec("embed", "model.embed_tokens.weight", "", "VD", vocab_by_hidden),
        TensorSpec("final_norm", "model.norm.weight", "", "D", (config.hidden,)),
    ]
    if not config.tied:
        specs.append(TensorSpec("unembed", "lm_head.weight", "", "VD", vocab_by_hidden))
    return tuple(
        dataclasses.replace(spec, offset=config.offset_of(spec.name), scale=config.scale_of(spec.name))
        for spec in specs
    )


def block_specs(config: ModelConfig, layer: int) -> tuple[TensorSpec, ...]:
    """Tensors of block `layer` that are stored, without those of absent sublayers."""
    channels, sizes = config.channels, config.sizes(layer)
    return tuple(
        TensorSpec(
            tensor.name,
            tensor.key_of(layer),
            tensor.inputs,
            tensor.outputs,
            tuple(sizes[axis] for axis in tensor.axes),
            tensor.sublayer,
            tensor.rotary,
            channels if tensor.rotary else (),
            config.offset_of(tensor.name),
            config.scale_of(tensor.name),
        )
        for tensor in config.tensors
        if tensor.key and sizes[UNIT_AXES[tensor.sublayer]]
    )


def all_specs(config: ModelConfig) -> tuple[TensorSpec, ...]:
    """Every tensor of the model, in checkpoint order."""
    blocks = (spec for layer in range(config.depth) for spec in block_specs(config, layer))
    return (*model_specs(config), *blocks)


def build_params(
    config: ModelConfig,
    make: Callable[[TensorSpec], ArrayLike],
    stack: Callable[[Sequence[TensorSpec]], Any] | None = None,
) -> Params:
    """Build params from `make(spec)` (our layout), called once per tensor. Blocks are stacked where shapes
    allow, by `stack(specs of all layers)` if given."""
    stack = stack or (lambda specs: jnp.stack([make(spec) for spec in specs]))
    params: Params = {spec.name: jnp.asarray(make(spec)) for spec in model_specs(config)}
    if config.logit_cap is not None:
        params["logit_cap"] = jnp.float32(config.logit_cap)
    if config.uniform:
        layers = [block_specs(config, layer) for layer in range(config.depth)]
        params["blocks"] = {specs[0].name: stack(specs) for specs in zip(*layers, strict=True)}
        if config.mixed and config.dense_shape.heads:
            params["blocks"]["layer_type"] = type_of_layers(config)
    else:
        types = type_of_layers(config)
        params["blocks"] = tuple(
            {spec.name: jnp.asarray(make(spec)) for spec in block_specs(config, layer)}
            | ({"layer_type": types[layer]} if config.mixed and config.layers[layer].heads else {})
            for layer in range(config.depth)
        )
    return params


def type_of_layers(config: ModelConfig) -> jax.Array:
    """Which of the model's `layer_types` each layer has, `[L]`.

    Raises:
        ValueError: the configuration has `positions` for another number of layers.
    """
    if len(config.positions) not in (1, config.depth):
        raise ValueError(f"there are {len(config.positions)} `positions` for {config.depth} layers")
    return jnp.array([config.layer_types.index(own) for own in config.positions], jnp.int32)


Blocks = dict[str, jax.Array] | tuple[Block, ...]
"""The blocks of a model, stacked or one by one."""


def of_blocks(function: Callable[..., Block], *blocks: Blocks) -> Any:
    """`function` of each block, or of the dict of stacked blocks."""
    first = blocks[0]
    return tuple(map(function, *blocks)) if isinstance(first, tuple) else function(*blocks)


def of_model(function: Callable[[Block], Block], params: Params) -> Params:
    """`function` of the tensors outside the blocks, and of each block or the dict of stacked blocks."""
    outside = {name: array for name, array in params.items() if name != "blocks"}
    return function(outside) | {"blocks": of_blocks(function, params["blocks"])}


def weights_of(block: Block) -> Block:
    """The tensors of a block that are stored and trained."""
    return {name: array for name, array in block.items() if name not in DERIVED}


def derived_of(block: Block) -> Block:
    """The tensors of a block that follow from the configuration."""
    return {name: array for name, array in block.items() if name in DERIVED}


def cast(tensors: Block, dtype: DTypeLike) -> Block:
    """Tensors by name, the weights in `dtype`."""
    weights = {name: array.astype(dtype) for name, array in weights_of(tensors).items()}
    return derived_of(tensors) | weights


def as_stored(tensors: Block, dtype: DTypeLike, config: ModelConfig) -> Block:
    """Tensors by name, rounded to the values that a checkpoint in `dtype` holds. Their own dtype stays."""

    def written(name: str, array: jax.Array) -> jax.Array:
        offset, scale = config.offset_of(name), config.scale_of(name)
        if offset == 0 and scale == 1:
            return array.astype(dtype).astype(array.dtype)
        stored = to_stored(array.astype(jnp.float32), offset, scale).astype(dtype)
        return from_stored(stored.astype(jnp.float32), offset, scale).astype(array.dtype)

    return derived_of(tensors) | {name: written(name, array) for name, array in weights_of(tensors).items()}


def iter_tensors(params: Params, config: ModelConfig) -> Iterator[tuple[TensorSpec, jax.Array]]:
    """Pairs of every spec and its tensor (our layout), in checkpoint order. Stacked blocks are sliced only
    when their turn comes."""
    yield from ((spec, params[spec.name]) for spec in model_specs(config))
    for layer in range(config.depth):
        block = layer_block(params["blocks"], layer)
        yield from ((spec, block[spec.name]) for spec in block_specs(config, layer))


def layer_block(blocks: Blocks, layer: int) -> Block:
    """Block `layer` of stacked or per-layer blocks."""
    if isinstance(blocks, tuple):
        return blocks[layer]
    return {name: array[layer] for name, array in blocks.items()}


def random_params(config: ModelConfig, key: jax.Array, scale: float = 0.02) -> Params:
    """Normal weights (norms near one), for tests and dry runs; reproducible from `key`."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())

    def make(spec: TensorSpec) -> np.ndarray:
        noise = rng.standard_normal(spec.shape, dtype=np.float32) * scale
        return noise + 1.0 if spec.is_norm else noise

    return build_params(config, make)


def active_size(spec: TensorSpec, config: ModelConfig) -> int:
    """How many numbers of a tensor one token uses. Of tensors with the axes `X` and `F`, it uses only those
    of the experts that it is sent to."""
    size = math.prod(spec.shape)
    if "XF" not in spec.axes:
        return size
    experts = spec.shape[spec.axes.index("X")]
    return size // experts * min(config.routed, experts)


def count_parameters(config: ModelConfig) -> tuple[int, int]:
    """(parameters inside the blocks, parameters in all)."""
    outside = sum(math.prod(spec.shape) for spec in model_specs(config))
    total = sum(math.prod(spec.shape) for spec in all_specs(config))
    return total - outside, total
