"""Slopes of the objective towards every level of every site, by one backward pass.

The slope towards a level is the derivative with respect to t, at t = 0, of the objective with the site's
weight at `(1 − t) W_now + t W_level`. One forward and one backward pass at full width give all slopes. Layers
on disk run one at a time: forward, then backward from the stored state before each.

Axis letters: `P` parts of a text, `T` tokens, `D` hidden, `S` kinds of site, `L` layers, `E` levels.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.model import decoder
from tyr_jax.model.decoder import ForwardState
from tyr_jax.model.spec import Block, ModelConfig, Params
from tyr_jax.runtime import devices
from tyr_jax.scoring.chunking import part_rows
from tyr_jax.scoring.nested import Nested
from tyr_jax.scoring.objective import Objective, Scoring, TeacherBatch
from tyr_jax.scoring.scorer import Part, parts_of
from tyr_jax.scoring.teacher import take
from tyr_jax.space import Levels

SLOPE_TOKENS = 512
"""Tokens in a part of the text that slopes are computed on: few, so that there are many parts and one sees
how slopes vary."""

Gradients = tuple[jax.Array, ForwardState]
"""Gradients with respect to the level shares `[n, S, L, E]` of some layers, and to the state before these."""


@jax.custom_vjp
def pick_level(stack: jax.Array, level: jax.Array, shares: jax.Array) -> jax.Array:
    """The weights of `level` in `stack [E, ...]`, once for each of n parts: `[n, ...]`.

    The values of `shares [n, E]` do not matter. The derivatives with respect to them are those of the sum of
    all levels, weighted by these shares.
    """
    return jnp.broadcast_to(stack[level], (len(shares), *stack.shape[1:]))


def _level_forward(stack: jax.Array, level: jax.Array, shares: jax.Array) -> tuple[jax.Array, jax.Array]:
    return pick_level(stack, level, shares), stack


def _level_backward(stack: jax.Array, cotangent: jax.Array) -> tuple[None, None, jax.Array]:
    shares = jnp.einsum("n...,e...->ne", cotangent, stack, preferred_element_type=jnp.float32)
    return None, None, shares


pick_level.defvjp(_level_forward, _level_backward)


def chosen_layers(
    nested: Nested,
    levels: jax.Array,
    shares: jax.Array,
    state: ForwardState,
    scoring: Scoring,
) -> ForwardState:
    """Run all layers of `nested` at `levels [S, L]`, differentiable with respect to the
    `shares [n, S, L, E]` of all levels in each site, one set for each device's part of a batch."""

    config, kinds = scoring.config, nested.kinds

    def own(block: Block, rope: decoder.Rope, weights: Block, x: jax.Array) -> jax.Array:
        pruned = {name: weight[0] for name, weight in weights.items()}
        return decoder.apply_block(block | pruned, x, rope, config)

    def apply(layer: Any, rope: decoder.Rope, x: jax.Array) -> jax.Array:
        block, stacks, levels, shares, kept = layer
        chosen = {}
        for row, kind in enumerate(kinds):
            chosen[kind.output] = pick_level(stacks[kind.name], levels[row], shares[:, row])
            if kind.admit is not None:
                block = block | kind.admit(jnp.arange(kind.count(config)) < kept[row])
        # Picked where the levels are stored, as are their slopes, so that no device gathers all levels.
        weights = devices.place(devices.spread(chosen, config.hidden_axes))
        return devices.divided(own, whole=2)(block, rope, weights, x)

    kept = jnp.take_along_axis(jnp.asarray(nested.kept), levels[..., None], axis=-1)[..., 0]
    layers = nested.params["blocks"], nested.weights, levels.T, jnp.moveaxis(shares, 2, 0), kept.T
    return decoder.scan_layers(layers, apply, state, config, scoring.observed)


advance = jax.jit(chosen_layers, static_argnames="scoring")


