"""The examples of kinds of site, from the command line, and what they remove."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scored import assert_scored_as_at_full_width, random_candidates
from tiny import make_tiny_config

from tyr_jax import space
from tyr_jax.cli import prune
from tyr_jax.errors import UserError
from tyr_jax.io.checkpoint import load_model
from tyr_jax.model.decoder import forward
from tyr_jax.model.tensors import random_params
from tyr_jax.pruning.compress import compress, mask
from tyr_jax.pruning.fold import FoldPlan, build_supernet
from tyr_jax.pruning.settings import PruningSettings

UNITS = ("examples.kind:WHOLE_ATTENTION", "examples.kind:WHOLE_FFN")


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])


@pytest.mark.slow
@pytest.mark.parametrize("units", [UNITS, UNITS[1:], ("examples.kind:TILES",)], ids=str)
def test_the_smaller_model_is_what_was_searched(units: tuple[str, ...]) -> None:
    config, tokens = make_tiny_config(), np.random.default_rng(0).integers(0, 96, (3, 16))
    params, settings = random_params(config, jax.random.key(0), scale=0.2), PruningSettings(units=units)
    kinds = settings.kinds(config)
    centre = np.array([[kind.units // 2] * 3 for kind in kinds])
    grid = space.level_grid(kinds, centre, 3, 0.5)
    net = build_supernet(params, [tokens], FoldPlan(config, grid, settings))
    candidates = random_candidates(grid, 3)
    assert_scored_as_at_full_width(params, net, candidates, tokens, config)
    for levels in candidates:
        small, shape = compress(params, net, levels, config)
        masked = forward(mask(params, net, levels, config), jnp.asarray(tokens), config)
        np.testing.assert_allclose(forward(small, jnp.asarray(tokens), shape), masked, atol=1e-4)
        kept = space.kept_units(grid, levels)
        spans = [kind.span(config) for kind in net.kinds]
        widths = [[layer.heads for layer in shape.layers], [layer.ffn for layer in shape.layers]]
        if units != UNITS:
            widths, kept, spans = widths[1:], kept[1:], spans[1:]
        for row, width, span in zip(kept, widths, spans, strict=True):
            assert width == (row * span).tolist()


@pytest.mark.slow
def test_from_the_command_line(tiny_arguments: list[str], tmp_path: Path) -> None:
    own = ["--units", *UNITS, "--sparsity", "0.4", "--levels", "3", "--interval", "0.5"]
    prune.main([*tiny_arguments, *own, "--output", str(tmp_path / "pruned")])
    model = load_model(str(tmp_path / "pruned"))
    assert {layer.heads for layer in model.config.layers} <= {0, 4}
    assert {layer.ffn for layer in model.config.layers} == {0, 48}


def test_a_kind_that_the_model_lacks_is_refused() -> None:
    module = importlib.import_module("examples.kind")
    config = make_tiny_config(routed=2)
    assert not module.TILES.there(config)
    with pytest.raises(UserError, match="needs a model that it is made for, which this llama model is not"):
        PruningSettings(units=("examples.kind:TILES",)).site_kinds(config)
    with pytest.raises(UserError, match="--units is nothing, but must be head, kv_group, neuron, expert, or"):
        PruningSettings(units=("nothing",)).site_kinds(config)
