"""Requests per second on tasks, compared with lm-evaluation-harness's own model in torch. Usage:

  python scripts/fetch_tasks.py tasks
  python scripts/bench_tasks.py --data-dir tasks

Both answer the same requests in turn: log-likelihoods of a task's answers, in float32. The last column is the
largest difference between the two log-likelihoods of a request, in nats per token.
"""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.task import Task
from lm_eval.models.huggingface import HFLM
from markdown_table import print_header, print_row

from tyr_jax.cli import command
from tyr_jax.errors import UserError
from tyr_jax.evaluation.harness import HarnessModel, opened_tasks
from tyr_jax.io.checkpoint import LoadedModel, load_model, save_model
from tyr_jax.runtime.timing import medians


@dataclasses.dataclass(frozen=True)
class Bench:
    """What to measure."""

    model: str = "builtin"
    """A model, dense or pruned."""
    tasks: tuple[str, ...] = ("arc_easy", "boolq")
    """Tasks of the harness."""
    data_dir: Path | None = None
    """Directory that `fetch_tasks.py` has written. By default the tasks' data comes from the hub."""
    questions: int = 40
    """Questions of each task."""
    batch: int = 8
    """Requests that torch answers at a time."""
    repeats: int = 3
    """Timings of each model, in turn. The median counts."""


def requests_of(name: str, bench: Bench) -> list[Instance]:
    """The harness's requests for the first questions of a task."""
    with opened_tasks([name], bench.data_dir) as (task,):
        if not isinstance(task, Task):
            raise UserError(f"{name} is a group of tasks; name one of them")
        task.build_all_requests(limit=bench.questions)
        return list(task.instances)


def in_torch(model: LoadedModel, bench: Bench, directory: str) -> HFLM:
    """The same model, run by the harness in torch."""
    save_model(Path(directory), model, dtype="float32")
    return HFLM(
        pretrained=directory, device="cpu", dtype="float32", batch_size=bench.batch, trust_remote_code=True
    )


def main(bench: Bench) -> None:
    """Print a row for every task and model."""
    model = load_model(bench.model)
    ours = HarnessModel(model)
    print_header("task", "model", "requests", "requests/s", "ratio", "difference")
    with tempfile.TemporaryDirectory() as directory:
        theirs = in_torch(model, bench, directory)
        for name in bench.tasks:
            requests = requests_of(name, bench)
            answers: dict[str, Any] = {}

            def ask(who: str, asked: HarnessModel | HFLM, requests: list[Instance] = requests) -> None:
                answers[who] = asked.loglikelihood(requests, disable_tqdm=True)  # noqa: B023

            runs = {"torch": lambda: ask("torch", theirs), "tyr_jax": lambda: ask("tyr_jax", ours)}
            seconds = medians(runs, bench.repeats)
            tokens = [len(ours.tok_encode(request.args[1])) for request in requests]
            torch, tyr = (np.array([nats for nats, _ in answers[who]]) for who in runs)
            apart = np.max(np.abs(torch - tyr) / tokens)
            for who, taken in seconds.items():
                rate, ratio = len(requests) / taken, seconds["torch"] / taken
                print_row(name, who, len(requests), f"{rate:.2f}", f"{ratio:.2f}", f"{apart:.1e}")


if __name__ == "__main__":
    command.execute(main, Bench, None, prog="python scripts/bench_tasks.py", description=__doc__)
