"""`python -m tyr_jax.benchmark` on tiny models: it prints every row, with the right limits."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tyr_jax.cli import benchmark, prune
from tyr_jax.evaluation.benchmark import prefill_flops, read_bytes
from tyr_jax.io.checkpoint import load_model
from tyr_jax.model.spec import ModelConfig
from tyr_jax.report.files import renew_report

pytestmark = pytest.mark.slow

FEW = ["--prompts", "16", "32", "--batches", "1", "2", "--tokens", "3", "--repeats", "2"]


@pytest.fixture(scope="module")
def pruned(tiny_arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A uniformly pruned model."""
    directory = tmp_path_factory.mktemp("run") / "pruned"
    prune.main([*tiny_arguments, "--rounds", "0", "--sparsity", "0.5", "--output", str(directory)])
    return directory


def test_every_case_has_its_rows(
    pruned: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "figures.json"
    benchmark.main([str(tiny_model), str(pruned), *FEW, "--llama-cpp", "--output", str(output)])
    result = json.loads(output.read_text())
    cases = [(row["engine"], row["prompt"], row["batch"]) for row in result["rows"][::2]]
    assert cases == [
        *(("JAX", prompt, batch) for prompt in (16, 32) for batch in (1, 2)),
        *(("llama.cpp", prompt, 1) for prompt in (16, 32)),
    ]
    for row in result["rows"]:
        assert row["ratio"] == pytest.approx(row["dense"] / row["pruned"])
        assert row["limit"] > 1
    for name, source in (("dense", tiny_model), ("pruned", pruned)):
        config = load_model(str(source)).config
        kv_heads = sum(layer.kv_heads for layer in config.layers)
        assert result["sizes"][name]["cache_bytes_per_token"] == 2 * 4 * 8 * kv_heads
    shown = capsys.readouterr().out
    assert "first token" in shown
    assert f"written to {output}" in shown


def test_half_precision_halves_the_cache(pruned: Path, tiny_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "figures.json"
    few = ["--prompts", "16", "--batches", "1", "--tokens", "1", "--repeats", "1", "--output", str(output)]
    benchmark.main([str(tiny_model), str(pruned), *few, "--compute-dtype", "bfloat16"])
    result = json.loads(output.read_text())
    kv_heads = sum(layer.kv_heads for layer in load_model(str(pruned)).config.layers)
    assert result["sizes"]["pruned"]["cache_bytes_per_token"] == 2 * 2 * 8 * kv_heads
    assert all(row["limit"] > 1 for row in result["rows"])


def test_figures_lie_in_the_pruned_models_directory(pruned: Path, tiny_model: Path) -> None:
    few = ["--prompts", "16", "--batches", "1", "--tokens", "1", "--repeats", "1"]
    benchmark.main([str(tiny_model), str(pruned), *few])
    assert json.loads((pruned / "benchmark.json").read_text())["models"]["pruned"] == str(pruned)


def test_the_report_shows_them(pruned: Path, tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(pruned, copy, ignore=shutil.ignore_patterns("benchmark.json"))
    renew_report(copy)
    assert "Not measured yet" in (copy / "report.html").read_text()
    few = ["--prompts", "16", "32", "--batches", "1", "--tokens", "1", "--repeats", "1"]
    benchmark.main([str(tiny_model), str(copy), *few])
    page = (copy / "report.html").read_text()
    assert "Not measured yet" not in page
    for row in json.loads((copy / "benchmark.json").read_text())["rows"]:
        name = f"JAX, prompt {row['prompt']}, batch 1"
        assert f"<title>{name}: {row['ratio']:.2f} times faster, at best {row['limit']:.2f}</title>" in page
        assert f"<td>{1e3 * row['dense']:.1f}</td><td>{1e3 * row['pruned']:.1f}</td>" in page


def test_limits_by_hand(tiny_config: Callable[..., ModelConfig]) -> None:
    """3 layers, hidden 32, 4 heads of 8, 2 key/value heads, 48 neurons, vocabulary 96."""
    config = tiny_config()
    # Query, key, value and output rows; scores and values over 1.5 keys on average; gate, up, down.
    token = 3 * (2 * 32 * 8 * (4 + 2 + 2 + 4) + 2 * 2 * 8 * 4 * 1.5 + 2 * 3 * 32 * 48)
    assert prefill_flops(config, 2) == 2 * token + 2 * 32 * 96
    blocks = 3 * (32 * 8 * 12 + 3 * 32 * 48 + 2 * 32)
    weights = 4 * (blocks + 32 * 96 + 32)
    assert read_bytes(config, 10, 2, 4) == weights + 2 * 10 * 3 * 2 * 2 * 8 * 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--prompts", "0"], "--prompts is 0, but must be"),
        (["--batches", "0"], "--batches is 0, but must be"),
        (["--batches", "1000000"], "(--prompts + --tokens) is "),
        (["--tokens", "0"], "--tokens is 0"),
        (["--repeats", "0"], "--repeats is 0"),
        (["--prompts", "120"], "need 136 positions"),
        (["--prompts", "16", "--batches", "1", "--repeats", "1", "--output", "{}/none/x"], "cannot write"),
    ],
)
def test_bad_input(
    arguments: list[str], sentence: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [argument.format(tmp_path) for argument in arguments]
    with pytest.raises(SystemExit) as stopped:
        benchmark.main([str(tiny_model), str(tiny_model), *filled])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
