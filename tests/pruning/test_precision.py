"""Products that feed weights run in full float32, also where the default is less, as on TPUs and GPUs."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import make_tiny_config

from tyr_jax.model.tensors import layer_block, random_params
from tyr_jax.pruning import hessian, stream
from tyr_jax.pruning.fold import passed_weight
from tyr_jax.pruning.kinds import HEADS
from tyr_jax.pruning.registry import PRUNERS
from tyr_jax.pruning.saliency import TaylorSaliency
from tyr_jax.pruning.site import LocalPruner, Site, keep_experts, prune_experts, prune_site

HIGHEST = (jax.lax.Precision.HIGHEST,) * 2


def precisions(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """The precision of every matrix product in a function's program."""

    def within(program: Any) -> Iterator[Any]:
        for equation in getattr(program, "jaxpr", program).eqns:
            if equation.primitive.name == "dot_general":
                yield equation.params["precision"]
            for value in equation.params.values():
                for inner in value if isinstance(value, tuple) else (value,):
                    if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                        yield from within(inner)

    return list(within(jax.make_jaxpr(function)(*arguments)))


def site(shape: tuple[int, ...] = (), **changes: Any) -> Site:
    """A site of six units of two channels, or, with a `shape`, of so many experts."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(*shape, 40, 12)).astype(np.float32)
    gram = jnp.asarray(np.swapaxes(inputs, -1, -2) @ inputs)
    weight = jnp.asarray(rng.normal(size=(gram.size // 12, 5)), jnp.float32)
    kept, schedule = jnp.array([6, 4, 2]), jnp.array([2, 2])
    fields = Site(
        gram, weight, kept, schedule, 2, 2, 0.01, "channel", TaylorSaliency("abs", "channel"), jnp.eye(5)
    )
    return fields.replace(**changes)


@pytest.mark.parametrize("pruner", PRUNERS.values())
def test_pruners(pruner: type[LocalPruner]) -> None:
    found = precisions(lambda site: prune_site(site, pruner()), site())
    assert found
    assert set(found) == {HIGHEST}


def test_experts() -> None:
    experts = site((3,), unit_size=1, chunk=2, kept=jnp.array([12, 10, 8]))
    for prune in (prune_experts, keep_experts):
        found = precisions(lambda site, prune=prune: prune(site, PRUNERS["keep"]()), experts)
        assert found
        assert set(found) == {HIGHEST}


def test_what_a_site_passes_on_and_its_correction() -> None:
    gram, weight = site().gram, site().weight
    passed = precisions(lambda w, p: passed_weight(w, p, jnp.float32), weight[None], jnp.ones(1))
    corrected = precisions(stream.corrected_weight, weight, gram, weight[None], jnp.float32(0.5))
    total = precisions(hessian.update, jnp.zeros((12, 12)), jnp.ones((3, 12)))
    for found in (passed, corrected, total):
        assert found
        assert set(found) == {HIGHEST}


def test_what_levels_cost() -> None:
    """The products with weights and metric."""
    config = make_tiny_config(layers=1)
    block = layer_block(random_params(config, jax.random.key(0))["blocks"], 0)
    x, units = jnp.ones((2, 3, config.hidden)), jnp.ones((2, 3, 4, 8))
    costs = lambda *given: stream.level_costs(*given, HEADS, 2, config)  # noqa: E731
    levels = jnp.ones((3, 32, config.hidden))
    assert precisions(costs, block, levels, x, units, jnp.eye(config.hidden)) == [HIGHEST] * 4
