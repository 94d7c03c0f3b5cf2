"""Runs with data on disk give the same results as runs with data in memory."""

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interrupted import Died, result
from reference import random_supernet

from tyr_jax import space
from tyr_jax.cli import prune
from tyr_jax.errors import UserError
from tyr_jax.io.checkpoint import load_model
from tyr_jax.model.spec import LayerShape, ModelConfig, Params
from tyr_jax.model.tensors import layer_block, random_params
from tyr_jax.pruning.compress import compress
from tyr_jax.pruning.fold import FoldPlan, build_supernet
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.pruning.supernet import Supernet
from tyr_jax.runtime import offload
from tyr_jax.runtime.offload import Scratch
from tyr_jax.scoring import chunking, nested, scorer, slopes
from tyr_jax.scoring.objective import KL, HiddenKL, Objective
from tyr_jax.scoring.teacher import teacher_targets
from tyr_jax.workspace.store import Store

pytestmark = pytest.mark.slow

Configs = Callable[..., ModelConfig]
LENGTH = 16


def on_disk(params: Params) -> Params:
    return params | {"blocks": Scratch().keep(params["blocks"])}


def test_arrays_on_disk_hold_what_they_are_given(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": [jnp.ones((), jnp.bfloat16), np.zeros((0, 4), np.int32)]}
    kept = scratch.keep(tree)
    assert offload.on_disk(kept)
    assert not offload.on_disk(tree)
    for ours, given in zip(jax.tree.leaves(kept), jax.tree.leaves(tree), strict=True):
        assert ours.dtype == given.dtype
        np.testing.assert_array_equal(ours, given)
    np.testing.assert_array_equal(scratch.stack(3, lambda layer: np.full(2, layer)), [[0, 0], [1, 1], [2, 2]])
    # Files without a name disappear with the process, however it ends.
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"cannot keep 0\.00 GB of weights in .*: its disk is full"):
        Scratch(tmp_path).keep(np.ones(5))


def test_segments() -> None:
    stack = {"a": np.arange(8).reshape(4, 2)}
    ((start, stop, whole),) = offload.segments(stack, range(4))
    assert (start, stop) == (0, 4)
    assert whole is stack
    assert list(offload.segments(stack, range(0))) == []
    parts = list(offload.segments(Scratch().keep(stack), range(4)[::-1]))
    assert [(start, stop, part["a"].tolist()) for start, stop, part in parts] == [
        (layer, layer + 1, [[2 * layer, 2 * layer + 1]]) for layer in (3, 2, 1, 0)
    ]
    blocks = Scratch().keep(({"a": np.zeros(2)}, {}, {"a": np.ones(3)}))
    assert [len(part[0]) for _, _, part in offload.segments(blocks, range(3))] == [1, 0, 1]


