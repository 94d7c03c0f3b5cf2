"""This project's descent: proposals from slopes and level errors, scored before they count.

Each generation has two stages: slopes at the present levels, then a score of these levels and of one proposal
for each of `CAUTIONS`, on other text.

It was made for this project and has no paper. The nearest known method is sequential quadratic
programming (Nocedal and Wright, "Numerical Optimization", 2006, chapter 18).

Axis letters: `P` parts of a text, `Q` proposals, `S` kinds of site, `L` layers, `E` levels, `G` generations,
`s` sequences.
"""

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.errors import require
from tyr_jax.search import surrogate
from tyr_jax.search.contract import Asked, Query, SearchSpace
from tyr_jax.search.incumbent import Improving, Incumbent
from tyr_jax.space import Levels


class Proposed(Incumbent):
    """The best so far; what is proposed to replace it, `proposals [Q, S, L]`; and the text of every
    generation, `texts [G, 2s]`: first that of the slopes."""

    proposals: jax.Array
    texts: jax.Array


@dataclasses.dataclass(frozen=True)
class Descent(Improving):
    """Descent along the objective's slopes, one level at a time."""

    name: ClassVar[str] = "descent"

    generations: int = 20
    """Steps of a round."""
    reach: int = 1
    """Maximum number of levels by which a site moves in a step."""
    tokens: int = 2048
    """Tokens that slopes are computed on, in whole sequences and at most half of the search text; proposals
    are scored on as many other tokens."""

    def check(self) -> None:
        """Refuse a reach or a number of tokens below 1."""
        super().check()
        require(self.reach >= 1, "--reach", self.reach, "at least 1")
        require(self.tokens >= 1, "--tokens", self.tokens, "at least 1")

    def check_text(self, sequences: int, length: int) -> None:
        """Refuse a text of fewer than two sequences."""
        given, wanted = f"{sequences} sequence", "at least two sequences (or --search evolution)"
        require(sequences >= 2, "--search-tokens", given, wanted)

    def stages(self, space: SearchSpace) -> int:
        """Slopes, then scores."""
        return 2

    def text(self, space: SearchSpace) -> int:
        """Sequences that slopes are computed on, and as many that proposals are scored on."""
        return max(1, min(self.tokens // space.length, space.sequences // 2))

    def queries(self, space: SearchSpace) -> list[Asked]:
        """All queries of a round."""
        scored, count = 1 + len(surrogate.CAUTIONS), self.text(space)
        return [Asked(1, count, self.generations, slopes=True), Asked(scored, count, self.generations)]

    def init(self, key: jax.Array, start: Levels, space: SearchSpace) -> Proposed:
        """At the start.

        Texts are drawn by numpy, whose seed is the words of the key: where these are a run's seed and the
        round, the same command finds the same model as it always has.
        """
        plain = Incumbent.at(key, start, space)
        proposals = jnp.repeat(plain.levels[None], len(surrogate.CAUTIONS), axis=0)
        count = self.text(space)

        def drawn(words: np.ndarray) -> np.ndarray:
            rng = np.random.default_rng(words.tolist())
            return np.stack([rng.permutation(space.sequences)[: 2 * count] for _ in range(self.generations)])

        texts = surrogate.on_host(drawn, (self.generations, 2 * count), jax.random.key_data(key))
        return Proposed(**vars(plain), proposals=proposals, texts=texts)

    def ask(self, state: Proposed) -> Query:
        """Slopes at the present levels; or scores of these and of the proposals."""
        sloped, scored = jnp.split(state.texts[state.generation], 2)
        if state.stage == 0:
            return Query(state.levels[None], sloped, "slopes")
        return Query(jnp.concatenate([state.levels[None], state.proposals]), scored)

    def tell(self, state: Proposed, candidates: jax.Array, fitness: jax.Array) -> Proposed:
        """Proposals from the slopes; or the best of them and the levels before."""
        if state.stage == 1:
            return state.after(candidates, fitness)
        propose = functools.partial(surrogate.proposals, reach=self.reach)
        known = jnp.asarray(fitness, jnp.float32)[0], state.space.sites, state.space.budget, state.levels
        found = surrogate.on_host(propose, state.proposals.shape, *known)
        return state.replace(proposals=found, stage=1)
