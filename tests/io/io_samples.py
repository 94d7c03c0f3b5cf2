"""Text to try tokenizers on, and tiny GGUF files written with the `gguf` package."""

import functools
import pydoc_data.topics
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tyr_jax.errors import UserError


def refusal(call: Callable[[], object]) -> str:
    """Message of the `UserError` that the call raises, or an empty string if it raises nothing."""
    try:
        call()
    except UserError as error:
        return str(error)
    return ""


def nested(depth: int) -> Any:
    value: Any = 0
    for _ in range(depth):
        value = [value]
    return value


BAD_VALUES: tuple[Any, ...] = (
    *(None, True, False, "", "x", "\0", "x" * 10_000, 0, -1, 1, 3, 2**31, 2**63, 10**20, 10**400, -(10**400)),
    *(0.0, -0.5, 1e-320, 1e308, float("nan"), float("inf"), -float("inf")),
    *([], [1], ["x"], [None], [[]], {}, {"x": 1}, {"0": {}}, {"0": None}, {"type": {}, "x": []}, nested(900)),
)
"""Values of every kind, which are wrong almost everywhere."""


def make_lines(count: int = 1000) -> list[str]:
    """Varied lines: English, Unicode, code, numbers, runs of whitespace, special tokens in odd places."""
    rng = random.Random(0)
    prose = [line for topic in pydoc_data.topics.topics.values() for line in topic.splitlines() if line]
    hard = [
        "",
        " ",
        "   three spaces",
        "trailing   ",
        "\t\ttabs\tand\r\nlines\n\n\nmore\n",
        "naïve café — “quotes” … ½ € £ ¥",
        "Zażółć gęślą jaźń, Ὅμηρος, Москва, שלום, مرحبا, नमस्ते, ไทย",
        "日本語のテキスト、漢字とカナ。한국어 문장도",
        "👩‍👩‍👧‍👦 family 🏳️‍🌈 flag 🇩🇪 skin 👍🏽",
        "123456789 3.14159 1,000,000 0xFF 1e-10 ²³ ٣٤٥ Ⅷ ½",
        "it's I'm we'll they'd you've can't DON'T I'LL 'tis",
        "def f(x):\n    return {k: v**2 for k, v in x.items()}  # ok\n",
        '<p class="x">a &amp; b</p>; SELECT * FROM t WHERE a<>b;',
        "a" * 70 + " " + "!" * 40 + "=" * 33,
        "mixed123abc456 CamelCase snake_case kebab-case",
        "zero\u200bwidth\ufeff nbsp\u00a0here \u2028 sep \u3000 wide",
        "control \x01\x02 \x7f chars \x85 next",
        "…...?!?! (((nested))) [[x]] ~~~ ``` $$$ ++ <=> ^^",
    ]
    special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>", "<file_sep>", "<s>", "</s>"]
    lines = list(hard)
    while len(lines) < count:
        pieces = [rng.choice(rng.choice([prose, prose, hard, special])) for _ in range(rng.randint(1, 4))]
        if rng.random() < 0.2:
            points = [rng.choice([rng.randint(32, 0x2FF), rng.randint(0x370, 0xD7FF)]) for _ in range(12)]
            pieces.append("".join(map(chr, points)))
        lines.append(rng.choice(["", " ", "  ", "\n"]).join(pieces))
    return lines


GGML_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


