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


def search_on_device(search: Search, key: jax.Array, landscape: Landscape) -> Trace:
    """Run a whole search; to be compiled or mapped by the caller.

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

    begun = search.init(key, landscape.start, space)  # type: ignore[arg-type]
    return jax.lax.scan(generation, begun, length=search.steps(space) // stages)[1]


@functools.partial(jax.jit, static_argnames="search")
def search_many(search: Search, keys: jax.Array, landscapes: Landscape) -> Trace:
    """Run searches side by side, `R` of them: one for each of `keys [R]` and of the stacked `landscapes`.

    All devices take part if their number divides `R`; they need no communication.

    Raises:
        UserError: the search is not traceable.
    """
    run = jax.vmap(functools.partial(search_on_device, search))
    return (run if len(keys) % devices.count() else devices.divided(run))(keys, landscapes)
