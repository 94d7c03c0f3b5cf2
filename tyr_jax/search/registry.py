"""Searches by name, as for `--search`."""

from tyr_jax.search.additive import DynamicProgramme
from tyr_jax.search.annealing import Annealing
from tyr_jax.search.blocks import Blocks
from tyr_jax.search.contract import Search
from tyr_jax.search.descent import Descent
from tyr_jax.search.distribution import Distribution
from tyr_jax.search.estimate import Estimate
from tyr_jax.search.evolution import Evolution
from tyr_jax.search.evopress import EvoPress
from tyr_jax.search.evosax_adapter import Evosax
from tyr_jax.search.exchange import Exchange
from tyr_jax.search.genetic import Genetic
from tyr_jax.search.halving import Halving
from tyr_jax.search.lagrangian import Lagrangian
from tyr_jax.search.puzzle import Puzzle
from tyr_jax.search.random_search import RandomSearch
from tyr_jax.search.relaxation import Relaxation

SEARCHES: dict[str, type[Search]] = {
    each.name: each
    for each in (
        Evolution,
        RandomSearch,
        Blocks,
        Estimate,
        EvoPress,
        Genetic,
        Annealing,
        Exchange,
        Distribution,
        Halving,
        DynamicProgramme,
        Puzzle,
        Lagrangian,
        Relaxation,
        Descent,
        Evosax,
    )
}
