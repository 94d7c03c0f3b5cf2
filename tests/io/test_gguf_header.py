"""Headers of GGUF files that are damaged, or that announce data the file does not have."""

import os
import resource
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from io_samples import BAD_VALUES, refusal

from tyr_jax.errors import UserError
from tyr_jax.io.checkpoint import load_model
from tyr_jax.io.gguf import GgufSource, read_hf_config
from tyr_jax.io.gguf_header import open_gguf
from tyr_jax.io.gguf_tokenizer import tokenizer_from_gguf
from tyr_jax.io.hf_config import config_from_hf
from tyr_jax.model.tensors import all_specs

Writer = Callable[..., Path]
SIZES: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 8,
    "hidden_size": 4,
    "intermediate_size": 4,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
}
U32, F32, STRING, ARRAY = 4, 6, 8, 9


def header(*, tensors: int = 0, keys: int = 0, order: str = "<") -> bytes:
    return b"GGUF" + struct.pack(f"{order}IQQ", 3, tensors, keys)


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def array(kind: int, count: int) -> bytes:
    return struct.pack("<IIQ", ARRAY, kind, count)


def tensor(*extents: int, kind: int = 0, offset: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(extents)}Q", len(extents), *extents)
    return text(b"t") + shape + struct.pack("<IQ", kind, offset)


