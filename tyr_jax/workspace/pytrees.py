"""Pytrees of any kind as plain arrays and JSON, and back.

A pytree is saved as its leaves. Of each, JSON says where it is, and its shape and type. Dicts and lists are
made again from that; NamedTuples, dataclasses and whatever else JAX knows take an example of the pytree.
"""

import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

SAVED: Any = None
"""In an example: whatever was saved, as dicts, lists and NumPy arrays."""

Place = tuple[str | int, ...]
"""Where a leaf is in its pytree: names of entries and fields, and indices."""


class Leaf(NamedTuple):
    """The place of a leaf, its shape, and the name of its type. A leaf that is None has neither."""

    place: Sequence[str | int]
    shape: Sequence[int] | None
    dtype: str | None


def encode(tree: Any) -> tuple[list[Leaf], dict[str, Any]]:
    """(the leaves of a pytree; the arrays among them that have elements, by the leaf's number).

    Arrays are as they will be saved: divided between devices as they are, all others in NumPy, and typed PRNG
    keys as their integers.
    """
    leaves, arrays = [], {}
    for number, (place, value) in enumerate(placed_leaves(tree)):
        if value is None:
            leaves.append(Leaf(place, None, None))
            continue
        value = jax.random.key_data(value) if is_key(value) else value
        array = value if is_divided(value) and not value.is_fully_replicated else np.asarray(value)
        leaves.append(Leaf(place, array.shape, array.dtype.name))
        if array.size:
            arrays[str(number)] = array
    return leaves, arrays


def decode(leaves: Sequence[Leaf], arrays: Mapping[str, Any], like: Any = SAVED) -> Any:
    """The pytree that `encode` took apart.

    Args:
        leaves: its leaves.
        arrays: its arrays.
        like: an example, whose arrays may have other shapes. Each array becomes what it is there: a JAX
            array, a typed PRNG key, or a NumPy array. Empty dicts and lists are not made again where the
            example has `SAVED`.

    Raises:
        ValueError, LookupError, TypeError: the arrays are not those of the leaves, or the example differs.
    """
    values: list[tuple[Place, Any]] = []
    for number, (place, shape, dtype) in enumerate(leaves):
        value: Any = None
        if shape is not None:
            value = np.zeros(shape, dtype) if 0 in shape else arrays[str(number)]
            if (list(value.shape), value.dtype.name) != (list(shape), dtype):
                raise ValueError(f"the array at {place} is of another shape or type")
        values.append((tuple(place), value))
    whole, found = nested(values), []
    for place, example in placed_leaves(like):
        value = whole
        for step in place:
            value = value[step]
        found.append((value, example))
    if sum(len(placed_leaves(value)) for value, _ in found) != len(leaves):
        raise ValueError("the pytree has other leaves")
    structure = jax.tree.structure(like, is_leaf=lambda leaf: leaf is None)
    return jax.tree.unflatten(structure, [alike(value, example) for value, example in found])


def placed_leaves(tree: Any) -> list[tuple[Place, Any]]:
    """The leaves of a pytree with their places; None is a leaf."""

    def name(key: Any) -> str | int:
        index = isinstance(key, jax.tree_util.SequenceKey)
        return key.idx if index else jax.tree_util.keystr((key,), simple=True)

    leaves = jax.tree.leaves_with_path(tree, is_leaf=lambda leaf: leaf is None)
    return [(tuple(map(name, path)), leaf) for path, leaf in leaves]


def nested(values: Iterable[tuple[Place, Any]]) -> Any:
    """The dicts and lists that have these values at these places. A list that lacks some is a dict."""
    groups: dict[str | int, list[tuple[Place, Any]]] = {}
    for place, value in values:
        if not place:
            return value
        groups.setdefault(place[0], []).append((place[1:], value))
    parts = {name: nested(group) for name, group in groups.items()}
    return list(parts.values()) if parts and [*parts] == [*range(len(parts))] else parts


def alike(value: Any, example: Any) -> Any:
    """A value that was read, converted to what it is in an example; as it is for `SAVED`.

    Raises:
        ValueError: it should be an array, but is not.
    """
    if example is None:
        return value
    if not isinstance(value, np.ndarray | jax.Array):
        raise ValueError("not an array")
    if is_key(example):
        return jax.random.wrap_key_data(jnp.asarray(value), impl=jax.random.key_impl(example))
    return jnp.asarray(value) if isinstance(example, jax.Array) else value


def is_key(leaf: Any) -> bool:
    """Whether a leaf is a typed PRNG key."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def is_divided(leaf: Any) -> TypeGuard[jax.Array]:
    """Whether a leaf is an array on several devices."""
    return isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1


def checksum(tree: Any) -> int:
    """A checksum, of 32 bits, of all arrays of a pytree. It does not depend on how they are divided between
    devices. Each host reads its own part, so that nothing is gathered but sums."""
    leaves = jax.tree.leaves(tree)
    divided = np.array([is_divided(leaf) for leaf in leaves], bool)
    sums = np.array([weighed(leaf) for leaf in leaves], np.uint64)
    if jax.process_count() > 1 and divided.any():
        parts = np.asarray(multihost_utils.process_allgather(sums.view(np.uint32)))
        sums = np.where(divided, parts.view(np.uint64).sum(axis=0), sums)
    return zlib.crc32(sums.tobytes())


def weighed(array: Any) -> int:
    """The sum, modulo 2⁶⁴, of the bits of every element of this host's part of an array, each times an odd
    number for its index along every axis. A flipped bit always changes it."""
    parts = [((), array)]
    if is_divided(array):
        parts = [(part.index, part.data) for part in array.addressable_shards if part.replica_id == 0]
    total = 0
    for index, part in parts:
        sums = np.ascontiguousarray(part)
        sums = sums.view(f"u{min(sums.itemsize, 8)}")
        while sums.ndim:
            axis = sums.ndim - 1
            start = (index[axis].start or 0) if index else 0
            odd = odd_numbers(axis, start, sums.shape[axis])
            sums = np.einsum("...i,i->...", sums, odd, dtype=np.uint64, casting="unsafe")
        total += int(sums)
    return total % 2**64


def odd_numbers(axis: int, start: int, count: int) -> np.ndarray:
    """Odd numbers `[count]` for the indices of an axis from `start` on, scattered over 64 bits (Steele et al.
    2014)."""
    mixed = np.arange(start + 1, start + count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30 - axis % 8))) * np.uint64(0xBF58476D1CE4E5B9)
    return (mixed ^ (mixed >> np.uint64(27))) | np.uint64(1)
