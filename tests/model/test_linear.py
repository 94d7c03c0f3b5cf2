"""Products with weights: the types in which they multiply and sum."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tyr_jax.model.linear import linear


def operands(dtype: str, seed: int = 0) -> tuple[jax.Array, jax.Array]:
    """Inputs `[2, 5, 24]` and a weight `[24, 3, 4]`."""
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.standard_normal(shape), dtype) for shape in ((2, 5, 24), (24, 3, 4)))


def loss(multiply: Callable[..., jax.Array], x: jax.Array, weight: jax.Array) -> jax.Array:
    """A number that every product of the output affects in its own way."""
    out = multiply(x, weight)
    return jnp.sum(out * jnp.sin(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))


def plain(x: jax.Array, weight: jax.Array) -> jax.Array:
    """The product in its operands' type."""
    flat = jnp.matmul(x.reshape(-1, x.shape[-1]), weight.reshape(len(weight), -1))
    return flat.reshape(*x.shape[:-1], *weight.shape[1:])


def products(function: Callable[..., Any], *arguments: Any) -> Iterator[tuple[set[str], str]]:
    """The types of the operands, and the type of the result, of every matrix product in a program."""

    def within(program: Any) -> Iterator[tuple[set[str], str]]:
        for equation in program.eqns:
            if equation.primitive.name == "dot_general":
                yield {str(each.aval.dtype) for each in equation.invars}, str(equation.outvars[0].aval.dtype)
            for value in equation.params.values():
                if hasattr(inner := getattr(value, "jaxpr", value), "eqns"):
                    yield from within(inner)

    return within(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_float32_is_that_of_a_plain_product() -> None:
    x, weight = operands("float32")
    np.testing.assert_array_equal(linear(x, weight), plain(x, weight))
    ours, theirs = (
        jax.grad(lambda *given: loss(multiply, *given), (0, 1))(x, weight)  # noqa: B023
        for multiply in (linear, plain)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_bfloat16_is_multiplied_as_it_is_and_summed_in_float32() -> None:
    x, weight = operands("bfloat16")
    gradient = jax.grad(lambda *given: loss(linear, *given), (0, 1))
    found = list(products(gradient, x, weight))
    assert len(found) == 3
    assert all(each == ({"bfloat16"}, "float32") for each in found)
    exact = plain(*(np.asarray(array, np.float64) for array in (x, weight)))
    np.testing.assert_allclose(linear(x, weight).astype(jnp.float32), exact, rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize(("inputs", "weights"), [("bfloat16", "bfloat16"), ("float32", "bfloat16")])
def test_types_of_outputs_and_gradients(inputs: str, weights: str) -> None:
    x, weight = operands(inputs)[0], operands(weights)[1]
    assert linear(x, weight).dtype == jnp.promote_types(x.dtype, weight.dtype)
    of_x, of_weight = jax.grad(lambda *given: loss(linear, *given), (0, 1))(x, weight)
    assert (of_x.dtype, of_weight.dtype) == (x.dtype, weight.dtype)
    assert (of_x.shape, of_weight.shape) == (x.shape, weight.shape)
