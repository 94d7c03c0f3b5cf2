"""All devices at once: a mesh of one axis, and functions of which every device computes its own part.

What batches are made of is divided along its first axis. Weights are divided as well, so that none need hold
a whole model or supernet: a layer is gathered when it runs, as an argument that is `whole` of a function
that is `divided`, and each device then has all of it for its part of the batch.

The mesh is JAX's current one (`jax.set_mesh`). Where none is set, or it has one device, nothing is placed
or divided.
"""

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

Function = TypeVar("Function", bound=Callable[..., Any])
Tree = TypeVar("Tree")

AXIS = "devices"


def in_use(number: int | None = None) -> contextlib.AbstractContextManager[Any]:
    """A context in which all devices are in use, or the first `number` of them."""
    return jax.set_mesh(jax.sharding.Mesh(np.array(jax.devices()[:number]), (AXIS,)))


def count() -> int:
    """Devices of the current mesh; 1 where there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size


def divided(function: Function, whole: int = 0) -> Function:
    """`function`, computed by every device on its part of the arguments.

    The first `whole` arguments are the same for all devices; the arrays of the others, and of the results,
    are divided along their first axis, whose length must be a multiple of the number of devices.
    """
    if count() == 1:
        return function

    def run(*arguments: Any) -> Any:
        own = PartitionSpec(AXIS)
        specs = tuple(PartitionSpec() if i < whole else own for i in range(len(arguments)))
        # Attention's loop over sequences has no rule for how its values vary over devices.
        return jax.shard_map(function, in_specs=specs, out_specs=own, check_vma=False)(*arguments)

    return run  # type: ignore[return-value]


def copies(array: jax.Array) -> jax.Array:
    """`array` once for every device, `[n, ...]`, and divided among them."""
    return place(jnp.broadcast_to(array, (count(), *array.shape)))


def along(array: jax.Array, axis: int) -> jax.Array:
    """`array`, within a jitted function, divided along `axis`, where the devices divide its length."""
    if count() == 1 or array.shape[axis] % count():
        return array
    return jax.lax.with_sharding_constraint(array, PartitionSpec(*[None] * axis, AXIS))


def everywhere(array: jax.Array) -> jax.Array:
    """`array`, within a jitted function, whole on every device."""
    return array if count() == 1 else jax.lax.with_sharding_constraint(array, PartitionSpec())


def are_cpus() -> bool:
    """Whether the devices of the current mesh, or where there is none, those that JAX uses, are CPUs."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() == "cpu" if device is None else device.platform == "cpu"


def place(tree: Tree, axis: int = 0) -> Tree:
    """The arrays of a pytree on the devices, or abstract ones as they lie there, divided along `axis`."""
    return _placed(tree, lambda shape: axis)


def spread(weights: Tree, hidden: int) -> Tree:
    """The arrays of a pytree of weights, within a jitted function or without, or abstract ones, divided along
    their axis of length `hidden`; whole where they have none, or where the devices do not divide it."""

    def axis(shape: tuple[int, ...]) -> int | None:
        return shape.index(hidden) if hidden in shape and hidden % count() == 0 else None

    return _placed(weights, axis)


def _placed(tree: Tree, axis: Callable[[tuple[int, ...]], int | None]) -> Tree:
    """The arrays of a pytree, divided along the `axis` of their shape, or whole on every device."""
    if count() == 1:
        return tree

    def put(array: Any) -> Any:
        at = axis(array.shape)
        spec = PartitionSpec() if at is None else PartitionSpec(*[None] * at, AXIS)
        if isinstance(array, jax.core.Tracer):
            return jax.lax.with_sharding_constraint(array, spec)
        sharding = NamedSharding(jax.sharding.get_mesh(), spec)
        if isinstance(array, jax.ShapeDtypeStruct):
            return array.update(sharding=sharding)
        return jax.device_put(array, sharding)

    return jax.tree.map(put, tree)
