"""Recover quality that pruning has cost: `python -m tyr_jax.finetune PRUNED`.

A short training of the pruned model: by default, a low-rank update of every
projection (LoRA) learns the dense model's predictions, and is merged into the
weights at the end. The result loads wherever the pruned model does.

Examples:

  python -m tyr_jax.finetune pruned --output recovered
      on the `builtin` text; the teacher is the dense model that was pruned

  python -m tyr_jax.finetune pruned --data alpaca.jsonl --goal next-token \\
      --tokens 3000000 --output chatty
      on the assistant's answers in conversations, rendered with the model's
      chat template; rows hold `messages`, or `instruction`, `input`, `output`
"""

import dataclasses
import sys

import tyro

from tyr_jax import api
from tyr_jax.cli import command
from tyr_jax.recovery.settings import RecoverySettings
from tyr_jax.run.models import NamedModel


@dataclasses.dataclass(frozen=True)
class FinetuneArguments:
    """What to train, and how."""

    settings: RecoverySettings
    """Settings"""
    family: command.Family = None
    ignore_keys: command.IgnoredKeys = ()


def run(asked: FinetuneArguments, arguments: list[str]) -> None:
    """Train, write the output directory, and print the table.

    Raises:
        UserError: a problem with the models, the data, the output or the settings.
    """
    settings, keys = asked.settings, asked.ignore_keys
    result = api.recover_model(
        NamedModel(settings.model, keys),
        teacher=None if settings.teacher is None else NamedModel(settings.teacher, keys),
        settings=settings,
        output=settings.output,
        arguments=arguments,
    )
    command.show(result.tables())
    command.tell_model(result.name, result.record.text)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the recovery job."""
    given = sys.argv[1:] if arguments is None else arguments
    command.execute(
        lambda asked: run(asked, given),
        tyro.conf.OmitArgPrefixes[FinetuneArguments],
        given,
        prog="python -m tyr_jax.finetune",
        description=__doc__,
    )


if __name__ == "__main__":
    main()