BOMBS = {
    "values": header(keys=1) + text(b"general.name") + array(U32, 2**40),
    "texts": header(keys=1) + text(b"general.name") + array(STRING, 2**40),
    "empty arrays": header(keys=1) + text(b"a") + array(ARRAY, 2**40) + struct.pack("<IQ", U32, 0) * 9,
    "nested": header(keys=1) + text(b"a") + struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 9999,
    "keys": header(keys=2**40),
    "tensors": header(tensors=2**40),
    "long key": header(keys=1) + text(b"a", 2**60),
    "long text": header(keys=1) + text(b"a") + struct.pack("<I", STRING) + text(b"b", 2**63),
    "sizes that wrap around": header(tensors=1) + tensor(2**32, 2**32) + bytes(64),
    "a large tensor": header(tensors=1) + tensor(2**40) + bytes(64),
    "a far tensor": header(tensors=1) + tensor(1, offset=2**64 - 16) + bytes(64),
    "many dimensions": header(tensors=1) + text(b"t") + struct.pack("<I", 2**31) + bytes(64),
    "no such type": header(tensors=1) + tensor(1, kind=99) + bytes(64),
    "no such value": header(keys=1) + text(b"a") + struct.pack("<I", 13) + bytes(64),
    "alignment": header(keys=1) + text(b"general.alignment") + struct.pack("<II", U32, 3),
    "alignment of 0": header(keys=1) + text(b"general.alignment") + struct.pack("<II", U32, 0),
    "alignment as text": header(keys=1) + text(b"general.alignment") + struct.pack("<I", STRING) + text(b"x"),
    "no text": header(keys=1) + text(b"\xff\xfe") + struct.pack("<II", U32, 3),
    "version": b"GGUF" + struct.pack("<IQQ", 77, 0, 0),
    "empty": b"",
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_is_announced_is_not_waited_for(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(BOMBS[name])
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"m\.gguf is not a GGUF file, or is truncated or corrupt \("):
        open_gguf(path)
    assert time.monotonic() - start < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16


def test_an_array_that_is_there_but_would_take_gigabytes(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(header(keys=1) + text(b"my.bytes") + array(0, 2**22) + bytes(2**22))
    with pytest.raises(UserError, match=r"'my\.bytes'.*4194304 values, which is more than any model"):
        open_gguf(path)


@pytest.mark.parametrize("order", ["<", ">"])
def test_files_of_both_kinds_of_machines(order: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(header(order=order))
    assert open_gguf(path).tensors == ()


@pytest.fixture
def small(tmp_path: Path, gguf_writer: Writer) -> Path:
    """A complete model in two kilobytes."""
    rng = np.random.default_rng(0)
    specs = all_specs(config_from_hf(SIZES))
    tensors = {spec.key: rng.standard_normal(spec.checkpoint_shape).astype(np.float32) for spec in specs}
    return gguf_writer(tmp_path / "m.gguf", SIZES, tensors)


def read_all(path: Path) -> None:
    reader = open_gguf(path)
    config = config_from_hf(read_hf_config(reader, path))
    tokenizer_from_gguf(reader, path)
    source = GgufSource(reader, path, config)
    for key in source.keys():  # noqa: SIM118 - not a mapping
        source.read(key)


def test_every_truncation(small: Path) -> None:
    whole = small.read_bytes()
    data = open_gguf(small).start
    for length in range(data + 64):
        small.write_bytes(whole[:length])
        assert "m.gguf" in refusal(lambda: read_all(small))


@pytest.mark.slow
def test_every_flipped_byte(small: Path) -> None:
    """Damage is either refused or gives another model. No other error may occur."""
    whole = small.read_bytes()
    data = open_gguf(small).start
    for place in range(data):
        flipped = whole[place] ^ (0x80, 0x01, 0x10)[place % 3]
        small.write_bytes(whole[:place] + bytes([flipped]) + whole[place + 1 :])
        message = refusal(lambda: read_all(small))
        assert not message or "m.gguf" in message or "config key" in message


def add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Add a value with the GGUF type that suits it, if there is one."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_int64(key, value)
    elif isinstance(value, float):
        writer.add_float64(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


VALUES = [
    *(value for value in BAD_VALUES if isinstance(value, bool | float | str)),
    *(value for value in BAD_VALUES if isinstance(value, int) and abs(value) < 2**63),
    *([1], [1.5], ["x"], [True], ["x"] * 8, [1] * 8, [-1] * 8, [float("nan")] * 8, ["a\0b"] * 8, [""] * 8),
]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["gpt2", "llama"])
def test_every_key_with_every_kind_of_value(model: str, small: Path, gguf_writer: Writer) -> None:
    whole = dict(open_gguf(small).values)
    whole |= {"tokenizer.ggml.model": model, "tokenizer.ggml.scores": [0.0] * 8}
    further = ("bos_token_id", "eos_token_id", "unknown_token_id", "padding_token_id")
    further += ("add_bos_token", "add_eos_token", "add_space_prefix")
    keys = [*whole, *(f"tokenizer.ggml.{key}" for key in further), "tokenizer.chat_template"]
    keys += ["split.count", "llama.rope.scaling.type", "llama.attention.causal", "llama.rope.dimension_count"]
    for key in keys:
        for value in VALUES:
            writer = gguf.GGUFWriter(small, "llama")
            writer.kv_data[0].clear()
            for other, kept in (whole | {key: value}).items():
                if other != key and other.startswith("llama.") and isinstance(kept, int):
                    writer.add_uint32(other, kept)
                else:
                    add(writer, other, kept)
            for name in ("token_embd.weight", "output.weight"):
                writer.add_tensor(name, np.zeros((8, 4), np.float32))
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
            writer.close()
            message = refusal(lambda: read_all(small))
            assert not message or "m.gguf" in message or "config key" in message
            assert len(message) < 1000


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(UserError, match=r"m\.gguf': it is not a regular file"):
        load_model(str(tmp_path / "m.gguf"))


def test_more_layers_than_tensors(small: Path, gguf_writer: Writer) -> None:
    path = gguf_writer(small, SIZES, {}, metadata={"llama.block_count": 10**9})
    with pytest.raises(UserError, match=r"block_count' of .*m\.gguf is 1000000000, but it has 0 ten"):
        load_model(str(path))


def test_tensors_that_overlap_or_begin_between_places(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    first, second = tensor(8), tensor(8, offset=32).replace(b"t", b"u", 1)
    whole = header(tensors=2) + first + second
    data = bytes(-len(whole) % 32) + bytes(64)
    path.write_bytes(whole + data)
    assert [each.name for each in open_gguf(path).tensors] == ["t", "u"]
    for wrong, message in (
        (first + tensor(8).replace(b"t", b"u", 1), "tensors 't' and 'u' overlap"),
        (first + tensor(7, offset=28).replace(b"t", b"u", 1), "'u' begins at 28, no multiple of 32"),
        (first + first, "two tensors have the same name"),
    ):
        path.write_bytes(header(tensors=2) + wrong + data)
        with pytest.raises(UserError, match=message):
            open_gguf(path)


def test_a_million_empty_words_take_little(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(header(keys=1) + text(b"a") + array(STRING, 2**20) + bytes(8 * 2**20))
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert open_gguf(path).values["a"] == [""] * 2**20
    assert time.monotonic() - start < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16


def test_values_are_those_that_the_gguf_package_reads(small: Path) -> None:
    theirs, ours = gguf.GGUFReader(small), open_gguf(small)
    values = {key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")}
    assert ours.values == values
    assert len(ours.tensors) == len(theirs.tensors)
    for mine, other in zip(ours.tensors, theirs.tensors, strict=True):
        assert (mine.name, mine.kind) == (other.name, other.tensor_type)
        np.testing.assert_array_equal(ours.read(mine), other.data)
