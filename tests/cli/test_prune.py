"""The main job end to end, through the command line, on a tiny model of random weights."""

import html
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from tyr_jax.api import generate_text
from tyr_jax.cli import benchmark, evaluate, export, finetune, generate, prune
from tyr_jax.formatting import shown
from tyr_jax.io.checkpoint import LoadedModel, load_model, save_model
from tyr_jax.model.decoder import forward
from tyr_jax.model.tensors import count_parameters
from tyr_jax.settings import PRESETS
from tyr_jax.workspace.manifest import seal

pytestmark = pytest.mark.slow

HEADS, NEURONS = 12, 144
"""Units of the tiny model: 3 layers of 4 heads and 48 neurons."""

PARAMETERS, NEURON = 23232, 96
"""Parameters of the tiny model's blocks, and of one neuron."""

Prune = Callable[..., Path]


@pytest.fixture(scope="module")
def run(tiny_arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Prune:
    """Prune the tiny model with further arguments into a new directory."""

    def run(*arguments: str) -> Path:
        directory = tmp_path_factory.mktemp("run") / "pruned"
        prune.main([*tiny_arguments, "--output", str(directory), *arguments])
        return directory

    return run


@pytest.fixture(scope="module")
def pruned(run: Prune) -> Path:
    """The output of a whole run; not to be written to."""
    return run()


def summary_of(directory: Path) -> dict[str, Any]:
    return dict(json.loads((directory / "summary.json").read_text()))


def events_of(directory: Path, kind: str) -> list[dict[str, Any]]:
    events = map(json.loads, (directory / "events.jsonl").read_text().splitlines())
    return [event for event in events if event["event"] == kind]


def assert_within(summary: dict[str, Any], sparsity: float, multiple: int = 8) -> None:
    """Check that the pruned model has the parameters asked for, or fewer by less than a step of neurons."""
    limit = math.floor((1 - sparsity) * PARAMETERS)
    for name in ("uniform", "searched"):
        blocks = summary[name]["size"]["block_parameters"] if summary[name] else limit
        assert limit - multiple * NEURON < blocks <= limit
    final = summary[summary["written"]]
    removed = 1 - final["size"]["block_parameters"] / PARAMETERS
    assert summary["sparsity"]["parameters"] == pytest.approx(removed)
    assert summary["distribution"] == final["kept"]


def test_the_output_is_a_model_with_its_history(pruned: Path) -> None:
    files = {path.name for path in pruned.iterdir()}
    expected = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert expected | {"tokenizer_config.json", "summary.json", "events.jsonl"} <= files
    assert [path.name for path in pruned.parent.iterdir()] == ["pruned"]
    assert json.loads((pruned / "generation_config.json").read_text()) == {"eos_token_id": 2}
    assert "per_layer_config" in json.loads((pruned / "config.json").read_text())


def test_the_model_has_the_units_that_the_summary_says(pruned: Path) -> None:
    summary, model = summary_of(pruned), load_model(str(pruned))
    kept = summary["distribution"]
    assert [layer.ffn for layer in model.config.layers] == kept["ffn"]
    # Padding or duplication can only add heads to those that are kept.
    for layer, heads in zip(model.config.layers, kept["attention"], strict=True):
        assert (layer.heads == 0) == (heads == 0)
        assert layer.heads >= heads
    blocks, total = count_parameters(model.config)
    assert summary["searched"]["size"] == {
        "block_parameters": blocks,
        "parameters": total,
        "bytes": 4 * total,
    }
    assert total < summary["dense"]["size"]["parameters"]
    weights = load_file(pruned / "model.safetensors")
    assert sum(array.size for array in weights.values()) == total
    logits = forward(model.params, jnp.arange(32)[None], model.config)
    assert np.isfinite(np.asarray(logits)).all()


def test_a_budget_of_parameters_is_met_from_below(pruned: Path) -> None:
    summary = summary_of(pruned)
    assert summary["dense"]["size"]["block_parameters"] == PARAMETERS
    assert_within(summary, 0.25)
    assert summary["sparsity"]["asked"] == 0.25
    assert summary["sparsity"]["budget"] == "parameters"
    for name in ("uniform", "searched"):
        assert summary[name]["units"]["ffn"]["total"] == NEURONS
        assert all(width % 8 == 0 for width in summary[name]["kept"]["ffn"])
    # Heads and neurons compete, except in the uniform model, which keeps all heads.
    assert summary["uniform"]["units"]["attention"] == {
        "total": HEADS,
        "kept": HEADS,
        "removed": 0,
        "sparsity": 0.0,
        "noun": "heads",
    }
    assert summary["rounds"][-1]["kept"] == summary["distribution"] == summary["searched"]["kept"]


@pytest.mark.long
def test_several_limits_are_kept_at_once(run: Prune) -> None:
    limits = "--at-most", "kv-cache=0.7", "flops=0.75"
    output = run("--units", "kv_group", *limits)
    summary = summary_of(output)
    caches = sum(layer.kv_heads for layer in load_model(str(output)).config.layers)
    groups = summary["uniform"]["units"]["attention"]["total"]
    assert caches <= 0.7 * groups
    left = summary["sparsity"]["left"]
    assert left.keys() == {"parameters", "kv-cache", "flops"}
    assert left["kv-cache"] == pytest.approx(caches / groups)
    assert left["parameters"] <= 0.75
    assert left["flops"] <= 0.75
    # The tightest of them is used up, to a step of neurons.
    assert max(left["parameters"], left["flops"]) > 0.75 - 8 * NEURON / PARAMETERS
    assert sum(summary["uniform"]["kept"]["attention"]) <= 0.7 * groups
    assert summary["settings"]["pruning"]["at_most"] == ["kv-cache=0.7", "flops=0.75"]


def test_budgets_of_units_are_met_exactly(run: Prune) -> None:
    summary = summary_of(run("--budget", "units"))
    for name in ("uniform", "searched"):
        units = summary[name]["units"]
        found = {"total": HEADS, "kept": 9, "removed": 3, "sparsity": 0.25, "noun": "heads"}
        assert units["attention"] == found
        # 108 of 144 neurons are to be kept: halfway between 104 and 112, which are multiples of 8.
        assert units["ffn"]["kept"] == sum(summary[name]["kept"]["ffn"]) == 112
    blocks = summary["searched"]["size"]["block_parameters"]
    assert summary["sparsity"] == {
        "left": {},
        "asked": 0.25,
        "budget": "units",
        "parameters": pytest.approx(1 - blocks / PARAMETERS),
        "attention": 0.25,
        "ffn": 1 - 112 / 144,
    }
    for record in summary["rounds"]:
        assert sum(record["kept"]["attention"]) == 9
        assert sum(record["kept"]["ffn"]) == 112
    assert summary["rounds"][-1]["kept"] == summary["distribution"] == summary["searched"]["kept"]


def test_the_summary_is_enough_to_repeat_the_run(pruned: Path, tiny_arguments: list[str]) -> None:
    summary = summary_of(pruned)
    assert summary["format_version"] == 1
    assert summary["arguments"] == [*tiny_arguments, "--output", str(pruned)]
    _, descent, evolution = summary["settings"]["search"]
    assert (descent["search"], descent["generations"], evolution["survivors"]) == ("descent", 4, [2, 1])
    assert summary["settings"]["seed"] == 0
    assert {"tyr_jax", "python", "jax", "transformers"} <= set(summary["versions"])
    assert set(summary["texts"]) == {"calibration", "search", "choice", "words.txt"}
    assert summary["texts"]["calibration"]["sequences"] == 16
    assert summary["texts"]["words.txt"]["source"].startswith(f"{tiny_arguments[3]} (sha256 ")
    assert all(len(text["sha256"]) == 64 for text in summary["texts"].values())
    for name in ("dense", "uniform", "searched"):
        quality = summary[name]["quality"]["words.txt"]
        assert quality["perplexity"] > 1
        assert (quality["kl"] == 0) == (name == "dense")
    stages = {"round 1/2: supernet", "round 2/2: descent", "round 2/2: evolution", "prune searched"}
    assert {"load model"} | stages <= set(summary["seconds"])


def test_events_tell_the_run_as_it_went(pruned: Path) -> None:
    (start,), (done,) = events_of(pruned, "start"), events_of(pruned, "done")
    assert start["arguments"] == summary_of(pruned)["arguments"]
    assert done["seconds"] > start["seconds"]
    assert [event["model"] for event in events_of(pruned, "quality")] == ["dense", "uniform", "searched"]
    every = events_of(pruned, "generation")
    assert [event["search"] for event in every] == (["estimate"] + ["descent"] * 4 + ["evolution"] * 2) * 2
    generations = [event for event in every if event["search"] == "evolution"]
    assert [(event["round"], event["generation"]) for event in generations] == [
        (1, 1),
        (1, 2),
        (2, 1),
        (2, 2),
    ]
    # A winner is at least as good as the parent on the same tokens.
    assert all(event["objective"] <= event["parent"] for event in generations)
    # 4 candidates on 32 tokens, then 2 survivors and the parent on 64.
    assert [event["candidate_tokens"] for event in generations] == [256, 512, 256, 512]
    for record in summary_of(pruned)["rounds"]:
        names, tokens = zip(
            *((step["search"], step["candidate_tokens"]) for step in record["history"]), strict=True
        )
        assert names == ("estimate",) + ("descent",) * 4 + ("evolution",) * 2
        # Four starts on all text. 128 tokens of slopes count four times, and three candidates are scored on
        # as many.
        assert tokens == (1024, 896, 1792, 2688, 3584, 256, 512)


def test_progress_and_the_closing_table(run: Prune, capsys: pytest.CaptureFixture[str]) -> None:
    directory = run("--rounds", "1")
    shown = capsys.readouterr()
    for stage in ("load model", "round 1/1: supernet", "round 1/1: descent", "prune searched", "write"):
        assert f"{stage}: " in shown.err
    assert "note: all calibration text is from words.txt." in shown.err
    assert "left" not in shown.out
    for word in ("pruned to 25.0% sparsity", "words.txt (calibrated on)", "heads kept", "searched"):
        assert word in shown.out
    assert f"python -m tyr_jax.evaluate {directory}" in shown.out


def test_the_same_command_gives_the_same_model(run: Prune, pruned: Path) -> None:
    again = run()
    assert (again / "model.safetensors").read_bytes() == (pruned / "model.safetensors").read_bytes()
    first, second = summary_of(pruned), summary_of(again)
    for key in ("distribution", "rounds", "texts", "dense", "uniform", "searched"):
        assert first[key] == second[key]


def test_another_seed_is_measured_on_the_same_text(run: Prune, pruned: Path) -> None:
    first, second = summary_of(pruned), summary_of(run("--seed", "1", "--rounds", "0"))
    assert first["texts"]["words.txt"] == second["texts"]["words.txt"]
    assert first["dense"] == second["dense"]
    for name in ("calibration", "search"):
        assert first["texts"][name]["sha256"] != second["texts"][name]["sha256"]


def test_several_targets_share_what_does_not_depend_on_them(run: Prune, pruned: Path) -> None:
    directory = run("--sparsity", "0.25", "0.5", "--prompt", "head layer neuron")
    assert {path.name for path in directory.iterdir()} == {"0.25", "0.5", "events.jsonl", "manifest.json"}
    for name in ("0.25", "0.5"):
        summary = summary_of(directory / name)
        assert summary["sparsity"]["asked"] == float(name)
        assert_within(summary, float(name))
        assert [layer.ffn for layer in load_model(str(directory / name)).config.layers] == summary[
            "distribution"
        ]["ffn"]
        assert {"load model", "evaluate dense", "round 1/2: supernet"} <= set(summary["shared_seconds"])
        assert {"round 1/2: evolution", "round 2/2: supernet", "prune searched"} <= set(summary["seconds"])
        assert not set(summary["shared_seconds"]) & set(summary["seconds"])
        assert len(summary["rounds"]) == 2
        steps = [
            each["search"] for each in events_of(directory, "generation") if each["sparsity"] == float(name)
        ]
        assert steps.count("evolution") == 4
    # The uniform model does not depend on the other targets that share the supernet.
    uniform = summary_of(directory / "0.25")["uniform"]
    assert uniform | {"sample": None} == summary_of(pruned)["uniform"]


def test_every_model_continues_the_prompt(run: Prune, tiny_model: Path) -> None:
    directory = run("--prompt", "head layer neuron", "--rounds", "1")
    summary = summary_of(directory)
    for name, model in (("dense", tiny_model), ("searched", directory)):
        assert summary[name]["sample"] == generate_text(str(model), "head layer neuron", max_tokens=24)[0]
    assert summary["uniform"]["sample"]
    sentences = read_page(directory)
    samples = (" ".join(summary[name]["sample"].split()) for name in ("dense", "searched"))
    assert all(shown(sample) in sentences for sample in samples)


def read_page(directory: Path) -> str:
    """The text of a report."""
    return html.unescape(re.sub("<[^>]*>", " ", (directory / "report.html").read_text(encoding="utf-8")))


@pytest.mark.parametrize("rounds", ["0", pytest.param("1", marks=pytest.mark.long)])
def test_several_targets_without_a_refit(rounds: str, run: Prune) -> None:
    directory = run("--sparsity", "0.5", "0.25", "--rounds", rounds, "--no-refit")
    for name in ("0.25", "0.5"):
        # With the levels as they were found, the rest of the budget is not filled up.
        assert_within(summary_of(directory / name), float(name), multiple=12)
    directory = run("--budget=units", "--sparsity", "0.5", "0.25", "--rounds", rounds, "--no-refit")
    for name, kept in (("0.25", (9, 112)), ("0.5", (6, 72))):
        distribution = summary_of(directory / name)["distribution"]
        assert [sum(units) for units in distribution.values()] == list(kept)


def test_no_rounds_prune_uniformly(run: Prune) -> None:
    directory = run("--rounds", "0", "--sparsity", "0.5")
    summary = summary_of(directory)
    assert summary["searched"] is None
    assert summary["rounds"] == []
    # Attention would take 9,312 of 11,616 parameters and leave 23 neurons. But at least half of the 72
    # neurons asked for are kept: 36, rounded to 32, a multiple of 8.
    assert summary["distribution"] == {"attention": [2, 3, 3], "ffn": [8, 8, 16]}
    assert_within(summary, 0.5)
    summary = summary_of(run("--budget", "units", "--rounds", "0", "--sparsity", "0.5"))
    assert summary["distribution"] == {"attention": [2, 2, 2], "ffn": [24, 24, 24]}


@pytest.mark.parametrize(
    "arguments",
    [
        "--objective hidden+kl --accumulation uniform --first-order signed --second-order block",
        pytest.param(
            "--objective perplexity --accumulation random --neuron-multiple 1", marks=pytest.mark.long
        ),
        # The paper's choices.
        """--budget units --metric none --accumulation centre --search evolution --no-refit
        --calibration-noise 0 --damping-scale mean --first-order abs --second-order channel""",
        "--accumulation none --bos --evaluation builtin:topics --metric fisher --metric-tokens 64",
        "--calibration self builtin:topics --self-temperature 0.8",
        pytest.param("--compute-dtype bfloat16", marks=pytest.mark.long),
        "--offload --reconstruct 1 --metric none --drift 1",
    ],
)
def test_every_choice_runs(arguments: str, run: Prune) -> None:
    """Choices that do not affect each other share a run."""
    few = ["--rounds", "1", "--generations", "1", "--survivors", "1", "--stage-tokens", "32"]
    summary = summary_of(run(*few, *arguments.split()))
    if summary["sparsity"]["budget"] == "units":
        for kind in ("attention", "ffn"):
            assert sum(summary["distribution"][kind]) == sum(summary["uniform"]["kept"][kind])
    else:
        assert_within(summary, 0.25)


def test_what_is_left_is_reconstructed(
    run: Prune, pruned: Path, tiny_model: Path, tiny_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "--calibration-tokens", "4096", "--calibration-openings", "0"
    directory = run("--reconstruct", "20", "--keep-neurons", "1", *text)
    summary = summary_of(directory)
    searched, reconstructed = summary["searched"], summary["reconstructed"]
    assert summary_of(pruned)["reconstructed"] is None
    assert {key: searched[key] for key in ("kept", "size")} == {
        key: reconstructed[key] for key in ("kept", "size")
    }
    (name,) = reconstructed["quality"]
    assert reconstructed["quality"][name]["kl"] < searched["quality"][name]["kl"]
    learnt = events_of(directory, "reconstructed")
    assert [event["layer"] for event in learnt] == [0, 2]
    assert all(event["after"] <= event["before"] for event in learnt)
    masked = run("--reconstruct", "3", "--rounds", "0", "--layout", "masked")
    zeros = load_file(masked / "model.safetensors")
    down = [zeros[f"model.layers.{layer}.mlp.down_proj.weight"] for layer in range(3)]
    kept = summary_of(masked)["distribution"]["ffn"]
    assert [int((matrix != 0).any(axis=0).sum()) for matrix in down] == kept
    # The written model is the one that was measured.
    capsys.readouterr()
    evaluate.main([str(directory), "--trust-record", "--json"])
    (said,) = json.loads(capsys.readouterr().out)["texts"]
    measured = reconstructed["quality"][name]["perplexity"]
    assert said["perplexity"] == pytest.approx(measured, rel=1e-4)
    dense, written = load_file(tiny_model / "model.safetensors"), load_file(directory / "model.safetensors")
    name = "model.layers.1.mlp.gate_proj.weight"
    np.testing.assert_array_equal(dense[name], written[name])


def test_rounds_start_at_the_last_answer_and_halve_their_steps(run: Prune) -> None:
    steps = ["--interval", "0.5", "--neuron-multiple", "1", "--search", "evolution"]
    first, second = summary_of(run(*steps, "--budget", "units"))["rounds"]
    assert first["step"] == {"attention": 2, "ffn": 24}
    assert second["step"] == {"attention": 1, "ffn": 12}
    # Three layers share 108 neurons and 9 heads.
    assert {(kept - 36) % 24 for kept in first["kept"]["ffn"]} == {0}
    moves = np.subtract(second["kept"]["ffn"], first["kept"]["ffn"])
    assert set(moves % 12) == {0}


def test_layers_can_be_kept_whole(run: Prune, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = run("--sparsity", "0.5", "--keep-heads", "0", "--keep-neurons", "2")
    assert_within(summary_of(directory), 0.5)
    units = "--budget=units", "--sparsity", "0.5", "--keep-heads", "0", "--keep-neurons", "2"
    of_units = summary_of(run(*units, "--rounds", "1"))
    for name in ("uniform", "searched"):
        kept = summary_of(directory)[name]["kept"]
        assert (kept["attention"][0], kept["ffn"][2]) == (4, 48)
        kept = of_units[name]["kept"]
        assert (kept["attention"][0], sum(kept["attention"])) == (4, 6)
        assert (kept["ffn"][2], sum(kept["ffn"])) == (48, 72)
    pruned, dense = load_file(directory / "model.safetensors"), load_file(tiny_model / "model.safetensors")
    for name in ("self_attn.o_proj", "self_attn.q_proj"):
        np.testing.assert_array_equal(*(m[f"model.layers.0.{name}.weight"] for m in (pruned, dense)))
    for name in ("down_proj", "gate_proj", "up_proj"):
        np.testing.assert_array_equal(*(m[f"model.layers.2.mlp.{name}.weight"] for m in (pruned, dense)))
    for arguments, message in (
        (["--keep-heads", "3"], "--keep-heads names layer 3, but the model has layers 0 to 2"),
        (
            ["--sparsity=0.5", "--keep-neurons", "0", "1", "2"],
            "or list fewer layers in --keep-heads and --keep-neurons",
        ),
        (
            ["--budget=units", "--keep-neurons", "0", "1", "2"],
            "but the layers that stay whole have 144",
        ),
    ):
        with pytest.raises(SystemExit):
            run(*arguments)
        assert message in capsys.readouterr().err


def test_weights_are_written_as_they_were_stored_or_asked_for(
    run: Prune, pruned: Path, tiny_model: Path, tmp_path: Path
) -> None:
    model, half = load_model(str(tiny_model)), tmp_path / "half"
    half.mkdir()
    save_model(half, model, dtype="bfloat16")
    cases = [
        (["--model", str(half)], "bfloat16", 2),
        (["--dtype", "bfloat16"], "bfloat16", 2),
        (["--model", str(half), "--dtype", "float32"], "float32", 4),
    ]
    for arguments, dtype, size in cases:
        directory = run("--rounds", "0", *arguments)
        written = load_model(str(directory))
        assert written.stored_dtype == dtype
        summary = summary_of(directory)["uniform"]
        assert summary["size"]["bytes"] == size * summary["size"]["parameters"]
    assert summary_of(pruned)["dense"]["size"]["bytes"] == 4 * count_parameters(model.config)[1]


def assert_stock_classes_compute(directory: Path, expected: LoadedModel) -> None:
    """Check that transformers loads a model without a modelling file, and computes the `expected` logits."""
    assert not (directory / "modeling_pruned.py").exists()
    stock = AutoModelForCausalLM.from_pretrained(directory).eval()
    assert type(stock).__name__ == "LlamaForCausalLM"
    tokens = np.random.default_rng(0).integers(0, expected.config.vocab, (2, 40))
    with torch.no_grad():
        theirs = stock(torch.from_numpy(tokens)).logits.numpy()
    ours = np.asarray(forward(expected.params, jnp.asarray(tokens), expected.config))
    np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)


def test_layers_pruned_alike_need_no_modelling_file(run: Prune) -> None:
    alike = "--rounds", "0", "--budget", "units", "--units", "kv_group", "--sparsity", "0.5"
    directory = run(*alike)
    assert_stock_classes_compute(directory, load_model(str(directory)))


def test_the_masked_layout_is_the_same_model_for_stock_transformers(
    run: Prune, pruned: Path, tiny_model: Path
) -> None:
    masked = run("--layout", "masked")
    assert "physically" not in (masked / "README.md").read_text() + (masked / "report.html").read_text()
    summary = summary_of(masked)
    assert summary["distribution"] == summary_of(pruned)["distribution"]
    assert summary["searched"]["size"] == summary["dense"]["size"]
    dense, small = load_model(str(tiny_model)), load_model(str(pruned))
    assert load_model(str(masked)).config == dense.config
    assert_stock_classes_compute(masked, small)


def test_whole_key_value_groups(run: Prune) -> None:
    directory = run("--units", "kv_group", "--sparsity", "0.5", "--rounds", "1", "--budget", "units")
    units = summary_of(directory)["searched"]["units"]["attention"]
    assert (units["total"], units["kept"]) == (6, 3)
    for layer, groups in zip(
        load_model(str(directory)).config.layers,
        summary_of(directory)["distribution"]["attention"],
        strict=True,
    ):
        assert (layer.kv_heads, layer.heads) == (groups, 2 * groups)


def test_every_command_ignores_the_keys_that_it_is_given(
    tiny_model: Path,
    tiny_arguments: list[str],
    tiny_text: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dense, pruned = shutil.copytree(tiny_model, tmp_path / "dense"), tmp_path / "pruned"
    values = json.loads((dense / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps(values | {"frobnicate": 3}))
    text = ["--evaluation-length", "32", "--evaluation-windows", "1"]
    train = ["--data", str(tiny_text), "--trust-record", "--tokens", "256", "--step-tokens", "256", *text]
    few = ["--prompts", "16", "--batches", "1", "--tokens", "1", "--repeats", "1"]
    commands = [
        (prune, [*tiny_arguments, "--model", str(dense), "--plan"]),
        (prune, [*tiny_arguments, "--model", str(dense), "--rounds", "0", "--output", str(pruned)]),
        (evaluate, [str(pruned), "--evaluation", str(tiny_text), *text]),
        (generate, [str(pruned), "the cat", "--max-tokens", "1"]),
        (export, [str(pruned)]),
        (benchmark, [str(dense), str(pruned), *few]),
        (finetune, [str(pruned), *train, "--sequence-length", "32", "--output", str(tmp_path / "trained")]),
    ]
    for command, arguments in commands:
        with pytest.raises(SystemExit):
            command.main(arguments)
        assert "name it with --ignore-keys frobnicate" in capsys.readouterr().err
        command.main([*arguments, "--ignore-keys", "frobnicate"])


def test_a_pruned_model_is_not_pruned_again(
    run: Prune, pruned: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        run("--model", str(pruned))
    assert stopped.value.code == 2
    assert f"error: {pruned} is pruned already" in capsys.readouterr().err


def test_overwrite_replaces_an_old_output(run: Prune, tmp_path: Path) -> None:
    old = tmp_path / "pruned"
    old.mkdir()
    (old / "benchmark.json").touch()
    seal(old)
    run("--rounds", "0", "--overwrite", "--output", str(old))
    assert not (old / "benchmark.json").exists()
    assert summary_of(old)["searched"] is None
    assert list(tmp_path.iterdir()) == [old]


def test_presets_are_where_defaults_come_from() -> None:
    for name, preset in PRESETS.items():
        assert prune.parse(["--preset", name]).settings == preset
        assert prune.parse([f"--preset={name}", "--seed", "3"]).settings.search == preset.search
    assert prune.parse([]).settings == PRESETS["standard"]
    assert prune.parse(["--preset", "quick", "--rounds", "5"]).settings.rounds.rounds == 5


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        prune.main([flag])
    assert not stopped.value.code
    shown = capsys.readouterr().out
    assert shown.startswith("Prune a model and write the smaller one")
    assert all(len(line) <= 80 for line in shown.splitlines())
    for flag in ("--sparsity FLOAT", "--preset {quick,standard,paper}", "--objective", "--stage-tokens"):
        assert flag in shown
    words = " ".join(shown.replace("│", "").split())
    assert "add `--search my_module:MySearch` to see those of yours" in words
