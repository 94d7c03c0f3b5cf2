"""Searches of every sort in the main job: those that probe, ask for slopes, or have stages, and evosax."""

import json
from pathlib import Path

import pytest

from tyr_jax.cli import prune

pytestmark = pytest.mark.slow

FEW = {
    "additive": ["--reach", "1", "--probe-tokens", "32", "--score-tokens", "64"],
    "descent": ["--tokens", "64", "--reach", "1"],
    "halving": ["--candidates", "4", "--rungs", "2", "--score-tokens", "32", "--max-shifts", "2"],
    "evosax": ["--strategy", "SNES", "--population", "4", "--score-tokens", "32"],
}


@pytest.mark.parametrize(
    "name", [one if one == "descent" else pytest.param(one, marks=pytest.mark.long) for one in FEW]
)
def test_a_search_in_the_main_job(
    name: str, tiny_model: Path, tiny_text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = """--sequence-length 32 --search-length 32 --calibration-tokens 256 --search-tokens 256
        --evaluation-length 32 --evaluation-windows 2 --neuron-chunk 4 --rounds 1 --levels 5
        --generations 2"""
    output = tmp_path / "pruned"
    given = ["--model", str(tiny_model), "--calibration", str(tiny_text), "--output", str(output)]
    prune.main([*given, *small.split(), "--search", name, *FEW[name]])
    summary = json.loads((output / "summary.json").read_text())
    assert summary["sparsity"]["left"]["parameters"] <= 0.75
    history = summary["rounds"][0]["history"]
    assert [entry["generation"] for entry in history] == [1, 2]
    tokens = [entry["candidate_tokens"] for entry in history]
    assert tokens[1] == 2 * tokens[0] > 0
    assert {entry["search"] for entry in history} == {name}
    # The forecast of the progress display is what was spent.
    assert "candidate-tokens" in capsys.readouterr().err


def test_searches_run_in_turn(tiny_arguments: list[str], tmp_path: Path) -> None:
    """Their steps are recorded one after the other, and the same command finds the same."""
    chain = "--rounds 1 --search genetic descent evolution --genetic.generations 1 --genetic.score-tokens 32"
    for name, options in {"once": [], "again": ["--overwrite", "--seed", "0"]}.items():
        prune.main([*tiny_arguments, *chain.split(), *options, "--output", str(tmp_path / name)])
    once, again = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("once", "again"))
    history = once["rounds"][0]["history"]
    assert [step["search"] for step in history] == ["genetic"] + ["descent"] * 4 + ["evolution"] * 2
    assert history == again["rounds"][0]["history"]
    assert [each["search"] for each in once["settings"]["search"]] == ["genetic", "descent", "evolution"]
    assert {f"round 1/1: {name}" for name in ("genetic", "descent", "evolution")} <= set(once["seconds"])