def test_a_model_is_read_layer_by_layer(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, lazy = (load_model(str(tiny_model), offload=offload) for offload in (False, True))
    blocks = lazy.params["blocks"]
    assert all(isinstance(stack, offload.Stack) for stack in blocks.values())
    for layer in range(whole.config.depth):
        block = layer_block(blocks, layer)
        for name, array in layer_block(whole.params["blocks"], layer).items():
            np.testing.assert_array_equal(block[name], array)
    assert blocks["q"].shape == whole.params["blocks"]["q"].shape


def search_world(config: ModelConfig, objective: Objective) -> tuple[Any, ...]:
    kinds = PruningSettings().kinds(config)
    half = np.repeat([[kinds[0].units // 2], [kinds[1].units // 2]], config.depth, axis=1)
    grid = space.level_grid(kinds, half, 5, 0.2)
    params = random_params(config, jax.random.key(0), scale=0.2)
    tokens = np.random.default_rng(0).integers(0, config.vocab, (3, LENGTH))
    pool = teacher_targets(params, tokens, config, objective)
    return params, random_supernet(config, grid, kinds[0].units), grid, pool, tokens


def stored(supernet: Supernet) -> Supernet:
    return supernet.replace(weights=Scratch().keep(supernet.weights))  # type: ignore[no-any-return]


@pytest.mark.parametrize("consume", [False, True])
@pytest.mark.parametrize("objective", [pytest.param(KL(), marks=pytest.mark.long), HiddenKL()], ids=str)
def test_the_search_of_a_supernet_on_disk(
    objective: Objective, consume: bool, tiny_config: Configs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks of candidates also share some layers with the trunk, and the outputs of these are observed."""
    monkeypatch.setattr(chunking, "candidate_tokens", lambda: 2 * LENGTH)
    config = tiny_config(shape=LayerShape(heads=6, kv_heads=2, ffn=48), qkv_bias=True, mlp_bias=True)
    params, supernet, grid, pool, tokens = search_world(config, objective)
    lazy = on_disk(params)
    other = teacher_targets(lazy, tokens, config, objective)
    for ours, expected in zip(jax.tree.leaves(other), jax.tree.leaves(pool), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)

    rng, told = np.random.default_rng(1), []
    candidates = np.array(
        [[[rng.choice(np.flatnonzero(site)) for site in kind] for kind in grid.exists] for _ in range(9)]
    )
    for one, layers in enumerate((1, 2, 3, 2, 1), start=1):
        candidates[one, :, :layers] = candidates[7, :, :layers]
    rest = pool, np.array([2, 0]), config, objective
    net = nested.nest(params, supernet, config)
    expected = scorer.score_population(net, candidates, *rest)
    expected_slopes = slopes.pool_slopes(net, candidates[0], *rest)

    net = nested.nest(lazy, stored(supernet), config, consume=consume)
    assert offload.on_disk([net.params["blocks"]["q"]])
    assert offload.on_disk([net.weights["attention"]])
    np.testing.assert_allclose(
        scorer.score_population(net, candidates, *rest, told.append), expected, rtol=1e-5
    )
    assert sum(told) == 9 * 2 * LENGTH
    told.clear()
    found = slopes.pool_slopes(net, candidates[0], *rest, told.append)
    np.testing.assert_allclose(found, expected_slopes, rtol=1e-3, atol=1e-5)
    assert sum(told) == 2 * LENGTH


def test_the_fold_and_what_comes_of_it(tiny_config: Configs) -> None:
    config, settings = tiny_config(qkv_bias=True), PruningSettings(neuron_chunk=4)
    params = random_params(config, jax.random.key(1), scale=0.2)
    texts = [np.random.default_rng(length).integers(0, config.vocab, (5, length)) for length in (16, 4)]
    grid = space.uniform_grid(settings.kinds(config), config.depth, 0.5, 5, 0.2)
    options = {"batch_tokens": 32}
    plan = FoldPlan(config, grid, settings)
    whole = build_supernet(params, texts, plan, **options)
    lazy = build_supernet(on_disk(params), texts, dataclasses.replace(plan, scratch=Scratch()), **options)
    assert offload.on_disk([lazy.weights["attention"]])
    for ours, expected in zip(jax.tree.leaves(lazy), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5)
    levels = space.centre_distribution(grid)
    small, shape = compress(params, whole, levels, config)
    kept, other = compress(on_disk(params), lazy, levels, config, finish=Scratch().keep)
    assert other == shape
    for layer in range(config.depth):
        block = layer_block(kept["blocks"], layer)
        for name, array in layer_block(small["blocks"], layer).items():
            np.testing.assert_allclose(block[name], array, rtol=1e-4, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize(
    "arguments",
    [
        ["--metric", "fisher"],
        ["--sparsity", "0.25", "0.5", "--no-refit"],
        ["--layout", "masked", "--rounds", "0"],
    ],
    ids=" ".join,
)
def test_the_whole_job(arguments: list[str], tiny_arguments: list[str], tmp_path: Path) -> None:
    for name, flags in (("memory", []), ("disk", ["--offload"])):
        prune.main([*tiny_arguments, *arguments, *flags, "--output", str(tmp_path / name)])
    expected, found = (result(tmp_path / name) for name in ("memory", "disk"))
    assert found.keys() == expected.keys()
    for name, (_, findings) in expected.items():
        assert found[name][1][0] == findings[0], "another distribution"
        directories = [str(tmp_path / part / name) for part in ("memory", "disk")]
        ours, theirs = (load_model(directory).params for directory in directories)
        for left, right in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-4, atol=1e-5)


def test_it_goes_on_after_an_interruption(
    tiny_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*tiny_arguments, "--offload", "--output"]
    prune.main([*command, str(tmp_path / "whole")])
    save, left = Store.save, 0

    def dying(self: Store, name: str, *rest: Any, **facts: Any) -> None:
        nonlocal left
        save(self, name, *rest, **facts)
        left -= name.startswith(("residual", "search"))
        if left == 0:
            raise Died

    with monkeypatch.context() as patch:
        patch.setattr(Store, "save", dying)
        for steps in (2, 2, 3):
            left = steps
            with pytest.raises(Died):
                prune.main([*command, str(tmp_path / "pruned")])
    prune.main([*command, str(tmp_path / "pruned")])
    assert result(tmp_path / "pruned") == result(tmp_path / "whole")
