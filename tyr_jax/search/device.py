"""A whole search as one program on the device: `lax.scan` over generations, `vmap` over searches.

Where the fitness is a JAX function, as that of a tabulated problem, hundreds of searches run side by side,
each with a key and a problem of its own, and are divided among devices like any batch. Nothing returns to the
host between generations, except in searches that solve a dynamic programme: the host solves it, called from
within the program. The host's loop, for fitness that is not one program, is
`tyr_jax.search.loop`; both give the same result.

Axis letters: `G` generations, `R` runs side by side, `S` kinds of site, `L` layers.
"""

import functools
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.errors import UserError
from tyr_jax.runtime import devices
from tyr_jax.search.contract import Query, Search, SearchSpace, told


class Landscape(Protocol):
    """A fitness that is a JAX function: a pytree with what may be chosen, the levels to start from, and the
    answer to every query."""

    space: SearchSpace
    start: jax.Array | np.ndarray

    def answer(self, query: Query) -> jax.Array:
        """The fitness `[C]` of the query's candidates, or slopes `[C, P, S, L, E]`."""
        ...


class Trace(NamedTuple):
    """The best levels after each generation, `levels [..., G, S, L]`, and the least fitness told in its last
    stage, `fitness [..., G]`."""

    levels: jax.Array
    fitness: jax.Array


def search_on_device(
    search: Search, key: jax.Array, landscape: Landscape, start: jax.Array | None = None
) -> Trace:
    """Run a whole search from levels `start [S, L]`, by default those of the landscape; to be compiled or
    mapped by the caller.

    Raises:
        UserError: the search is not traceable, or its stages need more text than there is.
    """
    if not search.traceable:
        raise UserError(
            f"--search {search.name} cannot run on the device: it does not say `traceable = True`"
        )
    space = landscape.space
    search.check_text(space.sequences, space.length)
    stages = search.stages(space)

    def generation(state: Any, _: None) -> tuple[Any, Trace]:
        for _stage in range(stages):
            query = search.ask(state)
            answer = told(query, landscape.answer(query))
            state = search.tell(state, query.candidates, answer)
        return state, Trace(jnp.asarray(search.best(state)), jnp.min(answer))

    begun: Any = search.init(key, landscape.start if start is None else start, space)  # type: ignore[arg-type]
    return jax.lax.scan(generation, begun, length=search.steps(space) // stages)[1]


@functools.partial(jax.jit, static_argnames=("search", "shared"))
def search_many(
    search: Search,
    keys: jax.Array,
    landscapes: Landscape,
    starts: jax.Array | None = None,
    *,
    shared: bool = False,
) -> Trace:
    """Run searches side by side, `R` of them: one for each of `keys [R]` and of the stacked `landscapes`, or
    all on one landscape that is `shared`. They start from `starts [R, S, L]`, by default where the landscapes
    say.

    All devices take part if their number divides `R`; they need no communication.

    Raises:
        UserError: the search is not traceable.
    """

    def one(landscape: Landscape, key: jax.Array, start: jax.Array | None) -> Trace:
        return search_on_device(search, key, landscape, start)

    run = jax.vmap(one, in_axes=(None if shared else 0, 0, 0))
    several = len(keys) % devices.count() == 0
    return (devices.divided(run, whole=int(shared)) if several else run)(landscapes, keys, starts)
