"""Plans against known figures of models, and against XLA's figures for compiled stages."""

import dataclasses
import json
import re
import runpy
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from tyr_jax.cli import prune
from tyr_jax.model.spec import LayerShape, ModelConfig
from tyr_jax.planning import plan
from tyr_jax.planning.load import Load, calibration_tokens, evaluation_tokens, level_bytes
from tyr_jax.run import fold, pipeline
from tyr_jax.runtime.batches import BATCH_TOKENS
from tyr_jax.scoring import chunking
from tyr_jax.settings import PRESETS, Settings, with_components

SCRIPTS = Path(__file__).parents[2] / "scripts"
LLAMA_8B = ModelConfig("llama", 128256, 4096, 128, (LayerShape(32, 8, 14336),) * 32)
HALF = dataclasses.replace(PRESETS["standard"], sparsity=(0.5,))
HF_8B = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}


def needs(settings: Settings = HALF, itemsize: int = 4, n: int = 1) -> dict[str, plan.Need]:
    return {need.stage: need for need, _ in plan.needs(Load(LLAMA_8B, settings, itemsize, n))}


def test_what_one_knows_of_a_model() -> None:
    # 8.03 billion parameters; 4M tokens of 4096 numbers of 2 bytes are 34 GB; nine levels of 4096 × 18432.
    paper = needs(dataclasses.replace(PRESETS["paper"], sparsity=(0.5,)), itemsize=2)
    first = paper["first supernet"]
    assert first.weights == pytest.approx(2 * 8.03e9, rel=1e-3)
    assert first.supernet == 9 * 32 * 4096 * (4096 + 14336) * 2
    assert (
        plan.host_bytes(Load(LLAMA_8B, PRESETS["paper"], 2, 1))["writing residuals"] == 4 * 2**20 * 4096 * 2
    )
    # A pass over 4M tokens takes 2 FLOPs for a token and weight, and attention; XᵀX half as much again.
    assert 2 * 6.98e9 * 2**22 < first.flops < 3 * 2 * 6.98e9 * 2**22
    assert "descent" not in paper


def test_devices_share() -> None:
    one, eight = needs(), needs(n=8)
    for stage, need in one.items():
        assert eight[stage].weights == need.weights / 8
        assert eight[stage].supernet == need.supernet / 8
        assert eight[stage].flops == need.flops
        assert need.memory / 8 <= eight[stage].memory < need.memory


