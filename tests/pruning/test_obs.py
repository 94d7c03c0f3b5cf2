"""Local pruning against float64 brute force: every removal an argmin, every level a least-squares optimum."""

import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tyr_jax.pruning import obs
from tyr_jax.pruning.hessian import DampingScale
from tyr_jax.pruning.obs import OBS
from tyr_jax.pruning.saliency import TaylorSaliency
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.pruning.site import PrunedSite, Site, keep_rows, prune_site, removal_schedule

SALIENCIES = [
    TaylorSaliency(first, second)
    for first, second in itertools.product(("abs", "signed", "none"), ("channel", "block", "none"))
    if (first, second) != ("none", "none")
]
DAMPING = 0.01


class Sample(NamedTuple):
    gram: np.ndarray
    weight: np.ndarray
    unit_size: int
    damping_scale: DampingScale = "channel"

    @property
    def units(self) -> int:
        return self.weight.shape[0] // self.unit_size

    @property
    def hessian(self) -> np.ndarray:
        diagonal = np.diag(self.gram)
        mean = diagonal.mean()
        own = mean if self.damping_scale == "mean" else diagonal + 1e-3 * mean
        return self.gram + DAMPING * own * np.eye(len(self.gram))


def random_site(units: int, unit_size: int, outputs: int, seed: int, tokens: int = 50) -> Sample:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((units * unit_size, units * unit_size))
    x = rng.standard_normal((tokens, units * unit_size)) @ mix
    return Sample(x.T @ x, rng.standard_normal((units * unit_size, outputs)), unit_size)


def site_of(sample: Sample, kept: list[int], chunk: int = 1, **chosen: Any) -> Site:
    """A site with levels `kept`, all of which it has."""
    settings = PruningSettings(
        neuron_chunk=chunk, damping=DAMPING, damping_scale=sample.damping_scale, **chosen
    )
    gram, weight, counts = jnp.asarray(sample.gram), jnp.asarray(sample.weight), np.array(kept)
    site = settings.site(gram, weight, counts, np.ones(len(counts), bool), sample.units)
    schedule = removal_schedule(sample.units, chunk, counts, np.ones(len(counts), bool))
    return site.replace(chunk=chunk, schedule=jnp.asarray(schedule))


def prune(
    sample: Sample,
    kept: list[int],
    chunk: int = 1,
    saliency: TaylorSaliency = TaylorSaliency(),  # noqa: B008
) -> PrunedSite:
    with jax.enable_x64(True):
        pruned = prune_site(site_of(sample, kept, chunk, saliency=saliency), OBS())
    return PrunedSite(*(np.asarray(field) for field in pruned))


def channels_of(units: list[int] | np.ndarray, unit_size: int) -> np.ndarray:
    return (np.sort(np.asarray(units, int))[:, None] * unit_size + np.arange(unit_size)).reshape(-1)


def least_squares(site: Sample, units: list[int] | np.ndarray) -> np.ndarray:
    """The damped optimum on the support of `units`, zero elsewhere, by direct solution."""
    support = channels_of(units, site.unit_size)
    target = site.hessian @ site.weight
    weight = np.zeros_like(site.weight)
    weight[support] = np.linalg.solve(site.hessian[np.ix_(support, support)], target[support])
    return weight


def brute_saliency(site: Sample, alive: list[int], saliency: TaylorSaliency) -> np.ndarray:
    """Eq. 4 for the units in `alive`, from a direct inverse on their support."""
    support, b = channels_of(alive, site.unit_size), site.unit_size
    inverse = np.linalg.inv(site.hessian[np.ix_(support, support)])
    weight, gradient = least_squares(site, alive)[support], (site.hessian @ site.weight)[support]
    scores = []
    for i in range(len(alive)):
        rows = slice(i * b, (i + 1) * b)
        w, block = weight[rows], inverse[rows, rows]
        first = np.sum(gradient[rows] * w, axis=1)
        score = {"abs": np.abs(first).mean(), "signed": first.mean(), "none": 0.0}[saliency.first_order]
        channel = np.mean(np.sum(w * w, axis=1) / (2 * np.diag(block)))
        joint = 0.5 * np.trace(w.T @ np.linalg.inv(block) @ w) / b
        score += {"channel": channel, "block": joint, "none": 0.0}[saliency.second_order]
        scores.append(score)
    return np.array(scores)


