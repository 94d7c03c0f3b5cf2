"""The paper's table: perplexity on WikiText-2, and accuracy on eight tasks. Usage:

  python scripts/fetch_tasks.py tasks
  python scripts/paper_table.py builtin pruned recovered --data-dir tasks

The first model is the dense one. MMLU has five examples before a question, the others none. As in the paper,
accuracy is that of the likeliest answer. If a model is hardly better than chance, accuracy says little, so
two more figures are printed. One is the share that remains of the dense model's margin over chance. The other
is the bits per byte of the correct answer, in which models differ long before their answers do. Measured
models are kept in a file and not measured again.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from markdown_table import print_header, print_row

from tyr_jax.cli import command
from tyr_jax.data import DataSpec, load_evaluation
from tyr_jax.evaluation import harness, quality
from tyr_jax.files import write_json
from tyr_jax.io.checkpoint import LoadedModel
from tyr_jax.run.models import GivenModel, load_shown
from tyr_jax.runtime import devices
from tyr_jax.settings import WIKITEXT
from tyr_jax.workspace.progress import Progress

TASKS = {
    "arc_easy": 0,
    "arc_challenge": 0,
    "boolq": 0,
    "hellaswag": 0,
    "openbookqa": 0,
    "rte": 0,
    "winogrande": 0,
    "mmlu": 5,
}
"""The paper's tasks, and the number of examples before a question."""


@dataclasses.dataclass(frozen=True)
class TableSettings:
    """What to measure."""

    models: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="MODEL")]
    """Models, the dense one first."""
    data_dir: Path | None = None
    """Directory that `fetch_tasks.py` has written. By default the tasks' data comes from the hub."""
    wikitext: str = WIKITEXT
    """Text to measure perplexity on, in windows of 2,048 tokens, or as many as the model takes."""
    windows: int = 10**6
    """At most this many windows of the text."""
    limit: int | None = None
    """At most this many questions of each task; for MMLU, of each subject."""
    mmlu_limit: int | None = None
    """At most this many questions of each of MMLU's 57 subjects, if other than `limit`."""
    kept: Path = Path("paper_table.json")
    """File of the results that have been measured."""


def right_answer(sample: dict[str, Any]) -> tuple[float, int]:
    """(log-likelihood in nats, bytes) of a question's right answer."""
    # WinoGrande's answers differ in their contexts, and its target is not a number.
    chosen = sample["target"] if isinstance(sample["target"], int) else int(sample["doc"]["answer"]) - 1
    return float(sample["resps"][chosen][0][0]), len(sample["arguments"][chosen][1].encode())


def of_task(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy with its standard error, accuracy by chance, bits per byte of right answers, and questions."""
    nats, sizes = np.array([right_answer(sample) for sample in samples]).T
    right = np.array([sample["acc"] for sample in samples])
    return {
        "questions": len(samples),
        "accuracy": float(right.mean()),
        "standard_error": float(right.std(ddof=1) / math.sqrt(len(right))),
        "chance": float(np.mean([1 / len(sample["arguments"]) for sample in samples])),
        "bits_per_byte": float(-nats.sum() / sizes.sum() / math.log(2)),
    }


def measure(model: LoadedModel, settings: TableSettings, progress: Progress) -> dict[str, Any]:
    """Measure perplexity and all tasks of a model."""
    length = min(2048, model.config.max_positions)
    spec = DataSpec(
        calibration=(),
        evaluation=(settings.wikitext,),
        evaluation_length=length,
        evaluation_windows=settings.windows,
    )
    ((name, windows),) = load_evaluation(spec, model.tokenizer).items()
    with progress.stage(name, len(windows), "windows") as stage:
        perplexity = quality.measure(model.params, windows, model.config, on_windows=stage.advance).perplexity
    found: dict[str, Any] = {"perplexity": perplexity, "tokens": int(windows.size), "tasks": {}}
    for task, shots in TASKS.items():
        limit = settings.mmlu_limit if task == "mmlu" and settings.mmlu_limit else settings.limit
        with harness.opened_tasks([task], settings.data_dir) as loaded:
            results = harness.evaluate(model, loaded, num_fewshot=shots, limit=limit, progress=progress)
        found["tasks"][task] = of_task([each for part in results["samples"].values() for each in part])
    return found


def margin(found: dict[str, Any], dense: dict[str, Any]) -> float:
    """The share that remains of the dense model's margin over chance, over all tasks."""

    def above(model: dict[str, Any]) -> float:
        return sum(task["accuracy"] - task["chance"] for task in model["tasks"].values())

    return above(found) / above(dense)


def cells(found: dict[str, Any], dense: dict[str, Any]) -> list[str]:
    """A model's row."""
    tasks = found["tasks"].values()
    mean, whole = (np.mean([task["accuracy"] for task in each["tasks"].values()]) for each in (found, dense))
    error = math.sqrt(sum(task["standard_error"] ** 2 for task in tasks)) / len(tasks)
    bits = np.mean([task["bits_per_byte"] for task in tasks])
    return [
        f"{found['perplexity']:.2f}",
        *(f"{task['accuracy']:.1%} ± {task['standard_error']:.1%}" for task in tasks),
        f"{mean:.1%} ± {error:.1%}",
        f"{mean / whole:.0%}",
        f"{margin(found, dense):.0%}",
        f"{bits:.3f}",
    ]


def main(settings: TableSettings) -> None:
    """Measure what has not been measured yet, and print the table."""
    kept: dict[str, Any] = json.loads(settings.kept.read_text()) if settings.kept.is_file() else {}
    asked = f"{settings.wikitext} {settings.windows} {settings.limit} {settings.mmlu_limit}"
    with devices.in_use(), Progress() as progress:
        for name in settings.models:
            if f"{name} {asked}" not in kept:
                kept[f"{name} {asked}"] = measure(load_shown(GivenModel(name), progress), settings, progress)
                write_json(settings.kept, kept)
    rows = {name: kept[f"{name} {asked}"] for name in settings.models}
    dense = rows[settings.models[0]]
    questions = ", ".join(f"{task} {found['questions']}" for task, found in dense["tasks"].items())
    print(f"perplexity on {dense['tokens']:,} tokens; questions: {questions}\n")
    names = [f"{task} ({shots})" if shots else task for task, shots in TASKS.items()]
    print_header("model", "perplexity", *names, "mean", "of dense", "of its margin", "bits per byte")
    for name, found in rows.items():
        print_row(name, *cells(found, dense))


if __name__ == "__main__":
    command.execute(main, TableSettings, None, prog="python scripts/paper_table.py", description=__doc__)
