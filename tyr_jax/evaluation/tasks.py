"""Tasks of lm-evaluation-harness. Nothing else needs that package to be installed."""

from collections.abc import Callable

from tyr_jax.errors import UserError, first_line
from tyr_jax.evaluation.scores import TaskScore
from tyr_jax.evaluation.settings import EvaluationSettings
from tyr_jax.io.checkpoint import LoadedModel
from tyr_jax.workspace.progress import Progress


def task_scores(
    settings: EvaluationSettings, load: Callable[[], LoadedModel], progress: Progress
) -> list[TaskScore]:
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
    with harness.opened_tasks(settings.task_names, settings.data_dir) as tasks:
        results = harness.evaluate(
            load(), tasks, num_fewshot=settings.num_fewshot, limit=settings.limit, progress=progress
        )
    return harness.scores(results, settings.data_dir)
