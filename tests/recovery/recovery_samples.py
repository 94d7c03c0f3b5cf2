"""A tiny dense model, a smaller one with its embeddings, and rows to read."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tiny import make_tiny_config

from tyr_jax.model.spec import LayerShape, ModelConfig, Params
from tyr_jax.model.tensors import random_params
from tyr_jax.recovery.loss import TrainingRows

DIFFERENT = (LayerShape(2, 1, 16), LayerShape(0, 0, 24), LayerShape(4, 2, 0))


class Pair(NamedTuple):
    """A dense model and a smaller one."""

    dense: Params
    dense_config: ModelConfig
    small: Params
    small_config: ModelConfig


def make_pair(layers: tuple[LayerShape, ...] = DIFFERENT) -> Pair:
    config = make_tiny_config(qkv_bias=True)
    smaller = dataclasses.replace(config, layers=layers)
    dense = random_params(config, jax.random.key(0), scale=0.3)
    small = random_params(smaller, jax.random.key(1), scale=0.3)
    shared = {name: dense[name] for name in ("embed", "unembed") if name in dense}
    return Pair(dense, config, small | shared, smaller)


def make_rows(batches: int = 2, count: int = 4, length: int = 12) -> TrainingRows:
    """Rows `[A, B, T]`, with only some of the tokens to be learnt."""
    rng = np.random.default_rng(0)
    shape = batches, count, length
    return TrainingRows(jnp.asarray(rng.integers(0, 96, shape)), jnp.asarray(rng.random(shape) < 0.7))
