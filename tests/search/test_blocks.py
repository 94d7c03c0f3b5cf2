"""Whole blocks, by hand."""

import jax
import numpy as np

from tyr_jax.search.blocks import Blocks
from tyr_jax.search.contract import SearchSpace
from tyr_jax.space import Kind, level_grid


def test_the_layers_of_least_influence_go_first() -> None:
    """Four layers at half: the two of least share lose everything, the other two nothing."""
    grid = level_grid((Kind("attention", 4, 1), Kind("ffn", 32, 8)), np.array([[2] * 4, [16] * 4]), 5, 1 / 4)
    start = np.full((2, 4), 2)
    space = SearchSpace.around(grid, start, 1, 8)
    share = np.array([[0.1, 0.5, 0.2, 0.9], [0.3, 0.1, 0.1, 0.4]])  # sums 0.4, 0.6, 0.3, 1.3
    space = space.replace(sites=space.sites._replace(share=share))
    search = Blocks()
    levels = search.best(search.init(jax.random.key(0), start, space))
    assert np.asarray(levels).tolist() == [[0, 4, 0, 4]] * 2
    # A budget of one head more goes to the better of the two that lose.
    dearer = space.replace(budget=space.budget._replace(limit=space.budget.limit + np.array([1, 0])))
    levels = search.best(search.init(jax.random.key(0), start, dearer))
    assert np.asarray(levels).tolist() == [[1, 4, 0, 4], [0, 4, 0, 4]]
