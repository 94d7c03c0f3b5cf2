"""Log-likelihoods of continuations, by which tasks with given answers are scored.

Every sequence runs once: requests that differ only in their last token, such as the choices A to D, share a
row. Rows are padded at the end to one of a few lengths, and all rows of a batch have the same length. The
head runs only where a continuation is.

Axis letters: `B` rows, `T` tokens, `D` hidden, `P` positions.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.errors import overflow
from tyr_jax.model import decoder
from tyr_jax.model.prediction import answers
from tyr_jax.model.spec import ModelConfig, Params
from tyr_jax.runtime import devices

TOKENS = 2048
"""Tokens that run at a time on a device: enough rows for the full matmul rate, with little padding."""

SHORTEST = 32
"""Minimum length of a row in tokens, and minimum number of positions that a batch asks about."""


class Request(NamedTuple):
    """How likely is `continuation` after `context`? Both are tokens, at least one each."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]

    @property
    def row(self) -> tuple[int, ...]:
        """The tokens that the model reads."""
        return (*self.context, *self.continuation[:-1])


class Likelihood(NamedTuple):
    """Log-likelihood in nats, and whether every token of the continuation is the likeliest one."""

    nats: float
    greedy: bool


class RequestBatch(NamedTuple):
    """Rows `tokens [B, T]`, and what is asked about them.

    Entry p asks how likely token `targets[p]` is after position `positions[p]` of row `rows[p]`, for request
    `owners[p]`. Of the P entries, the first `asked` count; the others are padding.
    """

    tokens: np.ndarray
    rows: np.ndarray
    positions: np.ndarray
    targets: np.ndarray
    owners: np.ndarray
    asked: int


def filled_length(count: int) -> int:
    """The smallest length that holds `count`: a power of two, or 1.5 times one, and at least `SHORTEST`."""
    power = SHORTEST
    while power < count:
        if power * 3 // 2 >= count:
            return power * 3 // 2
        power *= 2
    return power


def batches(requests: Sequence[Request]) -> list[RequestBatch]:
    """All requests in batches, the longest rows first."""
    asked_of: dict[tuple[int, ...], list[int]] = {}
    for number, request in enumerate(requests):
        asked_of.setdefault(request.row, []).append(number)
    rows = sorted(asked_of, key=len, reverse=True)
    found = []
    while rows:
        length = filled_length(len(rows[0]))
        count = max(1, TOKENS // length)
        # Shorter rows fill up a batch; only the last batch may lack some.
        while count > 1 and count // 2 * devices.count() >= len(rows):
            count //= 2
        count *= devices.count()
        part, rows = rows[:count], rows[count:]
        found.append(_batch(part, [asked_of[row] for row in part], requests, (count, length)))
    return found


def _batch(
    rows: list[tuple[int, ...]], owners: list[list[int]], requests: Sequence[Request], shape: tuple[int, int]
) -> RequestBatch:
    tokens = np.zeros(shape, np.int32)
    asked = []
    for index, (row, numbers) in enumerate(zip(rows, owners, strict=True)):
        tokens[index, : len(row)] = row
        for number in numbers:
            targets = requests[number].continuation
            first = len(row) - len(targets)
            asked += [(index, first + i, target, number) for i, target in enumerate(targets)]
    size = -(-filled_length(len(asked)) // devices.count()) * devices.count()
    owned = np.pad(np.array(asked, np.int32).T, ((0, 0), (0, size - len(asked))))
    return RequestBatch(tokens, owned[0], owned[1], owned[2], owned[3], len(asked))


@functools.partial(jax.jit, static_argnames="config")
def answer(
    params: Params,
    residual: jax.Array,
    rows: jax.Array,
    positions: jax.Array,
    targets: jax.Array,
    config: ModelConfig,
) -> tuple[jax.Array, jax.Array]:
    """(log-likelihoods `[P]` of `targets [P]` after `positions [P]` of `rows [P]`, whether each is the
    likeliest token `[P]`), from the `residual [B, T, D]` after the last layer. `params` has what lies outside
    the blocks."""
    hidden = decoder.final_hidden(params, devices.place(residual[rows, positions]), config)
    return devices.divided(answers, whole=1)(decoder.head(params), hidden, targets)


def log_likelihoods(
    params: Params,
    requests: Sequence[Request],
    config: ModelConfig,
    on_tokens: Callable[[int], None] = lambda tokens: None,
) -> list[Likelihood]:
    """The log-likelihood of every request's continuation, under a dense or pruned model.

    After each batch, `on_tokens` is called with the number of positions that it asked about.

    Raises:
        UserError: the model overflows.
    """
    parts = batches(requests)
    nats, greedy = np.zeros(len(requests)), np.ones(len(requests), bool)
    texts = [devices.place(jnp.asarray(part.tokens)) for part in parts]
    for part, state in zip(parts, decoder.run_model(params, texts, config), strict=True):
        asked = (jnp.asarray(array) for array in (part.rows, part.positions, part.targets))
        found = devices.fetch(answer(decoder.outside(params), state.residual, *asked, config=config))
        values, best = (array[: part.asked] for array in found)
        if not np.isfinite(values).all():
            raise overflow("the model on a question")
        owners = part.owners[: part.asked]
        np.add.at(nats, owners, values.astype(np.float64))
        np.logical_and.at(greedy, owners, best)
        on_tokens(part.asked)
    return [Likelihood(float(value), bool(all_best)) for value, all_best in zip(nats, greedy, strict=True)]
