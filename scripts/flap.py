"""FLAP, an alternative to all of local pruning: units whose inputs hardly vary leave, and a bias takes their
place.

An, Zhao, Yu, Tang and Wang, "Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI
2024. An input channel that is nearly constant adds nearly the same to every token, so its mean can be moved
into a bias of the site. What is lost is its fluctuation, `Var(X_p) ‖W_p‖²`. Standardised within each site,
fluctuations are compared over all layers, which says how much each layer keeps. Nothing is refitted, and all
statistics are of the dense model.

Axis letters here: `U` units of a site, `d_in` its input channels, `D` outputs; `B` sequences, `T` tokens,
`L` layers.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.errors import UserError
from tyr_jax.model.families import FAMILIES
from tyr_jax.model.spec import Block, ModelConfig, Params
from tyr_jax.model.tensors import block_specs, layer_block
from tyr_jax.pruning.kinds import HEADS, NEURONS, SiteKind
from tyr_jax.pruning.stream import add_output, embedded, site_units, token_weights
from tyr_jax.runtime import devices

SITES = {HEADS: "o_bias", NEURONS: "down_bias"}
"""The kinds of site, with their output biases."""


class Moments(NamedTuple):
    """Mean and variance `[d_in]` of a site's inputs over all tokens."""

    mean: np.ndarray
    variance: np.ndarray


def fluctuation(weight: np.ndarray, variance: np.ndarray, units: int) -> np.ndarray:
    """How much each unit is missed, `[U]`: `Var(X_p) ‖W_p‖²` of its channels, in standard deviations from the
    mean over the site, and a mean over the unit's channels. `weight` is `[d_in, D]`, `variance [d_in]`."""
    channels = variance * np.sum(weight**2, axis=1)
    spread = np.std(channels)
    standard = (channels - np.mean(channels)) / (spread if spread > 0 else 1.0)
    return standard.reshape(units, -1).mean(axis=1)


def allocate(scores: np.ndarray, kept: int) -> np.ndarray:
    """Which units of all layers stay, `[L, U]`: the `kept` units of the highest `scores [L, U]`."""
    stays = np.zeros(scores.size, bool)
    stays[np.argsort(-scores, axis=None, kind="stable")[:kept]] = True
    return stays.reshape(scores.shape)


def compensation(weight: np.ndarray, mean: np.ndarray, stays: np.ndarray) -> np.ndarray:
    """The bias `[D]` that takes the place of the channels that leave: what they add on average. `weight` is
    `[d_in, D]`; `mean` and `stays` are `[d_in]`."""
    return (mean * ~stays) @ weight


@functools.partial(jax.jit, static_argnames=("kind", "config"))
def _sums(
    block: Block, x: jax.Array, weights: jax.Array, centre: jax.Array, kind: SiteKind, config: ModelConfig
) -> tuple[jax.Array, jax.Array]:
    """Sums over tokens of how far the inputs of the site of a kind are from `centre [d_in]`, and of the
    squares of that, `[d_in]` each. Tokens count as `weights [B, T]`."""

    def add(block: Block, centre: jax.Array, x: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
        units = site_units(kind, block, x, config).astype(jnp.float32)
        away = (units.reshape(*x.shape[:2], -1) - centre) * weights[..., None]
        return jnp.sum(away, axis=(0, 1))[None], jnp.sum(away**2, axis=(0, 1))[None]

    first, second = devices.divided(add, whole=2)(block, centre, x, weights)
    return jnp.sum(first, axis=0), jnp.sum(second, axis=0)


def measure(params: Params, texts: Sequence[np.ndarray], config: ModelConfig) -> list[list[Moments]]:
    """The moments of every site of a dense model on `texts`, arrays of tokens `[B, T]`, by layer and kind."""
    stream, real = embedded(params, texts)
    # Sequences that only fill up a batch do not count.
    weights = [token_weights(x, jnp.int32(count), even=True) for x, count in zip(stream, real, strict=True)]
    found = []
    for layer in range(config.depth):
        block, of_layer = layer_block(params["blocks"], layer), []
        for kind in SITES:
            of_layer.append(moments_of(kind, block, stream, weights, config))
            stream = [add_output(block, x, None, kind, config) for x in stream]
        found.append(of_layer)
    return found


def moments_of(
    kind: SiteKind,
    block: Block,
    stream: Sequence[jax.Array],
    weights: Sequence[jax.Array],
    config: ModelConfig,
) -> Moments:
    """The moments of the site of a kind, from the residuals before it, `stream [B, T, D]`, whose tokens count
    as `weights [B, T]`.

    Sums are of differences from the mean of the first batch: those of a channel that is nearly constant would
    otherwise cancel.
    """
    size = block[kind.output].size // config.hidden
    first, _ = _sums(block, stream[0], weights[0], jnp.zeros(size), kind, config)
    centre = first / jnp.sum(weights[0])
    pairs = zip(stream, weights, strict=True)
    sums = [jax.tree.map(np.float64, _sums(block, x, each, centre, kind, config)) for x, each in pairs]
    tokens = sum(float(each.sum()) for each in weights)
    mean, square = (np.sum(each, axis=0) / tokens for each in zip(*sums, strict=True))
    return Moments(np.float64(centre) + mean, np.maximum(square - mean**2, 0))


def prune(
    params: Params,
    texts: Sequence[np.ndarray],
    config: ModelConfig,
    units: tuple[int, int],
    kept: tuple[int, int],
) -> tuple[Params, ModelConfig]:
    """The model in dense shapes, with zero rows for units that leave and biases in their place, and its
    configuration, which has biases.

    Sites have `units` units of each kind, of which `kept` stay over all layers. `texts` are arrays of tokens
    `[B, T]`.

    Raises:
        UserError: the model has experts or post-norms, or its family has no output biases.
    """
    named = FAMILIES[config.family].tensors
    if config.experts or config.post_norms or not {"out_bias", "mlp_bias"} <= named.keys():
        raise UserError(f"FLAP needs an output bias in every sublayer, which {config.family} models lack")
    moments = measure(params, texts, config)
    biased = dataclasses.replace(config, qkv_bias=True, out_bias=True, mlp_bias=True)
    blocks = without_effect(biased) | dict(params["blocks"])
    for row, (kind, bias) in enumerate(SITES.items()):
        name = kind.output
        stack = np.asarray(blocks[name], np.float64)
        weights = stack.reshape(config.depth, -1, config.hidden)
        sites = [of_layer[row] for of_layer in moments]
        pairs = zip(weights, sites, strict=True)
        scores = np.stack([fluctuation(weight, site.variance, units[row]) for weight, site in pairs])
        stays = np.repeat(allocate(scores, kept[row]), weights.shape[1] // units[row], axis=1)
        means = [site.mean for site in sites]
        moved = [compensation(*each) for each in zip(weights, means, stays, strict=True)]
        dtype = blocks[name].dtype
        blocks[name] = jnp.asarray((weights * stays[..., None]).reshape(stack.shape), dtype)
        blocks[bias] = (blocks[bias] + jnp.asarray(np.stack(moved))).astype(dtype)
    return params | {"blocks": blocks}, biased


def without_effect(config: ModelConfig) -> Block:
    """Biases of zero for all layers of a model whose layers are alike, by name."""
    biases = (spec for spec in block_specs(config, 0) if spec.name.endswith("_bias"))
    return {spec.name: jnp.zeros((config.depth, *spec.shape)) for spec in biases}
