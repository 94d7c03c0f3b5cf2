"""Searches by name, as for `--search`."""

from tyr_jax.search.contract import Search
from tyr_jax.search.evolution import Evolution

SEARCHES: dict[str, type[Search]] = {each.name: each for each in (Evolution,)}
