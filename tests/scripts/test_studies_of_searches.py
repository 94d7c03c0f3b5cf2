"""What the comparisons of searches print and write, on small problems and a tiny model."""

import json
import math
import os
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from script_tables import SCRIPTS, Rows

from tyr_jax.errors import UserError
from tyr_jax.io.checkpoint import load_model
from tyr_jax.search.evolution import Evolution
from tyr_jax.search.registry import SEARCHES

pytestmark = [pytest.mark.slow, pytest.mark.long]


def test_bench_searches(table: Callable[..., Rows]) -> None:
    _, *rows = table("bench_searches.py", ["--generations", 2, "--together", 1, 2, "--repeats", 1])
    searches = "CMA-ES on levels", "evolution", "evolution on an exact problem"
    alone = (f"evosax's {name} on a sphere" for name in ("CMA_ES", "SNES", "Open_ES"))
    expected = {(name, "one program", count) for name in (*searches, *alone) for count in ("1", "2")}
    expected |= {(name, "the host's loop", "1") for name in searches[:2]}
    if os.cpu_count() == 2:
        expected |= {(name, "one program on 2 devices", "2") for name in searches}
    assert {tuple(row[:3]) for row in rows if "devices" not in row[1] or os.cpu_count() == 2} == expected
    assert all(float(row[3].replace(",", "")) > 0 for row in rows)


@pytest.mark.parametrize(
    ("problem", "searches"),
    [
        ("smooth", ("evolution", "random", "estimate, descent, evolution")),
        ("exact-25-units", ("estimate", "random")),
    ],
)
def test_searches_are_compared_and_drawn(
    problem: str, searches: tuple[str, ...], table: Callable[..., Rows], tmp_path: Path
) -> None:
    results = tmp_path / "comparison.json"
    options = ["--problems", problem, "--seeds", 2, "--passes", 8, "--processes", 2, "--results", results]
    table("compare_searches.py", ["--searches", searches[0], *options])
    known = json.loads(results.read_text())["results"]
    header, *rows = table("compare_searches.py", ["--searches", *searches, *options])
    assert known[searches[0]] == json.loads(results.read_text())["results"][searches[0]]
    assert header[:3] == ["problems", "search", "excess left, median"]
    assert {tuple(row[:2]) for row in rows} == {(problem, name) for name in searches}
    assert {row[4] for row in rows} >= {"1.000"}
    pictures = runpy.run_path(str(SCRIPTS / "pictures.py"))
    pictures["draw_curves"](json.loads(results.read_text()), tmp_path, "comparison.svg")
    assert problem in (tmp_path / "comparison.svg").read_text()


def test_settings_are_chosen_for_one_family_of_problems() -> None:
    check = runpy.run_path(str(SCRIPTS / "compare_searches.py"))["check_family"]
    with pytest.raises(UserError, match="compare on these in two calls"):
        check(("smooth", "exact-25-units"))


def test_a_better_distribution_than_the_best_known_is_kept(
    table: Callable[..., Rows], tmp_path: Path
) -> None:
    few = ["--problems", "exact-40-units", "--seeds", 0, "--descents", 0, "--generations", 1]
    few += ["--exchanges", 0]
    table("best_known.py", [*few, "--output", tmp_path / "best.json"])
    assert json.loads((tmp_path / "best.json").read_text())["problems"].keys() >= {"exact-40-units"}


def test_a_language_model_is_trained(table: Callable[..., Rows], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat, and so did the dog. " * 200)
    few = ["--steps", 3, "--rows", 2, "--length", 32, "--unseen-characters", 2000]
    table("make_language_model.py", [tmp_path / "text.txt", tmp_path / "model", *few])
    assert load_model(str(tmp_path / "model")).config.depth == 12
    assert len((tmp_path / "model" / "unseen.txt").read_text()) == 2000


def test_levels_above_the_budget_are_no_result() -> None:
    script = runpy.run_path(str(SCRIPTS / "compare_searches.py"))
    check, group = script["check_budget"], script["Group"].of("smooth", range(2))
    levels = group.starts()[:, None].repeat(3, axis=1)
    check(Evolution(), group, levels)
    levels[1, 2, 0, 0] += 1
    with pytest.raises(UserError, match="evolution has found levels that do not meet the budget"):
        check(Evolution(), group, levels)


def test_every_search_has_settings_to_choose_from() -> None:
    settings = runpy.run_path(str(SCRIPTS / "compare_searches.py"))["SETTINGS"]
    assert {name.split()[0] for name in settings} == set(SEARCHES)


def test_searches_are_compared_on_a_model(
    table: Callable[..., Rows],
    tiny_model: Path,
    tiny_text: Path,
    tmp_path: Path,
) -> None:
    few = {"--passes": 32, "--sequence-length": 16, "--calibration-tokens": 128, "--search-tokens": 64}
    few |= {"--held-out-tokens": 64, "--model": tiny_model, "--calibration": tiny_text}
    few |= {"--results": tmp_path / "kept.json"}
    options = [word for pair in few.items() for word in pair]
    searches = "descent", "descent --reach 2", "evosax --logits", "random"
    options += ["--searches", *searches, "--seeds", 0, 1, "--objectives", "kl", "hidden+kl"]
    _, start, *rows = table("compare_on_model.py", options)
    assert start[0] == "the start"
    pairs = [(search, objective) for search in searches for objective in ("hidden+kl", "kl")]
    assert sorted(tuple(row[:2]) for row in rows) == pairs
    assert all(0 < float(row[6].replace(",", "")) <= 32 * 64 for row in rows)
    assert all(math.log(float(row[5])) > float(row[2]) for row in [start, *rows])
    assert rows[0][4] == "1.000"
    before = json.loads((tmp_path / "kept.json").read_text())
    for one in before["results"].values():
        curve = one["curve"]
        assert curve["tokens"] == sorted(set(curve["tokens"]))
        assert len(curve["tokens"]) == len(curve["seconds"]) == len(curve["kl"]) >= 1
        assert (curve["tokens"][-1], curve["seconds"][-1]) == (one["tokens"], one["seconds"])
        assert curve["kl"][-1] == pytest.approx(one["kl"])
    pictures = runpy.run_path(str(SCRIPTS / "pictures.py"))
    pictures["draw_on_model"](before, tmp_path)
    assert "descent" in (tmp_path / "on-model.svg").read_text()
    _, *again = table("compare_on_model.py", options)
    assert again == [start, *rows]
    assert json.loads((tmp_path / "kept.json").read_text()) == before


def test_significance_by_hand() -> None:
    """Six pairs, all of one sign: the exact probability is 2/64. Holm doubles the least of two."""
    adjusted = runpy.run_path(str(SCRIPTS / "compare_searches.py"))["adjusted"]
    best, rising = np.zeros(6), np.arange(1.0, 7.0)
    worse = {"best": best, "worse": best + rising, "mixed": best + rising * np.array([1, -1, 1, -1, 1, 1])}
    found = adjusted(worse)
    assert found["best"] == 1
    assert found["worse"] == pytest.approx(2 * 2 / 64)
    assert 0.1 < found["mixed"] <= 1
    assert adjusted({"one": best, "same": best}) == {"one": 1, "same": 1}
