"""How stages work together, as far as tests of commands cannot see it from outside."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tyr_jax import space
from tyr_jax.data import DataSpec
from tyr_jax.errors import UserError
from tyr_jax.pruning.compress import compress
from tyr_jax.pruning.fold import FoldPlan, build_supernet
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.report.tables import complaints
from tyr_jax.run import fold, pipeline, rounds, summary
from tyr_jax.run.prepare import Run
from tyr_jax.scoring import scorer
from tyr_jax.scoring.objective import KL, Objective
from tyr_jax.search.evolution import Evolution
from tyr_jax.settings import Rounds, Settings
from tyr_jax.workspace.events import EventLog
from tyr_jax.workspace.progress import Progress


@pytest.fixture
def settings(tiny_model: Path, tiny_text: Path) -> Settings:
    return Settings(
        model=str(tiny_model),
        sparsity=(0.5,),
        data=DataSpec(
            calibration=(str(tiny_text),),
            sequence_length=32,
            search_length=32,
            calibration_tokens=512,
            search_tokens=256,
            evaluation_length=32,
            evaluation_windows=4,
        ),
        pruning=PruningSettings(neuron_chunk=4),
        rounds=Rounds(rounds=1, levels=5),
        search=(
            Settings().search[1],
            Evolution(generations=2, offspring=4, survivors=(2, 1), stage_tokens=(32, 64)),
        ),
    )


def prune(settings: Settings, tmp_path: Path) -> pipeline.Outcome:
    with Progress(quiet=True) as progress, EventLog(tmp_path / "events.jsonl") as events:
        (outcome,) = pipeline.prune_targets(Run(settings, progress, events))
    return outcome


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["compressed", pytest.param("masked", marks=pytest.mark.long)])
def test_without_a_refit_one_supernet_is_enough(
    layout: Any, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the search has overwritten comes back: the models are those of a supernet that is built again."""
    plain = dataclasses.replace(
        settings, layout=layout, rounds=dataclasses.replace(settings.rounds, refit=False)
    )
    folds, build = [], fold.build_supernet

    def built(*arguments: Any, **more: Any) -> Any:
        folds.append(1)
        return build(*arguments, **more)

    monkeypatch.setattr(fold, "build_supernet", built)
    at_hand = prune(plain, tmp_path)
    assert len(folds) == 1
    monkeypatch.setattr(rounds, "put_back", lambda *_: None)
    again = prune(plain, tmp_path)
    assert len(folds) == 4
    assert again.searched is not None
    assert at_hand.searched is not None
    for one, other in ((at_hand.uniform, again.uniform), (at_hand.searched, again.searched)):
        chex.assert_trees_all_equal(one.params, other.params)


@pytest.mark.slow
def test_without_a_refit_the_weights_are_the_supernets(settings: Settings, tmp_path: Path) -> None:
    plain = dataclasses.replace(settings.rounds, refit=False)
    refitted, outcome = (
        prune(settings, tmp_path),
        prune(dataclasses.replace(settings, rounds=plain), tmp_path),
    )
    assert outcome.searched is not None
    assert refitted.searched is not None
    np.testing.assert_array_equal(outcome.searched.kept, refitted.searched.kept)
    dense = outcome.dense
    grid = space.level_grid(dense.kinds, outcome.target.kept, 5, 0.125)
    supernet = build_supernet(
        dense.model.params,
        (dense.splits.calibration, dense.splits.openings),
        FoldPlan(dense.model.config, grid, settings.pruning, metrics=dense.metrics),
    )
    for pruned, other in ((outcome.uniform, refitted.uniform), (outcome.searched, refitted.searched)):
        levels = space.levels_of(grid, pruned.kept)
        params, config = compress(dense.model.params, supernet, levels, dense.model.config)
        assert pruned.config == config
        for ours, expected in zip(jax.tree.leaves(pruned.params), jax.tree.leaves(params), strict=True):
            np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
        # What later sites saw differs: the expectation over levels, or the one that was chosen.
        gaps = [
            np.abs(np.asarray(a) - np.asarray(b)).max()
            for a, b in zip(jax.tree.leaves(pruned.params), jax.tree.leaves(other.params), strict=True)
            if a.shape == b.shape
        ]
        assert max(gaps) > 1e-4


@pytest.mark.slow
def test_what_a_run_had_to_work_around_is_in_its_summary(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score, calls = scorer.score_population, 0

    def sometimes_lost(*arguments: Any) -> np.ndarray:
        nonlocal calls
        calls += 1
        values = score(*arguments)
        # The last candidate is lost, however good it is.
        values[-1] = np.nan
        return values

    monkeypatch.setattr(scorer, "score_population", sometimes_lost)
    # Fewer tokens than channels, and next to no damping: no Hessian is positive definite.
    few = dataclasses.replace(settings.data, calibration_tokens=32, calibration_openings=0)
    thin = PruningSettings(damping=1e-7, damping_scale="mean")
    outcome = prune(dataclasses.replace(settings, data=few, pruning=thin), tmp_path)
    health = summary.summarise(outcome, []).health
    assert calls > 2
    assert health.objectives_not_finite == calls
    raised = health.damping_raised
    assert {entry.stage for entry in raised} == {
        "round 1/1: supernet",
        "prune uniform",
        "prune searched",
    }
    assert all(entry.damping > 1e-7 for entry in raised)
    first, second = complaints(health)
    assert first.startswith(f"damping was raised at {len(raised)} sites whose Hessian")
    assert second == f"{calls} candidates whose objective was not finite were discarded"


class Lost(KL):
    """An objective of a user's own that is never finite."""

    name = "mine:Lost"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "sentence"),
    [
        (KL(), "not finite for any candidate of round 1: the model overflows"),
        (Lost(), "--objective mine:Lost is not finite for any candidate of round 1"),
    ],
)
def test_a_search_in_which_nothing_is_finite(
    objective: Objective, sentence: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model is to blame, or the user's own objective."""
    monkeypatch.setattr(
        scorer, "score_population", lambda net, candidates, *rest: np.full(len(candidates), np.nan)
    )
    with pytest.raises(UserError, match=sentence):
        prune(dataclasses.replace(settings, objective=objective), tmp_path)


def test_a_dense_model_that_overflows(
    settings: Settings, save_tiny: Callable[..., Path], tmp_path: Path
) -> None:
    directory = save_tiny(tmp_path / "huge")
    weights = load_file(directory / "model.safetensors")
    weights["model.norm.weight"] = np.full_like(weights["model.norm.weight"], 3e38)
    save_file(weights, directory / "model.safetensors")
    with pytest.raises(UserError, match=r"the predictions of .*huge on .* are not finite"):
        prune(dataclasses.replace(settings, model=str(directory)), tmp_path)
