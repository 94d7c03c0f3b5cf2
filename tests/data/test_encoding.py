"""Tokens from the process with limits are those of transformers."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from tyr_jax.data.encoding import encode

TEXTS = ("", "  the cat\n\n", "naïve 日本 👩‍👧 <s>the</s>", "1234 it's", "a" * 3000)


def same(tokenizer: Any, text: str) -> bool:
    return all(
        encode(tokenizer, text, special=special).tolist()
        == tokenizer(text, add_special_tokens=special)["input_ids"]
        for special in (False, True)
    )


@given(st.text(st.characters(codec="utf-8"), max_size=60))
def test_any_text(tiny_tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert same(tiny_tokenizer, text)


@pytest.mark.parametrize("split", [False, True])
def test_special_tokens_that_are_split(tiny_tokenizer: PreTrainedTokenizerFast, split: bool) -> None:
    copy = PreTrainedTokenizerFast(
        tokenizer_object=tiny_tokenizer.backend_tokenizer, bos_token="<s>", split_special_tokens=split
    )
    assert all(same(copy, text) for text in TEXTS)


def test_tokens_that_are_added_later(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    copy = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer.backend_tokenizer)
    assert same(copy, "the zebra")
    copy.add_tokens(["zebra"])
    assert same(copy, "the zebra")


@pytest.mark.smollm2
def test_a_real_one(smollm2: Any) -> None:
    assert all(same(smollm2.tokenizer, text) for text in TEXTS)
