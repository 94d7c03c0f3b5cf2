"""What a model is made of: its configuration, and one table of tensors that drives load, save and init.

`Params` is a plain pytree::

    {"embed": [V, D], "blocks": blocks, "final_norm": [D], "unembed": [V, D]}   # unembed: untied models only

where `blocks` maps a tensor's name to an array. A model whose layers are all of one shape keeps them
stacked on a leading `L`, so that its forward is one `lax.scan`; a model whose layers differ keeps a tuple
of `L` such dicts. A sublayer without units (no heads, no neurons) has no tensors at all.

Axis letters: `L` layers, `D` hidden, `N` query heads, `K` key/value heads, `H` head dim, `F` FFN width,
`V` vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

Params = dict[str, Any]
Block = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class LayerShape:
    """Sizes of one decoder layer; zero heads or zero neurons mean that the sublayer is absent."""

    heads: int
    kv_heads: int
    ffn: int


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama-3 frequency scaling: wavelengths beyond the original context are stretched by `factor`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything the forward function depends on; hashable, so it can be a static argument of `jit`."""

    family: str
    vocab: int
    hidden: int
    head_dim: int
    layers: tuple[LayerShape, ...]
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    max_positions: int = 2048
    window: int | None = None
    tied: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False

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

    @property
    def axes(self) -> str:
        """Axis letters of `shape`."""
        return self.inputs + self.outputs

    @property
    def checkpoint_shape(self) -> tuple[int, ...]:
        """Shape of the tensor in a Hugging Face checkpoint."""
        if self.inputs:
            rank = len(self.inputs)
            return (math.prod(self.shape[rank:]), math.prod(self.shape[:rank]))
        return self.shape if self.name in ("embed", "unembed") else (math.prod(self.shape),)

    def from_checkpoint(self, array: np.ndarray) -> np.ndarray:
        """Checkpoint layout → ours."""
        return np.ascontiguousarray(array.T if self.inputs else array).reshape(self.shape)

    def to_checkpoint(self, array: np.ndarray) -> np.ndarray:
        """Our layout → checkpoint layout."""
        shape = self.checkpoint_shape
        return np.ascontiguousarray(array.reshape(shape[::-1]).T) if self.inputs else array.reshape(shape)


def model_specs(config: ModelConfig) -> tuple[TensorSpec, ...]:
    """Tensors outside the blocks."""
    vocab_by_hidden = (config.vocab, config.hidden)
    specs = [
        TensorSpec("embed", "model.embed_tokens.weight", "", "VD", vocab_by_hidden),
        TensorSpec("final_norm", "model.norm.weight", "", "D", (config.hidden,)),
    ]
    if not config.tied:
        specs.append(TensorSpec("unembed", "lm_head.weight", "", "VD", vocab_by_hidden))
    return tuple(specs)


def block_specs(config: ModelConfig, layer: int) -> tuple[TensorSpec, ...]:
    """Tensors of block `layer`, those of absent sublayers left out."""
    shape = config.layers[layer]
    sizes = {"D": config.hidden, "N": shape.heads, "K": shape.kv_heads, "H": config.head_dim, "F": shape.ffn}

    def spec(name: str, key: str, inputs: str, outputs: str) -> TensorSpec:
        dims = tuple(sizes[axis] for axis in inputs + outputs)
        return TensorSpec(name, f"model.layers.{layer}.{key}", inputs, outputs, dims)

    specs: list[TensorSpec] = []
    if shape.heads:
        specs += [
            spec("attn_norm", "input_layernorm.weight", "", "D"),
            spec("q", "self_attn.q_proj.weight", "D", "NH"),
            spec("k", "self_attn.k_proj.weight", "D", "KH"),
            spec("v", "self_attn.v_proj.weight", "D", "KH"),
            spec("o", "self_attn.o_proj.weight", "NH", "D"),
        ]
        if config.qkv_bias:
            specs += [
                spec("q_bias", "self_attn.q_proj.bias", "", "NH"),
                spec("k_bias", "self_attn.k_proj.bias", "", "KH"),
                spec("v_bias", "self_attn.v_proj.bias", "", "KH"),
            ]
        if config.out_bias:
            specs.append(spec("o_bias", "self_attn.o_proj.bias", "", "D"))
    if shape.ffn:
        specs += [
            spec("mlp_norm", "post_attention_layernorm.weight", "", "D"),
            spec("gate", "mlp.gate_proj.weight", "D", "F"),
            spec("up", "mlp.up_proj.weight", "D", "F"),
            spec("down", "mlp.down_proj.weight", "F", "D"),
        ]
        if config.mlp_bias:
            specs += [
                spec("gate_bias", "mlp.gate_proj.bias", "", "F"),
                spec("up_bias", "mlp.up_proj.bias", "", "F"),
                spec("down_bias", "mlp.down_proj.bias", "", "D"),
            ]
    return tuple(specs)


def all_specs(config: ModelConfig) -> tuple[TensorSpec, ...]:
    """Every tensor of the model, in checkpoint order."""
    blocks = (spec for layer in range(config.depth) for spec in block_specs(config, layer))
    return (*model_specs(config), *blocks)


def build_params(
    config: ModelConfig,
    make: Callable[[TensorSpec], ArrayLike],
    stack: Callable[[Sequence[TensorSpec]], Any] | None = None,
) -> Params:
    """Params from `make(spec)` (our layout), called once per tensor; blocks stacked where shapes allow, by
    `stack(specs of all layers)` if given."""
    stack = stack or (lambda specs: jnp.stack([make(spec) for spec in specs]))
    params: Params = {spec.name: jnp.asarray(make(spec)) for spec in model_specs(config)}
    if config.uniform:
        layers = [block_specs(config, layer) for layer in range(config.depth)]
        params["blocks"] = {specs[0].name: stack(specs) for specs in zip(*layers, strict=True)}
    else:
        params["blocks"] = tuple(
            {spec.name: jnp.asarray(make(spec)) for spec in block_specs(config, layer)}
            for layer in range(config.depth)
        )
    return params


def iter_tensors(params: Params, config: ModelConfig) -> Iterator[tuple[TensorSpec, jax.Array]]:
    """Pairs of every spec and its tensor (our layout), in checkpoint order; those of stacked blocks are
    sliced out only when their turn comes."""
    yield from ((spec, params[spec.name]) for spec in model_specs(config))
    for layer in range(config.depth):
        block = layer_block(params["blocks"], layer)
        yield from ((spec, block[spec.name]) for spec in block_specs(config, layer))


def layer_block(blocks: dict[str, jax.Array] | tuple[Block, ...], layer: int) -> Block:
    """Block `layer` out of stacked or per-layer blocks."""
    if isinstance(blocks, tuple):
        return blocks[layer]
    return {name: array[layer] for name, array in blocks.items()}


def random_params(config: ModelConfig, key: jax.Array, scale: float = 0.02) -> Params:
    """Normal weights (norms near one), for tests and dry runs; reproducible from `key`."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())

    def make(spec: TensorSpec) -> np.ndarray:
        noise = rng.standard_normal(spec.shape, dtype=np.float32) * scale
        return noise + 1.0 if spec.name.endswith("norm") else noise

    return build_params(config, make)


def count_parameters(config: ModelConfig) -> tuple[int, int]:
    """(parameters inside the blocks, parameters in all)."""
    outside = sum(math.prod(spec.shape) for spec in model_specs(config))
    total = sum(math.prod(spec.shape) for spec in all_specs(config))
    return total - outside, total
