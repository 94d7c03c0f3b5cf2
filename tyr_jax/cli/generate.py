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
from tyr_jax.evaluation.continuation import ContinuationSettings
from tyr_jax.evaluation.generation import Sampling
from tyr_jax.formatting import shown
from tyr_jax.run.models import Computation, NamedModel
from tyr_jax.settings import ComputeType


@dataclasses.dataclass(frozen=True)
class GenerateSettings:
    """What to continue, and how."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A directory (pruned or dense), a .gguf file, a hub id, or `builtin`."""
    prompts: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="PROMPT [PROMPT ...]", help_behavior_hint="(required)"),
    ]
    """Texts to continue."""
    chat: bool = ContinuationSettings.chat
    """Put each prompt to the model as a user's message, through its chat template."""
    max_tokens: int = ContinuationSettings.max_tokens
    """Tokens to generate at most, for each prompt."""
    seed: int = ContinuationSettings.seed
    """Seed of the sampling; it has no effect at --temperature 0."""
    compute_dtype: ComputeType = Computation.compute_dtype
    """Type of weights and activations; `bfloat16` halves their memory and suits accelerators."""
    family: command.Family = None
    ignore_keys: command.IgnoredKeys = ()
    sampling: tyro.conf.OmitArgPrefixes[Sampling] = dataclasses.field(default_factory=Sampling)
    """Sampling"""


def run(settings: GenerateSettings) -> None:
    """Print the model's continuations of the prompts. A single one is streamed.

    Raises:
        UserError: a problem with the model, the prompts or the settings.
    """
    model = NamedModel(settings.model, settings.ignore_keys)
    options = dataclasses.asdict(settings.sampling) | {
        "chat": settings.chat,
        "max_tokens": settings.max_tokens,
        "seed": settings.seed,
        "compute_dtype": settings.compute_dtype,
    }
    if len(settings.prompts) == 1:
        for piece in api.stream_text(model, settings.prompts[0], **options):
            print(shown(piece), end="", flush=True)
        print()
        return
    texts = api.generate_text(model, settings.prompts, **options)
    for prompt, text in zip(settings.prompts, texts, strict=True):
        print(f"== {shown(prompt)}")
        print(shown(text))


def main(arguments: list[str] | None = None) -> None:
    """Entry point of generation."""
    command.execute(run, GenerateSettings, arguments, prog="python -m tyr_jax.generate", description=__doc__)


if __name__ == "__main__":
    main()
