"""Rivals of the paper's saliency and local pruner: hand-worked sites, and brute force over all supports."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from speeds import only_quick

from tyr_jax.pruning.criteria import BrainDamage, Magnitude, WandaSP
from tyr_jax.pruning.keep import Keep
from tyr_jax.pruning.obs import OBS
from tyr_jax.pruning.osscar import OSSCAR
from tyr_jax.pruning.registry import PRUNERS, SALIENCIES
from tyr_jax.pruning.saliency import Saliency, TaylorSaliency, check_saliency
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.pruning.site import LocalPruner, PrunedSite, Site, check_pruner, prune_site

DAMPING = 0.01


def site_of(gram: np.ndarray, weight: np.ndarray, kept: list[int], units: int, **chosen: Any) -> Site:
    settings = PruningSettings(neuron_chunk=1, damping=DAMPING, damping_scale="mean", **chosen)
    counts, exists = np.array(kept), np.ones(len(kept), bool)
    return settings.site(jnp.asarray(gram), jnp.asarray(weight), counts, exists, units)


def pruned(site: Site, pruner: LocalPruner) -> PrunedSite:
    return prune_site(site, pruner)


@pytest.mark.parametrize(
    ("saliency", "order"),
    [
        # Squares of the weights per unit: 1, 4, 4.5, and 0.5.
        (Magnitude(), [3, 0, 1, 2]),
        # ‖X‖ times the sum of moduli: 3·1, 1·2, 1·3, 10·1.
        (WandaSP(), [1, 0, 2, 3]),
        # ‖X‖² ‖W‖²: 9, 4, 4.5, 50.
        (BrainDamage(), [1, 2, 0, 3]),
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_units_leave_in_the_order_worked_by_hand(saliency: Saliency, order: list[int]) -> None:
    gram = np.diag([9.0, 1.0, 1.0, 100.0])
    weight = np.array([[1.0, 0.0], [0.0, 2.0], [1.5, 1.5], [0.5, 0.5]])
    site = site_of(gram, weight, [0, 1, 2, 3, 4], 4, saliency=saliency)
    found = pruned(site, Keep())
    assert np.argsort(-np.asarray(found.rank)).tolist() == order
    for level, kept in enumerate([0, 1, 2, 3, 4]):
        rows = np.zeros((4, 1))
        rows[order[4 - kept :]] = 1
        np.testing.assert_array_equal(found.weights[level], (weight * rows).astype(np.float32))


def gram_for(hessian: np.ndarray) -> np.ndarray:
    """The XᵀX that damping turns into `hessian`."""
    return hessian - DAMPING / (1 + DAMPING) * np.diag(hessian).mean() * np.eye(len(hessian))


def test_the_exact_rise_of_the_error_worked_by_hand() -> None:
    """ZipLM. A unit costs W² / 2[Hs⁻¹]: 1 · 3/4, 0.81 · 3/4 and 1.21 · 1/2. So the third leaves first, though
    its weight is the largest, and then the second, for which the first makes up by half of its weight."""
    hessian = np.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 1.0]])
    site = site_of(gram_for(hessian), np.array([[1.0], [0.9], [1.1]]), [1, 2], 3, saliency=TaylorSaliency())
    found = pruned(site, OBS())
    assert np.asarray(found.rank).tolist() == [0, 1, 2]
    np.testing.assert_allclose(found.weights[..., 0], [[1.45, 0, 0], [1, 0.9, 0]], rtol=1e-5, atol=1e-6)


def test_an_exchange_worked_by_hand() -> None:
    """OSSCAR. The first unit's own weight is small, so the greedy pass removes it, and the second
    stays. But alone the first keeps most: G = Hs W is 1.24, 1.06 and 0.96, and a unit keeps its square."""
    hessian = np.array([[1.0, 0.6, 0.6], [0.6, 1.0, 0.0], [0.6, 0.0, 1.0]])
    site = site_of(gram_for(hessian), np.array([[0.1], [1.0], [0.9]]), [1], 3)
    for pruner, expected in ((OBS(), [0, 1.06, 0]), (OSSCAR(), [1.24, 0, 0])):
        np.testing.assert_allclose(pruned(site, pruner).weights[0, :, 0], expected, rtol=1e-5, atol=1e-6)


def test_a_unit_counts_by_the_mean_of_its_channels() -> None:
    weight = np.array([[3.0], [0.0], [2.0], [2.0]])  # means of squares: 4.5 and 4
    site = site_of(np.eye(4), weight, [0, 1, 2], 2, saliency=Magnitude())
    assert np.asarray(pruned(site, Keep()).rank).tolist() == [0, 1]


def test_with_the_default_pruner_they_only_set_the_order() -> None:
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((60, 6)), rng.standard_normal((6, 3))
    site = site_of(x.T @ x, weight, [2, 4], 6, saliency=Magnitude())
    refitted, plain = pruned(site, OBS()), pruned(site, Keep())
    assert (np.asarray(refitted.error) < np.asarray(plain.error)).all()


def least_error(site: Site, kept: int) -> float:
    """The least error of any support of `kept` units, by brute force in float64."""
    gram, weight = np.asarray(site.gram, float), np.asarray(site.weight, float)
    hessian = gram + DAMPING * np.mean(np.diag(gram)) * np.eye(len(gram))
    gradient, size = hessian @ weight, site.unit_size

    def energy(units: tuple[int, ...]) -> float:
        rows = np.concatenate([np.arange(size) + unit * size for unit in units])
        return float(np.sum(gradient[rows] * np.linalg.solve(hessian[np.ix_(rows, rows)], gradient[rows])))

    whole = float(np.sum(gradient * weight))
    return 1 - max(energy(units) for units in itertools.combinations(range(site.units), kept)) / whole


@pytest.mark.slow
@pytest.mark.parametrize("unit_size", [1, 2])
def test_exchanges_come_nearer_to_the_best_support(unit_size: int) -> None:
    """Never worse than the greedy pass; over many sites clearly better, and never below brute force."""
    greedy, searched, best = [], [], []
    for seed in range(24):
        rng = np.random.default_rng(seed)
        # Inputs of few factors, so that units can stand in for one another.
        mix = rng.standard_normal((4 * unit_size, 10 * unit_size))
        x = rng.standard_normal((80, len(mix))) @ mix + 0.3 * rng.standard_normal((80, 10 * unit_size))
        site = site_of(x.T @ x / 80, rng.standard_normal((10 * unit_size, 4)), [4], 10)
        greedy.append(float(pruned(site, OBS()).error[0]))
        searched.append(float(pruned(site, OSSCAR()).error[0]))
        best.append(least_error(site, 4))
    greedy, searched, best = map(np.asarray, (greedy, searched, best))
    assert (searched <= greedy + 1e-4).all()
    assert (searched >= best - 1e-3).all()
    gap = (searched - best).mean() / (greedy - best).mean()
    assert gap < 0.7


def test_exchanges_keep_levels_nested_and_every_level_an_optimum() -> None:
    rng = np.random.default_rng(3)
    mix = rng.standard_normal((12, 12)) ** 3
    x, weight = rng.standard_normal((80, 12)) @ mix, rng.standard_normal((12, 4))
    site = site_of(x.T @ x / 80, weight, [3, 6, 9, 12], 12)
    found = pruned(site, OSSCAR())
    assert sorted(np.asarray(found.rank).tolist()) == list(range(12))
    for level, kept in enumerate([3, 6, 9, 12]):
        alive = np.asarray(found.rank) < kept
        assert (np.asarray(found.weights[level])[~alive] == 0).all()
    errors = np.asarray(found.error)
    assert (np.diff(errors) <= 1e-5).all()
    np.testing.assert_array_equal(found.weights[3], weight.astype(np.float32))


@pytest.mark.slow
def test_no_exchange_is_the_greedy_pass() -> None:
    rng = np.random.default_rng(5)
    x, weight = rng.standard_normal((40, 6)), rng.standard_normal((6, 3))
    site = site_of(x.T @ x, weight, [3], 6)
    np.testing.assert_array_equal(pruned(site, OSSCAR(exchanges=0)).rank, pruned(site, OBS()).rank)


@pytest.mark.parametrize("pruner", [Keep(), OSSCAR()], ids=lambda pruner: pruner.name)
def test_a_settled_rank_is_kept_to(pruner: LocalPruner) -> None:
    rng = np.random.default_rng(7)
    x, weight = rng.standard_normal((40, 5)), rng.standard_normal((5, 3))
    site = site_of(x.T @ x, weight, [2], 5).replace(rank=jnp.array([4, 0, 3, 1, 2]))
    found = pruned(site, pruner)
    assert np.flatnonzero(np.any(np.asarray(found.weights[0]) != 0, axis=1)).tolist() == [1, 3]


@pytest.mark.parametrize("metric", only_quick([False, True], True))
@pytest.mark.parametrize("pruner", PRUNERS.values(), ids=list(PRUNERS))
@pytest.mark.parametrize("saliency", only_quick(SALIENCIES.values(), TaylorSaliency), ids=list(SALIENCIES))
def test_every_combination_prunes(saliency: type[Saliency], pruner: type[LocalPruner], metric: bool) -> None:
    check_saliency(saliency())
    check_pruner(pruner(), saliency())
    rng = np.random.default_rng(9)
    x, weight, root = rng.standard_normal((40, 8)), rng.standard_normal((8, 3)), rng.standard_normal((3, 3))
    site = site_of(x.T @ x, weight, [0, 2, 4], 4, saliency=saliency())
    if metric:
        site = site.replace(metric=jnp.asarray(root @ root.T + np.eye(3)))
    found = jax.tree.map(np.asarray, pruned(site, pruner()))
    assert sorted(found.rank.tolist()) == [0, 1, 2, 3]
    assert np.isfinite(found.error).all()
    assert found.error[0] > found.error[1] > found.error[2] == pytest.approx(0, abs=1e-4)
