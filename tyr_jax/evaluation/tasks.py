"""Tasks of lm-evaluation-harness. Nothing else needs that package to be installed."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from tyr_jax.errors import UserError, first_line
from tyr_jax.evaluation.scores import TaskScore
from tyr_jax.io.checkpoint import LoadedModel
from tyr_jax.workspace.progress import Progress


@dataclasses.dataclass(frozen=True)
class TaskChoice:
    """Which tasks to run, and how.

    `num_fewshot` examples come before a question (None: as the task has it). At most `limit` questions of
    each task are asked (None: all). The data is in `data_dir` (None: on the hub).
    """

    tasks: tuple[str, ...] = ()
    num_fewshot: int | None = None
    limit: int | None = None
    data_dir: Path | None = None


def task_scores(choice: TaskChoice, load: Callable[[], LoadedModel], progress: Progress) -> list[TaskScore]:
    """Metrics on every task, of the model that `load` returns. It is loaded after the tasks.

    Raises:
        UserError: lm-evaluation-harness is not installed, or a task or its data is not there.
    """
    try:
        from tyr_jax.evaluation import harness
    except ImportError as error:
        raise UserError(
            f"--tasks needs lm-evaluation-harness ({first_line(error)}): pip install 'tyr-jax[tasks]'"
        ) from None
    with harness.opened_tasks(choice.tasks, choice.data_dir) as tasks:
        results = harness.evaluate(
            load(), tasks, num_fewshot=choice.num_fewshot, limit=choice.limit, progress=progress
        )
    return harness.scores(results, choice.data_dir)
