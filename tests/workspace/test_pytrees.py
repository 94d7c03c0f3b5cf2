"""Any pytree comes back as it was, and a checksum tells whether its arrays are the same."""

from typing import Any, NamedTuple

import flax.struct
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from tyr_jax.workspace import pytrees
from tyr_jax.workspace.pytrees import SAVED


class Pair(NamedTuple):
    left: Any
    right: Any


class State(flax.struct.PyTreeNode):
    """A state with everything that a leaf can be."""

    pair: Pair
    key: Any
    parts: Any
    nothing: Any = None


STATE = State(
    Pair(jnp.arange(3), np.ones((2, 0, 3), np.float16)),
    jax.random.split(jax.random.key(3), 2),
    [{"a/b": np.bool_(True), "c": [jnp.zeros((), jnp.bfloat16)]}, {}, [], ((), jnp.ones(1))],
)


def same(one: Any, other: Any) -> bool:
    """Whether two pytrees are equal, including the types of leaves."""

    def alike(left: Any, right: Any) -> bool:
        if pytrees.is_key(left):
            return jax.random.key_impl(left) == jax.random.key_impl(right) and bool((left == right).all())
        kinds = {isinstance(leaf, jax.Array) for leaf in (left, right)}
        return len(kinds) == 1 and left.dtype == right.dtype and np.array_equal(left, right)

    assert jax.tree.structure(one) == jax.tree.structure(other)
    return all(map(alike, jax.tree.leaves(one), jax.tree.leaves(other)))


def test_a_pytree_comes_back_like_its_example() -> None:
    zeros = jax.tree.map(lambda leaf: leaf if pytrees.is_key(leaf) else leaf * 0, STATE)
    assert same(pytrees.decode(*pytrees.encode(STATE), like=zeros), STATE)


def test_without_an_example_it_is_dicts_and_lists() -> None:
    found = pytrees.decode(*pytrees.encode(STATE))
    assert found["nothing"] is None
    assert same(found["pair"], {"left": np.arange(3, dtype=np.int32), "right": STATE.pair.right})
    # Dicts and lists without elements are not kept, and a list that lacks some is a dict.
    assert same(found["parts"], {0: jax.tree.map(np.asarray, STATE.parts[0]), 3: {1: np.ones(1, np.float32)}})
    assert same(found["key"], np.asarray(jax.random.key_data(STATE.key)))
    partly = pytrees.decode(*pytrees.encode(STATE), like=State(Pair(SAVED, SAVED), SAVED, SAVED, SAVED))
    assert same(partly.pair.right, STATE.pair.right)
    assert partly.nothing is None


@pytest.mark.parametrize("tree", [None, np.float32(3), [np.ones(2), None], {"b": np.ones(1)}])
def test_small_ones(tree: Any) -> None:
    assert same(pytrees.decode(*pytrees.encode(tree)), tree)


@pytest.mark.parametrize(
    "like",
    [
        *(np.zeros(2), [], {"left": np.zeros(3)}, Pair(SAVED, Pair(SAVED, SAVED))),
        *(Pair(SAVED, [np.zeros(1)]), {"left": SAVED, "right": SAVED, "more": SAVED}),
    ],
)
def test_another_pytree_is_refused(like: Any) -> None:
    saved = pytrees.encode(Pair(np.zeros(3), [np.zeros(1), np.zeros(1)]))
    with pytest.raises((ValueError, LookupError, TypeError)):
        pytrees.decode(*saved, like=like)


def test_arrays_of_another_shape_or_type_are_refused() -> None:
    leaves, arrays = pytrees.encode([np.zeros((2, 3), np.float32)])
    for other in (np.zeros((3, 2), np.float32), np.zeros((2, 3), np.int32)):
        with pytest.raises(ValueError, match="another shape or type"):
            pytrees.decode(leaves, {"0": other})
    with pytest.raises(LookupError):
        pytrees.decode(leaves, {})
    assert arrays["0"].shape == (2, 3)


@given(st.data())
def test_every_flipped_bit_changes_the_checksum(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(["bool", "int8", "bfloat16", "float32", "float64", "complex64"]))
    shape = data.draw(st.lists(st.integers(1, 4), max_size=3))
    rng = np.random.default_rng(data.draw(st.integers(0, 9)))
    array = rng.integers(0, 2, shape).astype(dtype)
    tree = [np.ones(9), array]
    damaged = np.array(array)
    flat = damaged.reshape(-1).view(np.uint8)
    flat[data.draw(st.integers(0, len(flat) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert pytrees.checksum([np.ones(9), damaged]) != pytrees.checksum(tree)
    assert pytrees.checksum(tree[::-1]) != pytrees.checksum(tree)
    assert pytrees.checksum(jax.tree.map(np.array, tree)) == pytrees.checksum(tree)
