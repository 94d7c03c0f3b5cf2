"""Chunked attention against a naive one in float64, under `vmap` and differentiated."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import attention64

from tyr_jax.model.attention import QUERY_CHUNK, Attention, attend_sequence, causal_attention, one_by_one


def random_qkv(length: int, *batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries of 6 heads, keys and values of 3."""
    rng = np.random.default_rng(length)
    q, k, v = (rng.standard_normal((*batch, length, heads, 4)).astype(np.float32) for heads in (6, 3, 3))
    return q, k, v


def together(window: int | None) -> Attention:
    """The attention that is used where sequences need not run one after the other."""
    return jax.vmap(functools.partial(attend_sequence, window=window, chunk=QUERY_CHUNK))


@pytest.mark.parametrize("window", [None, 7, 150])
@pytest.mark.parametrize("length", [5, QUERY_CHUNK + 1, 2 * QUERY_CHUNK + 37])
def test_attention_in_chunks_equals_the_naive_one(length: int, window: int | None) -> None:
    q, k, v = random_qkv(length, 2)
    exact = np.empty(q.shape)
    for b, n in np.ndindex(2, 6):
        head = (a.astype(float) for a in (q[b, :, n], k[b, :, n // 2], v[b, :, n // 2]))
        exact[b, :, n] = attention64(*head, window)
    for attention in (functools.partial(causal_attention, window=window), together(window)):
        np.testing.assert_allclose(jax.jit(attention)(q, k, v), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("axes", [(0, 0, 0), (0, None, None), (1, 0, None)])
def test_a_vmap_adds_sequences(axes: tuple[int | None, ...]) -> None:
    batches = [(5, 2) if axis == 0 else (2, 5) if axis == 1 else (2,) for axis in axes]
    q, k, v = (random_qkv(9, *batch)[i] for i, batch in enumerate(batches))
    out = jax.jit(jax.vmap(causal_attention, in_axes=axes))(q, k, v)
    expected = jax.vmap(together(None), in_axes=axes)(q, k, v)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-6)


def test_sequences_under_a_vmap_follow_each_other_too() -> None:
    q, k, v = random_qkv(64, 5, 2)
    attend = functools.partial(attend_sequence, window=None, chunk=QUERY_CHUNK)
    nested = jax.make_jaxpr(jax.vmap(one_by_one(attend)))(q, k, v)
    assert re.findall(r"length=(\d+)", str(nested)) == ["2", "5"]


def test_gradients() -> None:
    q, k, v = random_qkv(QUERY_CHUNK + 9, 2)

    def loss(attention: Attention, *qkv: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(attention(*qkv)))

    for i in range(3):
        ours = jax.jit(jax.grad(functools.partial(loss, causal_attention), argnums=i))(q, k, v)
        expected = jax.grad(functools.partial(loss, together(None)), argnums=i)(q, k, v)
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("window", [None, 7])
def test_a_sink_is_a_position_without_a_value(window: int | None) -> None:
    """Every token sees it, also beyond the window. The window may be data."""
    q, k, v = random_qkv(QUERY_CHUNK + 9, 2)
    sinks = np.random.default_rng(1).standard_normal(6).astype(np.float32)
    exact = np.empty(q.shape)
    for b, n in np.ndindex(2, 6):
        query, key, value = (a.astype(float) for a in (q[b, :, n], k[b, :, n // 2], v[b, :, n // 2]))
        behind = np.arange(len(query))[:, None] - np.arange(len(query))
        visible = (behind >= 0) & (behind < (window or len(query)))
        terms = np.where(visible, np.exp(query @ key.T / 2), 0)
        exact[b, :, n] = terms @ value / (terms.sum(axis=1) + np.exp(sinks[n]))[:, None]
    for given in (window, jnp.int32(window or 10**6)):
        ours = jax.jit(causal_attention, static_argnums=() if isinstance(given, jax.Array) else 3)
        np.testing.assert_allclose(ours(q, k, v, given, jnp.asarray(sinks)), exact, rtol=1e-4, atol=1e-5)

    def loss(sinks: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(causal_attention(q, k, v, window, sinks)))

    step = 1e-2 * np.eye(6, dtype=np.float32)[0]
    slope = (loss(jnp.asarray(sinks + step)) - loss(jnp.asarray(sinks - step))) / 2e-2
    assert jax.grad(loss)(jnp.asarray(sinks))[0] == pytest.approx(float(slope), rel=2e-2)
