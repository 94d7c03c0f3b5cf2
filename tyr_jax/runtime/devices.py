"""All devices at once: a mesh of one axis, and functions of which every device computes its own part.

Batches are divided along their first axis. Weights are sharded as well, so that no device has to hold a whole
model or supernet. A layer is gathered when it runs: it is a `whole` argument of a `divided` function, so each
device has all of it for its part of the batch.

The mesh is JAX's current one (`jax.set_mesh`). Where none is set, or it has one device, nothing is placed or
divided.
"""

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import layout, multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from tyr_jax.runtime import offload

Function = TypeVar("Function", bound=Callable[..., Any])
Tree = TypeVar("Tree")

AXIS = "devices"

VIRTUAL = re.compile(r"--xla_force_host_platform_device_count=(\d+)")
"""The flag that divides a CPU into virtual devices."""

IN_ORDER = "--xla_cpu_enable_concurrency_optimized_scheduler=false"
"""The flag with which all CPU devices run independent collectives in one order."""


def in_use(number: int | None = None) -> contextlib.AbstractContextManager[Any]:
    """A context in which all devices are in use, or the first `number` of them."""
    steady_virtual_devices()
    return jax.set_mesh(jax.sharding.Mesh(np.array(jax.devices()[:number]), (AXIS,)))


def steady_virtual_devices() -> None:
    """Let virtual devices of a CPU, if there are any, wait for each other without blocking each other. This
    has no effect once JAX has begun to use its devices."""
    config: Any = jax.config
    flags = os.environ.get("XLA_FLAGS", "")
    flag = VIRTUAL.search(flags)
    number = max(config.jax_num_cpu_devices, int(flag[1]) if flag else 1)
    if number > 1:
        # If devices ran collectives in different orders, each could wait in a different one.
        if IN_ORDER.partition("=")[0] not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} {IN_ORDER}".strip()
        # A device that waits keeps a thread of the pool, which otherwise has one for each core or device.
        os.environ.setdefault("PJRT_NPROC", str(number + (os.cpu_count() or 1)))


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
    """`array` once for every device, `[n, ...]`, divided so that each device has one copy."""
    return place(jnp.broadcast_to(array, (count(), *array.shape)))


def fetch(tree: Any) -> Any:
    """The arrays of a pytree as NumPy arrays. Arrays that several hosts have parts of are gathered, and all
    of these hosts must take part in that."""

    def get(array: Any) -> np.ndarray:
        partly = isinstance(array, jax.Array) and not (
            array.is_fully_addressable or array.is_fully_replicated
        )
        return np.asarray(multihost_utils.process_allgather(array, tiled=True) if partly else array)

    return jax.tree.map(get, tree)


def total(parts: jax.Array, axis: int) -> jax.Array:
    """Within a jitted function, the sum over devices of `parts [n, ...]`, of which each has one. The sum is
    sharded along `axis`, if the devices divide it, so that no device receives all of it."""
    if count() == 1 or parts.shape[1 + axis] % count():
        return jnp.sum(parts, axis=0)

    def own(part: jax.Array) -> jax.Array:
        return jax.lax.psum_scatter(part[0], AXIS, scatter_dimension=axis, tiled=True)

    divided_along = PartitionSpec(*[None] * axis, AXIS)
    return jax.shard_map(own, in_specs=PartitionSpec(AXIS), out_specs=divided_along)(parts)


def everywhere(array: jax.Array) -> jax.Array:
    """Replicate `array` on every device, within a jitted function."""
    return array if count() == 1 else jax.lax.with_sharding_constraint(array, PartitionSpec())


def as_they_lie(tree: Tree) -> Tree:
    """Keep the arrays of a pytree, within a jitted function, in row-major order, as TPUs hold their
    arguments.

    Where a loop takes one layer at a time from stacked weights, and a product wants them in another order,
    the TPU compiler would reorder the whole stack before the loop. This makes it reorder one layer at a time.
    """

    def in_order(array: jax.Array) -> jax.Array:
        return layout.with_layout_constraint(array, layout.Layout(tuple(range(array.ndim))))

    def keep(array: jax.Array) -> jax.Array:
        return jax.lax.platform_dependent(array, tpu=in_order, default=lambda array: array)

    return jax.tree.map(keep, tree)


def are_cpus() -> bool:
    """Whether the devices of the current mesh are CPUs; without a mesh, those that JAX uses."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() == "cpu" if device is None else device.platform == "cpu"


def settle(tree: Tree) -> Tree:
    """Wait for the arrays of a pytree if the devices are several CPUs.

    XLA lets a CPU device have 32 programs under way. If one of them has reached that number before it begins
    a program in which the others already wait for it, all of them wait for ever.
    """
    return jax.block_until_ready(tree) if count() > 1 and are_cpus() else tree


def place(tree: Tree, axis: int | None = 0) -> Tree:
    """Shard the arrays of a pytree along `axis`, as `_placed` does."""
    return _placed(tree, lambda name: axis)


def spread(weights: Tree, axes: Mapping[str, int]) -> Tree:
    """Shard a pytree of weights along the axis that `axes` has for the name of each, if any, counted from the
    end, as `_placed` does. Its name is the last key on the way to it."""
    return _placed(weights, axes.get)


def _placed(tree: Tree, axis: Callable[[str], int | None]) -> Tree:
    """Put the arrays of a pytree on the devices, sharded along the axis that `axis` gives for their name.

    Arrays without such an axis, or whose axis the devices do not divide evenly, are whole on every device;
    within a jitted function, they stay as the compiler has them. Abstract arrays get the sharding that they
    would have. What is on disk stays there.
    """
    if count() == 1:
        return tree

    def put(path: Any, array: Any) -> Any:
        if offload.on_disk(array):
            return array
        at = axis(str(getattr(path[-1], "key", "")) if path else "")
        at = None if at is None or array.shape[at] % count() else at % len(array.shape)
        spec = PartitionSpec() if at is None else PartitionSpec(*[None] * at, AXIS)
        if isinstance(array, jax.core.Tracer):
            return array if at is None else jax.lax.with_sharding_constraint(array, spec)
        sharding = NamedSharding(jax.sharding.get_mesh(), spec)
        if isinstance(array, jax.ShapeDtypeStruct):
            return array.update(sharding=sharding)
        if sharding.is_fully_addressable or isinstance(array, jax.Array):
            return jax.device_put(array, sharding)
        # `device_put` would compare the arrays of all hosts, which sends as much data as they load.
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree_util.tree_map_with_path(put, tree)
