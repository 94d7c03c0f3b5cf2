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
    """Generate text of `shape` `[S, T]` with a dense `model` that is in memory, or reuse what an interrupted
    job generated. `seed` determines the draws, and `temperature` divides the logits.

    Raises:
        UserError: the model does not support the length, or has no token that separates documents.
    """
    count, length = shape
    check_length("--sequence-length or --search-length", length, model)
    with progress.stage("own text", count * length, "tokens") as stage:
        saved = store.load("written")
        if saved is not None:
            stage.advance(count * length, note=resume.KEPT)
            return np.asarray(saved.arrays)
        separator = separator_of(model)
        texts = writing.write_texts(
            model.params, model.config, separator, count, length, seed, temperature, stage.advance
        )
    store.save("written", texts)
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
