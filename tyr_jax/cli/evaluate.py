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
from pathlib import Path
from typing import Annotated

import tyro

from tyr_jax import api
from tyr_jax.cli import command
from tyr_jax.results import Perplexities, TaskScores
from tyr_jax.run.models import Computation, NamedModel
from tyr_jax.settings import ComputeType


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """What to measure, and on what."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A directory (pruned or dense), a .gguf file, a hub id, or `builtin`."""
    evaluation: tuple[str, ...] = ()
    """Texts: `builtin`, .txt, .jsonl, .json or .parquet files, hub datasets (default: those the model was
    measured on when it was made, or else `builtin`)."""
    evaluation_length: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Tokens in a window (default: as when the model was made, or else 2048)."""
    evaluation_windows: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """At most this many windows of each text (default: as when the model was made, or else 20)."""
    bos: Annotated[bool | None, tyro.conf.arg(metavar="{True,False}")] = None
    """Start every window with the tokenizer's BOS (default: as when the model was made, or else not)."""
    chat_template: Annotated[bool | None, tyro.conf.arg(metavar="{True,False}")] = None
    """Render conversations with the model's chat template (default: as when the model was made,
    or else not)."""
    trust_record: bool = False
    """Read the files and hub datasets that the record in the model's directory names. Use this only if you
    trust whoever made the record."""
    tasks: Annotated[str, tyro.conf.arg(metavar="NAME,…")] = ""
    """Tasks of lm-evaluation-harness to answer, in place of perplexity."""
    num_fewshot: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Few-shot examples before each question (default: the task's own number)."""
    limit: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """At most this many questions of each task (default: all)."""
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where the tasks' datasets are, each under its name on the hub, such as DIR/allenai/ai2_arc (default:
    the hub)."""
    compute_dtype: ComputeType = Computation.compute_dtype
    """Type of weights and activations; `bfloat16` halves their memory and suits accelerators."""
    json: bool = False
    """Print JSON on stdout in place of the table."""
    family: command.Family = None
    ignore_keys: command.IgnoredKeys = ()


def measure(settings: EvaluateSettings) -> Perplexities | TaskScores:
    """Measure the model on tasks, if any are named, or else on texts.

    Raises:
        UserError: a problem with the model, the texts, the tasks or the settings.
    """
    options = vars(settings).copy()
    for name in ("model", "ignore_keys", "family", "json"):
        del options[name]
    return api.evaluate_model(NamedModel(settings.model, settings.ignore_keys), **options)


def run(settings: EvaluateSettings) -> None:
    """Measure the model and print the results.

    Raises:
        UserError: as `measure`.
    """
    found = measure(settings)
    if settings.json:
        print(json.dumps(found.as_json(), indent=2))
    else:
        command.show(found.tables())


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the evaluation job."""
    command.execute(run, EvaluateSettings, arguments, prog="python -m tyr_jax.evaluate", description=__doc__)


if __name__ == "__main__":
    main()
