"""FLAP, a rival of the whole of local pruning: units whose inputs hardly vary leave, and a bias takes their
place.

An, Zhao, Yu, Tang and Wang, "Fluctuation-based Adaptive Structured Pruning for Large Language Models", AAAI
2024. An input channel that is nearly constant adds nearly the same to every token, so its mean can be moved
into a bias of the site. What is lost is its fluctuation, `Var(X_p) ‖W_p‖²`. Standardised within each site,
fluctuations are compared over all layers, which says how much each layer keeps. Nothing is refitted, and all
statistics are of the dense model.

Axis letters here: `U` units of a site, `d_in` its input channels, `D` outputs; `B` sequences, `T` tokens,
`L` layers.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.errors import UserError
from tyr_jax.model.spec import OUTPUTS, Block, ModelConfig, Params, layer_block
from tyr_jax.pruning.stream import add_output, embedded, site_units
from tyr_jax.space import KINDS

BIASES = "o_bias", "down_bias"
"""The biases behind the sites of each kind."""


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
def _sums(block: Block, x: jax.Array, kind: int, config: ModelConfig) -> tuple[jax.Array, jax.Array]:
    """Sums over tokens of the inputs of the site of a kind, and of their squares, `[d_in]` each."""
    units = site_units(kind, block, x, config).astype(jnp.float32)
    inputs = units.reshape(x.shape[0] * x.shape[1], -1)
    return jnp.sum(inputs, axis=0), jnp.sum(inputs**2, axis=0)


def measure(params: Params, texts: Sequence[np.ndarray], config: ModelConfig) -> list[list[Moments]]:
    """The moments of every site of a dense model on `texts`, arrays of tokens `[B, T]`, by layer and kind."""
    stream = [x[:real] for x, real in zip(*embedded(params, texts), strict=True)]
    tokens = sum(x.shape[0] * x.shape[1] for x in stream)
    found = []
    for layer in range(config.depth):
        block, of_layer = layer_block(params["blocks"], layer), []
        for kind in range(len(KINDS)):
            sums = [jax.tree.map(np.float64, _sums(block, x, kind, config)) for x in stream]
            mean, square = (np.sum(each, axis=0) / tokens for each in zip(*sums, strict=True))
            of_layer.append(Moments(mean, np.maximum(square - mean**2, 0)))
            stream = [add_output(block, x, None, kind, config) for x in stream]
        found.append(of_layer)
    return found


def prune(
    params: Params,
    texts: Sequence[np.ndarray],
    config: ModelConfig,
    units: tuple[int, int],
    kept: tuple[int, int],
) -> Params:
    """The model in dense shapes, with zero rows for units that leave, and biases in their place.

    Sites have `units` units of each kind, of which `kept` stay over all layers. `texts` are arrays of tokens
    `[B, T]`.

    Raises:
        UserError: The model is a mixture of experts, or has norms behind its sites.
    """
    if config.experts or config.post_norms:
        raise UserError("FLAP needs a model without experts and without norms behind its sublayers")
    moments = measure(params, texts, config)
    blocks = dict(params["blocks"])
    for kind, bias in enumerate(BIASES):
        name = OUTPUTS[KINDS[kind]]
        stack = np.asarray(blocks[name], np.float64)
        weights = stack.reshape(config.depth, -1, config.hidden)
        sites = [of_layer[kind] for of_layer in moments]
        pairs = zip(weights, sites, strict=True)
        scores = np.stack([fluctuation(weight, site.variance, units[kind]) for weight, site in pairs])
        stays = np.repeat(allocate(scores, kept[kind]), weights.shape[1] // units[kind], axis=1)
        means = [site.mean for site in sites]
        moved = [compensation(*each) for each in zip(weights, means, stays, strict=True)]
        dtype = blocks[name].dtype
        blocks[name] = jnp.asarray((weights * stays[..., None]).reshape(stack.shape), dtype)
        blocks[bias] = blocks.get(bias, 0) + jnp.asarray(np.stack(moved), dtype)
    return params | {"blocks": blocks}
