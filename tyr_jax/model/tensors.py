"""The tensors of a model, one by one: their shapes, how they are stored, and pytrees of them.

Axis letters: `L` layers, `D` hidden, `N` query heads, `K` key/value heads, `H` head dim, `F` FFN width,
`X` experts, `V` vocabulary.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from tyr_jax.model.spec import DERIVED, UNIT_AXES, Block, ModelConfig, Params, Sublayer


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
