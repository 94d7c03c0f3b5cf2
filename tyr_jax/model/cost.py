"""The least that running a model takes: FLOPs of its matrix products, bytes of its weights and cache."""

import math

import numpy as np

from tyr_jax.model.spec import LayerShape, ModelConfig
from tyr_jax.model.tensors import block_specs


def unit_counts(config: ModelConfig) -> np.ndarray:
    """Heads and neurons of every layer `[S, L]`."""
    return np.array([[layer.heads, layer.ffn] for layer in config.layers]).T


def block_flops(config: ModelConfig, units: np.ndarray, length: int, chunk: int = 1) -> float:
    """FLOPs per token in all blocks with `units [S, L]` heads and neurons, in a sequence of `length` tokens.

    Units may be fractional. Attention is computed in chunks of `chunk` query rows (1: what the causal half
    needs). A layer has the key/value heads of `config`, but no more of them than query heads.
    """
    heads, neurons = units.astype(float)
    kv_heads = np.minimum(heads, [layer.kv_heads for layer in config.layers])
    sizes = {"D": config.hidden, "N": heads, "K": kv_heads, "H": config.head_dim, "F": neurons}
    sizes["X"] = np.array([layer.experts for layer in config.layers])
    projections = [tensor for tensor in config.tensors if tensor.inputs]
    products = sum(2 * math.prod(sizes[axis] for axis in tensor.axes) for tensor in projections)
    keys = np.mean([min(length, (row // chunk + 1) * chunk) for row in range(length)])
    return float(np.sum(products + 4 * config.head_dim * heads * keys))


def head_flops(config: ModelConfig) -> float:
    """FLOPs per token in the head."""
    return 2.0 * config.hidden * config.vocab


def decode_bytes(config: ModelConfig, itemsize: int) -> int:
    """Bytes of weights that are read for every token: all blocks, the head and the last norm."""
    blocks = sum(
        math.prod(spec.shape) for layer in range(config.depth) for spec in block_specs(config, layer)
    )
    return itemsize * (blocks + config.hidden * (config.vocab + 1))


def cache_bytes(layers: tuple[LayerShape, ...], head_dim: int, itemsize: int) -> int:
    """Bytes per token of the cache of keys and values."""
    return 2 * itemsize * head_dim * sum(layer.kv_heads for layer in layers)
