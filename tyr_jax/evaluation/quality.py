"""How good a model is on text: perplexity, and its divergence from the dense model.

Axis letters: `B` windows, `T` tokens, `D` hidden.
"""

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.model import decoder
from tyr_jax.model.decoder import Head
from tyr_jax.model.prediction import (
    Prediction,
    kl_divergence,
    log_normaliser,
    negative_log_likelihood,
    predict,
)
from tyr_jax.model.spec import ModelConfig, Params
from tyr_jax.runtime import devices
from tyr_jax.runtime.batches import BatchRows, batches
from tyr_jax.workspace import records

MAX_LOG_PERPLEXITY = 700.0
"""Beyond it a float64 perplexity would overflow."""


class Quality(NamedTuple):
    """Perplexity over the next tokens of all windows, and mean KL(dense ‖ model) in nats per token."""

    perplexity: float
    kl: float

    def saved(self) -> records.QualityRecord:
        """Its record, with None for values that are not finite."""
        found = {name: value if math.isfinite(value) else None for name, value in self._asdict().items()}
        return records.QualityRecord(**found)

    @classmethod
    def of(cls, saved: records.QualityRecord) -> Self:
        """The quality in a record, with NaN for values that were not finite."""
        found = (saved.perplexity, saved.kl)
        return cls(*(math.nan if value is None else value for value in found))


def mean_kl(measured: Iterable[Quality]) -> float:
    """KL divergence from the dense model, averaged over texts: infinite if that of a text is not finite or
    not known, so that a model that overflows is never the better one."""
    mean = float(np.mean([quality.kl for quality in measured]))
    return mean if math.isfinite(mean) else math.inf


@functools.partial(jax.jit, static_argnames="config")
def predict_windows(
    params: Params, residual: jax.Array, tokens: jax.Array, config: ModelConfig
) -> tuple[Prediction, jax.Array]:
    """(predictions on `tokens [B, T]`, sums `[B]` of their next-token NLL), from the `residual [B, T, D]`
    after the last layer. `params` has what lies outside the blocks."""

    def answer(head: Head, hidden: jax.Array, tokens: jax.Array) -> tuple[Prediction, jax.Array]:
        dense = predict(head, hidden)
        return dense, jnp.sum(negative_log_likelihood(head, hidden, dense.normaliser, tokens), axis=1)

    hidden = decoder.final_hidden(params, residual, config)
    return devices.divided(answer, whole=1)(decoder.head(params), hidden, tokens)


@functools.partial(jax.jit, static_argnames="config")
def window_sums(
    params: Params, residual: jax.Array, tokens: jax.Array, dense: Prediction | None, config: ModelConfig
) -> tuple[jax.Array, jax.Array]:
    """(next-token NLL, KL(dense ‖ model)), each summed over the tokens of a window, `[B]`.

    They come from `tokens [B, T]`, the `residual [B, T, D]` after the last layer, and the predictions `dense`
    of the dense model; without these, the KL is NaN. `params` has what lies outside the blocks.
    """

    def compare(
        head: Head, hidden: jax.Array, tokens: jax.Array, dense: Prediction | None
    ) -> tuple[jax.Array, jax.Array]:
        normaliser = log_normaliser(head, hidden)
        nll = jnp.sum(negative_log_likelihood(head, hidden, normaliser, tokens), axis=1)
        if dense is None:
            return nll, jnp.full_like(nll, jnp.nan)
        return nll, jnp.sum(kl_divergence(head, dense, hidden, normaliser), axis=1)

    hidden = decoder.final_hidden(params, residual, config)
    return devices.divided(compare, whole=1)(decoder.head(params), hidden, tokens, dense)


def _quality(nll: float, kl: float, windows: np.ndarray) -> Quality:
    count, length = windows.shape
    return Quality(math.exp(min(nll / (count * (length - 1)), MAX_LOG_PERPLEXITY)), kl / (count * length))


def _read(
    params: Params, windows: np.ndarray, config: ModelConfig
) -> Iterator[tuple[BatchRows, jax.Array, jax.Array]]:
    """Batches of `windows [B, T]`: (which windows, their tokens, the residuals after the last layer)."""
    rows = batches(windows)
    texts = [jnp.asarray(windows[part.indices]) for part in rows]
    for part, tokens, state in zip(rows, texts, decoder.run_model(params, texts, config), strict=True):
        yield part, tokens, state.residual


def measure_dense(
    params: Params,
    windows: np.ndarray,
    config: ModelConfig,
    on_windows: Callable[[int], None] = lambda windows: None,
) -> tuple[Prediction, Quality]:
    """The dense model's predictions on `windows [B, T]`, on the host, and its quality."""
    parts, total = [], 0.0
    for (_, real), tokens, residual in _read(params, windows, config):
        answers = predict_windows(decoder.outside(params), residual, tokens, config)
        dense, nll = devices.fetch(answers)
        parts.append(jax.tree.map(lambda array, real=real: array[:real], dense))
        total += float(np.sum(nll[:real]))
        on_windows(real)
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts), _quality(total, 0.0, windows)


def measure(
    params: Params,
    windows: np.ndarray,
    config: ModelConfig,
    dense: Prediction | None = None,
    on_windows: Callable[[int], None] = lambda windows: None,
) -> Quality:
    """Quality of a model on `windows [B, T]`. Each window is read on its own, and its first token is given.

    `dense` has the dense model's predictions, from `measure_dense` (pruning leaves the head as it is).
    Without them, `kl` is NaN.
    """
    nll, kl = losses(params, windows, config, dense, on_windows)
    return _quality(float(nll.sum()), float(kl.sum()), windows)


def losses(
    params: Params,
    windows: np.ndarray,
    config: ModelConfig,
    dense: Prediction | None,
    on_windows: Callable[[int], None] = lambda windows: None,
) -> tuple[np.ndarray, np.ndarray]:
    """(next-token NLL, KL(dense ‖ model)) of each of `windows [B, T]`, summed over its tokens, `[B]` float64.
    Without the predictions `dense`, the KL is NaN."""
    parts = []
    for (rows, real), tokens, residual in _read(params, windows, config):
        answers = jax.tree.map(lambda array, at=rows: jnp.asarray(array[at]), dense)
        sums = window_sums(decoder.outside(params), residual, tokens, answers, config)
        parts.append(np.stack([values[:real] for values in devices.fetch(sums)]).astype(float))
        on_windows(real)
    nll, kl = np.concatenate(parts, axis=1)
    return nll, kl
