"""`python -m tyr_jax.evaluate` on tiny models, dense and pruned."""

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tyr_jax.cli import evaluate, prune
from tyr_jax.data import DataSpec, load_evaluation
from tyr_jax.evaluation.perplexity import data_spec
from tyr_jax.evaluation.settings import EvaluationSettings
from tyr_jax.io.checkpoint import load_model

pytestmark = pytest.mark.slow

Measure = Callable[..., list[dict[str, Any]]]
SHORT = ("--evaluation-length", "64")


@pytest.fixture(scope="module")
def pruned(tiny_arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A searched model; not to be written to."""
    directory = tmp_path_factory.mktemp("run") / "pruned"
    prune.main([*tiny_arguments, "--rounds", "1", "--bos", "--output", str(directory)])
    return directory


@pytest.fixture
def measure(capsys: pytest.CaptureFixture[str]) -> Measure:
    """Run the command with `--json`, and return its rows."""

    def measure(*arguments: object) -> list[dict[str, Any]]:
        evaluate.main([*map(str, arguments), "--trust-record", "--json"])
        return list(json.loads(capsys.readouterr().out)["texts"])

    return measure


def test_a_pruned_model_measures_as_it_did(pruned: Path, measure: Measure) -> None:
    summary = json.loads((pruned / "summary.json").read_text())
    (row,) = measure(pruned)
    then = summary["searched"]["quality"]["words.txt"]["perplexity"]
    assert row["perplexity_when_made"] == then
    assert row["perplexity"] == pytest.approx(then, rel=1e-4)
    assert (row["text"], row["windows"], row["length"], row["bos"]) == ("words.txt", 4, 32, True)


def test_half_precision(pruned: Path, measure: Measure) -> None:
    (exact,), (rounded,) = measure(pruned), measure(pruned, "--compute-dtype", "bfloat16")
    assert rounded["perplexity"] == pytest.approx(exact["perplexity"], rel=0.02)
    assert rounded["perplexity"] != exact["perplexity"]


def test_from_another_folder_and_with_rounded_weights(
    tiny_arguments: list[str],
    tiny_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    measure: Measure,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    shutil.copy(tiny_text, here / "my.txt")
    monkeypatch.chdir(here)
    options = ["--rounds", "0", "--dtype", "bfloat16", "--calibration", "my.txt@2", "--output", "pruned"]
    prune.main([*tiny_arguments, *options])
    capsys.readouterr()
    monkeypatch.chdir(there)
    (row,) = measure(here / "pruned")
    assert row["perplexity"] == pytest.approx(row["perplexity_when_made"], rel=1e-6)


def test_other_windows_are_not_held_against_those_of_the_run(
    pruned: Path, tiny_text: Path, measure: Measure
) -> None:
    (fewer,) = measure(pruned, "--evaluation-windows", 2)
    assert (fewer["windows"], fewer["perplexity_when_made"]) == (2, None)
    (without_bos,) = measure(pruned, "--bos", False)
    assert (without_bos["bos"], without_bos["perplexity_when_made"]) == (False, None)


@pytest.mark.parametrize("kept", [True, False])
def test_texts_that_only_the_record_names_are_not_read(
    kept: bool, pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such texts need not exist in order to measure on others."""
    copy = Path(shutil.copytree(pruned, tmp_path / "copy"))
    text, other = tmp_path / "theirs.txt", tmp_path / "mine.txt"
    summary = json.loads((copy / "summary.json").read_text())
    summary["settings"]["data"] |= {"calibration": [str(text)], "evaluation": ["of/hub:x"]}
    (copy / "summary.json").write_text(json.dumps(summary))
    other.write_text("the cat and the hat " * 200)
    if kept:
        os.mkfifo(text)
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([str(copy)])
    assert stopped.value.code == 2
    assert (
        f"was measured on {text}, of/hub:x: if you trust the record"
        in capsys.readouterr().err.splitlines()[-1]
    )
    evaluate.main([str(copy), "--evaluation", str(other), "--evaluation-length", "16", "--json"])
    assert json.loads(capsys.readouterr().out)["texts"][0]["perplexity"] > 1


def test_what_a_model_has_learnt_from_is_not_what_it_is_measured_on(
    pruned: Path, tiny_text: Path, measure: Measure, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (held,) = measure(pruned, "--evaluation", tiny_text)
    assert held["part"] == "every 8th window, held out"
    assert held["perplexity"] == pytest.approx(held["perplexity_when_made"], rel=1e-4)
    other = tmp_path / "other.txt"
    other.write_text(tiny_text.read_text()[::-1])
    (start,) = measure(pruned, "--evaluation", other, "--evaluation-length", 16)
    assert (start["part"], start["length"], start["tokens"]) == ("its start", 16, 64)
    assert "other.txt (sha256 " in start["source"]
    for text in ((), ("--evaluation", str(tiny_text), str(other))):
        with pytest.raises(SystemExit) as stopped:
            evaluate.main([str(pruned), "--trust-record", "--evaluation-length", "16", *text])
        assert stopped.value.code == 2
        assert "with windows of 32 tokens held out" in capsys.readouterr().err


def test_a_dense_model_and_any_text(tiny_model: Path, tiny_text: Path, measure: Measure) -> None:
    rows = measure(tiny_model, *SHORT, "--evaluation-windows", 3, "--evaluation", tiny_text, "builtin")
    assert [row["text"] for row in rows] == ["words.txt", "builtin:topics", "builtin:docstrings"]
    assert all(row["windows"] == 3 and row["length"] == 64 for row in rows)
    # Random weights are about as good as a guess among 300 tokens.
    assert all(200 < row["perplexity"] < 2000 for row in rows)
    assert all(row["perplexity_when_made"] is None for row in rows)


@pytest.mark.parametrize("bos", [False, True])
def test_perplexity_is_that_of_transformers(
    bos: bool, pruned: Path, tiny_text: Path, measure: Measure
) -> None:
    """transformers reads the same windows in torch."""
    (row,) = measure(pruned, "--bos", bos)
    spec = DataSpec((str(tiny_text),), evaluation_length=32, evaluation_windows=4, bos=bos)
    ((_, windows),) = load_evaluation(spec, load_model(str(pruned)).tokenizer).items()
    theirs = AutoModelForCausalLM.from_pretrained(pruned, trust_remote_code=True)
    tokens = torch.tensor(windows, dtype=torch.long)
    with torch.no_grad():
        loss = theirs(tokens, labels=tokens).loss
    assert row["tokens"] == windows.size
    assert row["perplexity"] == pytest.approx(math.exp(loss), rel=1e-3)


def test_the_table(pruned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main([str(pruned), "--trust-record"])
    shown = capsys.readouterr().out
    for word in ("perplexity of", "words.txt", "4 × 32", "recorded"):
        assert word in shown


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(["--help"])
    assert not stopped.value.code
    shown = capsys.readouterr().out
    assert shown.startswith("How good a model is")
    assert "None)" not in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


def test_without_a_summary_the_builtin_text_is_measured() -> None:
    assert data_spec(EvaluationSettings(), "m", None) == DataSpec(calibration=(), evaluation=("builtin",))
    asked = data_spec(EvaluationSettings(evaluation=("a.txt",), evaluation_windows=5, bos=True), "m", None)
    assert asked == DataSpec(calibration=(), evaluation=("a.txt",), evaluation_windows=5, bos=True)
