"""Tokenizers, specs and files shared by the tests of texts."""

import dataclasses
import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tyr_jax.data import DataSpec, parse_source, read_documents

BOS, EOS = 1, 2
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]


class Bytes:
    """A token is a byte; three ids are special."""

    bos_token_id: int | None = BOS
    eos_token_id: int | None = EOS
    all_special_ids = (0, BOS, EOS)

    def __len__(self) -> int:
        return 259

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens
        return {"input_ids": [byte + 3 for byte in text.encode()]}

    chat_template = "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}{% endfor %}"
    special_tokens_map: ClassVar[dict[str, str]] = {"bos_token": "<bos>"}

    def get_chat_template(self) -> str:
        return self.chat_template


class Numbers(Bytes):
    """A token is a number written in the text, so that a token says where in the text it stands."""

    def __call__(self, text: str, *, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}


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
    return list(read_documents(parse_source(str(path))))
