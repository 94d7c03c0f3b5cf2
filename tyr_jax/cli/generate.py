"""Continue text with a model: `python -m tyr_jax.generate MODEL PROMPT`.

A single prompt is streamed; several run together and are printed one after the
other.

Examples:

  python -m tyr_jax.generate pruned "The capital of France is"

  python -m tyr_jax.generate pruned --chat --temperature 0.7 --top-p 0.9 \\
      "Explain pruning to a gardener."
"""

import dataclasses
from typing import Annotated

import tyro

from tyr_jax import api
from tyr_jax.cli import command
from tyr_jax.evaluation.settings import GenerationSettings
from tyr_jax.formatting import shown


@dataclasses.dataclass(frozen=True)
class GenerateArguments:
    """What to continue, and how."""

    model: command.Model
    prompts: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="PROMPT [PROMPT ...]", help_behavior_hint="(required)"),
    ]
    """Texts to continue."""
    settings: command.Flat[GenerationSettings]
    reading: command.Flat[command.Reading]


def run(asked: GenerateArguments) -> None:
    """Print the model's continuations of the prompts. A single one is streamed.

    Raises:
        UserError: a problem with the model, the prompts or the settings.
    """
    model = asked.reading.named(asked.model)
    if len(asked.prompts) == 1:
        for piece in api.stream_text(model, asked.prompts[0], settings=asked.settings):
            print(shown(piece), end="", flush=True)
        print()
        return
    texts = api.generate_text(model, asked.prompts, settings=asked.settings)
    for prompt, text in zip(asked.prompts, texts, strict=True):
        print(f"== {shown(prompt)}")
        print(shown(text))


def main(arguments: list[str]) -> None:
    """Entry point of generation."""
    command.execute(run, GenerateArguments, arguments, prog="python -m tyr_jax.generate", description=__doc__)