def removed_in_order(rank: np.ndarray) -> list[int]:
    return [int(unit) for unit in np.argsort(rank)[::-1]]


@pytest.mark.slow
@pytest.mark.parametrize("saliency", SALIENCIES, ids=lambda s: f"{s.first_order}-{s.second_order}")
@pytest.mark.parametrize(("units", "unit_size"), [(7, 1), (5, 3)])
def test_each_removed_unit_is_an_argmin_of_the_saliency(
    units: int, unit_size: int, saliency: TaylorSaliency
) -> None:
    site = random_site(units, unit_size, outputs=4, seed=units)
    order = removed_in_order(prune(site, list(range(units + 1)), saliency=saliency).rank)
    alive = list(range(units))
    for unit in order:
        scores = brute_saliency(site, alive, saliency)
        assert scores[alive.index(unit)] <= scores.min() * (1 + 1e-9) + 1e-9
        alive.remove(unit)


@pytest.mark.slow
@pytest.mark.parametrize(("units", "unit_size"), [(7, 1), (6, 2)])
def test_by_a_metric_units_leave_by_what_they_change_in_it(units: int, unit_size: int) -> None:
    site, kept = random_site(units, unit_size, outputs=4, seed=units), list(range(units + 1))
    root = np.random.default_rng(0).standard_normal((4, 4)) * [1, 10, 0.1, 1]
    metric = root @ root.T + 0.1 * np.eye(4)
    with jax.enable_x64(True):
        known = site_of(site, kept, 1, saliency=TaylorSaliency()).replace(metric=jnp.asarray(metric))
        pruned = PrunedSite(*map(np.asarray, prune_site(known, OBS())))
    plain = prune(site, kept)
    assert removed_in_order(pruned.rank) != removed_in_order(plain.rank)

    def energy(change: np.ndarray) -> float:
        return float(np.trace(change.T @ site.hessian @ change @ metric))

    alive = list(range(units))
    for unit in removed_in_order(pruned.rank):
        left = [least_squares(site, [other for other in alive if other != each]) for each in alive]
        rises = [energy(weight - site.weight) for weight in left]
        assert rises[alive.index(unit)] <= min(rises) * (1 + 1e-9)
        alive.remove(unit)
    for count, weights, error in zip(kept, pruned.weights, pruned.error, strict=True):
        optimum = least_squares(site, np.flatnonzero(pruned.rank < count))
        np.testing.assert_allclose(weights, optimum, atol=1e-8)
        np.testing.assert_allclose(error, energy(site.weight - optimum) / energy(site.weight), atol=1e-9)


