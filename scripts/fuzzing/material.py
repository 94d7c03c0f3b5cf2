"""Small valid input of every kind, from which the malformed input is made."""

import contextlib
import io
import json
import random
from pathlib import Path
from typing import Any
from unittest import mock

import gguf
import jax
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from fuzzing import growth
from tyr_jax import api
from tyr_jax.io.checkpoint import LoadedModel, save_model
from tyr_jax.io.gguf import ggml_names, permute
from tyr_jax.io.vocabulary import gguf_vocabulary
from tyr_jax.model.spec import LayerShape, ModelConfig, Params
from tyr_jax.model.tensors import iter_tensors, random_params

WORDS = ["the", "cat", "and", "hat", "other", "thing", "sat", "on", "a", "mat", "with", "old", "dogs"]

CONFIG = ModelConfig(
    family="llama",
    vocab=300,
    hidden=32,
    head_dim=8,
    layers=(LayerShape(heads=4, kv_heads=2, ffn=48),) * 2,
    max_positions=128,
)

TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"

SMALL: dict[str, Any] = {
    "sequence_length": 32,
    "search_length": 32,
    "calibration_tokens": 512,
    "search_tokens": 256,
    "evaluation_length": 32,
    "evaluation_windows": 2,
    "rounds": 1,
    "levels": 3,
    "generations": 1,
    "offspring": 2,
    "survivors": (1,),
    "stage_tokens": (32,),
    "descent.generations": 1,
    "neuron_chunk": 16,
}
"""Options for a run that takes seconds."""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE of fewer than 300 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 9, trainer)
    result = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    result.chat_template = TEMPLATE
    return result


def write_gguf(path: Path, config: ModelConfig, params: Params, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write the model as a GGUF file that this package reads: equal layers, architecture `llama`."""
    shape = config.layers[0]
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in {
        "block_count": config.depth,
        "context_length": config.max_positions,
        "embedding_length": config.hidden,
        "feed_forward_length": shape.ffn,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.kv_heads,
        "attention.key_length": config.head_dim,
        "vocab_size": config.vocab,
    }.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", config.norm_eps)
    writer.add_float32("llama.rope.freq_base", config.positions[0].theta)
    for key, value in gguf_vocabulary(tokenizer, config.vocab).items():
        {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string, list: writer.add_array}[
            type(value)
        ](key, value)
    tensors = list(iter_tensors(params, config))
    names = ggml_names([spec.key for spec, _ in tensors], "llama", config.depth)
    for spec, tensor in tensors:
        array = spec.to_checkpoint(np.asarray(tensor))
        turned = permute(array, config.head_dim) if spec.rotary else array
        writer.add_tensor(str(names[spec.key]), np.ascontiguousarray(turned))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_texts(directory: Path) -> None:
    """Write a text in several formats: plain, rows of JSON, conversations, and a Parquet table."""
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=400)) for _ in range(20)]
    (directory / "text.txt").write_text("\n\n".join(texts))
    rows = [json.dumps({"text": text}) for text in texts]
    (directory / "rows.jsonl").write_text("\n".join(rows))
    turns = [
        {"messages": [{"role": "user", "content": text[:80]}, {"role": "assistant", "content": text[80:400]}]}
        for text in texts
    ]
    (directory / "chat.jsonl").write_text("\n".join(map(json.dumps, turns)))
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), directory / "table.parquet")


def write_tasks(directory: Path) -> None:
    """Write the questions of a task of lm-evaluation-harness."""
    rows = [
        {
            "id": str(number),
            "question": "the cat sat on the",
            "choices": {"text": ["mat", "hat", "dog", "old"], "label": ["A", "B", "C", "D"]},
            "answerKey": "ABCD"[number % 4],
        }
        for number in range(8)
    ]
    where = directory / "tasks" / "allenai" / "ai2_arc"
    where.mkdir(parents=True)
    header = "---\nconfigs:\n- config_name: ARC-Easy\n  data_files:\n"
    for split in ("train", "validation", "test"):
        (where / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
        header += f"  - split: {split}\n    path: {split}.jsonl\n"
    (where / "README.md").write_text(f"{header}---\n")


def make(directory: Path) -> None:
    """Make all input: `dense`, `dense.gguf`, `pruned`, `recovered`, an interrupted run, texts and tasks."""
    tokenizer = make_tokenizer()
    params = random_params(CONFIG, jax.random.key(0), scale=0.2)
    (directory / "dense").mkdir()
    model = LoadedModel(CONFIG, params, tokenizer, {"model_type": "llama"}, {"eos_token_id": 2})
    save_model(directory / "dense", model)
    write_gguf(directory / "dense.gguf", CONFIG, params, tokenizer)
    write_texts(directory)
    write_tasks(directory)
    growth.make_files(directory / "growth")
    make_results(directory)


def prune(model: str, text: str, output: Path) -> None:
    """Prune a model."""
    api.prune_model(
        model,
        sparsity=0.5,
        calibration=text,
        evaluation=text,
        output=output,
        **SMALL,
    )


def make_results(directory: Path) -> None:
    """Make the results of commands: `pruned` with a benchmark, `recovered`, and an interrupted run."""
    text, dense = str(directory / "text.txt"), str(directory / "dense")
    with contextlib.redirect_stderr(io.StringIO()):
        prune(dense, text, directory / "pruned")
        api.recover_model(
            str(directory / "pruned"),
            teacher=dense,
            data=text,
            evaluation=text,
            tokens=256,
            sequence_length=32,
            evaluation_length=32,
            step_tokens=64,
            output=directory / "recovered",
        )
        api.benchmark_model(
            dense, str(directory / "pruned"), prompts=16, batches=1, tokens=2, repeats=1
        ).save(directory / "pruned" / "benchmark.json")
        interrupted = mock.patch("tyr_jax.results.save_model", side_effect=KeyboardInterrupt)
        with interrupted, contextlib.suppress(KeyboardInterrupt), contextlib.chdir(directory):
            prune("dense", text, Path("new"))
