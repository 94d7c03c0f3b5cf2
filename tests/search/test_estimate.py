"""The race of starts: an estimate that misleads does no harm."""

import jax
import numpy as np
import pytest

from tyr_jax.search import loop, surrogate
from tyr_jax.search.contract import SearchSpace, Sites
from tyr_jax.search.estimate import Estimate
from tyr_jax.space import Budget, values_at

# Two kinds of three layers. A level costs its number in parameters. Both kinds have the same errors, and the
# estimate says that the second counts nine times as much as the first, and the last layer most.
ERROR = np.tile([1.0, 0.5, 0.2, 0.1, 0.0], (2, 3, 1))
SHARE = np.array([[1.0, 1.0, 5.0], [9.0, 9.0, 45.0]])
START = np.full((2, 3), 2)
PRICE = np.broadcast_to(np.arange(5), ERROR.shape)
BUDGET = Budget.of_prices(1000 * PRICE[None], [12000])
SITES = Sites(ERROR, SHARE, np.ones(ERROR.shape, bool))
SPACE = SearchSpace(PRICE, SITES.exists, BUDGET, SITES, sequences=12, length=8)


def test_starts_exchange_all_half_and_nothing_between_kinds() -> None:
    free, half, none = surrogate.starts(SITES, BUDGET, START)
    assert (free == surrogate.estimated_start(SITES, BUDGET, START)).all()
    assert free.sum(axis=1).tolist() == [2, 10]
    assert half.sum(axis=1).tolist() == [4, 8]
    assert none.sum(axis=1).tolist() == [6, 6]
    assert BUDGET.allows(np.stack([free, half, none])).all()
    # Within a kind, the last layer gains what the others give.
    assert none.tolist() == [[1, 1, 4], [1, 1, 4]]


def test_without_an_estimate_all_starts_are_the_given_one() -> None:
    impossible = BUDGET._replace(limit=np.array([-1]))
    assert (surrogate.starts(SITES, impossible, START) == START).all()


@pytest.mark.parametrize(
    ("true", "part"),
    [
        # What the kinds really count: as estimated, as the first alone, and alike.
        (SHARE, 1.0),
        (np.array([[1.0, 1.0, 5.0], [1.0, 1.0, 5.0]]), 0.0),
        (np.array([[1.0, 1.0, 0.5], [1.0, 1.0, 0.5]]), None),
    ],
    ids=["right", "kinds misjudged", "all misjudged"],
)
@pytest.mark.parametrize("sequences", [1, 12])
def test_the_best_start_wins(true: np.ndarray, part: float | None, sequences: int) -> None:
    space, asked = SPACE.replace(sequences=sequences), []

    def score(candidates: np.ndarray, text: np.ndarray) -> np.ndarray:
        asked.append((len(candidates), text.tolist()))
        return np.array([float(np.sum(values_at(ERROR, each) * true)) for each in candidates])

    search = Estimate(score_tokens=24)
    state = loop.begin_search(search, jax.random.key(0), START, space)
    found = loop.run(search, state, space, score)
    starts = dict(zip(surrogate.EXCHANGES, surrogate.starts(SITES, BUDGET, START), strict=True))
    assert (found == (START if part is None else starts[part])).all()
    if sequences == 1:
        assert asked == [(4, [0])]
        return
    (first, text), (second, more) = asked
    assert (first, second, len(text), len(more)) == (4, 2, 3, 6)
    assert not {*text} & {*more}


def test_both_heats_count() -> None:
    """A rival that wins the first heat by 1 loses the second, of twice as much text, by 0.6 or by 0.4."""
    for loss, wins in ((0.6, False), (0.4, True)):
        heats = iter([np.array([1.0, 0.0, 9.0, 9.0]), np.array([0.0, loss])])
        search = Estimate(score_tokens=24)
        state = loop.begin_search(search, jax.random.key(0), START, SPACE)
        found = loop.run(search, state, SPACE, lambda *_, heats=heats: next(heats))
        expected = surrogate.estimated_start(SITES, BUDGET, START) if wins else START
        assert (found == expected).all()
