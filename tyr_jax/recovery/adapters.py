"""What is trained: low-rank changes of every projection (LoRA, Hu et al. 2021), or the blocks themselves.

Embeddings and head stay as pruning left them, the same as in the dense model.

Axis letters: `L` layers, `I` inputs, `R` rank.
"""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey, SequenceKey
from optax.contrib import MuonDimensionNumbers

from tyr_jax.model.linear import Adapted
from tyr_jax.model.spec import Block, ModelConfig, Params
from tyr_jax.model.tensors import block_specs, cast, derived_of, of_blocks, of_model, weights_of

Method = Literal["lora", "full"]

TRAINED = "blocks", "final_norm"
"""What `full` trains."""


def trainable(params: Params, config: ModelConfig, method: Method, rank: int, seed: int) -> Any:
    """The parameters to train, in float32, at the start of training: the model is then unchanged."""
    if method == "full":
        # Copies, because training overwrites them.
        trained = {name: params[name] for name in TRAINED}
        trained["blocks"] = of_blocks(weights_of, params["blocks"])
        return jax.tree.map(lambda array: jnp.array(array, jnp.float32), trained)
    rng = np.random.default_rng(seed)

    def pair(inputs: int, weight: jax.Array, axes: int, lead: tuple[int, ...]) -> dict[str, jax.Array]:
        bound = inputs**-0.5
        down = rng.uniform(-bound, bound, (*lead, inputs, rank)).astype(np.float32)
        return {"down": jnp.asarray(down), "up": jnp.zeros((*lead, rank, *weight.shape[axes:]), jnp.float32)}

    def of_block(block: Block, layer: int, lead: tuple[int, ...] = ()) -> dict[str, dict[str, jax.Array]]:
        specs = [spec for spec in block_specs(config, layer) if spec.inputs]
        return {
            spec.name: pair(
                math.prod(spec.shape[: len(spec.inputs)]),
                block[spec.name],
                len(lead) + len(spec.inputs),
                lead,
            )
            for spec in specs
        }

    blocks = params["blocks"]
    if isinstance(blocks, tuple):
        return tuple(of_block(block, layer) for layer, block in enumerate(blocks))
    return of_block(blocks, 0, (config.depth,))


def frozen(params: Params, method: Method) -> Params:
    """The parameters of a model that training does not change."""
    if method == "lora":
        return params
    rest = {name: array for name, array in params.items() if name not in TRAINED}
    return rest | {"blocks": of_blocks(derived_of, params["blocks"])}


def matrices(trained: Any, config: ModelConfig, method: Method) -> Any:
    """Which axes of the trained parameters are the inputs and the outputs of a matrix; None for vectors."""
    inputs = {tensor.name: len(tensor.inputs) for tensor in config.tensors}

    def axes(path: tuple[Any, ...], array: jax.Array) -> MuonDimensionNumbers | None:
        names = [part.key for part in path if isinstance(part, DictKey)]
        # The first axis of stacked blocks is the layer.
        first = 0 if any(isinstance(part, SequenceKey) for part in path) else 1
        if method == "lora":
            count = 1
        elif names[0] == "final_norm" or not (count := inputs[names[-1]]):
            return None
        middle = first + count
        return MuonDimensionNumbers(tuple(range(first, middle)), tuple(range(middle, array.ndim)))

    return jax.tree_util.tree_map_with_path(axes, trained)


def assemble(frozen: Params, trained: Any, method: Method, scale: float) -> Params:
    """The model as it runs during training, in the dtype of what is `frozen`: with the changes, times
    `scale`, next to its weights, or with weights as trained."""
    dtype = frozen["embed"].dtype
    if method == "full":
        learnt = jax.tree.map(lambda array: array.astype(dtype), trained)
        blocks = of_blocks(lambda derived, own: derived | own, frozen["blocks"], learnt["blocks"])
        return frozen | learnt | {"blocks": blocks}

    def of_block(block: Block, pairs: dict[str, dict[str, jax.Array]]) -> dict[str, Any]:
        return block | {
            name: Adapted(block[name], pair["down"].astype(dtype), (scale * pair["up"]).astype(dtype))
            for name, pair in pairs.items()
        }

    return frozen | {"blocks": of_blocks(of_block, frozen["blocks"], trained)}


def merged(frozen: Params, trained: Any, method: Method, scale: float) -> Params:
    """The model to write, in float32 and in its shapes before training: changes are added to weights."""
    wide = of_model(lambda tensors: cast(tensors, jnp.float32), frozen)
    adapted = assemble(wide, trained, method, scale)

    def product(down: jax.Array, up: jax.Array) -> jax.Array:
        return jnp.tensordot(down, up, axes=1)

    def merge(weight: Any) -> Any:
        if not isinstance(weight, Adapted):
            return weight
        change = (jax.vmap(product) if weight.down.ndim == 3 else product)(weight.down, weight.up)
        return weight.weight + change.reshape(weight.weight.shape)

    return jax.tree.map(merge, adapted, is_leaf=lambda leaf: isinstance(leaf, Adapted))
