"""What the tables of quality print, on a tiny model: a row for everything that they compare."""

import dataclasses
import itertools
import json
import math
import runpy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from script_tables import SCRIPTS, Rows

from tyr_jax.cli import prune

pytestmark = [pytest.mark.slow, pytest.mark.long]


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
    few = "--calibration-tokens 512 --search-tokens 256 --rounds 1 --levels 3"
    few += " --search evolution --generations 1"
    short = "--sequence-length 32 --search-length 32 --evaluation-length 32 --evaluation-windows 2"
    search = "--offspring 4 --survivors 1 --stage-tokens 32 --metric-tokens 256 --reconstruct 1"
    recovery = f"--data {tiny_text} --tokens 256 --sequence-length 32 --step-tokens 64 --evaluation-windows 2"
    arguments: list[object] = ["--model", tiny_model, "--calibration", tiny_text, "--evaluation"]
    arguments += ["--sparsities", 0.25, 0.5, "--seeds", 0, 1, "--preset", "quick", "--reconstruct", 1]
    arguments += [f"--options={few} {short} {search}", f"--recovery={recovery}"]
    arguments += ["--results", tmp_path / "results"]
    header, *rows = table("main_results.py", arguments)
    models = ["dense", "uniform", "searched", "reconstructed", "recovered"]
    assert [name.split(":")[0] for name in header[2:]] == [*models, "KL by search", "written"]
    assert [row[0].split()[-1] for row in rows] == ["(0.25)", "(0.5)"]
    found = json.loads((tmp_path / "results" / "results.json").read_text())
    (text,) = found["0"]["0.25"]["dense"]["quality"]
    kl = [found[seed]["0.5"]["recovered"]["quality"][text]["kl"] for seed in ("0", "1")]
    assert rows[1][-3].endswith(f"({min(kl):.3f}–{max(kl):.3f})")
    uniform, searched = (
        np.array([found[seed]["0.5"][model]["quality"][text]["kl"] for seed in ("0", "1")])
        for model in ("uniform", "searched")
    )
    gain = np.median(searched / uniform - 1)
    assert float(rows[1][-2].split("%")[0].replace("−", "-")) == pytest.approx(100 * gain, abs=0.51)
    chosen = {name.partition(" ")[0] for name in rows[1][-1].split(", ")}
    assert chosen == {found[seed]["0.5"]["written"] for seed in ("0", "1")}
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").rglob("*.safetensors")}
    assert len(made) == 8
    assert table("main_results.py", arguments) == [header, *rows]
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_rounds_are_compared_at_equal_generations(
    table: Callable[..., Rows], tiny_model: Path, tiny_text: Path, tmp_path: Path
) -> None:
    few = "--sequence-length 32 --search-length 32 --evaluation-length 32 --evaluation-windows 2"
    few += f" --metric-tokens 256 --neuron-multiple 2 --calibration {tiny_text}"
    arguments = ["--model", tiny_model, "--evaluation", tiny_text, "--rounds", 2, 1, "--generations", 4]
    arguments += ["--fine", 0.0625, "--calibration-tokens", 512, "--search-tokens", 256, "--offspring", 4]
    arguments += ["--seeds", 0, f"--options={few}", "--results", tmp_path / "results"]
    header, *rows = table("ablation_rounds.py", arguments)
    assert header[:2] == ["rounds", "finest step: heads, neurons"]
    assert [row[0] for row in rows] == ["uniform", "search only", "1 round", "2 rounds"]
    fine, once, twice = (int(row[1].split(", ")[1]) for row in rows[1:])
    assert fine == twice < once
    found = json.loads((tmp_path / "results" / "results.json").read_text())
    for way, (summary,) in found.items():
        rounds = 2 if way == "2 rounds" else 1
        assert [len(each["history"]) for each in summary["rounds"]] == [4 // rounds] * rounds
        # Within a round, all objectives are on the same text, and the parent competes.
        for each in summary["rounds"]:
            objectives = [record["objective"] for record in each["history"]]
            assert all(b <= a * 1.00001 for a, b in itertools.pairwise(objectives))
    pictures = runpy.run_path(str(SCRIPTS / "pictures.py"))
    pictures["draw_rounds"](found, tmp_path)
    assert "search only" in (tmp_path / "rounds.svg").read_text()
    assert ">round 2<" in (tmp_path / "rounds-kept.svg").read_text()


def test_what_exchange_gains(
    table: Callable[..., Rows], tiny_model: Path, tiny_text: Path, tmp_path: Path
) -> None:
    few = "--calibration-tokens 512 --search-tokens 256 --levels 5 --rounds 1 --search evolution"
    few += " --generations 1"
    few += " --offspring 4 --survivors 1 --stage-tokens 32 --sequence-length 32 --search-length 32"
    few += " --evaluation-length 32 --evaluation-windows 2 --metric-tokens 256 --neuron-multiple 2"
    arguments = ["--model", tiny_model, "--evaluation", tiny_text, "--seeds", 0, "--sparsities", 0.25, 0.5]
    arguments += [f"--options={few} --calibration {tiny_text}", "--results", tmp_path / "results"]
    tables = table("ablation_budget.py", arguments)
    rows = [row for row in tables if row[0].startswith("`")]
    budgets = "`--budget units`", "`--budget parameters`"
    pairs = [[budget, model] for budget in budgets for model in ("uniform", "searched")]
    assert [row[:2] for row in rows] == pairs * 2
    found = json.loads((tmp_path / "results" / "results.json").read_text())["0"]
    for models in found.values():
        equal, exchanged = (
            models[budget]["uniform"]["size"]["block_parameters"] for budget in ("units", "parameters")
        )
        assert 0.9 * equal < exchanged <= 1.0001 * equal
        kept = models["parameters"]["uniform"]["kept"]["attention"]
        assert sum(kept) >= sum(models["units"]["uniform"]["kept"]["attention"])


def test_spread(table: Callable[..., Rows], tiny_model: Path, tiny_text: Path, tmp_path: Path) -> None:
    few = "--calibration-tokens 512 --search-tokens 256 --levels 5 --rounds 1 --search evolution"
    few += " --generations 1"
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
    results = json.loads((tmp_path / "curve" / "results.json").read_text())
    runpy.run_path(str(SCRIPTS / "pictures.py"))["draw_recovery"](results, tmp_path)
    drawn = (tmp_path / "recovery-curve.svg").read_text()
    assert all(f">{name}<" in drawn for name in ("lora 0.01", "full muon 0.01", "dense model"))
    found = results["lora 0.01"][1]
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


def test_no_variant_is_measured_twice() -> None:
    """The paper's preset accumulates by expectation, and has the mean damping."""
    import ablation

    asked = ablation.Ablation(variants=("none", "expectation", "mean damping", ablation.FLAP))
    assert ablation.distinct(asked) == ("none", "expectation", ablation.FLAP)
    other = dataclasses.replace(asked, preset="standard")
    assert ablation.distinct(other) == asked.variants


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
    assert [row[0] for row in rows[10:]] == [
        f"all but {name}, without reconstruction"
        for name in ("budget of parameters", "errors in nats", "drift corrected")
    ]
    # All models are as large, within what a step of neurons is worth.
    sizes = [float(row[1]) for row in rows]
    assert max(sizes) - min(sizes) < 0.01
    assert len({tuple(row[2:]) for row in rows}) >= 10


def test_calibration_texts_have_a_row_per_target(
    table: Callable[..., Rows], inputs: list[object], tmp_path: Path
) -> None:
    _, model, *_, text = inputs
    few = ["--calibration-tokens", 512, "--metric-tokens", 512, "--windows", 1, "--seeds", 0]
    few += ["--sparsities", 0.25, 0.5, "--evaluation", text, "--results", tmp_path / "texts.json"]
    header, *rows = table("ablation_text.py", ["--model", model, "--texts", text, f"{text} builtin", *few])
    assert header == ["block parameters", "calibration text", "words.txt: KL (span), perplexity"]
    assert [row[1] for row in rows] == ["words.txt", "words.txt builtin"] * 2
    assert [row[0].split()[-1] for row in rows] == ["(0.25)"] * 2 + ["(0.5)"] * 2
    assert len({row[2] for row in rows}) == 4


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
