"""Every family through the whole chain: read, pruned, compressed, written, and read again, also in torch.

Families that differ in structure do so in every run of the tests, the others among the long tests.
tests/model/test_parity.py compares all of them as they are read.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import family_samples
import jax.numpy as jnp
import llama_reference
import numpy as np
import pytest
import torch
from family_samples import CASES
from scored import assert_scored_as_at_full_width
from transformers import PreTrainedTokenizerFast

from tyr_jax import space
from tyr_jax.cli import evaluate, finetune, prune
from tyr_jax.errors import UserError
from tyr_jax.evaluation import generation
from tyr_jax.io import deci
from tyr_jax.io.checkpoint import LoadedModel, load_model, save_model
from tyr_jax.model.decoder import forward
from tyr_jax.model.spec import ModelConfig, Params
from tyr_jax.pruning.compress import compress, mask
from tyr_jax.pruning.fold import FoldPlan, build_supernet
from tyr_jax.pruning.settings import PruningSettings

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("modules", "forget_often")]

TOKENS = np.random.default_rng(0).integers(0, 290, (3, 40))
STRUCTURES = {
    "smollm3-windows": "biases, a window and layers without positions, by layer",
    "granite-tied": "multipliers of every part, tied embeddings, biases",
    "phi3-partial": "fused weights, positions on a part of a head, tied embeddings",
    "gemma3-scaled": "scaled embeddings, norms on both sides, norms of queries and keys, types of layers",
    "qwen3-moe-normed": "experts of their own tensors, weights that are normed again, biases",
    "gpt-oss": "packed experts with biases, sinks, a biased router",
}
"""Families that go through the whole chain in every run, and what of them no other here has."""
FAMILIES = ["llama-rope3", "llama-yarn", "mistral-window", "ministral", "qwen2", "qwen3", "qwen3-windows"]
FAMILIES += ["smollm3", "smollm3-windows", "granite", "granite-tied", "phi3", "phi3-partial", "phi3-longrope"]
FAMILIES += ["gemma3", "gemma3-scaled", "gemma2-caps", "glm4", "exaone4", "exaone4-full", "olmo2", "olmo3"]
EXPERTS = ["qwen3-moe", "qwen3-moe-normed", "mixtral", "olmoe", "gpt-oss", "gpt-oss-full"]
FAMILIES += EXPERTS


def by_structure(names: list[str]) -> list[Any]:
    """The names as parameters: those without a structure of their own are long."""
    return [pytest.param(name, marks=[] if name in STRUCTURES else pytest.mark.long) for name in names]


LEVELS = np.array([[1, 1, 3], [2, 4, 1]])
"""A heterogeneous distribution, in which a layer loses its attention and another its FFN."""


def write_dense(name: str, directory: Path, tokenizer: PreTrainedTokenizerFast) -> Path:
    """The directory of a tiny dense model."""
    family_samples.torch_model(CASES[name] | {"vocab_size": 300}).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def logits(model: LoadedModel) -> np.ndarray:
    return np.asarray(forward(model.params, jnp.asarray(TOKENS), model.config))


def assert_close(one: np.ndarray, other: np.ndarray) -> None:
    assert np.std(other) > 0.05
    np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * max(1.0, float(np.std(other))))


@pytest.mark.parametrize("name", by_structure(FAMILIES))
def test_a_pruned_model_is_the_same_everywhere(
    name: str, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    dense = load_model(str(write_dense(name, tmp_path / "dense", tiny_tokenizer)))
    config = dense.config
    pruning = PruningSettings(neuron_chunk=4)
    kinds = pruning.kinds(config)
    whole = pruning.whole(config)
    centre = np.where(whole, [[4], [48]], [[1, 2, 3], [16, 32, 8]])
    grid = space.level_grid(kinds, centre, 5, 0.2, whole)
    levels = np.where(whole, grid.exists.argmax(axis=-1), LEVELS)
    net = build_supernet(dense.params, [TOKENS], FoldPlan(config, grid, pruning))
    masked = np.asarray(forward(mask(dense.params, net, levels, config), jnp.asarray(TOKENS), config))
    small, shape = compress(dense.params, net, levels, config)
    first = 4 if config.wide_qk_norm else 1 if config.out_bias else 0
    last = 8 if config.expert_bias else 0
    assert (shape.layers[0].heads, shape.layers[2].ffn) == (first, last)
    assert shape.positions == config.positions

    # The search scores what is written.
    candidates = np.stack([levels, np.where(grid.exists[..., 2], 2, levels)]).astype(np.int32)
    assert_scored_as_at_full_width(dense.params, net, candidates, TOKENS, config)
    assert_written_is(masked, dense, small, shape, tmp_path / "pruned")


def assert_written_is(
    masked: np.ndarray, dense: LoadedModel, small: Params, shape: ModelConfig, directory: Path
) -> None:
    """Write a smaller model, and compare it, read by us and by transformers, with the `masked` logits; and
    greedy text."""
    directory.mkdir()
    save_model(directory, LoadedModel(shape, small, dense.tokenizer, dense.hf_config))
    again = load_model(str(directory))
    assert again.config == shape
    assert_close(logits(again), masked)
    model = family_samples.pruned_in_torch(directory)
    assert_close(family_samples.torch_logits(model, TOKENS), masked)
    # Greedy generation with a cache, beyond any window.
    prompt = TOKENS[:1, :6]
    options = {"max_new_tokens": 20, "eos_token_id": None, "pad_token_id": 0, "do_sample": False}
    theirs = model.generate(torch.from_numpy(prompt), **options).numpy()[0, 6:]
    unstacked = generation.unstack(again.params, again.config)
    ours = np.stack(list(generation.generate(unstacked, again.config, prompt.tolist(), 20)))[:, 0]
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", by_structure(EXPERTS))
def test_models_without_some_experts(
    name: str, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """A layer has fewer than a token was sent to, and one has none. If all layers have lost as many, no code
    of ours is needed."""
    dense = load_model(str(write_dense(name, tmp_path / "dense", tiny_tokenizer)))
    config, pruning = dense.config, PruningSettings(units=("expert",), accumulation="centre")
    heads, experts = config.dense_shape.heads, config.dense_shape.experts
    for number, kept in enumerate(([experts - 1, 1, 0], [experts - 2] * 3)):
        grid = space.level_grid(pruning.kinds(config), np.array([[heads] * 3, kept]), 1, 0.2)
        net = build_supernet(dense.params, [TOKENS], FoldPlan(config, grid, pruning))
        levels = np.zeros((2, 3), int)
        masked = np.asarray(forward(mask(dense.params, net, levels, config), jnp.asarray(TOKENS), config))
        small, shape = compress(dense.params, net, levels, config)
        assert [layer.experts for layer in shape.layers] == kept
        assert_written_is(masked, dense, small, shape, tmp_path / f"pruned{number}")
    assert not (tmp_path / "pruned1" / "modeling_pruned.py").exists()


@pytest.mark.parametrize("name", FAMILIES)
def test_in_llama_cpp_or_refused(
    name: str,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    model = load_model(str(write_dense(name, tmp_path / "dense", tiny_tokenizer)))
    # In a context no longer than the window, windows make no difference.
    short = TOKENS[:1, :7]
    if (
        model.config.qk_norm
        or model.config.wide_qk_norm
        or name.startswith(("smollm3", "gemma", "glm4", "mixtral", "gpt-oss"))
    ):
        with pytest.raises(UserError, match=r"cannot be written as a GGUF file"):
            deci.write_gguf(tmp_path / "m.gguf", model.config, model.params, tiny_tokenizer, "f32")
        record_property("gguf", "refused")
        return
    deci.write_gguf(tmp_path / "m.gguf", model.config, model.params, tiny_tokenizer, "f32")
    theirs = llama_reference.logits(tmp_path / "m.gguf", short[0])
    ours = np.asarray(forward(model.params, jnp.asarray(short), model.config))[0]
    assert_close(theirs, ours)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("gpt-oss", "--reconstruct 1"),
        *(
            pytest.param(*rest, marks=pytest.mark.long)
            for rest in (
                ("granite-tied", "--reconstruct 1 --units kv_group"),
                ("gemma3-scaled", ""),
                ("qwen3-moe-normed", "--units expert --sparsity 0.4"),
                ("smollm3-windows", "--reconstruct 1 --compute-dtype bfloat16"),
                ("phi3-partial", ""),
                ("olmo3", "--reconstruct 1"),
                ("gemma2-caps", "--reconstruct 1"),
                ("qwen3-moe", "--budget active-parameters --reconstruct 1"),
                ("mixtral", ""),
            )
        ),
    ],
)
def test_commands(
    name: str,
    options: str,
    tiny_tokenizer: PreTrainedTokenizerFast,
    tiny_arguments: list[str],
    tmp_path: Path,
) -> None:
    """Pruned with a search, evaluated as written, and recovered: what is measured is what was written."""
    dense = str(write_dense(name, tmp_path / "dense", tiny_tokenizer))
    output, recovered = str(tmp_path / "out"), str(tmp_path / "recovered")
    own = ["--model", dense, "--dtype", "bfloat16", "--output", output, *options.split()]
    prune.main([*tiny_arguments, *own])
    made = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert made["searched"]["quality"]["words.txt"]["kl"] > 0
    evaluate.main([output, "--trust-record", "--json"])
    again = load_model(output)
    assert dataclasses.replace(again.config, layers=()) == dataclasses.replace(
        load_model(dense).config, layers=()
    )
    training = "--method full --tokens 256 --sequence-length 32 --step-tokens 64 --evaluation-windows 4"
    texts = tiny_arguments[tiny_arguments.index("--calibration") + 1]
    own = ["--data", texts, "--teacher", dense, "--output", recovered]
    finetune.main([output, *own, *training.split()])
    quality = json.loads((tmp_path / "recovered" / "recovery.json").read_text())["quality"]
    assert np.isfinite(quality["recovered"]["words.txt"]["kl"])
