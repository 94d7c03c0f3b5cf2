"""Options by name: converted to settings and back to a command line, or refused."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest

from tyr_jax.cli import command, prune
from tyr_jax.data import parse_source
from tyr_jax.errors import UserError
from tyr_jax.evaluation.settings import BenchmarkSettings, EvaluationSettings, GenerationSettings
from tyr_jax.options import arguments_of, every_option, expanded, options_of, with_options
from tyr_jax.recovery.settings import RecoverySettings
from tyr_jax.scoring.objective import HiddenKL
from tyr_jax.search.evolution import Evolution
from tyr_jax.search.evosax_adapter import Evosax
from tyr_jax.settings import PRESETS, Settings, with_components

CHANGED: dict[str, Any] = {
    "sparsity": (0.25, 0.5),
    "output": Path("a b"),
    "overwrite": True,
    "refit": False,
    "calibration": ("my.txt@2", "builtin"),
    "damping": 1e-9,
    "first_order": "signed",
    "keep_heads": (0, 3),
    "push_to_hub": "user/model",
    "rounds": 3,
}
"""Options of every type, and of every depth."""


def test_names_are_unique_in_all_of_them() -> None:
    others = EvaluationSettings(), GenerationSettings(), BenchmarkSettings()
    for settings in (Settings(), RecoverySettings("pruned"), *others):
        assert list(options_of(settings).values()) == list(every_option(settings))
    assert options_of(Settings())["rounds"].path == ("rounds", "rounds")
    assert options_of(Settings())["first_order"].path == ("pruning", "saliency", "first_order")


@pytest.mark.parametrize("preset", PRESETS)
def test_settings_are_made_of_their_options(preset: str) -> None:
    settings = PRESETS[preset]
    values = {name: option.of(settings) for name, option in options_of(settings).items()}
    names = [search.name for search in settings.search]
    assert with_options(with_components(PRESETS["standard"], {"search": names}), values) == settings


@pytest.mark.parametrize("preset", PRESETS)
def test_the_command_line_of_settings_makes_them(preset: str) -> None:
    settings = with_options(PRESETS[preset], CHANGED)
    arguments = arguments_of(settings, PRESETS[preset])
    assert prune.parse(["--preset", preset, *arguments]).settings == settings
    assert arguments_of(settings, settings) == []


def test_a_component_is_named_on_the_command_line() -> None:
    default = PRESETS["quick"]
    settings = with_components(default, {"objective": HiddenKL(alpha=2.0), "search": Evolution(offspring=8)})
    arguments = arguments_of(settings, default)
    assert arguments[-4:] == ["--objective", "hidden+kl", "--alpha", "2.0"]
    assert prune.parse(["--preset", "quick", *arguments]).settings == settings


def test_searches_in_turn_are_named_in_their_options() -> None:
    """All but the last; one that has the name already keeps its options."""
    default = PRESETS["quick"]
    chain = ["evolution", dataclasses.replace(default.search[1], reach=2, tokens=8)]
    settings = with_options(with_components(default, {"search": chain}), {"evolution.offspring": 8})
    assert [search.name for search in settings.search] == ["evolution", "descent"]
    assert settings.search[0] == dataclasses.replace(default.search[2], offspring=8)
    arguments = arguments_of(settings, default)
    assert arguments == shlex.split("--search evolution descent --evolution.offspring 8 --reach 2 --tokens 8")
    assert prune.parse(["--preset", "quick", *arguments]).settings == settings
    turned = with_components(settings, {"search": ("descent", "evolution")})
    arguments = arguments_of(turned, default)
    assert arguments == shlex.split(
        "--search descent evolution --descent.reach 2 --descent.tokens 8 --offspring 8"
    )
    assert prune.parse(["--preset", "quick", *arguments]).settings == turned
    real = with_components(default, {"search": (Evosax(), "evolution")})
    logits = with_components(default, {"search": (Evosax(logits=True), "evolution")})
    assert "--evosax.no-logits" in arguments_of(real, logits)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            ["--search", "descent", "evolution", "descent"],
            "--search is descent evolution descent, but must be",
        ),
        (["--search"], "--search is empty, but must be at least one search"),
        (["--search", "evolution", "--descent.tokens", "8"], "unrecognised arguments: --descent.tokens"),
        (["--search", "descent", "evolve"], "--search is evolve, but must be evolution, random"),
    ],
)
def test_searches_that_cannot_run_in_turn(given: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        prune.parse(given)


def test_the_command_line_of_a_training() -> None:
    default = RecoverySettings("pruned")
    changed = {
        "tokens": 5,
        "step_tokens": 7,
        "goal": "next-token",
        "rank": 2,
        "bos": True,
        "data": ("a", "b"),
    }
    settings = with_options(default, changed)
    parsed = command.parse(
        RecoverySettings,
        ["pruned", *arguments_of(settings, default)],
        prog="x",
        description="",
    )
    assert parsed == settings


def test_values_are_taken_as_they_are_meant() -> None:
    settings = with_options(
        PRESETS["standard"], {"sparsity": 1, "calibration": "a.txt", "output": "x", "stage_tokens": [1, 2]}
    )
    assert settings.sparsity == (1.0,)
    assert settings.data.calibration == ("a.txt",)
    assert settings.output == Path("x")
    home = Path.home()
    assert with_options(settings, {"output": "~/x"}).output == home / "x"
    given = dataclasses.replace(settings, output=Path("~/y"))
    assert expanded(given) == dataclasses.replace(given, output=home / "y")
    assert parse_source("~/a.txt").name == str(home / "a.txt")
    assert with_options(PRESETS["quick"], {"push_to_hub": None}) == PRESETS["quick"]
    assert dataclasses.replace(settings) == settings


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"sparsty": 0.5}, "there is no option 'sparsty'; perhaps 'sparsity' was meant"),
        ({"zzz": 0.5}, "there is no option 'zzz'; perhaps '"),
        ({"data": None}, "there is no option 'data'"),
        ({"levels": 2.5}, "levels is 2.5, but must be a whole number"),
        ({"levels": True}, "levels is True, but must be a whole number"),
        ({"sparsity": ["a"]}, "sparsity is 'a', but must be a number"),
        ({"sparsity": 10**400}, "sparsity is too large a number"),
        ({"refit": 1}, "refit is 1, but must be True or False"),
        ({"calibration": 3}, "calibration is 3, but must be a string"),
        ({"output": 3}, "output is 3, but must be a path"),
        ({"output": "a\0b"}, "output is 'a\\x00b', but must be a path without a NUL byte"),
        ({"levels": 10**20}, "levels is 100000000000000000000, but must be between -"),
        ({"stage_tokens": [32, -(10**20)]}, "stage_tokens is -100000000000000000000, but must be between"),
        ({"layout": "flat"}, "layout is 'flat', but must be one of 'compressed', 'masked'"),
    ],
)
def test_what_cannot_be(values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as raised:
        with_options(PRESETS["standard"], values)
    assert str(raised.value).startswith(sentence)
