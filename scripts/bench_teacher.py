"""Ways to keep the dense model's predictions, and how exact the KL divergence is with each. Usage:

  python scripts/bench_teacher.py

The dense model reads real text. The dense model with noise on its last hidden states stands in for a pruned
model. It prints the megabytes that 1,024 tokens take, and the KL divergence (mean over tokens). It also
prints the error against the exact divergence, computed in float64 from whole softmaxes: the relative error of
the mean, and the largest error of any token.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from markdown_table import print_header, print_row
from on_model import OnModel

from tyr_jax.data import DataSpec, load_evaluation
from tyr_jax.model import decoder
from tyr_jax.model.prediction import kl_divergence, log_normaliser, predict


@dataclasses.dataclass(frozen=True)
class Bench(OnModel):
    """What to measure."""

    evaluation: tuple[str, ...] = ("builtin",)
    """Text to read."""
    tokens: int = 1024
    """Tokens of the text."""
    noise: float = 0.5
    """Noise on the hidden states, as a multiple of their root mean square."""
    kept: int = 64
    """Predictions that are kept per token where all others are lumped together."""


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Log probabilities in float64 of `logits [T, V]`."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def divergence(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """KL `[T]` of log probabilities `[T, n]`."""
    return (np.exp(p) * (p - q)).sum(axis=-1)


def lumped(logs: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Log probabilities `[T, k + 1]` of the entries `kept [T, k]`, and of all others lumped together."""
    some = np.take_along_axis(logs, kept, axis=-1)
    rest = np.log(np.maximum(1 - np.exp(some).sum(axis=-1, keepdims=True), np.finfo(float).tiny))
    return np.concatenate([some, rest], axis=-1)


def main(bench: Bench) -> None:
    """Print a row per way to keep the predictions."""
    model = bench.load()
    params, config = model.params, model.config
    spec = DataSpec((), bench.evaluation, evaluation_length=bench.tokens, evaluation_windows=1)
    tokens = jnp.asarray(next(iter(load_evaluation(spec, model.tokenizer).values())))
    hidden = decoder.hidden_states(params, tokens, config)
    scale = bench.noise * jnp.sqrt(jnp.mean(hidden**2))
    noisy = hidden + scale * jax.random.normal(jax.random.key(0), hidden.shape)
    head = decoder.head(params)
    rows = np.asarray(decoder.rows_of(head), np.float64)
    dense, sparse = (log_softmax(np.asarray(states[0], np.float64) @ rows.T) for states in (hidden, noisy))
    best = np.argsort(-dense, axis=-1)[:, : bench.kept]
    answers = predict(head, hidden)
    exact = divergence(dense, sparse)
    per_token = sum(array.nbytes for array in answers) / bench.tokens
    forms = {
        "logits": (config.vocab * 4, exact),
        "hidden states, expected row, normaliser": (
            per_token,
            np.asarray(kl_divergence(head, answers, noisy, log_normaliser(head, noisy)))[0],
        ),
        f"{bench.kept} best and the rest lumped": (
            bench.kept * 8 + 4,
            divergence(lumped(dense, best), lumped(sparse, best)),
        ),
    }
    print_header("kept", "MB for 1,024 tokens", "KL", "relative error", "largest error of a token")
    for name, (size, kl) in forms.items():
        error, worst = kl.mean() / exact.mean() - 1, np.abs(kl - exact).max()
        print_row(name, f"{size * 1024 / 1e6:.2f}", f"{kl.mean():.4f}", f"{error:.1e}", f"{worst:.1e}")


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
