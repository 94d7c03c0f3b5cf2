"""Presets, and all checks of values that are possible before anything is read."""

import dataclasses
from typing import Any

import pytest

from tyr_jax.data import DataSpec, to_write
from tyr_jax.errors import UserError
from tyr_jax.pruning.obs import OBS
from tyr_jax.pruning.saliency import TaylorSaliency
from tyr_jax.scoring.objective import KL, HiddenKL
from tyr_jax.search.descent import Descent
from tyr_jax.search.evolution import Evolution
from tyr_jax.search.random_search import RandomSearch
from tyr_jax.settings import PRESET_NAMES, PRESETS, Settings, validate

SETTINGS = Settings(
    data=DataSpec(sequence_length=512, search_length=512, search_tokens=16384),
    search=(Descent(), Evolution(offspring=16, survivors=(4, 2, 1), stage_tokens=(512, 1024, 2048))),
)
"""Valid settings to change, independent of the presets."""


def changed(settings: Any, path: str, value: Any) -> Any:
    """`settings` with the field at `path`, such as "search.1.offspring", set to `value`."""
    name, _, rest = path.partition(".")
    if name.isdigit():
        at = int(name)
        return (*settings[:at], changed(settings[at], rest, value), *settings[at + 1 :])
    inner = changed(getattr(settings, name), rest, value) if rest else value
    return dataclasses.replace(settings, **{name: inner})


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_presets_are_valid_and_say_their_name(name: str) -> None:
    validate(PRESETS[name])
    assert PRESETS[name].preset == name
    assert set(PRESETS) == set(PRESET_NAMES)


def test_the_defaults_are_those_of_the_standard_preset() -> None:
    assert Settings() == PRESETS["standard"]


def test_the_paper_preset_is_the_papers() -> None:
    paper = PRESETS["paper"]
    assert (paper.rounds.rounds, paper.rounds.levels, paper.rounds.interval) == (4, 9, 0.125)
    (search,) = paper.search
    assert (search.generations, search.offspring, search.survivors) == (50, 128, (16, 4, 1))
    assert search.stage_tokens == (2048, 16384, 131072)
    assert (paper.data.sequence_length, paper.data.search_length) == (4096, 4096)
    assert paper.data.calibration_tokens == paper.data.search_tokens == 4 * 2**20
    assert (paper.pruning.damping, paper.pruning.neuron_chunk) == (0.01, 16)
    assert paper.pruning.saliency == TaylorSaliency("abs", "channel")
    assert (paper.pruning.budget, paper.pruning.metric) == ("units", "none")
    assert paper.pruning.accumulation == "expectation"
    assert (paper.pruning.damping_scale, paper.data.calibration_noise) == ("mean", 0.0)
    assert paper.data.calibration_openings == 0
    # What the paper does not do at all.
    assert (paper.pruning.drift, paper.pruning.reconstruct, paper.rounds.refit) == (0.0, 0, False)
    assert (paper.pruning.at_most, paper.pruning.keep_heads, paper.pruning.keep_neurons) == ((), (), ())
    assert paper.pruning.units == ()
    assert to_write(paper.data) is None
    assert paper.objective == KL()
    assert (search.name, paper.pruning.pruner) == ("evolution", OBS())