class Arrays:
    """A checkpoint in memory."""

    def __init__(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.arrays = dict(arrays)

    def keys(self) -> set[str]:
        return set(self.arrays)

    def read(self, key: str) -> np.ndarray:
        return self.arrays[key]

    def dtype(self, key: str) -> np.dtype:
        return self.arrays[key].dtype


def ggml_name(key: str) -> str:
    if key in GGML_NAMES:
        return GGML_NAMES[key]
    _, _, layer, *module, kind = key.split(".")
    return f"blk.{layer}.{GGML_NAMES['.'.join(module)]}.{kind}"


def permute(array: np.ndarray, heads: int) -> np.ndarray:
    """Reorder rows from halves to neighbouring pairs, as llama.cpp's converter does."""
    rows = [np.stack([head[: len(head) // 2], head[len(head) // 2 :]], 1) for head in np.split(array, heads)]
    return np.concatenate(rows).reshape(array.shape)


def write_gguf(
    path: Path,
    config: dict[str, Any],
    tensors: dict[str, np.ndarray],
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    metadata: dict[str, Any] | None = None,
    extra_tensors: dict[str, np.ndarray] | None = None,
    architecture: str | None = None,
) -> Path:
    """Write Hugging Face tensors as a GGUF. `metadata` adds keys, or removes a key whose value is None."""
    arch = architecture or config["model_type"]
    values: dict[str, Any] = {
        f"{arch}.block_count": config["num_hidden_layers"],
        f"{arch}.context_length": config["max_position_embeddings"],
        f"{arch}.embedding_length": config["hidden_size"],
        f"{arch}.feed_forward_length": config["intermediate_size"],
        f"{arch}.attention.head_count": config["num_attention_heads"],
        f"{arch}.attention.head_count_kv": config["num_key_value_heads"],
        f"{arch}.attention.layer_norm_rms_epsilon": 1e-6,
        f"{arch}.attention.key_length": config.get("head_dim"),
        f"{arch}.attention.value_length": config.get("head_dim"),
        f"{arch}.rope.freq_base": 10000.0,
        f"{arch}.vocab_size": config["vocab_size"],
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": byte_tokens(config["vocab_size"]),
        "tokenizer.ggml.token_type": [1] * config["vocab_size"],
        "tokenizer.ggml.merges": ["a b"],
    } | (metadata or {})
    writer = gguf.GGUFWriter(path, arch)
    add_metadata(writer, values)
    for key, array in tensors.items():
        if arch == "llama" and (".q_proj." in key or ".k_proj." in key):
            array = permute(array, config["num_attention_heads" if ".q_" in key else "num_key_value_heads"])
        stored = kind if array.ndim == 2 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(np.ascontiguousarray(array), stored)
        writer.add_tensor(ggml_name(key), data, raw_dtype=stored)
    for name, array in (extra_tensors or {}).items():
        writer.add_tensor(name, array)
    finish(writer)
    return path


def byte_tokens(count: int) -> list[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [*sorted(ByteLevel.alphabet())[: count - 1], "ab"]
    return tokens + [f"[PAD{index}]" for index in range(count - len(tokens))]


def add_metadata(writer: gguf.GGUFWriter, values: dict[str, Any]) -> None:
    for key, value in values.items():
        if value is None:
            continue
        adders: dict[type, Callable[[str, Any], None]] = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
            list: writer.add_array,
        }
        adders[type(value)](key, value)


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_sentencepiece(path: Path, model: Any, changes: dict[str, Any]) -> Path:
    count = model.get_piece_size()
    kinds = [
        2 if model.is_unknown(i) else 3 if model.is_control(i) else 6 if model.is_byte(i) else 1
        for i in range(count)
    ]
    writer = gguf.GGUFWriter(path, "llama")
    values = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in range(count)],
        "tokenizer.ggml.scores": [float(model.get_score(i)) for i in range(count)],
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.bos_token_id": model.bos_id(),
        "tokenizer.ggml.eos_token_id": model.eos_id(),
        "tokenizer.ggml.unknown_token_id": model.unk_id(),
    }
    add_metadata(writer, values | changes)
    finish(writer)
    return path


@functools.cache
def metadata(source: Path) -> dict[str, Any]:
    """All metadata of `source`. For a large vocabulary, this takes seconds."""
    return {
        key: field.contents()
        for key, field in gguf.GGUFReader(source).fields.items()
        if not key.startswith("GGUF.") and key != "general.architecture"
    }


def fewer_tokens(source: Path, count: int) -> dict[str, Any]:
    """Metadata changes that leave the first `count` tokens of `source`, a byte-level BPE."""
    known = metadata(source)
    tokens, types, merges = (known[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type", "merges"))
    left = merges[: count - (len(tokens) - len(merges))]
    assert {merge.replace(" ", "") for merge in left} <= set(tokens[:count])
    changes = {"tokens": tokens[:count], "token_type": types[:count], "merges": left}
    return {f"tokenizer.ggml.{name}": value for name, value in changes.items()}


def rewrite_tokenizer(source: Path, path: Path, changes: dict[str, Any]) -> Path:
    """Write the tokenizer of `source`, with some metadata changed, as a GGUF without tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    add_metadata(writer, metadata(source) | changes)
    finish(writer)
    return path
