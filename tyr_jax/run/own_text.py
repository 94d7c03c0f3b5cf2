"""Text of the source `self`, which the dense model generates itself, as a stage of a job."""

import numpy as np

from tyr_jax.errors import UserError
from tyr_jax.evaluation import writing
from tyr_jax.io.checkpoint import LoadedModel, check_length
from tyr_jax.run import resume
from tyr_jax.workspace.progress import Progress
from tyr_jax.workspace.store import Store


def own_text(
    model: LoadedModel,
    shape: tuple[int, int],
    seed: int,
    temperature: float,
    progress: Progress,
    store: Store,
) -> np.ndarray:
    """Generate text of `shape` `[S, T]` with a dense `model` that is in memory, and go on after the sequences
    that an interrupted job finished. `seed` determines the draws, and `temperature` divides the logits.

    Raises:
        UserError: the model does not support the length, or has no token that separates documents.
    """
    count, length = shape
    check_length("--sequence-length or --search-length", length, model)
    with progress.stage("own text", count * length, "tokens") as stage:
        last = store.last_step("written")
        texts = np.zeros((0, length), np.int32) if last is None else np.asarray(last[1].arrays)
        if texts.size:
            stage.advance(texts.size, note=resume.KEPT)
        arguments = model.params, model.config, separator_of(model), count, length, seed, temperature
        for group in writing.write_texts(*arguments, stage.advance, len(texts)):
            texts = np.concatenate([texts, group])
            store.save_step("written", len(texts), texts)
    return texts


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
        f"the tokenizer of {model.source} has no BOS or EOS token for the model's own text to begin with; "
        "name a text other than self"
    )