def test_work_is_counted_as_often_as_it_is_done() -> None:
    three = dataclasses.replace(HALF.rounds, rounds=3)
    several = dataclasses.replace(HALF, sparsity=(0.25, 0.5), rounds=three)
    times = {need.stage: count for need, count in plan.needs(Load(LLAMA_8B, several, 4, 1))}
    assert times["first supernet"] == 1
    assert times["next supernets"] == 2 * 2
    assert times["evolution"] == times["descent"] == 2 * 3
    assert times["refit"] == 2 * 2
    uniform = dataclasses.replace(HALF, rounds=dataclasses.replace(HALF.rounds, rounds=0))
    assert [need.stage for need, _ in plan.needs(Load(LLAMA_8B, uniform, 4, 1))] == [
        "self-generated text", "dense predictions", "Fisher metric", "refit", "evaluation",
    ]  # fmt: skip
    pruning = dataclasses.replace(HALF.pruning, metric="none")
    without = Load(LLAMA_8B, dataclasses.replace(HALF, pruning=pruning), 4, 1)
    stages = dict(plan.needs(Load(LLAMA_8B, HALF, 4, 1)))
    # Two matrices of 4096 × 4096 in each of 32 layers.
    for need, _ in plan.needs(without):
        (other,) = (each for each in stages if each.stage == need.stage)
        before = ("self-generated text", "dense predictions")
        more = 0 if need.stage in before else 4 * 2 * 32 * 4096**2
        assert other.weights == pytest.approx(need.weights + more)


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["--rounds", "1", "--no-refit", "--reconstruct", "1"],
        ["--no-refit", "--sparsity", "0.25", "0.5"],
        ["--no-refit", "--rounds", "2"],
        ["--rounds", "0", "--reconstruct", "1"],
        [],
    ],
    ids=str,
)
def test_folds_and_measurements_are_those_of_a_run(
    arguments: list[str], tiny_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, measure, check = fold.build_supernet, pipeline.evaluate_model, plan.disk_bytes
    compare = pipeline.choice_divergence
    folds: Counter[int] = Counter()
    measured, loads, nets = [], [], []

    def built(params: Any, texts: Any, how: Any, **more: Any) -> Any:
        folds[how.grid.kept.shape[-1]] += 1
        supernet = build(params, texts, how, **more)
        nets.append(weakref.ref(supernet))
        return supernet

    def measuring(job: Any, name: str, params: Any, config: Any, texts: Any) -> Any:
        # A supernet's memory is planned only where models are cut from that of the search.
        assert nets[-1]() is None or plan.cuts_models(loads[0].settings)
        measured.append(sum(map(np.size, texts.windows.values())))
        return measure(job, name, params, config, texts)

    def comparing(job: Any, name: str, params: Any, config: Any, text: Any, dense: Any) -> Any:
        measured[-1] += text.size
        return compare(job, name, params, config, text, dense)

    def loaded(load: Load, written: int) -> dict[str, int]:
        loads.append(load)
        return check(load, written)

    monkeypatch.setattr(fold, "build_supernet", built)
    monkeypatch.setattr(pipeline, "evaluate_model", measuring)
    monkeypatch.setattr(pipeline, "choice_divergence", comparing)
    monkeypatch.setattr(plan, "disk_bytes", loaded)
    prune.main([*tiny_arguments, "--output", str(tmp_path / "pruned"), *arguments])
    (load,) = loads
    planned, evaluated = Counter[int](), 0
    for need, times in plan.needs(load):
        if need.supernet and need.stage not in ("estimate", "descent", "evolution", "evaluation"):
            planned[round(need.supernet / level_bytes(load.config, load.itemsize))] += times
        evaluated += times * (need.stage == "evaluation")
    # Levels of several targets may coincide.
    assert folds == planned if len(load.settings.sparsity) == 1 else folds.total() == planned.total()
    assert measured == [evaluation_tokens(load.settings)] * evaluated


def test_texts_are_counted_not_their_sources(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a text")
    text, windows, choice = str(tmp_path / "a.txt"), 20 * 2048, 2**14
    for calibration, evaluation, count in (
        (("builtin", "self"), (), 2),
        ((text, "self"), (), 1),
        ((text, "self"), ("builtin", text), 3),
    ):
        data = dataclasses.replace(HALF.data, calibration=calibration, evaluation=evaluation)
        found = dataclasses.replace(HALF, data=data)
        assert evaluation_tokens(found) == count * windows + choice
        uniform = dataclasses.replace(found, rounds=dataclasses.replace(HALF.rounds, rounds=0))
        assert evaluation_tokens(uniform) == count * windows


def test_the_papers_run_builds_its_first_supernet_again() -> None:
    paper = dataclasses.replace(PRESETS["paper"], sparsity=(0.5,))
    times = {need.stage: count for need, count in plan.needs(Load(LLAMA_8B, paper, 2, 1))}
    assert times["first supernet"] + times["next supernets"] == 4 + 1
    assert "refit" not in times


def test_reconstruction_takes_disk() -> None:
    pruning = dataclasses.replace(HALF.pruning, reconstruct=4)
    others = 32 * 4096 * (2 * 14336 + 1)  # Gate, up and a norm.
    level, tokens = level_bytes(LLAMA_8B, 2), calibration_tokens(HALF)
    for offload, more in ((False, 0), (True, 2 * others + tokens * (2 * 2 * 4096 + 4))):
        plain = dataclasses.replace(HALF, offload=offload)
        trained = dataclasses.replace(plain, pruning=pruning)
        before, after = (plan.disk_bytes(Load(LLAMA_8B, each, 2, 1), 2) for each in (plain, trained))
        assert after.pop("reconstruction") == level + 2 * others + more
        assert before.pop("reconstruction") == 0
        pruned = 2 * 32 * 218_112_000
        gained = {name: after[name] - size for name, size in before.items() if after[name] != size}
        assert gained == ({"weights that stay on disk": pytest.approx(pruned, rel=1e-3)} if offload else {})


@pytest.mark.long
@pytest.mark.slow
def test_compiled_stages_of_a_large_model_need_what_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shapes are those of Llama-3.1-8B, in float32 because the CPU computes in it. No array is made."""
    monkeypatch.setattr(chunking, "candidate_tokens", lambda: BATCH_TOKENS)
    compare = runpy.run_path(str(SCRIPTS / "check_plan.py"))["compare"]
    pruning = dataclasses.replace(HALF.pruning, reconstruct=6)
    found = compare(LLAMA_8B, dataclasses.replace(HALF, pruning=pruning), jnp.dtype("float32"))
    assert [number for number, row in enumerate(found) if row.whole] == [2, 6, 8]
    written, *others = sorted(found, key=lambda row: row.program != "self-generated text")
    # TPUs copy arrays to a new layout that a CPU uses as they are.
    assert 0.6 < written.ratio < 1.2
    for row in others:
        assert row.ratio == pytest.approx(1, abs=0.05 if row.whole else 0.2), row


@pytest.fixture
def only_a_configuration(tmp_path: Path) -> Path:
    directory = tmp_path / "llama"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(HF_8B))
    return directory


def test_a_plan_is_printed_and_nothing_done(
    only_a_configuration: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "pruned"
    job = ["--model", str(only_a_configuration), "--output", str(output), "--compute-dtype", "bfloat16"]
    prune.main([*job, "--sparsity", "0.5", "--plan", "--plan-devices", "8", "--plan-flops", "1e14"])
    text = capsys.readouterr().out
    assert "memory of each of 8 devices in GB" in text
    assert [stage for stage in needs() if stage not in text] == []
    # Weights of 16 GB on 8 devices. The model is written in its stored dtype, without half of its blocks.
    assert "2.01" in text
    assert "16.1 GB" in text
    assert not output.exists()


def test_a_plan_for_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        prune.main(["--model", str(tmp_path), "--plan"])
    assert "config.json" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", ["--plan-devices 0", "--plan-flops=-1", "--sparsity 2"])
def test_a_plan_for_what_cannot_be(wrong: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        prune.main(["--model", str(tiny_model), "--plan", *wrong.split()])
    assert re.split("[ =]", wrong)[0] in capsys.readouterr().err


def test_a_plan_for_weights_of_no_known_type(
    only_a_configuration: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (only_a_configuration / "config.json").write_text(json.dumps(HF_8B | {"dtype": "int4"}))
    with pytest.raises(SystemExit):
        prune.main(["--model", str(only_a_configuration), "--plan"])
    assert "has dtype 'int4'" in capsys.readouterr().err


def test_a_plan_is_for_the_devices_there_are(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prune.main(["--model", str(tiny_model), "--plan"])
    assert "memory of the device in GB" in capsys.readouterr().out


@pytest.mark.slow
def test_slopes_take_the_memory_of_a_backward_pass() -> None:
    """Of whichever search asks for them."""
    default = needs()
    relaxed = needs(with_components(HALF, {"search": ["relaxation", "evolution"]}))
    assert relaxed["relaxation"].working == default["descent"].working > default["evolution"].working
    assert relaxed["evolution"] == default["evolution"]
    assert "relaxation" not in default


def test_what_stays_on_disk_is_not_in_memory() -> None:
    disk = dataclasses.replace(HALF, offload=True)
    memory, offloaded = needs(itemsize=2), needs(disk, itemsize=2)
    levels = HALF.rounds.levels * level_bytes(LLAMA_8B, 2)
    search = offloaded["evolution"]
    assert search.supernet == pytest.approx(levels / 32)
    # The embeddings, the head and one layer.
    layer = 2 * 218_112_000
    assert search.weights == pytest.approx(layer + 2 * (2 * 128256 * 4096 + 4096), rel=1e-3)
    assert all(offloaded[stage].memory < memory[stage].memory for stage in memory)
    assert [need.flops for need in offloaded.values()] == [need.flops for need in memory.values()]
    (on_disk, in_memory) = (plan.disk_bytes(Load(LLAMA_8B, each, 2, 1), 2) for each in (disk, HALF))
    assert on_disk["weights that stay on disk"] > levels
    assert in_memory["weights that stay on disk"] == 0
