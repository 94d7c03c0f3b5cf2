import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tyr_jax.pruning import hessian


@pytest.mark.slow
@settings(max_examples=25)
@given(
    size=st.integers(1, 40) | st.integers(140, 300),
    rows=st.integers(1, 30),
    chunks=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_chunks_of_the_triangle_add_up_to_the_gram_matrix(
    size: int, rows: int, chunks: int, seed: int
) -> None:
    x = np.random.default_rng(seed).standard_normal((chunks, rows, size))
    with jax.enable_x64(True):
        accumulators = [hessian.init(size, jnp.float64)] * 2
        for number, chunk in enumerate(x):
            part = number % 2
            accumulators[part] = hessian.update(accumulators[part], jnp.asarray(chunk))
        gram = np.asarray(hessian.finish(jnp.stack(accumulators)))
    flat = x.reshape(-1, size)
    np.testing.assert_allclose(gram, flat.T @ flat, rtol=1e-12, atol=1e-12)


def test_a_device_adds_to_its_own_in_place() -> None:
    x = np.random.default_rng(0).standard_normal((4, 8, 96)).astype(np.float32)
    alone, of_device = (hessian.update(jnp.ones((*first, 96, 96)), jnp.asarray(x)) for first in ((), (1,)))
    np.testing.assert_array_equal(of_device, alone[None])


def test_float32_stays_close_to_float64() -> None:
    x = np.random.default_rng(0).standard_normal((4, 256, 96)).astype(np.float32)
    gram = np.asarray(hessian.finish(hessian.update(hessian.init(96), jnp.asarray(x))[None]))
    exact = x.reshape(-1, 96).astype(np.float64)
    np.testing.assert_allclose(gram, exact.T @ exact, rtol=1e-4, atol=2e-3)


def test_inputs_in_bfloat16_are_multiplied_as_they_are() -> None:
    """Their products are exact in float32, so nothing is lost, and a matrix unit takes one pass, not six."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, 256, 96)), jnp.bfloat16)
    gram = hessian.finish(hessian.update(hessian.init(96), x)[None])
    wide = hessian.finish(hessian.update(hessian.init(96), x.astype(jnp.float32))[None])
    np.testing.assert_allclose(gram, wide, rtol=1e-5, atol=1e-3)
    program = str(jax.make_jaxpr(hessian.update)(hessian.init(96), x))
    assert "dot_general" in program
    assert "HIGHEST" not in program


@pytest.mark.parametrize(
    ("size", "edges"),
    [
        (100, [0, 100]),
        (1536, [0, 272, 544, 816, 1088, 1360, 1536]),
        (4096, [0, 528, 1056, 1584, 2112, 2640, 3168, 3696, 4096]),
    ],
)
def test_little_more_than_half_of_the_full_product_is_multiplied(size: int, edges: list[int]) -> None:
    rows = 64
    specs = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((size, size), (rows, size)))
    counted = jax.jit(hessian.update).lower(*specs).compile().cost_analysis()["flops"]  # type: ignore[index]
    assert hessian.block_edges(size) == edges
    expected = 2 * rows * sum((b - a) * (size - a) for a, b in itertools.pairwise(edges))
    assert hessian.gram_flops(size, rows) == expected
    # The additions take about one FLOP per element.
    assert 0 <= counted - expected < 2 * size**2


def test_blocks_add_up_to_the_gram_matrix() -> None:
    x = np.random.default_rng(0).integers(-3, 4, (50, 600)).astype(np.float32)
    assert len(hessian.block_edges(600)) > 4
    gram = hessian.finish(hessian.update(hessian.init(600), jnp.asarray(x))[None])
    np.testing.assert_array_equal(gram, x.T @ x)


def test_damping_is_a_share_of_the_mean_diagonal() -> None:
    gram = jnp.diag(jnp.array([1.0, 3.0]))
    np.testing.assert_allclose(
        np.asarray(hessian.damp(gram, 0.01, "mean")), [[1.02, 0.0], [0.0, 3.02]], rtol=1e-6
    )


def test_damping_by_channel_does_not_depend_on_the_others_scale() -> None:
    gram = jnp.diag(jnp.array([1.0, 1e6]))
    damped = np.asarray(hessian.damp(gram, 0.01, "channel"))
    floor = 1e-5 * (1e6 + 1) / 2
    np.testing.assert_allclose(damped, np.diag([1.01 + floor, 1.01e6 + floor]), rtol=1e-6)


@pytest.mark.parametrize(("size", "scale", "share"), [(1, "mean", 1), (5, "mean", 1), (5, "channel", 1e-3)])
def test_damping_of_dead_inputs_is_positive(size: int, scale: hessian.DampingScale, share: float) -> None:
    damped = np.asarray(hessian.damp(jnp.zeros((size, size)), 0.01, scale))
    np.testing.assert_allclose(damped, 0.01 * share * np.eye(size), rtol=1e-6)
