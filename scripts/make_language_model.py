"""Train the small language model of the exact problems. It was made once, by:

  python scripts/make_language_model.py state-of-the-union.txt tyr_jax/problems/data/thimble

The text was the addresses of US presidents to Congress from 1945 to 2006, which are in the public domain
(2 MB; the corpus `state_union` of NLTK has them). The end of the text is not trained on. It is written beside
the model, to prune, search and judge on. Training takes a quarter of an hour on two cores.
"""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tyr_jax.cli import command
from tyr_jax.errors import UserError
from tyr_jax.io.checkpoint import LoadedModel, save_model
from tyr_jax.io.hf_config import config_from_hf
from tyr_jax.model import decoder
from tyr_jax.model.spec import ModelConfig, Params
from tyr_jax.model.tensors import random_params
from tyr_jax.workspace.progress import Progress

SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 512,
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "tie_word_embeddings": True,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
"""The model's `config.json`: 1.4 M parameters."""

CARD = """---
license: cc0-1.0
---
# thimble

A language model of 1.4 million parameters, trained by `scripts/make_language_model.py` on addresses of US
presidents to Congress (public domain). The exact problems of `tyr_jax.problems` prune it. The text in
`unseen.txt` was not trained on.
"""


@dataclasses.dataclass(frozen=True)
class Making:
    """How the model is trained."""

    text: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="TEXT")]
    """The text."""
    output: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="DIRECTORY")]
    """A new directory."""
    steps: int = 1600
    """Steps of AdamW."""
    rows: int = 32
    """Sequences of a step."""
    length: int = 128
    """Tokens of a sequence."""
    learning_rate: float = 4e-3
    """Peak learning rate; after 5 % of the steps as warm-up, it decays to zero as a cosine."""
    unseen_characters: int = 100_000
    """Characters at the end of the text that are not trained on."""
    seed: int = 0
    """Seed of the weights and of the sequences."""


def trained_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE["vocab_size"],
        special_tokens=["<s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>")


def loss_of(params: Params, tokens: jax.Array, config: ModelConfig) -> jax.Array:
    """The mean next-token loss of `tokens [B, T]`, in nats."""
    logits = decoder.forward(params, tokens, config)[:, :-1]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def trained(params: Params, stream: np.ndarray, making: Making, config: ModelConfig) -> Params:
    """The weights after training on the tokens `stream`."""
    rate = optax.warmup_cosine_decay_schedule(0.0, making.learning_rate, making.steps // 20, making.steps)
    rule = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, b2=0.95, weight_decay=0.1))
    rng, state = np.random.default_rng(making.seed), rule.init(params)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Params, state: Any, tokens: jax.Array) -> tuple[Params, Any, jax.Array]:
        loss, slopes = jax.value_and_grad(loss_of)(params, tokens, config)
        updates, state = rule.update(slopes, state, params)
        return optax.apply_updates(params, updates), state, loss

    with Progress() as progress, progress.stage("train", making.steps, "steps") as stage:
        for _ in range(making.steps):
            first = rng.integers(0, len(stream) - making.length, size=(making.rows, 1))
            params, state, loss = step(params, state, stream[first + np.arange(making.length)])
            stage.advance(1, f"loss {float(loss):.3f}")
    return params


def main(making: Making) -> None:
    """Train the model and write it.

    Raises:
        UserError: The directory exists, or the text is too short.
    """
    if making.output.exists():
        raise UserError(f"{making.output} exists; remove it, or name another directory")
    text = making.text.read_text(encoding="utf-8")
    seen, unseen = text[: -making.unseen_characters], text[-making.unseen_characters :]
    if len(seen) < making.unseen_characters:
        raise UserError(f"{making.text} has only {len(text)} characters; name a longer text")
    began, config, tokenizer = time.monotonic(), config_from_hf(SHAPE), trained_tokenizer(seen)
    stream, held_out = (np.array(tokenizer.backend_tokenizer.encode(part).ids) for part in (seen, unseen))
    params = trained(random_params(config, jax.random.key(making.seed)), stream, making, config)
    windows = held_out[: len(held_out) // making.length * making.length].reshape(-1, making.length)
    loss = float(jax.jit(loss_of, static_argnames="config")(params, windows, config))
    bits = loss * len(held_out) / len(unseen.encode()) / np.log(2)
    making.output.mkdir(parents=True)
    save_model(making.output, LoadedModel(config, params, tokenizer, SHAPE), jnp.bfloat16)
    (making.output / "unseen.txt").write_text(unseen, encoding="utf-8")
    (making.output / "README.md").write_text(CARD, encoding="utf-8")
    print(f"{loss:.3f} nats a token, {bits:.2f} bits a byte on unseen text, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    command.execute(main, Making, None, prog="python scripts/make_language_model.py", description=__doc__)
