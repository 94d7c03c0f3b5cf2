"""Text of the source `self`, which the dense model generates itself, as a stage of a job.

Generating it takes minutes, and most people prune a model more than once. So texts are also kept in the
cache, where other jobs with the same model, amount, seed and temperature find them.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from tyr_jax.errors import UserError
from tyr_jax.evaluation import writing
from tyr_jax.evaluation.writing import OwnText
from tyr_jax.files import replaced
from tyr_jax.io.checkpoint import LoadedModel, check_length
from tyr_jax.run import resume
from tyr_jax.runtime import cache, devices
from tyr_jax.workspace.progress import Progress
from tyr_jax.workspace.store import Saved, Store

LEAST_TOKENS = 4096
"""Shorter texts are not cached: they take seconds."""

MOST_TEXTS = 64
"""Maximum number of cached texts; the oldest go first."""


def own_text(
    model: LoadedModel,
    shape: tuple[int, int],
    seed: int,
    temperature: float,
    progress: Progress,
    store: Store,
) -> np.ndarray:
    """Generate text of `shape` `[B, T]` with a dense `model` that is in memory, or take it from the cache. Go
    on after the sequences that an interrupted job finished. `seed` determines the draws, and `temperature`
    divides the logits.

    Raises:
        UserError: the model does not support the length, or has no token that separates documents.
    """
    count, length = shape
    asked = OwnText(separator_of(model), count, length, seed, temperature)
    check_length("--sequence-length or --search-length", length, model)
    file = cache_file(model, asked)
    with progress.stage("self-generated text", count * length, "tokens") as stage:
        done, (texts, _) = store.last_step("written", Saved(np.zeros((0, length), np.int32)))
        if not done and (cached := cached_text(file, shape)) is not None:
            stage.advance(cached.size, note="from the cache")
            store.save_step("written", count, cached)
            return cached
        if done:
            stage.advance(texts.size, note=resume.KEPT)
        for group in writing.write_texts(model.params, model.config, asked, stage.advance, len(texts)):
            texts = np.concatenate([texts, group])
            store.save_step("written", len(texts), texts)
    cache_text(file, texts, progress.log)
    return texts


def cache_file(model: LoadedModel, asked: OwnText) -> Path | None:
    """Where a text is cached; None if it is not, because it is short, or because there are several processes,
    of which only some might find it.

    The name tells everything that determines the text: the model, by checksums of its weights, what was asked
    for, and where it runs, because another order of summation can change a draw.
    """
    if asked.sequences * asked.length < LEAST_TOKENS or jax.process_count() > 1:
        return None
    text = [asked.sequences, asked.length, asked.seed, asked.temperature, asked.separator]
    where = [jax.default_backend(), devices.count(), cache.processor(), jax.__version__]
    digest = hashlib.sha256(f"{json.dumps(text + where)} {model.config}".encode())
    for leaf in jax.tree.leaves(model.params):
        digest.update(f"{leaf.shape} {leaf.dtype}".encode() + resume.checksums(leaf).tobytes())
    return cache.cache_directory() / "texts" / f"{digest.hexdigest()[:32]}.npy"


def cached_text(file: Path | None, shape: tuple[int, int]) -> np.ndarray | None:
    """The text `[B, T]` in a file of the cache; None if there is none, or not a whole one."""
    if file is None or not file.is_file():
        return None
    try:
        texts = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return (
        texts if isinstance(texts, np.ndarray) and (texts.shape, texts.dtype) == (shape, np.int32) else None
    )


def cache_text(file: Path | None, texts: np.ndarray, tell: Callable[[str], None]) -> None:
    """Keep a text in its file of the cache. `tell` is called with a sentence if it cannot be kept."""
    if file is None:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with replaced(file) as fresh, fresh.open("wb") as stream:
            np.save(stream, texts)
        for old in sorted(file.parent.glob("*.npy"), key=lambda path: -path.stat().st_mtime)[MOST_TEXTS:]:
            old.unlink(missing_ok=True)
    except OSError as error:
        tell(
            f"self-generated text could not be cached for other runs: {error.strerror or error} "
            f"({file.parent})"
        )


def separator_of(model: LoadedModel) -> int:
    """The token that starts a document.

    Raises:
        UserError: the tokenizer has none.
    """
    tokenizer = model.tokenizer
    known = tokenizer.get_vocab()
    for token in (known.get("<|endoftext|>"), tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise UserError(
        f"the tokenizer of {model.source} has no BOS or EOS token for self-generated text to begin with; "
        "name a text other than self"
    )