@functools.partial(jax.jit, static_argnames="scoring")
def last_slopes(
    nested: Nested,
    levels: jax.Array,
    shares: jax.Array,
    state: ForwardState,
    batch: TeacherBatch,
    scoring: Scoring,
) -> Gradients:
    """Gradients of the objective with respect to `shares [n, S, L, E]` and `state`, at `levels [S, L]`, where
    `nested` has the last layers of the model."""

    def evaluate(params: Params, state: ForwardState, batch: TeacherBatch) -> jax.Array:
        return scoring.score(params, state, batch)[None]

    def loss(shares: jax.Array, state: ForwardState) -> jax.Array:
        # A part's objective depends on its own shares alone.
        state = chosen_layers(nested, levels, shares, state, scoring)
        return jnp.sum(devices.divided(evaluate, whole=1)(decoder.outside(nested.params), state, batch))

    return jax.grad(loss, argnums=(0, 1))(shares, state)


@functools.partial(jax.jit, static_argnames="scoring")
def earlier_slopes(
    nested: Nested,
    levels: jax.Array,
    shares: jax.Array,
    state: ForwardState,
    behind: ForwardState,
    scoring: Scoring,
) -> Gradients:
    """Gradients of the objective for earlier layers, as in `last_slopes`, given `behind`, those for the state
    after them."""

    def run(shares: jax.Array, state: ForwardState) -> ForwardState:
        return chosen_layers(nested, levels, shares, state, scoring)

    return jax.vjp(run, shares, state)[1](behind)


def pool_slopes(
    nested: Nested,
    distribution: Levels,
    pool: TeacherBatch,
    sequences: np.ndarray,
    config: ModelConfig,
    objective: Objective,
    on_chunk: Callable[[int], None] = lambda tokens: None,
) -> np.ndarray:
    """Slopes `[P, S, L, E]` of the objective from `distribution [S, L]` towards every level, on parts of
    `sequences [s]` of a pool. A part has at most `SLOPE_TOKENS` tokens, but at least one sequence. `on_chunk`
    is called with the tokens done."""
    chex.assert_shape(distribution, (len(nested.kinds), config.depth))
    scoring = Scoring.of_model(config, objective)
    length, together = pool.tokens.shape[1], devices.count()
    parts = sequences.reshape(-1, part_rows(len(sequences), SLOPE_TOKENS // length))
    filled = np.pad(parts, ((0, -len(parts) % together), (0, 0)), mode="edge")
    batches = [take(pool, several.ravel()) for several in np.split(filled, len(filled) // together)]
    tokens = [
        len(parts[at : at + together]) * parts.shape[1] * length for at in range(0, len(parts), together)
    ]
    gradients = np.zeros((len(batches), together, *nested.kept.shape))
    state = [decoder.begin_forward(decoder.outside(nested.params), batch.tokens) for batch in batches]
    before: list[list[ForwardState]] = []

    def at(part: Part) -> tuple[jax.Array, jax.Array]:
        """Levels and shares of a part's layers."""
        here = np.s_[:, part.start : part.stop]
        return jnp.asarray(distribution[here]), jnp.zeros((together, *nested.kept[here].shape))

    def sloped(
        part: Part, run: Callable[..., Gradients], state: list[ForwardState], behind: Sequence[Any]
    ) -> list[ForwardState]:
        """Store the gradients of a part's layers; return those with respect to the states before them."""
        here, given = np.s_[:, :, part.start : part.stop], []
        for index, (own, what) in enumerate(zip(state, behind, strict=True)):
            found, cotangent = run(part.net, *at(part), own, what)
            gradients[index][here] = devices.fetch(found)
            given.append(cotangent)
            on_chunk(part.share(tokens[index], config.depth))
        return given

    for part in parts_of(nested, range(config.depth), scoring):
        if part.stop == config.depth:
            last = functools.partial(last_slopes, scoring=part.scoring)
            behind = sloped(part, last, state, batches)
        else:
            before.append(devices.fetch(state))
            state = [advance(part.net, *at(part), own, part.scoring) for own in state]
    for part in parts_of(nested, range(len(before))[::-1], scoring):
        earlier = functools.partial(earlier_slopes, scoring=part.scoring)
        behind = sloped(part, earlier, before.pop(), behind)
    slopes = gradients - np.take_along_axis(gradients, distribution[None, None, ..., None], axis=-1)
    return slopes.reshape(-1, *slopes.shape[2:])[: len(parts)]
