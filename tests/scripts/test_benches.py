"""What the benchmarks of speed print, on a tiny model."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from script_tables import Rows
from tiny import make_tiny_config

from tyr_jax.cli import prune
from tyr_jax.io.checkpoint import load_model
from tyr_jax.model.spec import LayerShape
from tyr_jax.pruning.cut import head_layout

pytestmark = [pytest.mark.slow, pytest.mark.long]


def test_bench_forward(table: Callable[..., Rows], tiny_model: Path) -> None:
    sizes = ["--lengths", 32, 64, "--batch-tokens", 128, "--repeats", 1]
    header, *rows = table("bench_forward.py", ["--model", tiny_model, *sizes])
    assert header[:3] == ["T", "type", "program"]
    types = ["float32"] * 3 + ["bfloat16"] * 3
    assert [tuple(row[:2]) for row in rows] == [(length, dtype) for length in ("32", "64") for dtype in types]
    assert all(float(row[4]) > 0 for row in rows)


def test_bench_commits(table: Callable[..., Rows], tiny_model: Path) -> None:
    sizes = ["--processes", 1, "--repeats", 1, "--tokens", 64, "--length", 16, "--candidates", 2]
    _, *rows = table("bench_commits.py", ["--model", tiny_model, "--before", "HEAD", *sizes])
    assert [row[0] for row in rows] == ["forward", "fold", "scoring"]
    assert all(float(row[3]) > 0 for row in rows)


def test_estimate_fit(table: Callable[..., Rows], tiny_model: Path, tmp_path: Path) -> None:
    sizes = ["--sequence-length", 64, "--tokens", 64, "--each", 2, "--results", tmp_path / "fit.json"]
    header, *rows = table("estimate_fit.py", ["--models", tiny_model, *sizes])
    assert header[2:7] == ["alone", "alone, attention", "alone, ffn", "random", "parts of the text"]
    assert [row[1] for row in rows] == ["error × share", "every level measured"]
    for row in rows:
        assert all(-1 <= float(cell) <= 1 for cell in row[2:7])
        assert float(row[7]) > 0
    assert len({row[8] for row in rows}) == 1


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
    programs = [tuple(row[:3]) for row in rows]
    # PEFT need not be installed.
    assert [row for row in programs if row[::2] != ("lora", "torch")] == [
        (method, dtype, program)
        for method, shown in (("lora", ["tyr_jax"]), ("full", ["tyr_jax", "torch"]))
        for dtype in ("float32", "bfloat16")
        for program in shown
    ]
    assert all(float(row[4]) > 0 for row in rows)


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
def test_every_size_of_attention_is_measured(heads: int, groups: int) -> None:
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
    stages = ["dense model's predictions", "supernet", "search", "pruning to the answer"]
    assert [row[0] for row in rows] == [*stages, "all"]
    for column in (1, 2):
        assert abs(sum(float(row[column]) for row in rows[:-1]) - float(rows[-1][column])) < 0.3


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
