"""What the comparisons of searches print and write, on small problems and a tiny model."""

import json
import math
import os
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from problem_fit import Scores, errors_of
from script_tables import SCRIPTS, Rows

from tyr_jax.errors import UserError
from tyr_jax.problems import load_problem, stack_problems, synthetic_problem
from tyr_jax.search.evolution import Evolution
from tyr_jax.search.registry import SEARCHES

pytestmark = [pytest.mark.slow, pytest.mark.long]


def test_bench_searches(table: Callable[..., Rows]) -> None:
    _, *rows = table("bench_searches.py", ["--generations", 2, "--together", 1, 2, "--repeats", 1])
    searches = "CMA-ES on levels", "evolution"
    alone = (f"evosax's {name} on a sphere" for name in ("CMA_ES", "SNES", "Open_ES"))
    expected = {(name, "one program", count) for name in (*searches, *alone) for count in ("1", "2")}
    expected |= {(name, "the host's loop", "1") for name in searches}
    if os.cpu_count() == 2:
        expected |= {(name, "one program on 2 devices", "2") for name in searches}
    assert {tuple(row[:3]) for row in rows if "devices" not in row[1] or os.cpu_count() == 2} == expected
    assert all(float(row[3].replace(",", "")) > 0 for row in rows)


def test_a_measured_problem_is_compared_and_drawn(
    table: Callable[..., Rows],
    tiny_model: Path,
    tiny_text: Path,
    tmp_path: Path,
) -> None:
    few = {"--walks": 12, "--rounds": 2, "--finds": 12, "--sequence-length": 16, "--calibration-tokens": 128}
    few |= {"--search-tokens": 64, "--held-out-tokens": 32, "--model": tiny_model, "--calibration": tiny_text}
    few |= {"--output": tmp_path, "--scores": tmp_path / "scores", "--name": "tiny"}
    table("make_problem.py", [word for pair in few.items() for word in pair])
    problem, datasheet = load_problem(tmp_path / "tiny.npz")
    scored = Scores(*np.load(tmp_path / "scores" / "tiny-spread-0.npz").values())
    assert 0 < datasheet["candidates scored"] - len(scored.levels) <= 24
    assert datasheet["errors"].keys() >= {"held-out rank correlation"}
    # Candidates that it was fitted to are predicted well, of a tiny model of random weights too.
    assert errors_of(problem, scored)["search rank correlation"] > 0.9
    results = tmp_path / "comparison.json"
    options = ["--searches", "evolution", "random", "--problems", "smooth", tmp_path / "tiny.npz"]
    options += ["--seeds", 2, "--passes", 16, "--results", results]
    header, *rows = table("compare_searches.py", options)
    assert header[:3] == ["problems", "search", "excess left, median"]
    assert {tuple(row[:2]) for row in rows} == {
        (group, name) for group in ("smooth", str(tmp_path / "tiny.npz")) for name in ("evolution", "random")
    }
    assert {row[4] for row in rows} >= {"1.000"}
    pictures = runpy.run_path(str(SCRIPTS / "pictures.py"))
    pictures["draw_curves"](json.loads(results.read_text()), tmp_path)
    assert "smooth" in (tmp_path / "comparison.svg").read_text()


def test_levels_above_the_budget_are_no_result() -> None:
    check = runpy.run_path(str(SCRIPTS / "compare_searches.py"))["check_budget"]
    problems = stack_problems([synthetic_problem(seed, depth=4) for seed in range(2)])
    levels = np.array(problems.start)[:, None].repeat(3, axis=1)
    check(Evolution(), problems, levels)
    levels[1, 2, 0, 0] += 1
    with pytest.raises(UserError, match="evolution has found levels that do not meet the budget"):
        check(Evolution(), problems, levels)


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
    searches = "descent", "descent --no-estimate", "evosax --logits", "random"
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
