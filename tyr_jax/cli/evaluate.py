"""How good a model is, dense or pruned: `python -m tyr_jax.evaluate MODEL`.

By default, this measures perplexity. A directory that `python -m tyr_jax.prune`
or `finetune` wrote is measured on the same windows of text as when it was made,
and the figures are compared with those recorded then (this needs --trust-record
unless the texts are `builtin`). Any other model, or other text, works too. If
the model was pruned or trained on a text, only its held-out windows are read.

With --tasks, lm-evaluation-harness measures the model (pip install
'tyr-jax[tasks]'), by its own questions, prompts and metrics.

Examples:

  python -m tyr_jax.evaluate pruned

  python -m tyr_jax.evaluate builtin --evaluation my-text.txt \\
      --evaluation-windows 20

  python -m tyr_jax.evaluate pruned --tasks arc_easy,hellaswag --limit 200
"""

import dataclasses
import json

from tyr_jax import api
from tyr_jax.cli import command
from tyr_jax.evaluation.settings import EvaluationSettings


@dataclasses.dataclass(frozen=True)
class EvaluateArguments:
    """What to measure, and how to show it."""

    model: command.Model
    settings: command.Flat[EvaluationSettings]
    reading: command.Flat[command.Reading]
    json: bool = False
    """Print JSON on stdout in place of the table."""


def run(asked: EvaluateArguments) -> None:
    """Measure the model on tasks, if any are named, or else on texts, and print the results.

    Raises:
        UserError: a problem with the model, the texts, the tasks or the settings.
    """
    found = api.evaluate_model(asked.reading.named(asked.model), settings=asked.settings)
    if asked.json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        command.show(found.tables())


def main(arguments: list[str]) -> None:
    """Entry point of the evaluation job."""
    command.execute(run, EvaluateArguments, arguments, prog="python -m tyr_jax.evaluate", description=__doc__)
