"""The fold over blocks against a naive fold that runs every level's forward and averages the outputs."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import add_attention64, add_ffn64, f64, head_outputs64, neurons64, select
from tiny import ATTENTION, FFN

from tyr_jax import space
from tyr_jax.errors import UserError
from tyr_jax.model.spec import ModelConfig, Params
from tyr_jax.model.tensors import layer_block, random_params
from tyr_jax.pruning import stream
from tyr_jax.pruning.fold import FoldPlan, build_supernet, dealt_anew, level_probabilities
from tyr_jax.pruning.kinds import SiteKind
from tyr_jax.pruning.obs import OBS
from tyr_jax.pruning.settings import Accumulation, PruningSettings
from tyr_jax.pruning.site import prune_site, removal_schedule
from tyr_jax.pruning.supernet import Supernet, at_levels, level_index
from tyr_jax.runtime import devices
from tyr_jax.runtime.batches import batches
from tyr_jax.space import LevelGrid

SEQUENCES, LENGTH, LEVELS, CHUNK = 6, 16, 5, 4
# Heads kept and neurons kept at the centre: some levels of every layer are masked.
CENTRES = np.array([[2, 3, 1], [24, 16, 40]])


class World(NamedTuple):
    config: ModelConfig
    params: Params
    tokens: np.ndarray

    def grid(self, settings: PruningSettings, centres: np.ndarray = CENTRES) -> LevelGrid:
        return space.level_grid(settings.kinds(self.config), centres, LEVELS, 0.2)

    def build(self, settings: PruningSettings, seed: int = 0, **options: Any) -> Supernet:
        options = {"batch_tokens": 3 * LENGTH} | options
        plan = dataclasses.replace(self.plan(settings), seed=seed)
        return build_supernet(self.params, [self.tokens], plan, **options)

    def plan(self, settings: PruningSettings, grid: LevelGrid | None = None) -> FoldPlan:
        return FoldPlan(self.config, grid or self.grid(settings), settings)


def chosen(**changes: Any) -> PruningSettings:
    return PruningSettings(**{"neuron_chunk": CHUNK} | changes)


@pytest.fixture(scope="module")
def world(tiny_config: Callable[..., ModelConfig]) -> World:
    config = tiny_config(qkv_bias=True, out_bias=True, mlp_bias=True)
    tokens = np.random.default_rng(0).integers(0, config.vocab, (SEQUENCES, LENGTH))
    return World(config, random_params(config, jax.random.key(1), scale=0.2), tokens)


def naive_probabilities(
    mode: str, kept: list[int | None], units: int, rng: np.random.Generator
) -> list[float]:
    """Eq. 5 and the modes of Table 4, written out; `None` is a level that does not exist."""
    present = [level for level, count in enumerate(kept) if count is not None]
    if mode == "random":
        present = [rng.choice(present)]
    elif mode == "centre":
        present = [len(kept) // 2]
    share = [
        1.0 - (units - (kept[level] or 0)) / units if mode == "expectation" else 1.0 for level in present
    ]
    weights = [0.0] * len(kept)
    for level, value in zip(present, share, strict=True):
        weights[level] = value / sum(share)
    return weights


def naive_corrected_weight(
    weight: np.ndarray, inputs: np.ndarray, x: np.ndarray, drift: np.ndarray, share: float
) -> tuple[np.ndarray, np.ndarray]:
    """(inputs with tokens weighted by 1 / rms(r), the weight that corrects a share of drift)."""
    heavy = 1 / np.sqrt(np.mean(x**2, axis=-1)).reshape(-1, 1)
    inputs = heavy * inputs
    gram = inputs.T @ inputs
    own = np.diagonal(gram)
    damped = gram + np.diag(0.1 * (own + 1e-3 * own.mean()))
    pull = inputs.T @ (heavy * drift.reshape(len(heavy), -1))
    return inputs, weight + share * np.linalg.solve(damped, pull)


def naive_supernet(
    world: World, settings: PruningSettings, seed: int = 0, drift: float = 0.0
) -> dict[str, np.ndarray]:
    """Algorithm 2 in float64: each level of a site runs by itself, and then the residuals are averaged. Sites
    correct a share `drift` of the drift."""
    config, grid = world.config, world.grid(settings)
    kinds = settings.kinds(config)
    x = f64(world.params["embed"])[world.tokens]
    dense = x
    out: dict[str, list[np.ndarray]] = {"o": [], "down": [], "attention": [], "ffn": []}
    for layer in range(config.depth):
        block = layer_block(world.params["blocks"], layer)
        for kind, name, run, add in (
            (ATTENTION, "o", head_outputs64, add_attention64),
            (FFN, "down", neurons64, add_ffn64),
        ):
            units = run(block, x, config)
            flat = units.reshape(-1, np.prod(units.shape[2:]))
            weight = f64(block[name]).reshape(flat.shape[1], -1)
            dense = add(block, dense, run(block, dense, config))
            if drift:
                flat, weight = naive_corrected_weight(weight, flat, x, dense - add(block, x, units), drift)
            kept, exists = grid.kept[kind, layer], grid.exists[kind, layer]
            chunk = 1 if kind == ATTENTION else settings.neuron_chunk
            with jax.enable_x64(True):
                gram = jnp.asarray(flat.T @ flat)
                site = settings.site(gram, jnp.asarray(weight), kept, exists, kinds[kind].units)
                schedule = removal_schedule(kinds[kind].units, chunk, kept, exists)
                pruned = prune_site(site.replace(chunk=chunk, schedule=jnp.asarray(schedule)), OBS())
            weights = np.asarray(pruned.weights).reshape(LEVELS, *block[name].shape)
            out[name].append(weights)
            out[kinds[kind].name].append(np.asarray(pruned.rank))
            if settings.accumulation == "none":
                x = add(block, x, units)
                continue
            rows = [int(count) if there else None for count, there in zip(kept, exists, strict=True)]
            rng = np.random.default_rng((seed, layer, kind))
            p = naive_probabilities(settings.accumulation, rows, kinds[kind].units, rng)
            x = sum(p[e] * add(block | {name: weights[e]}, x, units) for e in range(LEVELS) if p[e])
    return {name: np.stack(values) for name, values in out.items()}


def assert_same(ours: Supernet, naive: dict[str, np.ndarray]) -> None:
    for kind in ours.kinds:
        np.testing.assert_array_equal(ours.ranks[kind.name], naive[kind.name], err_msg=kind.name)
        actual, expected = np.asarray(ours.weights[kind.name]), naive[kind.output]
        difference = np.linalg.norm(actual - expected, axis=-1) / np.linalg.norm(expected)
        assert difference.max() < 1e-4, kind.name


@pytest.mark.parametrize("mode", get_args(Accumulation))
def test_every_mode_equals_the_naive_fold(mode: Any, world: World) -> None:
    settings = chosen(accumulation=mode)
    assert_same(world.build(settings, seed=7), naive_supernet(world, settings, seed=7))


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_taking_back_drift_equals_the_naive_fold(share: float, world: World) -> None:
    settings = chosen(accumulation="centre")
    plan = dataclasses.replace(world.plan(settings), drift=share)
    built = build_supernet(world.params, [world.tokens], plan, batch_tokens=4 * LENGTH)
    assert_same(built, naive_supernet(world, settings, drift=share))


@pytest.mark.slow
def test_a_model_that_keeps_all_takes_nothing_back(world: World) -> None:
    """In this case there is no drift except for rounding."""
    settings = chosen(accumulation="centre")
    every = np.tile([[kind.units] for kind in settings.kinds(world.config)], world.config.depth)
    grid = space.level_grid(settings.kinds(world.config), every, 1, 0.2)
    built = build_supernet(
        world.params, [world.tokens], dataclasses.replace(world.plan(settings, grid), drift=1.0)
    )
    np.testing.assert_allclose(
        built.weights["ffn"][:, 0],
        world.params["blocks"]["down"],
        rtol=1e-3,
        atol=1e-5 * np.ptp(built.weights["ffn"]),
    )


def test_modes_differ_after_the_first_site_only(world: World) -> None:
    built = {mode: world.build(chosen(accumulation=mode), seed=7) for mode in get_args(Accumulation)}
    first = np.asarray(built["none"].weights["attention"])
    for mode in get_args(Accumulation):
        same = np.asarray(built[mode].weights["attention"])
        np.testing.assert_array_equal(same[0], first[0])
        if mode != "none":
            assert np.abs(same[1:] - first[1:]).max() > 1e-3
    downs = [np.asarray(built[mode].weights["ffn"])[-1] for mode in get_args(Accumulation)]
    assert all(np.abs(a - b).max() > 1e-3 for i, a in enumerate(downs) for b in downs[:i])


def test_the_seed_matters_to_the_random_mode_alone(world: World) -> None:
    for mode in ("expectation", "random"):
        settings = chosen(accumulation=mode)
        first, again, other = (world.build(settings, seed=seed) for seed in (7, 7, 8))
        for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
        changed = np.abs(np.asarray(first.weights["ffn"] - other.weights["ffn"])).max() > 1e-4
        assert changed == (mode == "random")


# 16 units; levels that keep 0, 4, 8, 12 and 16 of them, or some of these.
ALL = [True] * 5
TABLE: list[tuple[Any, list[bool], list[float]]] = [
    ("expectation", ALL, [0, 0.1, 0.2, 0.3, 0.4]),  # (1 − S_e) = 0, ¼, ½, ¾, 1
    ("expectation", [False, False, True, True, True], [0, 0, 2 / 9, 3 / 9, 4 / 9]),
    ("uniform", ALL, [0.2] * 5),
    ("uniform", [False, True, True, True, True], [0, 0.25, 0.25, 0.25, 0.25]),
    ("centre", ALL, [0, 0, 1, 0, 0]),
    ("centre", [False, False, True, True, True], [0, 0, 1, 0, 0]),
    ("random", [False, False, True, False, False], [0, 0, 1, 0, 0]),
]


@pytest.mark.parametrize(("mode", "exists", "expected"), TABLE, ids=str)
def test_probabilities_by_hand(mode: Any, exists: list[bool], expected: list[float]) -> None:
    kept = np.where(exists, [0, 4, 8, 12, 16], 16)  # what is masked must not count
    p = level_probabilities(mode, kept, np.array(exists), 16, np.random.default_rng(0))
    np.testing.assert_allclose(p, expected, rtol=1e-6)


def test_random_levels_are_drawn_among_those_that_exist() -> None:
    rng, exists = np.random.default_rng(0), np.array([False, True, False, True, True])
    draws = [level_probabilities("random", np.arange(5), exists, 5, rng) for _ in range(600)]
    assert {tuple(sorted(p)) for p in draws} == {(0, 0, 0, 0, 1)}
    np.testing.assert_allclose(np.mean(draws, axis=0), [0, 1 / 3, 0, 1 / 3, 1 / 3], atol=0.08)


def test_each_block_runs_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[str, int]] = []
    run = stream.site_statistics

    def counted(block: Any, x: Any, gram: Any, counts: Any, kind: SiteKind, config: ModelConfig) -> Any:
        calls.append((kind.name, x.shape[0]))
        return run(block, x, gram, counts, kind, config)

    monkeypatch.setattr(stream, "site_statistics", counted)
    world.build(chosen())
    assert calls == ([("attention", 3)] * 2 + [("ffn", 3)] * 2) * world.config.depth


@pytest.mark.parametrize("batch", [4, 100])
def test_the_batch_does_not_matter(batch: int, world: World) -> None:
    settings = chosen()
    whole, parts = world.build(settings), world.build(settings, batch_tokens=batch * LENGTH)
    np.testing.assert_array_equal(np.asarray(whole.ranks["ffn"]), np.asarray(parts.ranks["ffn"]))
    np.testing.assert_allclose(
        np.asarray(whole.weights["attention"]), np.asarray(parts.weights["attention"]), rtol=2e-3, atol=2e-5
    )
    np.testing.assert_allclose(
        np.asarray(whole.weights["ffn"]), np.asarray(parts.weights["ffn"]), rtol=2e-3, atol=2e-5
    )


def test_texts_of_any_length_count_alike(world: World) -> None:
    settings = chosen()
    whole, halves, more = (
        build_supernet(world.params, texts, world.plan(settings))
        for texts in (
            [world.tokens],
            [world.tokens[:2], world.tokens[2:]],
            [world.tokens, world.tokens[:, :4]],
        )
    )
    np.testing.assert_allclose(halves.weights["attention"], whole.weights["attention"], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(halves.weights["ffn"], whole.weights["ffn"], rtol=1e-3, atol=1e-4)
    assert np.abs(np.asarray(more.weights["ffn"] - whole.weights["ffn"])).max() > 1e-3


def test_shapes_levels_and_reports(world: World) -> None:
    reports: list[tuple[str, float]] = []
    settings = chosen()
    net = world.build(settings, on_site=lambda name, damping: reports.append((name, damping)))
    names = [f"layer {layer} {kind}" for layer in range(3) for kind in ("attention", "ffn")]
    assert [name for name, _ in reports] == names
    assert [damping for _, damping in reports] == pytest.approx([0.01] * 6)
    assert net.learnt == ()
    assert {name: array.shape for name, array in net.weights.items()} == {
        "attention": (3, LEVELS, 4, 8, 32),
        "ffn": (3, LEVELS, 48, 32),
    }
    assert {name: array.shape for name, array in net.ranks.items()} == {"attention": (3, 4), "ffn": (3, 48)}
    for name in ("kept", "exists", "error"):
        assert getattr(net, name).shape == (2, 3, LEVELS)
    assert net.share.shape == net.damping.shape == (2, 3)
    grid = world.grid(settings)
    np.testing.assert_array_equal(np.asarray(net.kept), grid.kept)
    np.testing.assert_array_equal(np.asarray(net.exists), grid.exists)
    heads = np.abs(np.asarray(net.weights["attention"])).sum(axis=(-1, -2)) > 0
    neurons = np.abs(np.asarray(net.weights["ffn"])).sum(axis=-1) > 0
    np.testing.assert_array_equal(heads.sum(-1), grid.kept[ATTENTION])
    np.testing.assert_array_equal(neurons.sum(-1), grid.kept[FFN])
    kept = np.asarray(net.kept)[..., None]
    np.testing.assert_array_equal(heads, np.asarray(net.ranks["attention"])[:, None] < kept[ATTENTION])
    np.testing.assert_array_equal(neurons, np.asarray(net.ranks["ffn"])[:, None] < kept[FFN])
    # More units, less error; none at all loses everything, all of them nothing.
    error = np.asarray(net.error)
    assert (np.diff(error, axis=-1) <= 1e-5).all()
    np.testing.assert_allclose(error[grid.kept == 0], 1.0, atol=1e-5)
    np.testing.assert_allclose(error[ATTENTION][grid.kept[ATTENTION] == 4], 0.0, atol=1e-4)


@pytest.mark.slow
def test_a_supernet_of_several_grids_serves_each(world: World) -> None:
    settings = chosen(accumulation="none", neuron_chunk=4)
    grids = [world.grid(settings, np.full((2, 3), 1) * units) for units in ([[1], [16]], [[3], [24]])]
    shared = build_supernet(world.params, [world.tokens], world.plan(settings, space.joint_grid(grids)))
    for grid in grids:
        own = build_supernet(world.params, [world.tokens], world.plan(settings, grid))
        part = at_levels(shared, level_index(shared, grid), grid)
        for name in ("kept", "exists", "share", "damping"):
            np.testing.assert_array_equal(getattr(part, name), getattr(own, name))
        for row, kind in enumerate(own.kinds):
            ours, expected = (np.asarray(net.weights[kind.name])[grid.exists[row]] for net in (part, own))
            np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-5)
        error = np.asarray(own.error)[grid.exists]
        np.testing.assert_allclose(np.asarray(part.error)[grid.exists], error, rtol=1e-3, atol=1e-5)


def test_the_dense_level_is_the_dense_weight(world: World) -> None:
    settings = chosen()
    centres = np.array([[4, 4, 4], [48, 48, 48]])
    grid = world.grid(settings, centres)
    net = build_supernet(world.params, [world.tokens], world.plan(settings, grid))
    dense = select(world.params, net, space.centre_distribution(grid))
    for name in ("o", "down"):
        exact = np.asarray(world.params["blocks"][name])
        np.testing.assert_allclose(np.asarray(dense["blocks"][name]), exact, rtol=1e-3, atol=1e-4)


def test_whole_key_value_groups_are_removed(world: World) -> None:
    settings = chosen(units=("kv_group",))
    attention, ffn = settings.kinds(world.config)
    assert (attention.units, attention.multiple) == (2, 1)
    assert (ffn.units, ffn.multiple) == (48, 8)
    centres = np.array([[1, 1, 1], [24, 24, 24]])
    grid = world.grid(settings, centres)
    net = build_supernet(world.params, [world.tokens], world.plan(settings, grid))
    assert net.ranks["attention"].shape == (3, 2)
    alive = (np.abs(np.asarray(net.weights["attention"])).sum(axis=(-1, -2)) > 0).reshape(3, LEVELS, 2, 2)
    assert (alive[..., 0] == alive[..., 1]).all()
    np.testing.assert_array_equal(alive[..., 0].sum(-1), grid.kept[ATTENTION])


def test_neuron_multiple_is_that_of_the_ffn(world: World) -> None:
    _, ffn = chosen(neuron_multiple=16).kinds(world.config)
    grid = world.grid(chosen(neuron_multiple=16))
    assert ffn.multiple == 16
    assert grid.step[FFN] == 16


@pytest.mark.parametrize(
    ("tensor", "layer", "named"),
    [
        ("k", 1, "layer 1 attention"),
        ("o", 1, "layer 1 attention"),
        ("gate", 0, "layer 0 ffn"),
        ("down", 2, "layer 2 ffn"),
        ("embed", 0, "layer 0 attention"),
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_names_its_site(
    tensor: str, layer: int, named: str, value: float, world: World
) -> None:
    blocks = dict(world.params["blocks"])
    params = world.params | {"blocks": blocks}
    if tensor == "embed":
        token = int(world.tokens[0, 0])
        params["embed"] = params["embed"].at[token, 3].set(value)
    else:
        blocks[tensor] = blocks[tensor].at[layer, 0].set(value)
    settings = chosen()
    with pytest.raises(UserError, match=rf"the inputs of {named} gave"):
        build_supernet(params, [world.tokens], world.plan(settings))


def test_a_projection_of_zeros_is_no_error(world: World) -> None:
    """Blocks that were added with a zero output projection (as in LLaMA Pro) have no error."""
    blocks = dict(world.params["blocks"])
    blocks["o"] = blocks["o"].at[1].set(0.0)
    settings = chosen()
    net = build_supernet(world.params | {"blocks": blocks}, [world.tokens], world.plan(settings))
    assert not np.asarray(net.weights["attention"][1]).any()
    assert np.isfinite(np.asarray(net.error)).all()


@pytest.mark.parametrize(("before", "now"), [(8, 4), (1, 8), (4, 1), (4, 4)])
def test_residuals_are_dealt_anew(before: int, now: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are batched again as for another number of devices: texts of 21 sequences and of 7 short ones."""
    rng = np.random.default_rng(0)
    texts = [rng.normal(size=shape).astype(np.float32) for shape in ((21, 16, 5), (7, 4, 5))]

    def dealt(number: int) -> tuple[list[np.ndarray], list[int]]:
        monkeypatch.setattr(devices, "count", lambda: number)
        rows = [(text, each) for text in texts for each in batches(text[..., 0], 32)]
        return [text[each.indices] for text, each in rows], [each.real for _, each in rows]

    begun, wanted = dealt(before), dealt(now)
    found = dealt_anew(*begun, batch_tokens=32)
    assert found[1] == wanted[1]
    for array, expected in zip(found[0], wanted[0], strict=True):
        np.testing.assert_array_equal(array, expected)
