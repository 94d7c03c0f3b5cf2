"""Components that a user replaces: found by name or reference, or refused in a sentence."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from tyr_jax.api import prune_model
from tyr_jax.cli.prune import parse
from tyr_jax.components import find
from tyr_jax.errors import UserError
from tyr_jax.model.spec import ModelConfig
from tyr_jax.pruning.registry import SALIENCIES
from tyr_jax.pruning.saliency import Saliency, SiteStatistics, TaylorSaliency, check_saliency
from tyr_jax.pruning.site import LocalPruner, PrunedSite, Site, check_pruner, keep_rows, rank_by
from tyr_jax.scoring.objective import KL, HiddenKL, Objective, check_objective
from tyr_jax.search.contract import Search
from tyr_jax.search.evolution import Evolution
from tyr_jax.search.registry import SEARCHES
from tyr_jax.settings import validate

MODULE = '''
import dataclasses
from tyr_jax.search.contract import Search
from tyr_jax.search.evolution import Evolution

@dataclasses.dataclass(frozen=True)
class Narrow(Evolution):
    """A search."""

    offspring: int = 7
    """Offspring of a generation."""
    greed: float = 0.5
    """How greedy it is."""

@dataclasses.dataclass
class Changeable(Search):
    generations: int = 1

class Plain(Search):
    pass

@dataclasses.dataclass(frozen=True)
class Wanting(Search):
    generations: int

@dataclasses.dataclass(frozen=True)
class Clashing(Evolution):
    sparsity: float = 0.5

@dataclasses.dataclass(frozen=True)
class Failing(Evolution):
    def __post_init__(self):
        raise ValueError("not today")

@dataclasses.dataclass(frozen=True)
class Checking(Evolution):
    def check(self):
        return 1 / 0

NUMBER = 3
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "own_search.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_by_name_and_by_reference(folder: Path) -> None:
    assert find(SEARCHES, "evolution", Search) is Evolution
    assert find(SEARCHES, "own_search:Narrow", Search).name == "own_search:Narrow"
    assert find(SALIENCIES, "taylor", Saliency) is TaylorSaliency


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("evolve", "--search is evolve, but must be evolution, random, .*, or MODULE:NAME of your own"),
        ("own_search:Missing", "has no 'Missing'"),
        ("no_such_module:Search", "no module 'no_such_module'"),
        ("own_search:NUMBER", "own_search:NUMBER is not a Search: derive the class from Search"),
        ("own_search:Plain", "is not a frozen dataclass: add @dataclasses.dataclass"),
        ("own_search:Changeable", "is not a frozen dataclass"),
        ("own_search:Wanting", "has no default for 'generations'"),
    ],
)
def test_what_is_no_component(reference: str, sentence: str, folder: Path) -> None:
    with pytest.raises(UserError, match=sentence) as error:
        find(SEARCHES, reference, Search)
    assert "\n" not in str(error.value)


def test_options_are_flags(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (search,) = parse(
        ["--search", "own_search:Narrow", "--greed", "0.25", "--preset", "quick"]
    ).settings.search
    assert dataclasses.asdict(search)["greed"] == 0.25
    assert dataclasses.asdict(search)["offspring"] == 7
    *before, evolution = parse(["--preset", "quick"]).settings.search
    changed = dataclasses.replace(evolution, offspring=5)
    assert parse(["--preset", "quick", "--offspring", "5"]).settings.search == (*before, changed)
    own, last = parse(["--search", "own_search:Narrow", "evolution", "--Narrow.greed", "0.5"]).settings.search
    assert (dataclasses.asdict(own)["greed"], last.name) == (0.5, "evolution")
    assert parse(["--objective=hidden+kl", "--alpha=2"]).settings.objective == HiddenKL(alpha=2.0)
    assert parse(["--beta", "2"]).settings.objective == KL(beta=2.0)
    with pytest.raises(UserError, match="--greed"):
        parse(["--greed", "0.25"])
    with pytest.raises(SystemExit):
        parse(["--search", "own_search:Narrow", "--help"])
    assert "How greedy it is." in capsys.readouterr().out


def test_an_option_that_the_command_has_already(folder: Path) -> None:
    with pytest.raises(UserError, match="--search own_search:Clashing has an option --sparsity, which"):
        parse(["--search", "own_search:Clashing"])


def test_a_component_that_fails_before_it_is_asked(folder: Path) -> None:
    with pytest.raises(
        UserError, match="--search own_search:Failing failed in __init__ with ValueError: not"
    ):
        parse(["--search", "own_search:Failing"])
    with pytest.raises(
        UserError, match="--search own_search:Checking failed in check with ZeroDivisionError"
    ):
        validate(parse(["--search", "own_search:Checking"]).settings)


@dataclasses.dataclass(frozen=True)
class Returning(Objective):
    observed: Any = ()
    value: Any = None

    def observed_layers(self, depth: int) -> tuple[int, ...]:
        return self.observed  # type: ignore[no-any-return]

    def __call__(self, teacher: Any, student: Any) -> jax.Array:
        return jnp.mean(student.final, axis=self.value)


def test_an_objective_is_tried(tiny_config: Any) -> None:
    config: ModelConfig = tiny_config()
    check_objective(HiddenKL(), config, jnp.dtype("bfloat16"))
    check_objective(Returning((2,)), config, jnp.dtype("float32"))
    for broken, sentence in (
        (Returning((3,)), r"observes \(3,\): observed_layers must return layers 0 to 2"),
        (Returning([0]), r"observes \[0\]"),
        (Returning(value=0), "it must return a floating-point scalar"),
        (Returning(value=9), "failed in __call__ with"),
    ):
        with pytest.raises(UserError, match=sentence):
            check_objective(broken, config, jnp.dtype("float32"))


@dataclasses.dataclass(frozen=True)
class Flat(Saliency):
    axis: int = 1

    def __call__(self, site: SiteStatistics) -> jax.Array:
        return jnp.sum(site.weight, axis=self.axis)


def test_a_saliency_is_tried() -> None:
    check_saliency(TaylorSaliency())
    # One for every channel, where units have several.
    with pytest.raises(UserError, match=r"for 3 units: it must return an array of shape \(3,\)"):
        check_saliency(Flat())
    with pytest.raises(UserError, match="failed in __call__ with"):
        check_saliency(Flat(axis=5))


@dataclasses.dataclass(frozen=True)
class Typed(Saliency):
    kind: str = "float32"

    def __call__(self, site: SiteStatistics) -> Any:
        per_unit = jnp.sum(site.weight, axis=1).reshape(3, -1)[:, 0]
        return 1.0 if self.kind == "plain" else per_unit.astype(self.kind)


@pytest.mark.parametrize("kind", ["bool", "complex64", "int32", "plain"])
def test_scores_are_floating_point_numbers(kind: str) -> None:
    with pytest.raises(UserError, match=r"returns numbers of type|for 3 units: it must return an array"):
        check_saliency(Typed(kind))


@dataclasses.dataclass(frozen=True)
class Quitting(Saliency):
    def __call__(self, site: SiteStatistics) -> jax.Array:
        sys.exit(0)


def test_a_component_that_exits_is_a_failure() -> None:
    with pytest.raises(UserError, match="Quitting failed in __call__ with SystemExit: 0, at line"):
        check_saliency(Quitting())


@dataclasses.dataclass(frozen=True)
class Nowhere(Saliency):
    def __call__(self, site: SiteStatistics) -> jax.Array:
        return jnp.full(len(site.inverse), jnp.nan)


@dataclasses.dataclass(frozen=True)
class Lost(LocalPruner):
    def __call__(self, site: Site) -> Any:
        pruned = keep_rows(site, rank_by(site.per_unit(jnp.sum(site.weight, axis=1))))
        return pruned._replace(error=pruned.error + jnp.nan)


def test_numbers_that_are_not_finite_are_blamed_on_who_gave_them(tiny_model: Path, tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("the cat and the hat " * 500)
    options: dict[str, Any] = dict.fromkeys(("sequence_length", "search_length", "evaluation_length"), 32)
    options |= {"calibration": words, "evaluation": words, "rounds": 0, "calibration_tokens": 128}
    options |= {"search_tokens": 64, "evaluation_windows": 1, "progress": False}
    with pytest.raises(UserError, match=r"--pruner .*Lost gives numbers that are not finite for layer 0"):
        prune_model(tiny_model, pruner=Lost(), **options)
    with pytest.raises(UserError, match=r"--saliency .*Nowhere gives numbers that are not finite for"):
        prune_model(tiny_model, saliency=Nowhere(), **options)
    with pytest.raises(UserError, match=r"--saliency .*Nowhere gives numbers that are not finite for"):
        prune_model(tiny_model, saliency=Nowhere(), pruner="keep", **options)


@dataclasses.dataclass(frozen=True)
class Narrowing(LocalPruner):
    mode: str = "right"

    def __call__(self, site: Site) -> Any:
        pruned = keep_rows(site, rank_by(site.per_unit(jnp.sum(site.weight, axis=1))))
        wrong = {"tuple": tuple(pruned), "rank": pruned._replace(rank=pruned.rank[:1])}
        wrong |= {
            "bool": pruned._replace(rank=pruned.rank > 0),
            "complex": pruned._replace(error=pruned.error + 0j),
        }
        return wrong.get(self.mode, pruned)


def test_a_pruner_is_tried() -> None:
    check_pruner(Narrowing(), TaylorSaliency())
    with pytest.raises(UserError, match="returns a tuple: it must return a PrunedSite"):
        check_pruner(Narrowing("tuple"), TaylorSaliency())
    with pytest.raises(UserError, match=r"returns rank of shape \(1,\): it must have the shape \(4,\)"):
        check_pruner(Narrowing("rank"), TaylorSaliency())
    with pytest.raises(UserError, match="returns rank of type bool: it must be integer"):
        check_pruner(Narrowing("bool"), TaylorSaliency())
    with pytest.raises(UserError, match="returns error of type complex64: it must be floating"):
        check_pruner(Narrowing("complex"), TaylorSaliency())
    assert PrunedSite._fields == ("weights", "rank", "error", "damping")
