"""Chunked attention against a naive one in float64, under `vmap` and differentiated."""

import functools
import re
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import attention64
from speeds import only_quick

from tyr_jax.model.attention import (
    LONG_QUERY_CHUNK,
    QUERY_CHUNK,
    Shared,
    Static,
    Window,
    attend_sequence,
    causal_attention,
    one_by_one,
    slopes_of_sequence,
    soft_cap,
)

Attention = Callable[..., jax.Array]


def random_qkv(length: int, *batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries of 6 heads, keys and values of 3."""
    rng = np.random.default_rng(length)
    q, k, v = (rng.standard_normal((*batch, length, heads, 4)).astype(np.float32) for heads in (6, 3, 3))
    return q, k, v


def together(window: int | None) -> Attention:
    """The attention that is used where sequences need not run one after the other."""
    shared, static = Shared(None, None), Static(window, None)
    return jax.vmap(lambda q, k, v: attend_sequence(q, k, v, shared, static).output)


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

    def attend(qkv: tuple[jax.Array, jax.Array, jax.Array], shared: Shared) -> jax.Array:
        q, k, v = qkv
        return attend_sequence(q, k, v, shared, Static(None, None)).output

    in_turn = jax.vmap(one_by_one(attend), in_axes=(0, None))
    nested = jax.make_jaxpr(in_turn)((q, k, v), Shared(None, None))
    assert re.findall(r"length=(\d+)", str(nested)) == ["2", "5"]


def plain_attention(
    q: jax.Array, k: jax.Array, v: jax.Array, window: Window, sinks: jax.Array | None, cap: float | None
) -> jax.Array:
    """Attention in one piece, for automatic differentiation."""
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = soft_cap(jnp.einsum("btnh,bunh->bntu", q, k) * q.shape[-1] ** -0.5, cap)
    distance = jnp.arange(q.shape[1])[:, None] - jnp.arange(q.shape[1])
    visible = (distance >= 0) & (distance < (q.shape[1] if window is None else window))
    sink = jnp.full(q.shape[2], -jnp.inf) if sinks is None else sinks
    column = jnp.broadcast_to(sink[:, None, None], (*scores.shape[:3], 1))
    masked = jnp.concatenate([jnp.where(visible, scores, -jnp.inf), column], axis=-1)
    return jnp.einsum("bntu,bunh->btnh", jax.nn.softmax(masked, axis=-1)[..., :-1], v)


@pytest.mark.parametrize("cap", only_quick([None, 2.0], 2.0))
@pytest.mark.parametrize("with_sinks", only_quick([False, True], True))
@pytest.mark.parametrize("window", only_quick([None, 7, QUERY_CHUNK + 3, np.int32(7)], QUERY_CHUNK + 3))
def test_gradients(window: int | np.int32 | None, with_sinks: bool, cap: float | None) -> None:
    """Those of the chunks against automatic differentiation, also beside a `vmap`. The window may be data."""
    given = jnp.asarray(window) if isinstance(window, np.int32) else window
    sinks = jnp.asarray(np.random.default_rng(1).standard_normal(6), jnp.float32) if with_sinks else None
    q, k, v = random_qkv(2 * QUERY_CHUNK + 9, 2)

    def loss(attention: Attention, arrays: tuple[jax.Array, ...], sinks: jax.Array | None) -> jax.Array:
        return jnp.sum(jnp.sin(attention(*arrays, given, sinks, cap)))

    def slopes(attention: Attention) -> Callable[..., tuple[tuple[jax.Array, ...], jax.Array]]:
        return jax.grad(functools.partial(loss, attention), argnums=(0, 1) if with_sinks else 0)

    expected = slopes(plain_attention)((q, k, v), sinks)
    chex.assert_trees_all_close(jax.jit(slopes(causal_attention))((q, k, v), sinks), expected, atol=1e-5)
    twice = jax.tree.map(lambda x: jnp.stack([x, x]), (q, k, v))
    many = jax.jit(jax.vmap(slopes(causal_attention), in_axes=(0, None)))(twice, sinks)
    chex.assert_trees_all_close(many, jax.tree.map(lambda x: jnp.stack([x, x]), expected), atol=1e-5)


@pytest.mark.slow
def test_gradients_of_sequences_together() -> None:
    """As on accelerators: with longer chunks, and all sequences at once."""
    q, k, v = (jnp.asarray(array) for array in random_qkv(LONG_QUERY_CHUNK + 9, 2))
    shared, static = Shared(None, jnp.full(6, 0.3)), Static(None, 3.0, LONG_QUERY_CHUNK)

    def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jnp.sum(jnp.sin(causal_attention(q, k, v, sinks=shared.sinks, cap=static.cap)))

    def of_one(q: jax.Array, k: jax.Array, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        found = attend_sequence(q, k, v, shared, static)
        return slopes_of_sequence(q, k, v, found, jnp.cos(found.output), shared, static)[0]

    expected = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)
    chex.assert_trees_all_close(jax.jit(jax.vmap(of_one))(q, k, v), expected, atol=1e-5)


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
