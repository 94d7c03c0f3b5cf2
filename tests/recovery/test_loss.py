"""Losses against whole softmaxes in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from recovery_samples import make_pair, make_rows
from speeds import only_quick

from tyr_jax.model import decoder
from tyr_jax.model.spec import ModelConfig, Params
from tyr_jax.recovery import loss
from tyr_jax.recovery.loss import Loss


def logs(params: Params, config: ModelConfig, tokens: jax.Array) -> np.ndarray:
    """Log-probabilities `[B, T, V]`."""
    logits = np.asarray(decoder.forward(params, tokens, config), np.float64)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def states(params: Params, config: ModelConfig, tokens: jax.Array, observed: tuple[int, ...]) -> np.ndarray:
    begun = decoder.begin_forward(decoder.outside(params), tokens)
    return np.asarray(decoder.run_blocks(params["blocks"], begun, config, observed).outputs, np.float64)


@pytest.mark.parametrize(
    "asked",
    only_quick(
        [Loss("kd"), Loss("next-token"), Loss("kd+next-token", hidden=0.5)], Loss("kd+next-token", hidden=0.5)
    ),
    ids=str,
)
def test_only_what_is_to_be_learnt_counts(asked: Loss) -> None:
    pair, rows = make_pair(), jax.tree.map(lambda array: array[0], make_rows())
    dense = loss.teacher_batch(pair.dense, rows.tokens, pair.dense_config, asked) if asked.taught else None
    found = loss.sums(pair.small, rows, dense, pair.small_config, asked)
    teacher, student = (
        logs(params, config, rows.tokens)
        for params, config in ((pair.dense, pair.dense_config), (pair.small, pair.small_config))
    )
    expected = np.zeros(len(rows.tokens))
    for row, position in np.argwhere(np.asarray(rows.learn)[:, 1:]):
        if "next-token" in asked.goal:
            expected[row] -= student[row, position, rows.tokens[row, position + 1]]
        if "kd" in asked.goal:
            p, q = teacher[row, position], student[row, position]
            expected[row] += np.sum(np.exp(p) * (p - q))
    if asked.hidden:
        ours, theirs = (
            states(params, config, rows.tokens, (0, 1, 2))
            for params, config in ((pair.small, pair.small_config), (pair.dense, pair.dense_config))
        )
        apart = (((theirs - ours) ** 2).sum((2, 3)) / (theirs**2).sum((2, 3))).sum(1)
        expected += 0.5 * apart * np.asarray(rows.learn)[:, 1:].sum(1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_what_is_not_to_be_learnt_changes_nothing_before_it() -> None:
    """The last tokens are not learnt, so they may be anything."""
    pair, rows = make_pair(), jax.tree.map(lambda array: array[0], make_rows())
    learn = rows.learn.at[:, -3:].set(False)
    other = rows.tokens.at[:, -3:].set(5)
    one, two = (
        loss.sums(pair.small, loss.TrainingRows(tokens, learn), None, pair.small_config, Loss("next-token"))
        for tokens in (rows.tokens, other)
    )
    np.testing.assert_allclose(one, two, rtol=1e-5)
    assert float(jnp.min(one)) > 0
