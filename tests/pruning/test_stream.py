"""The residual stream at a site: what tokens weigh there."""

import jax.numpy as jnp
import numpy as np

from tyr_jax.pruning import stream


def test_tokens_weigh_by_their_residuals() -> None:
    """By hand: rms 2, 4, and 1000 where attention rests; a sequence that only fills up the batch."""
    rms = np.array([[2.0, 4.0, 1000.0, 4.0], [1.0, 1.0, 1.0, 1.0]])
    x = jnp.asarray(rms[..., None] * np.array([1.0, -1.0, 1.0]), jnp.float32)
    weights = stream.token_weights(x, jnp.int32(1), even=False)
    np.testing.assert_allclose(weights, [[0.5, 0.25, 0.001, 0.25], [0, 0, 0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(stream.token_weights(x, jnp.int32(1), even=True), [[1] * 4, [0] * 4])


def test_tokens_without_an_embedding_do_not_rule() -> None:
    """They weigh ten times as much as half of the others, at most; alone, nothing."""
    rms = np.array([[0.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    x = jnp.asarray(rms[..., None] * np.ones(3), jnp.float32)
    weights = stream.token_weights(x, jnp.int32(2), even=False)
    np.testing.assert_allclose(weights, [[5, 0.5, 0.5, 0.5], [0, 0, 0, 0]], rtol=1e-6)
