"""Continue prompts: encode them, and decode the text of the tokens that a model generates after them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from tyr_jax.data import chat, encoding
from tyr_jax.errors import UserError, require
from tyr_jax.evaluation.generation import generate, unstack
from tyr_jax.evaluation.settings import GenerationSettings
from tyr_jax.io.checkpoint import LoadedModel
from tyr_jax.io.config_values import of_file, shown


def validate(prompts: Sequence[str], settings: GenerationSettings) -> None:
    """Check every value that can be checked before anything is read.

    Raises:
        UserError: names the flag, its value and what is wanted.
    """
    sampling = settings.sampling
    # Dividing logits by a lower temperature would overflow.
    warm = 1e-4 <= sampling.temperature < float("inf")
    for prompt in prompts:
        require(isinstance(prompt, str), "a prompt", repr(prompt)[:100], "a text")
        if not encoding.is_unicode(prompt):
            raise UserError(f"the prompt {prompt[:40]!r} is not Unicode text; give it in UTF-8")
    if not prompts:
        raise UserError("give at least one PROMPT to continue")
    checks = (
        (settings.max_tokens >= 1, "--max-tokens", settings.max_tokens, "at least 1"),
        (warm or not sampling.temperature, "--temperature", sampling.temperature, "0, or at least 0.0001"),
        (sampling.top_k >= 0, "--top-k", sampling.top_k, "0 or more"),
        (0 < sampling.top_p <= 1, "--top-p", sampling.top_p, "above 0 and at most 1"),
        (0 <= settings.seed < 2**32, "--seed", settings.seed, "from 0 to 4294967295"),
    )
    for check in checks:
        require(*check)


def encode(model: LoadedModel, prompts: Sequence[str], settings: GenerationSettings) -> list[list[int]]:
    """Tokens of the prompts.

    Raises:
        UserError: there is no chat template, or a prompt has no token or leaves no room for new ones.
    """
    tokenizer, texts = model.tokenizer, list(prompts)
    if settings.chat:
        if not tokenizer.chat_template:
            raise UserError(f"{model.source} has no chat template; leave --chat out")
        turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
        with of_file(Path(model.source)):
            texts = [chat.written(tokenizer, turn, add_generation_prompt=True) for turn in turns]
    tokens = [encoding.encode(tokenizer, text, special=not settings.chat).tolist() for text in texts]
    limit = model.config.context
    for prompt, ids in zip(prompts, tokens, strict=True):
        if not ids:
            raise UserError(f"the prompt {prompt[:40]!r} has no token; give it some text")
        if len(ids) + settings.max_tokens > limit:
            raise UserError(
                f"a prompt of {len(ids)} tokens and --max-tokens {settings.max_tokens} are more than the "
                f"{limit} positions of {model.source}; shorten one of them"
            )
    return tokens


def stop_tokens(model: LoadedModel) -> frozenset[int]:
    """Tokens that end a text, according to the tokenizer and the generation configuration.

    Raises:
        UserError: what the configuration gives is not a token of the model, or a list of them.
    """
    given = (model.generation_config or {}).get("eos_token_id")
    ids = given if isinstance(given, list) else [] if given is None else [given]
    for index in ids:
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < model.config.vocab:
            raise UserError(
                f"'eos_token_id' in the generation_config.json of {model.source} is {shown(index)}, but must "
                f"be the id of a token, from 0 to {model.config.vocab - 1}, or a list of them"
            )
    own = model.tokenizer.eos_token_id
    return frozenset(ids if own is None else (*ids, own))


def steps(model: LoadedModel, prompts: Sequence[str], settings: GenerationSettings) -> Iterator[np.ndarray]:
    """The next tokens `[B]` of all prompts, one step at a time.

    Raises:
        UserError: as `encode` and `stop_tokens`, before the first step; as `generate`, during the steps.
    """
    return generate(
        unstack(model.params, model.config),
        model.config,
        encode(model, prompts, settings),
        settings.max_tokens,
        settings.sampling,
        stop=stop_tokens(model),
        seed=settings.seed,
    )


def pieces(tokenizer: PreTrainedTokenizerFast, tokens: Iterator[int]) -> Iterator[str]:
    """The text of `tokens`, piece by piece. A character is held back until all of its bytes are there."""
    ids: list[int] = []
    shown = ""
    for token in tokens:
        ids.append(token)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(shown) :]
            shown = text
    yield tokenizer.decode(ids, skip_special_tokens=True)[len(shown) :]


def streamed(model: LoadedModel, prompt: str, settings: GenerationSettings) -> Iterator[str]:
    """The model's continuation of a prompt, piece by piece as it is generated."""
    tokens = steps(model, [prompt], settings)
    return pieces(model.tokenizer, (int(one[0]) for one in tokens))


def continued(model: LoadedModel, prompts: Sequence[str], settings: GenerationSettings) -> list[str]:
    """The model's continuation of every prompt; all prompts run together."""
    rows = np.stack(list(steps(model, prompts, settings)), axis=1)
    return [str(model.tokenizer.decode(row, skip_special_tokens=True)) for row in rows]
