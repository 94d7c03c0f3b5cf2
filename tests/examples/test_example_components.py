"""The examples of a search, an objective, a saliency and a local pruner, from the command line and alone."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tyr_jax.cli import prune
from tyr_jax.model.spec import ModelConfig
from tyr_jax.pruning.saliency import SiteStatistics
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.pruning.site import prune_site
from tyr_jax.scoring.objective import mean_kl
from tyr_jax.workspace.store import Store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def example(name: str) -> Any:
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(f"examples.{module}"), attribute)


@pytest.fixture
def summary(tiny_arguments: list[str], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Prune with further arguments, and return the summary."""

    def run(*arguments: str) -> dict[str, Any]:
        prune.main([*tiny_arguments, "--overwrite", "--output", str(tmp_path / "pruned"), *arguments])
        return dict(json.loads((tmp_path / "pruned" / "summary.json").read_text()))

    return run


def without_evolution(arguments: list[str]) -> list[str]:
    """Arguments without the options of the evolutionary search."""
    names = {"--generations": 1, "--offspring": 1, "--survivors": 2, "--stage-tokens": 2}
    kept, skip = [], 0
    for argument in arguments:
        skip = names[argument] + 1 if argument in names else skip
        if not skip:
            kept.append(argument)
        skip = max(skip - 1, 0)
    return kept


def test_a_search(tiny_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ["--search", "examples.search:HillClimbing", "--generations", "3", "--chains", "3"]
    arguments = [*without_evolution(tiny_arguments), *chosen, "--output"]
    prune.main([*arguments, str(tmp_path / "whole")])
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    chosen = {"search": "examples.search:HillClimbing", "generations": 3, "chains": 3, "text": 2}
    assert summary["settings"]["search"] == [chosen]
    for record in summary["rounds"]:
        assert [entry["generation"] for entry in record["history"]] == [1, 2, 3]
        assert [entry["candidate_tokens"] for entry in record["history"]] == [
            3 * 2 * 32 * n for n in (1, 2, 3)
        ]
    # A state of any kind survives an interruption.
    keep = Store.save_step

    def die(store: Store, name: str, step: int, *rest: Any) -> None:
        keep(store, name, step, *rest)
        if (name, step) == ("search-0", 2):
            raise KeyboardInterrupt

    monkeypatch.setattr(Store, "save_step", die)
    with pytest.raises(SystemExit):
        prune.main([*arguments, str(tmp_path / "resumed")])
    monkeypatch.setattr(Store, "save_step", keep)
    prune.main([*arguments, str(tmp_path / "resumed")])
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "resumed")]
    assert weights[0] == weights[1]


def test_an_objective(
    summary: Callable[..., dict[str, Any]], tiny_config: Callable[..., ModelConfig]
) -> None:
    found = summary("--objective", "examples.objective:HiddenDirection", "--weight", "0.5")
    assert found["settings"]["objective"] == {
        "objective": "examples.objective:HiddenDirection",
        "weight": 0.5,
    }
    # KL, plus half of 1 − cos of a right angle.
    objective = example("objective:HiddenDirection")(weight=0.5)
    assert objective.observed_layers(7) == (6,)
    hidden = jnp.zeros((1, 1, 2, 4)).at[..., 0].set(3.0)
    teacher, student = (answer(tiny_config(), array) for array in (hidden, jnp.roll(hidden, 1, axis=-1)))
    value = objective(teacher[0], student[1]) - mean_kl(teacher[0], student[1])
    assert float(value) == pytest.approx(0.5)


def answer(config: ModelConfig, hidden: jax.Array) -> tuple[Any, Any]:
    """A teacher's and a student's predictions for two tokens, with these hidden states."""
    from tyr_jax.model.prediction import log_normaliser, predict
    from tyr_jax.scoring.objective import Student, TeacherBatch

    rows = jnp.asarray(np.random.default_rng(0).standard_normal((config.vocab, 4)), jnp.float32)
    final = jnp.ones((1, 2, 4))
    teacher = TeacherBatch(jnp.zeros((1, 2), jnp.int32), predict(rows, final), hidden)
    return teacher, Student(rows, final, log_normaliser(rows, final), hidden)


def test_a_saliency_and_a_pruner(summary: Callable[..., dict[str, Any]]) -> None:
    gram = jnp.diag(jnp.array([1.0, 4.0, 9.0, 1.0]))
    weight = jnp.array([[3.0], [1.0], [1.0], [1.0]])
    statistics = SiteStatistics(gram, weight, weight, jnp.zeros((4, 1, 1)))
    assert example("pruner:Energy")()(statistics).tolist() == [9.0, 4.0, 9.0, 1.0]
    site = PruningSettings().site(gram, weight, np.array([2, 4]), np.ones(2, bool), 4)
    pruned = prune_site(site, example("pruner:KeepRows")())
    assert set(np.asarray(pruned.rank)[[0, 2]].tolist()) == {0, 1}
    np.testing.assert_array_equal(pruned.weights[0], [[3.0], [0.0], [1.0], [0.0]])
    np.testing.assert_array_equal(pruned.weights[1], weight)
    # tr(WᵀXᵀXW) is 23, of which channels 1 and 3 have 5.
    np.testing.assert_allclose(pruned.error, [5 / 23, 0], rtol=1e-6)
    found = summary("--rounds", "0", "--saliency", "examples.pruner:Energy")["settings"]["pruning"]
    assert (found["saliency"], found["pruner"]) == ({"saliency": "examples.pruner:Energy"}, {"pruner": "obs"})
    found = summary("--rounds", "1", "--pruner", "examples.pruner:KeepRows", "--power", "0.5")
    assert found["settings"]["pruning"]["pruner"] == {"pruner": "examples.pruner:KeepRows", "power": 0.5}
