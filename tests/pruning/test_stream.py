"""The residual stream at a site: the weights of its tokens."""

import jax.numpy as jnp
import numpy as np

from tyr_jax.pruning import stream


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
