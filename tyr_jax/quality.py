"""How good a model is on text: perplexity, and its divergence from the dense model.

Axis letters: `S` windows, `T` tokens, `D` hidden.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.model import decoder
from tyr_jax.model.spec import ModelConfig, Params
from tyr_jax.search.objective import kl_and_normaliser, log_normaliser, negative_log_likelihood

BATCH_TOKENS = 4096
"""Tokens that run at a time."""

MAX_LOG_PERPLEXITY = 700.0
"""Beyond it a float64 perplexity would overflow."""


class Quality(NamedTuple):
    """Perplexity over the next tokens of all windows, and mean KL(dense ‖ model) in nats a token."""

    perplexity: float
    kl: float


@functools.partial(jax.jit, static_argnames="config")
def window_sums(
    params: Params, tokens: jax.Array, teacher: jax.Array | None, config: ModelConfig
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(hidden states `[S, T, D]`, sum of next-token NLL, sum of KL to `teacher [S, T, D]`, if any)."""
    hidden = decoder.hidden_states(params, tokens, config)
    if teacher is None:
        kl, normaliser = jnp.float32(0), log_normaliser(params, hidden)
    else:
        kl, normaliser = kl_and_normaliser(params, teacher, hidden)
    nll = negative_log_likelihood(params, hidden, normaliser, tokens)
    return hidden, jnp.sum(nll), jnp.sum(kl)


def batches(windows: np.ndarray) -> list[slice]:
    """Slices of `windows [S, T]` of at most `BATCH_TOKENS` tokens (at least one window) each."""
    size = max(1, BATCH_TOKENS // windows.shape[1])
    return [slice(start, start + size) for start in range(0, len(windows), size)]


def _quality(nll: float, kl: float, windows: np.ndarray) -> Quality:
    count, length = windows.shape
    return Quality(math.exp(min(nll / (count * (length - 1)), MAX_LOG_PERPLEXITY)), kl / (count * length))


def teach(
    params: Params,
    windows: np.ndarray,
    config: ModelConfig,
    on_windows: Callable[[int], None] = lambda windows: None,
) -> tuple[np.ndarray, Quality]:
    """The dense model's normed last states `[S, T, D]` on `windows [S, T]`, on the host, and its quality."""
    states, total = [], 0.0
    for part in batches(windows):
        hidden, nll, _ = window_sums(params, jnp.asarray(windows[part]), None, config)
        states.append(np.asarray(hidden))
        total += float(nll)
        on_windows(len(windows[part]))
    return np.concatenate(states), _quality(total, 0.0, windows)


def measure(
    params: Params,
    windows: np.ndarray,
    config: ModelConfig,
    teacher: np.ndarray | None = None,
    on_windows: Callable[[int], None] = lambda windows: None,
) -> Quality:
    """Quality of a model on `windows [S, T]`; each window is read on its own, its first token is given.

    `teacher [S, T, D]` are the dense model's states from `teach` (pruning leaves the head as it is);
    without it `kl` is NaN.
    """
    total_nll, total_kl = 0.0, 0.0 if teacher is not None else math.nan
    for part in batches(windows):
        dense = None if teacher is None else jnp.asarray(teacher[part])
        _, nll, kl = window_sums(params, jnp.asarray(windows[part]), dense, config)
        total_nll, total_kl = total_nll + float(nll), total_kl + float(kl)
        on_windows(len(windows[part]))
    return _quality(total_nll, total_kl, windows)