@pytest.mark.slow
@settings(max_examples=25)
@given(
    units=st.integers(2, 10),
    unit_size=st.integers(1, 3),
    outputs=st.sampled_from([1, 4]),
    chunk=st.integers(1, 4),
    seed=st.integers(0, 999),
    damping_scale=st.sampled_from(["mean", "channel"]),
)
def test_every_level_is_the_damped_optimum_on_its_support(
    units: int, unit_size: int, outputs: int, chunk: int, seed: int, damping_scale: DampingScale
) -> None:
    site = random_site(units, unit_size, outputs, seed)._replace(damping_scale=damping_scale)
    kept = list(range(units + 1))
    pruned = prune(site, kept, chunk=min(chunk, units))
    assert sorted(pruned.rank) == list(range(units))
    dense_energy = np.sum(site.weight * (site.hessian @ site.weight))
    for level, count in enumerate(kept):
        support = np.flatnonzero(pruned.rank < count)
        expected = least_squares(site, support)
        np.testing.assert_allclose(pruned.weights[level], expected, rtol=1e-6, atol=1e-6)
        difference = site.weight - expected
        error = np.sum(difference * (site.hessian @ difference)) / dense_energy
        np.testing.assert_allclose(pruned.error[level], error, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(pruned.weights[-1], site.weight)


@pytest.mark.slow
@settings(max_examples=20)
@given(size=st.sampled_from([4, 5, 8, 12]), removed=st.integers(1, 3), seed=st.integers(0, 999))
def test_the_downdate_equals_direct_inversion(size: int, removed: int, seed: int) -> None:
    site = random_site(size, 1, outputs=2, seed=seed)
    gone = np.random.default_rng(seed).choice(size, removed, replace=False)
    left = np.setdiff1d(np.arange(size), gone)
    # A channel beyond the active ones must be left alone.
    channels, active = np.append(gone, left[0]), np.append(np.ones(removed), 0.0)
    with jax.enable_x64(True):
        inverse = obs.inverse_of(jnp.asarray(np.linalg.inv(site.hessian)), unit_size=1, rows=removed + 3)
        weight, inverse = obs.obs_step(
            jnp.asarray(site.weight), inverse, jnp.asarray(channels), jnp.asarray(active), row=2
        )
        absorbed = np.asarray(obs.absorb(inverse).base)
    direct = np.linalg.inv(site.hessian[np.ix_(left, left)])
    np.testing.assert_allclose(absorbed[np.ix_(left, left)], direct, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(np.asarray(inverse.blocks)[left, 0, 0], np.diag(direct), rtol=1e-8)
    np.testing.assert_allclose(absorbed[gone], 0.0, atol=1e-8)
    np.testing.assert_allclose(absorbed[:, gone], 0.0, atol=1e-8)
    np.testing.assert_allclose(np.asarray(weight), least_squares(site, left), rtol=1e-7, atol=1e-8)


def test_levels_are_nested_and_chunks_end_on_their_boundaries() -> None:
    site = random_site(12, 1, outputs=3, seed=1)
    kept = [2, 5, 9, 12]
    coarse = prune(site, kept, chunk=4)
    supports = [set(np.flatnonzero(np.abs(weight).sum(axis=1))) for weight in coarse.weights]
    assert [len(support) for support in supports] == kept
    for smaller, larger in itertools.pairwise(supports):
        assert smaller < larger


@pytest.mark.parametrize("damping_scale", ["mean", "channel"])
def test_a_chunk_leaves_by_the_saliency_before_it(damping_scale: DampingScale) -> None:
    site = random_site(9, 1, outputs=4, seed=2)._replace(damping_scale=damping_scale)
    rank = prune(site, [1, 9], chunk=4).rank
    alive = list(range(9))
    for least in (5, 1):
        scores = dict(zip(alive, brute_saliency(site, alive, TaylorSaliency()), strict=True))
        leaving = set(sorted(alive, key=scores.__getitem__)[:4])
        assert leaving == {unit for unit in alive if rank[unit] >= least}
        alive = [unit for unit in alive if unit not in leaving]


@pytest.mark.parametrize(
    ("units", "chunk", "kept", "exists", "steps"),
    [
        (10, 4, [3, 7, 10], [True, True, True], [3, 4]),
        (10, 3, [0, 5, 10], [True, True, True], [3, 2, 3, 2]),
        (9, 1, [7, 8, 9], [True, True, False], [1, 1]),
        (8, 16, [8, 8, 8], [False, True, False], []),
    ],
)
def test_removal_schedule(units: int, chunk: int, kept: list, exists: list, steps: list) -> None:
    schedule = removal_schedule(units, chunk, np.array(kept), np.array(exists))
    assert [step for step in schedule if step] == steps
    assert not any(schedule[len(steps) :])
    other = removal_schedule(units, chunk, np.array(kept)[::-1], np.ones(len(kept), bool))
    assert len(other) == len(schedule)


def test_of_duplicated_channels_one_goes_for_free() -> None:
    rng = np.random.default_rng(3)
    x = rng.standard_normal((60, 6))
    x[:, 4] = x[:, 1]
    weight = rng.standard_normal((6, 3))
    site = Sample(x.T @ x, weight, 1)
    pruned = prune(site, [5, 6], saliency=TaylorSaliency("none", "block"))
    (gone,) = np.flatnonzero(pruned.rank == 5)
    assert gone in (1, 4)
    survivor = 5 - gone
    # Damping splits the pair's effect evenly at first; the survivor takes nearly all of it over.
    np.testing.assert_allclose(pruned.weights[0][survivor], weight[1] + weight[4], rtol=2e-2, atol=2e-2)
    assert pruned.error[0] < 1e-2


def test_dead_channels_go_first_and_cost_nothing() -> None:
    rng = np.random.default_rng(4)
    x = rng.standard_normal((60, 6))
    x[:, [0, 3]] = 0.0
    site = Sample(x.T @ x, rng.standard_normal((6, 3)) + 3.0, 1)
    pruned = prune(site, [4, 6])
    assert set(np.flatnonzero(pruned.rank >= 4)) == {0, 3}
    np.testing.assert_allclose(pruned.weights[0][[1, 2, 4, 5]], site.weight[[1, 2, 4, 5]], rtol=1e-6)


def test_collinear_channels_keep_a_finite_solution_in_float32() -> None:
    rng = np.random.default_rng(5)
    base = rng.standard_normal((80, 3))
    x = np.concatenate([base, base @ rng.standard_normal((3, 9))], axis=1).astype(np.float32)
    counts = np.arange(13)
    sample = Sample(x.T @ x, rng.standard_normal((12, 4)).astype(np.float32), 1)
    pruned = prune_site(site_of(sample, list(counts), 2), OBS())
    assert np.isfinite(np.asarray(pruned.weights)).all()
    # Three channels span the inputs, so keeping twelve down to a few loses next to nothing.
    assert float(pruned.error[6]) < 0.02
    assert float(pruned.damping) == pytest.approx(DAMPING)


def test_damping_is_raised_until_the_hessian_factorises() -> None:
    gram = jnp.asarray(np.diag([1.0, 1.0, -0.05]), jnp.float32)
    hessian, inverse, used = obs.factorise(gram, 0.01, "mean")
    # A tenth of the mean, 0.65, makes it positive, and its inverse larger than 1 / 0.065.
    assert float(used) == pytest.approx(1)
    np.testing.assert_allclose(np.asarray(hessian @ inverse), np.eye(3), atol=1e-5)


@pytest.mark.parametrize("scale", ["mean", "channel"])
def test_damping_is_raised_until_the_inverse_is_one(scale: DampingScale) -> None:
    """Of few tokens and next to no damping, float32 has a factorisation, but no inverse."""
    x = np.random.default_rng(0).standard_normal((32, 48))
    damped, inverse, used = obs.factorise(jnp.asarray(x.T @ x, jnp.float32), 1e-8, scale)
    assert float(used) > 1e-8
    assert float(obs.residual(damped, inverse)) < obs.ROUNDING
    exact = np.linalg.inv(np.asarray(damped, np.float64))
    size = np.sqrt(np.diag(exact))
    assert np.abs((np.asarray(inverse) - exact) / np.outer(size, size)).max() < 0.2


def test_a_hessian_that_is_not_finite_gives_an_error_that_is_not_finite() -> None:
    site = random_site(4, 1, 2, seed=0)
    site.gram[1, 1] = np.nan
    assert not np.isfinite(prune(site, [2, 4]).error).any()


def test_sites_of_one_shape_share_a_compilation() -> None:
    site = random_site(8, 1, 2, seed=0)
    prune(site, [2, 4, 6], chunk=2)
    before = prune_site._cache_size()
    prune(random_site(8, 1, 2, seed=1), [0, 3, 8], chunk=2)
    assert prune_site._cache_size() == before


def test_a_settled_rank_is_kept_to() -> None:
    sample, kept = random_site(5, 2, outputs=3, seed=0), [0, 2, 3, 5]
    rank = np.array([2, 0, 4, 1, 3], np.int32)
    with jax.enable_x64(True):
        site = site_of(sample, kept, 1, saliency=TaylorSaliency()).replace(rank=jnp.asarray(rank))
        pruned = PrunedSite(*map(np.asarray, prune_site(site, OBS())))
        plain = keep_rows(site, jnp.arange(5))
    for found in (pruned, plain):
        np.testing.assert_array_equal(found.rank, rank)
    for count, weights in zip(kept, pruned.weights, strict=True):
        np.testing.assert_allclose(weights, least_squares(sample, np.flatnonzero(rank < count)), atol=1e-8)


@pytest.mark.parametrize("with_metric", [True, False])
def test_errors_of_kept_rows_are_in_the_metric(with_metric: bool) -> None:
    sample, kept, rank = random_site(5, 2, outputs=3, seed=0), [0, 2, 3, 5], np.array([2, 0, 4, 1, 3])
    root = np.random.default_rng(1).standard_normal((3, 3))
    metric = root @ root.T if with_metric else np.eye(3)
    site = site_of(sample, kept)
    site = site.replace(metric=jnp.asarray(metric, jnp.float32)) if with_metric else site
    pruned = keep_rows(site, jnp.asarray(rank))

    def energy(change: np.ndarray) -> float:
        return float(np.trace(change.T @ sample.gram @ change @ metric))

    removed = [sample.weight * np.repeat(rank >= count, 2)[:, None] for count in kept]
    expected = [energy(change) / energy(sample.weight) for change in removed]
    np.testing.assert_allclose(pruned.error, expected, rtol=1e-5)
