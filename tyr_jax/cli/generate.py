"""Continue text with a model, dense or pruned: `python -m tyr_jax.generate MODEL PROMPT`.

One prompt is answered as it comes; several are run together, and answered one
after the other.

Examples:

  python -m tyr_jax.generate pruned "The capital of France is"

  python -m tyr_jax.generate pruned --chat --temperature 0.7 --top-p 0.9 \\
      "Explain pruning to a gardener."
"""

import dataclasses
from collections.abc import Iterator
from typing import Annotated

import numpy as np
import tyro
from transformers import PreTrainedTokenizerFast

from tyr_jax.cli import command
from tyr_jax.errors import UserError, require
from tyr_jax.evaluation.generation import Sampling, generate, unstack
from tyr_jax.io.checkpoint import LoadedModel, load_model
from tyr_jax.workspace.progress import Progress


@dataclasses.dataclass(frozen=True)
class GenerateSettings:
    """What to continue, and how."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A directory (pruned or dense), a .gguf file, a hub id, or `builtin`."""
    prompts: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="PROMPT [PROMPT ...]")]
    """Texts to continue."""
    chat: bool = False
    """Put each prompt to the model as a user's message, through its chat template."""
    max_tokens: int = 128
    """Tokens to generate at most, for each prompt."""
    seed: int = 0
    """Seed of the choice, where there is any (--temperature above 0)."""
    sampling: tyro.conf.OmitArgPrefixes[Sampling] = dataclasses.field(default_factory=Sampling)
    """Sampling"""


def validate(settings: GenerateSettings) -> None:
    """Check every value that can be checked before anything is read.

    Raises:
        UserError: names the flag, its value and what is wanted.
    """
    sampling = settings.sampling
    checks = (
        (bool(settings.prompts), "PROMPT", "nothing", "given"),
        (settings.max_tokens >= 1, "--max-tokens", settings.max_tokens, "at least 1"),
        (0 <= sampling.temperature < float("inf"), "--temperature", sampling.temperature, "0 or more"),
        (sampling.top_k >= 0, "--top-k", sampling.top_k, "0 or more"),
        (0 < sampling.top_p <= 1, "--top-p", sampling.top_p, "above 0 and at most 1"),
        (0 <= settings.seed < 2**32, "--seed", settings.seed, "from 0 to 4294967295"),
    )
    for check in checks:
        require(*check)


def encode(model: LoadedModel, settings: GenerateSettings) -> list[list[int]]:
    """Tokens of the prompts.

    Raises:
        UserError: there is no chat template, or a prompt has no token or leaves no room.
    """
    tokenizer, prompts = model.tokenizer, list(settings.prompts)
    if settings.chat:
        if not tokenizer.chat_template:
            raise UserError(f"{settings.model} has no chat template; leave --chat out")
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
            )
            for prompt in prompts
        ]
    tokens = [tokenizer(prompt, add_special_tokens=not settings.chat).input_ids for prompt in prompts]
    limit = model.config.max_positions
    for prompt, ids in zip(settings.prompts, tokens, strict=True):
        if not ids:
            raise UserError(f"the prompt {prompt!r} has no token; give it some text")
        if len(ids) + settings.max_tokens > limit:
            raise UserError(
                f"a prompt of {len(ids)} tokens and --max-tokens {settings.max_tokens} are more than the "
                f"{limit} positions of {settings.model}; shorten one of them"
            )
    return tokens


def stop_tokens(model: LoadedModel) -> frozenset[int]:
    """Tokens that end a text, as the tokenizer and the generation configuration have them."""
    given = (model.generation_config or {}).get("eos_token_id")
    ids = given if isinstance(given, list) else [given]
    return frozenset(token for token in (*ids, model.tokenizer.eos_token_id) if token is not None)


def pieces(tokenizer: PreTrainedTokenizerFast, tokens: Iterator[int]) -> Iterator[str]:
    """The text of `tokens` as it grows; a character waits until all of its bytes are there."""
    ids: list[int] = []
    shown = ""
    for token in tokens:
        ids.append(token)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(shown) :]
            shown = text
    yield tokenizer.decode(ids, skip_special_tokens=True)[len(shown) :]


def run(settings: GenerateSettings) -> None:
    """Read the model, print what it makes of the prompts."""
    validate(settings)
    with Progress() as progress, progress.stage("load model", 1, "models") as stage:
        model = load_model(settings.model)
        stage.advance()
    prompts, stop = encode(model, settings), stop_tokens(model)
    steps = generate(
        unstack(model.params, model.config),
        model.config,
        prompts,
        settings.max_tokens,
        settings.sampling,
        stop=stop,
        seed=settings.seed,
    )
    if len(prompts) == 1:
        for piece in pieces(model.tokenizer, (int(tokens[0]) for tokens in steps)):
            print(piece, end="", flush=True)
        print()
        return
    for prompt, row in zip(settings.prompts, np.stack(list(steps), axis=1), strict=True):
        print(f"== {prompt}")
        print(model.tokenizer.decode(row, skip_special_tokens=True))


def main(arguments: list[str] | None = None) -> None:
    """Entry point of generation."""
    command.execute(run, GenerateSettings, arguments, prog="python -m tyr_jax.generate", description=__doc__)


if __name__ == "__main__":
    main()
