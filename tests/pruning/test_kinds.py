"""The table of kinds of site: its records against each other, and a kind that some layers lack."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scored import assert_scored_as_at_full_width, random_candidates
from tiny import make_tiny_config

from tyr_jax import space
from tyr_jax.errors import UserError
from tyr_jax.model.decoder import forward
from tyr_jax.model.spec import LayerShape, ModelConfig
from tyr_jax.model.tensors import count_parameters, random_params
from tyr_jax.pruning import kinds as table
from tyr_jax.pruning.compress import compress, mask
from tyr_jax.pruning.fold import FoldPlan, build_supernet
from tyr_jax.pruning.kinds import HEADS, NEURONS, SITE_KINDS, SiteKind
from tyr_jax.pruning.prices import level_prices
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.pruning.target import target_of

DENSE = make_tiny_config(shape=LayerShape(6, 2, 48))
MIXTURE = make_tiny_config(shape=LayerShape(6, 2, 16, 5), routed=2)


def test_names_and_defaults() -> None:
    assert [(kind.name, kind.unit) for kind in PruningSettings().site_kinds(DENSE)] == [
        ("attention", "head"),
        ("ffn", "neuron"),
    ]
    assert [kind.noun for kind in PruningSettings().site_kinds(MIXTURE)] == [
        "heads",
        "neurons of every expert",
    ]
    asked = PruningSettings(units=("expert", "kv_group"))
    assert [kind.unit for kind in asked.site_kinds(MIXTURE)] == ["kv_group", "expert"]


SHAPES: list[tuple[str, ModelConfig, Any]] = [
    # (units, entries of a unit, shape of the ranks, shape of XᵀX), by hand.
    ("HEADS", DENSE, (6, 1, (6,), (48, 48))),
    ("GROUPS", DENSE, (2, 3, (2,), (48, 48))),
    ("NEURONS", DENSE, (48, 1, (48,), (48, 48))),
    ("EXPERT_NEURONS", MIXTURE, (16, 1, (5, 16), (5, 16, 16))),
    ("EXPERTS", MIXTURE, (5, 1, (5,), (5, 16, 16))),
]


@pytest.mark.parametrize(("name", "config", "expected"), SHAPES, ids=str)
def test_shapes_by_hand(name: str, config: ModelConfig, expected: Any) -> None:
    kind = getattr(table, name)
    assert kind in SITE_KINDS
    assert (
        kind.count(config),
        kind.span(config),
        kind.rank_shape(config),
        kind.gram_shape(config),
    ) == expected


def test_entries_of_groups() -> None:
    order = np.array([1, 0])
    assert table.GROUPS.entries(order, DENSE).tolist() == [3, 4, 5, 0, 1, 2]
    assert table.GROUPS.entries(jnp.asarray(order), DENSE).tolist() == [3, 4, 5, 0, 1, 2]


LACKING = dataclasses.replace(HEADS, unit="some", layers=lambda config: (True, False, True))


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> PruningSettings:
    """Settings for models whose second layer has no attention."""
    monkeypatch.setattr(table, "LACKING", LACKING, raising=False)
    return PruningSettings(units=("tyr_jax.pruning.kinds:LACKING",), neuron_chunk=4)


@pytest.mark.slow
def test_a_layer_may_lack_a_kind(lacking: PruningSettings) -> None:
    """Attention that adds nothing stands for attention that is not there."""
    config, tokens = make_tiny_config(), np.random.default_rng(0).integers(0, 96, (3, 16))
    params = random_params(config, jax.random.key(0), scale=0.2)
    blocks = params["blocks"]
    params["blocks"] = blocks | {"o": blocks["o"].at[1].set(0)}
    kinds, whole = lacking.kinds(config), lacking.whole(config)
    assert whole.tolist() == [[False, True, False], [False] * 3]
    centre = space.uniform_centres(kinds, [5, 96], whole)
    assert centre.tolist() == [[2, 0, 3], [32, 32, 32]]
    grid = space.level_grid(kinds, centre, 3, 0.25, whole)
    assert grid.exists[0, 1].tolist() == [False, True, False]
    seen: list[str] = []
    net = build_supernet(
        params, [tokens], FoldPlan(config, grid, lacking), on_site=lambda name, _: seen.append(name)
    )
    assert seen == ["layer 0 attention", "layer 0 ffn", "layer 1 ffn", "layer 2 attention", "layer 2 ffn"]
    candidates = random_candidates(grid, 4)
    assert_scored_as_at_full_width(params, net, candidates, tokens, config)
    prices = level_prices(config, lacking, grid.kept, {"attention": np.asarray(net.ranks["attention"])})[0]
    assert prices[0, 1].tolist() == [0, 0, 0]
    for levels in candidates:
        small, shape = compress(params, net, levels, config)
        assert shape.layers[1].heads == 0
        assert count_parameters(shape)[0] == space.values_at(prices, levels).sum()
        masked = forward(mask(params, net, levels, config), jnp.asarray(tokens), config)
        np.testing.assert_allclose(forward(small, jnp.asarray(tokens), shape), masked, atol=1e-4)


def test_budgets_count_only_what_is_there(lacking: PruningSettings) -> None:
    config = make_tiny_config()
    target = target_of(config, dataclasses.replace(lacking, budget="units"), 0.5)
    assert target.kept[0].tolist() == [2, 0, 2]
    assert target_of(config, lacking, 0.3).kept[0].tolist() == [4, 0, 4]


def test_a_record_is_hashable() -> None:
    """So that it can be a static argument of compiled functions."""
    kinds: set[SiteKind] = {*SITE_KINDS, *SITE_KINDS}
    assert len(kinds) == len(SITE_KINDS)


@pytest.mark.parametrize(
    ("units", "named"),
    [
        (
            ("head", "kv_group"),
            "--units names head and kv_group, but a model has one kind of attention ",
        ),
        (("test_kinds:UNEVEN",), "'uneven' counts 7 units in a layer, but must count a divisor of the 48 "),
        (("test_kinds:RAISES",), "'raises' failed in `count` with AttributeError: "),
        (("test_kinds:RIVAL",), "the kinds of site 'neuron' and 'rival' both prune `down`"),
    ],
)
def test_kinds_that_do_not_fit_are_refused(units: tuple[str, ...], named: str) -> None:
    with pytest.raises(UserError, match=re.escape(named)):
        PruningSettings(units=units).site_kinds(make_tiny_config())


UNEVEN = dataclasses.replace(NEURONS, unit="uneven", count=lambda config: 7, fine=False)
RAISES = dataclasses.replace(NEURONS, unit="raises", count=lambda config: config.neurons)
RIVAL = dataclasses.replace(NEURONS, unit="rival", name="others")
