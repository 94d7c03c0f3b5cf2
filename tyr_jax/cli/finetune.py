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

from tyr_jax import api
from tyr_jax.cli import command
from tyr_jax.recovery.settings import RecoverySettings


@dataclasses.dataclass(frozen=True)
class FinetuneArguments:
    """What to train, and how."""

    settings: command.Flat[RecoverySettings]
    reading: command.Flat[command.Reading]


def run(asked: FinetuneArguments, arguments: list[str]) -> None:
    """Train, write the output directory, and print the table.

    Raises:
        UserError: a problem with the models, the data, the output or the settings.
    """
    settings, named = asked.settings, asked.reading.named
    result = api.recover_model(
        named(settings.model),
        teacher=None if settings.teacher is None else named(settings.teacher),
        settings=settings,
        output=settings.output,
        arguments=arguments,
    )
    command.show(result.tables())
    command.tell_model(result.name, result.record.text)


def main(arguments: list[str]) -> None:
    """Entry point of the recovery job."""
    command.execute(
        lambda asked: run(asked, arguments),
        FinetuneArguments,
        arguments,
        prog="python -m tyr_jax.finetune",
        description=__doc__,
    )