def test_the_quick_preset_runs_every_part_of_the_method() -> None:
    quick = PRESETS["quick"]
    assert quick.sparsity == (0.25,)
    estimate, descent, evolution = quick.search
    assert (estimate.name, descent.name, evolution.name) == ("estimate", "descent", "evolution")
    assert evolution.generations >= 4
    assert descent.generations >= 3
    assert len(evolution.survivors) == 3
    assert len(set(evolution.stage_sequences(quick.data.search_length))) == 3


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("sparsity", (0.0,), "--sparsity is 0.0, but must be between 0 and 1, ends excluded"),
        ("sparsity", (0.25, 1.0), "--sparsity is 1.0"),
        ("sparsity", (-0.1,), "--sparsity is -0.1"),
        ("sparsity", (float("nan"),), "--sparsity is nan"),
        ("sparsity", (0.5, 0.5), "one number, or several that differ"),
        ("sparsity", (), "one number, or several that differ"),
        ("seed", -1, "--seed is -1"),
        ("seed", 2**32, "--seed is 4294967296, but must be from 0 to"),
        ("data.sequence_length", 0, "--sequence-length is 0, but must be at least 2"),
        ("data.calibration_tokens", 0, "--calibration-tokens is 0, but must be at least one sequence"),
        ("data.calibration_noise", 2.0, "--calibration-noise is 2.0"),
        ("data.evaluation_windows", 0, "--evaluation-windows is 0"),
        ("data.search_tokens", 600, "--search-tokens is 1 sequence, but must be at least two sequences"),
        ("objective.beta", 0.0, "--beta is 0.0, but must be above 0 where nothing else counts"),
        ("objective.beta", -1.0, "--beta is -1.0, but must be 0 or more"),
        ("objective", HiddenKL(alpha=float("nan")), "--alpha is nan"),
        ("objective", HiddenKL(0.0, 0.0), "--beta is 0.0, but must be above 0 where nothing else counts"),
        ("offload", True, "--offload cannot be combined with --calibration self, which is part of"),
        ("pruning.drift", 1.5, "--drift is 1.5, but must be between 0 and 1"),
        ("pruning.reconstruct", -1, "--reconstruct is -1"),
        ("search.0.generations", 0, "--descent.generations is 0"),
        ("search.0.tokens", 0, "--descent.tokens is 0"),
        (
            "search",
            (Evolution(offspring=3), Descent()),
            r"^--evolution.survivors is .* most --evolution.offspring",
        ),
        ("rounds.rounds", -1, "--rounds is -1"),
        ("rounds.levels", 8, "--levels is 8, but must be an odd number of at least 3"),
        ("rounds.levels", 1, "--levels is 1"),
        ("rounds.interval", 0.0, "--interval is 0.0"),
        ("rounds.interval", 0.6, "--interval is 0.6"),
        ("pruning.damping", 0.0, "--damping is 0.0"),
        ("pruning.damping", float("inf"), "--damping is inf"),
        ("pruning.neuron_chunk", 0, "--neuron-chunk is 0"),
        ("pruning.neuron_multiple", 0, "--neuron-multiple is 0"),
        ("search.1.generations", 0, "--generations is 0"),
        ("search.1.max_shifts", 0, "--max-shifts is 0"),
        (
            "search.1.survivors",
            (4, 1),
            "--survivors is 4 1, but must be as many values as --stage-tokens has",
        ),
        ("search.1.survivors", (4, 5, 1), "--survivors is .* non-increasing"),
        ("search.1.survivors", (4, 2, 2), "--survivors is .* down to 1"),
        ("search.1.survivors", (4, 0, 1), "--survivors is"),
        ("search.1.offspring", 3, r"--survivors is .* at most --offspring \(3\)"),
        ("search.1.stage_tokens", (0, 1024, 2048), r"--stage-tokens is .* at least 1 each"),
        ("search.1.stage_tokens", (512, 1024, 99999), r"--stage-tokens .* --search-tokens \(16384\)"),
        ("search.1.stage_tokens", (1024, 512, 2048), r"--stage-tokens is .* none below the one before"),
    ],
)
def test_values_that_cannot_be(path: str, value: Any, message: str) -> None:
    settings = changed(SETTINGS, path, value)
    with pytest.raises(UserError, match=message):
        validate(settings)


def test_a_search_needs_text() -> None:
    """Also one that scores on all of it, without descent."""
    settings = changed(SETTINGS, "search", (RandomSearch(),))
    validate(settings)
    with pytest.raises(UserError, match=r"--search-tokens is 0, but must be at least one sequence \(or --r"):
        validate(changed(settings, "data.search_tokens", 0))


def test_removed_experts_have_no_latencies() -> None:
    timed = changed(SETTINGS, "pruning.budget", "latency")
    validate(timed)
    with pytest.raises(UserError, match="--units is expert, but must be left out where latency is limited"):
        validate(changed(timed, "pruning.units", ("expert",)))


def test_removed_experts_cannot_be_masked() -> None:
    masked = changed(SETTINGS, "layout", "masked")
    validate(masked)
    with pytest.raises(UserError, match="--layout masked keeps the dense model's shapes, where tokens would"):
        validate(changed(masked, "pruning.units", ("expert",)))


def test_without_rounds_nothing_about_the_search_matters() -> None:
    settings = changed(changed(SETTINGS, "rounds.rounds", 0), "data.search_tokens", 0)
    validate(changed(settings, "search.1.generations", 0))


def test_a_saliency_needs_one_of_its_terms() -> None:
    first_only = changed(SETTINGS, "pruning.saliency", TaylorSaliency("abs", "none"))
    validate(first_only)
    validate(changed(SETTINGS, "pruning.saliency", TaylorSaliency("none", "channel")))
    with pytest.raises(UserError, match="--second-order is none"):
        validate(changed(first_only, "pruning.saliency.first_order", "none"))


def test_the_ends_of_ranges_are_allowed() -> None:
    settings = SETTINGS
    for path, value in (
        ("rounds.rounds", 0),
        ("rounds.levels", 3),
        ("rounds.interval", 0.5),
        ("pruning.neuron_multiple", 1),
        ("search.1.survivors", (16, 16, 1)),
        ("search.1.stage_tokens", (1, 1, 16384)),
    ):
        validate(changed(settings, path, value))
