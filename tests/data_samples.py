"""Tokenizers, specs and files shared by the tests of texts."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers
from tokenizers.pre_tokenizers import ByteLevel, WhitespaceSplit

from tyr_jax.data import DataSpec, parse_source
from tyr_jax.data.documents import parse_documents

BOS, EOS = 1, 2
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


class Bytes:
    """A token is a byte; three ids are special."""

    bos_token_id: int | None = BOS
    eos_token_id: int | None = EOS
    all_special_ids = (0, BOS, EOS)

    def __len__(self) -> int:
        return 259

    @property
    def backend_tokenizer(self) -> Tokenizer:
        return bytes_backend()

    chat_template = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}"
    special_tokens_map: ClassVar[dict[str, str]] = {"bos_token": "<bos>"}

    def get_chat_template(self) -> str:
        return self.chat_template


class Numbers(Bytes):
    """A token is a number below `below` written in the text, so that a token says where in the text it
    stands. Of longer numbers, the last six digits count."""

    below = 20_000

    @property
    def backend_tokenizer(self) -> Tokenizer:
        return numbers_backend(self.below)


@functools.cache
def bytes_backend() -> Tokenizer:
    # The letters that stand for bytes, in the order of the bytes.
    letters = ByteLevel(add_prefix_space=False, use_regex=False)
    plain = {byte: chr(byte) for byte in [*range(33, 127), *range(161, 173), *range(174, 256)]}
    others = [byte for byte in range(256) if byte not in plain]
    vocab = {letter: byte + 3 for byte, letter in plain.items()}
    vocab |= {chr(256 + place): byte + 3 for place, byte in enumerate(others)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = letters
    return tokenizer


@functools.cache
def numbers_backend(below: int) -> Tokenizer:
    vocab = {str(number): number for number in range(below)}
    tokenizer = Tokenizer(models.WordLevel(vocab=vocab, unk_token="0"))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"[0-9]+(?=[0-9]{6})"), ""),
            normalizers.Replace(Regex(r"(?<![0-9])0+(?=[0-9])"), ""),
        ]
    )
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return tokenizer


def numbers(count: int, start: int = 10) -> str:
    return " ".join(map(str, range(start, start + count)))


def decode(tokens: np.ndarray) -> str:
    return bytes(int(token) - 3 for token in tokens).decode()


def spec_of(*calibration: object, **changes: Any) -> DataSpec:
    spec = DataSpec(
        calibration=tuple(map(str, calibration)),
        evaluation=(),
        sequence_length=8,
        search_length=8,
        calibration_tokens=80,
        calibration_noise=0.0,
        search_tokens=40,
        evaluation_length=8,
        evaluation_windows=4,
    )
    return dataclasses.replace(spec, **changes)


def write(path: Path, content: str | bytes | list[Any]) -> Path:
    if isinstance(content, list):
        content = "\n".join(json.dumps(row) for row in content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def documents(path: object) -> list[Any]:
    return list(parse_documents(parse_source(str(path))))
