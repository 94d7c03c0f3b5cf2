"""The residual stream at a site: the weights of its tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import DTypeLike
from tiny import make_tiny_config

from tyr_jax.model.tensors import layer_block, random_params
from tyr_jax.pruning import linalg, stream
from tyr_jax.pruning.kinds import NEURONS


def test_tokens_weigh_by_their_residuals() -> None:
    """By hand: an rms of 2, of 4, and of 1000 at an attention sink, and a sequence that is padding."""
    rms = np.array([[2.0, 4.0, 1000.0, 4.0], [1.0, 1.0, 1.0, 1.0]])
    x = jnp.asarray(rms[..., None] * np.array([1.0, -1.0, 1.0]), jnp.float32)
    weights = stream.token_weights(x, jnp.int32(1), even=False)
    np.testing.assert_allclose(weights, [[0.5, 0.25, 0.001, 0.25], [0, 0, 0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(stream.token_weights(x, jnp.int32(1), even=True), [[1] * 4, [0] * 4])


def test_tokens_without_an_embedding_do_not_rule() -> None:
    """They weigh at most ten times as much as the median token. A sequence of nothing else has no weight."""
    rms = np.array([[0.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    x = jnp.asarray(rms[..., None] * np.ones(3), jnp.float32)
    weights = stream.token_weights(x, jnp.int32(2), even=False)
    np.testing.assert_allclose(weights, [[5, 0.5, 0.5, 0.5], [0, 0, 0, 0]], rtol=1e-6)


def test_errors_are_measured_behind_a_norm() -> None:
    """A small change of a site's weight moves what is added to the residual as far as its product moves, with
    the tokens' weights and the norm's gain, but for the direction in which the norm divides it out."""
    config = make_tiny_config(layers=1, post_norms=True)
    block = layer_block(random_params(config, jax.random.key(0), scale=0.2)["blocks"], 0)
    rng = np.random.default_rng(0)
    gain = rng.uniform(0.2, 3, config.hidden)
    block |= {"mlp_post_norm": jnp.asarray(gain, jnp.float32)}
    # Tokens of very different size.
    units = rng.standard_normal((1, 200, 48)) * np.exp(2 * rng.standard_normal((1, 200, 1)))
    weight = np.asarray(block["down"], float)
    change = 1e-4 * rng.standard_normal(weight.shape)

    def added(weight: np.ndarray) -> np.ndarray:
        product = units @ weight
        return gain * product / np.sqrt(np.mean(product**2, axis=-1, keepdims=True) + config.norm_eps)

    exact = np.sum((added(weight + change) - added(weight)) ** 2)
    weights = stream.behind_norm(NEURONS, block, jnp.asarray(units, jnp.float32), None, config)
    assert weights is not None
    moved = np.asarray(weights)[..., None] * (units @ change)
    metric = stream.metric_behind(jnp.eye(config.hidden), stream.behind_gain(NEURONS, block, config))
    measured = np.sum((moved @ np.asarray(metric)) * moved)
    assert measured == pytest.approx(exact, rel=3 / config.hidden)
    doubled = stream.behind_norm(
        NEURONS, block, jnp.asarray(units, jnp.float32), 2 * jnp.ones((1, 200)), config
    )
    np.testing.assert_allclose(doubled, 2 * weights, rtol=1e-6)
    plain = make_tiny_config(layers=1)
    assert stream.behind_norm(NEURONS, block, jnp.asarray(units), None, plain) is None
    assert stream.metric_behind(metric, stream.behind_gain(NEURONS, block, plain)) is metric


@pytest.mark.parametrize("with_metric", [True, False])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_levels_cost(with_metric: bool, dtype: DTypeLike) -> None:
    """Against float64, token by token. Without a metric, a token of a large residual counts as any other."""
    config = make_tiny_config(layers=1)
    rng = np.random.default_rng(0)
    x, units = (jnp.asarray(rng.standard_normal((3, 9, width)), dtype) for width in (config.hidden, 48))
    units = units.at[0, 0].multiply(1000)
    block = layer_block(random_params(config, jax.random.key(0))["blocks"], 0)
    block = jax.tree.map(lambda array: array.astype(dtype), block)
    root = rng.standard_normal((config.hidden, config.hidden))
    metric = jnp.asarray(root @ root.T, jnp.float32) if with_metric else None
    levels = jnp.stack([jnp.zeros_like(block["down"]), block["down"] / 2, block["down"]])
    share, error = stream.level_costs(block, levels, x, units, metric, NEURONS, 2, config)
    assert share.dtype == error.dtype == jnp.float32
    np.testing.assert_allclose(error, [1, 0.25, 0], atol=1e-5)
    x, units, down = (np.asarray(array, np.float64) for array in (x[:2], units[:2], block["down"]))
    out, expected = units @ down, 0.0
    after = np.asarray(jnp.asarray(x, dtype) + jnp.asarray(out, dtype), np.float64)
    for token in np.ndindex(2, 9):
        worth = np.asarray(metric) / 2 if with_metric else np.eye(config.hidden) / np.sum(after[token] ** 2)
        expected += out[token] @ worth @ out[token] / 18
    assert float(share) == pytest.approx(expected, rel=1e-4 if dtype == jnp.float32 else 0.02)


def test_the_metric_behind_gains_of_zero_has_a_cholesky_factor() -> None:
    config = make_tiny_config(layers=1)
    gain = jnp.linspace(-1.0, 600.0, config.hidden).at[jnp.array([0, 3])].set(0.0)
    root = np.random.default_rng(0).standard_normal((config.hidden, config.hidden))
    metric = jnp.asarray(root @ root.T + 0.1 * np.eye(config.hidden), jnp.float32)
    behind = stream.metric_behind(metric, gain)
    assert np.isfinite(linalg.factor(behind)).all()
    exact = np.asarray(metric) * np.asarray(gain) * np.asarray(gain)[:, None]
    np.testing.assert_allclose(behind, exact, atol=1e-5 * np.diagonal(exact).mean(), rtol=1e-5)
