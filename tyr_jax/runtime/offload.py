"""Weights that stay on disk (`--offload`): a model or supernet that is larger than the memory of the devices,
or of the host, runs one layer at a time.

It is a pytree of arrays stacked on their layers, as everywhere else. But its leaves are a `Stack`, which
reads a layer whenever it is asked for, or NumPy memory maps. Code that runs layers asks `segments` for them.

Axis letters: `L` layers.
"""

import errno
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.errors import UserError

Tree = TypeVar("Tree")

ALIGNMENT = 64
"""Arrays in one file begin at a multiple of this many bytes."""


class Stack:
    """An array `[L, ...]` whose layers `[...]` are read by `read(layer)` each time they are asked for."""

    def __init__(
        self, depth: int, shape: tuple[int, ...], dtype: np.dtype, read: Callable[[int], np.ndarray]
    ) -> None:
        self.shape, self.dtype, self._read = (depth, *shape), dtype, read

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, layers: int | slice) -> np.ndarray:
        """A layer, or several of them stacked."""
        if isinstance(layers, slice):
            return np.stack([self._read(layer) for layer in range(*layers.indices(self.shape[0]))])
        return self._read(layers)


def on_disk(tree: Any) -> bool:
    """Whether any array of a pytree stays on disk."""
    return any(isinstance(leaf, Stack | np.memmap) for leaf in jax.tree.leaves(tree))


class Segment(NamedTuple):
    """Weights of the layers `start` to `stop` (exclusive), which are on the devices at a time."""

    start: int
    stop: int
    weights: Any

    def own(self, layers: Iterable[int]) -> tuple[int, ...]:
        """Those of `layers` that are in this segment, counted from its first layer."""
        return tuple(layer - self.start for layer in layers if self.start <= layer < self.stop)


def segments(weights: Any, layers: range) -> Iterator[Segment]:
    """The segments of `weights`, which are stacked on their layers or a tuple of layers: all `layers` at
    once, or one by one if they are on disk."""
    if not on_disk(weights):
        if layers:
            yield Segment(0, len(layers), weights)
        return
    for layer in layers:
        one = slice(layer, layer + 1)
        part = weights[one] if isinstance(weights, tuple) else jax.tree.map(lambda a, at=one: a[at], weights)
        # Copied, because JAX may use NumPy's memory in place, and a file may change.
        yield Segment(layer, layer + 1, jax.tree.map(jnp.array, part))


class Scratch(NamedTuple):
    """Room for arrays on the disk of `directory` (or of temporary files). The files have no name: each is
    gone once no array refers to it, however the process ends."""

    directory: Path | None = None

    def empty(self, shapes: Any) -> Any:
        """Arrays on disk, in one file, in the shapes and types of a pytree of abstract ones.

        Raises:
            UserError: the disk has no room for them.
        """
        leaves, structure = jax.tree.flatten(shapes)
        sizes = [leaf.size * leaf.dtype.itemsize for leaf in leaves]
        starts = np.cumsum([0, *(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)]).tolist()
        whole = self._map(starts[-1])
        arrays = [
            whole[start : start + size].view(leaf.dtype).reshape(leaf.shape)
            for start, size, leaf in zip(starts, sizes, leaves, strict=False)
        ]
        return jax.tree.unflatten(structure, arrays)

    def _map(self, size: int) -> np.memmap:
        """A memory map of a new file of `size` bytes."""
        where = self.directory or tempfile.gettempdir()
        try:
            if self.directory is not None:
                self.directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.directory) as file:
                # If the disk had no room for the file, writing to its map would kill the process.
                os.posix_fallocate(file.fileno(), 0, max(size, 1))
                return np.memmap(file, np.uint8, "r+", shape=(max(size, 1),))
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            reason = "its disk is full" if full else error.strerror
            raise UserError(
                f"cannot keep {size / 1e9:.2f} GB of weights in {where}: {reason}; free space and run the "
                "same command again, which continues from here, or run without --offload"
            ) from error

    def keep(self, tree: Tree) -> Tree:
        """A copy, on disk, of the arrays of a pytree."""
        kept = self.empty(jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), tree))
        for target, array in zip(jax.tree.leaves(kept), jax.tree.leaves(tree), strict=True):
            target[...] = array
        return kept

    def stack(self, depth: int, make: Callable[[int], Any]) -> np.memmap:
        """An array `[L, ...]`, on disk, whose layers are what `make` returns for them."""
        first = make(0)
        stack = self.empty(jax.ShapeDtypeStruct((depth, *first.shape), first.dtype))
        stack[0] = first
        for layer in range(1, depth):
            stack[layer] = make(layer)
        return stack


TEMPORARY = Scratch()
"""Room in the system's temporary files."""
