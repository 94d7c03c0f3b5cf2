"""The rows that are trained on, and which of their tokens are learnt."""

import json
from pathlib import Path

import numpy as np
import pytest
from data_samples import Bytes, Numbers, decode, numbers, spec_of

from tyr_jax.data import load_evaluation, parse_source
from tyr_jax.errors import UserError
from tyr_jax.recovery import examples


class Chats(Bytes):
    """A tokenizer whose template marks whose turn it is."""

    chat_template = (
        "{% for turn in messages %}<{{ turn.role }}>{{ turn.content }}.{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )


def jsonl(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_text_is_learnt_and_held_out_windows_are_not(tmp_path: Path) -> None:
    path = tmp_path / "numbers.txt"
    path.write_text(numbers(800))
    spec = spec_of(path)
    tokenizer = Numbers()
    found, passes = examples.load([parse_source(str(path))], spec, 20, tokenizer, 0)
    assert passes[str(path)] < 1
    assert found.tokens.shape == found.learn.shape == (20, 8)
    assert found.learn.all()
    held = np.concatenate([windows.ravel() for windows in load_evaluation(spec, tokenizer).values()])
    assert not np.isin(found.tokens, held).any()
    assert len(np.unique(found.tokens)) == found.tokens.size
    again, other = (examples.load([parse_source(str(path))], spec, 20, tokenizer, seed)[0] for seed in (0, 1))
    np.testing.assert_array_equal(again.tokens, found.tokens)
    assert (other.tokens != found.tokens).any()


def test_what_is_short_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "numbers.txt"
    path.write_text(numbers(100))
    found, passes = examples.load([parse_source(str(path))], spec_of(path), 50, Numbers(), 0)
    rows, counts = np.unique(found.tokens, axis=0, return_counts=True)
    assert len(found.tokens) == 50 == counts.sum()
    assert passes == {str(path): 50 / len(rows)}
    # Before a row is read a third time, all have been read twice.
    assert counts.max() - counts.min() <= 1


def test_a_source_whose_weight_is_too_small_gives_no_row(tmp_path: Path) -> None:
    path = tmp_path / "numbers.txt"
    path.write_text(numbers(800))
    alone, _ = examples.load([parse_source(str(path))], spec_of(path), 4, Numbers(), 0)
    for other in ("self@0.01", "builtin@0.01"):
        sources = [parse_source(str(path)), parse_source(other)]
        assert examples.rows_to_write(sources, 4) == 0
        found, passes = examples.load(sources, spec_of(path), 4, Numbers(), 0)
        np.testing.assert_array_equal(found.tokens, alone.tokens)
        assert list(passes.values())[1:] == [0.0]


@pytest.mark.parametrize("shape", ["messages", "alpaca"])
def test_answers_are_learnt(shape: str, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "hi\n\nyou"}, {"role": "assistant", "content": "ho"}]
    task = {"instruction": "hi", "input": "you", "output": "ho"}
    row = {"messages": turns} if shape == "messages" else task
    path = jsonl(tmp_path / "chats.jsonl", [row] * 40)
    found, _ = examples.load([parse_source(str(path))], spec_of(), 8, Chats(), 0)
    stream = examples.answers(parse_source(str(path)), spec_of(), 40, Chats())
    text = "<user>hi\n\nyou.<assistant>ho."
    assert decode(stream.tokens).startswith(text * 2)
    learnt = "".join(decode(stream.tokens[i : i + 1]) if stream.learn[i] else "_" for i in range(len(text)))
    assert learnt == "_" * len("<user>hi\n\nyou.<assistant>") + "ho."
    assert 0 < found.learn.mean() < 0.5


def test_a_conversation_ends_with_its_last_answer() -> None:
    turns = [{"role": role, "content": content} for role, content in (("user", "a"), ("assistant", "b"))]
    more = [*turns, {"role": "user", "content": "c"}]
    found = list(examples.pieces(more, parse_source("x.jsonl"), Chats()))
    assert found == [("<user>a.<assistant>", False), ("b.", True)]
    assert "".join(piece for piece, _ in examples.pieces(turns * 2, parse_source("x.jsonl"), Chats())) == (
        "<user>a.<assistant>b.<user>a.<assistant>b."
    )


def test_what_cannot_be(tmp_path: Path) -> None:
    path = tmp_path / "numbers.txt"
    path.write_text(numbers(7))
    with pytest.raises(UserError, match="but a sequence takes 8; lower --sequence-length"):
        examples.load([parse_source(str(path))], spec_of(path), 50, Numbers(), 0)
    path.write_text(numbers(80))
    with pytest.raises(UserError, match=r"would repeat \d+ times"):
        examples.load([parse_source(str(path))], spec_of(path), 10**12, Numbers(), 0)
    mixed = jsonl(tmp_path / "mixed.jsonl", [{"messages": [{"role": "user", "content": "a"}]}, {"text": "b"}])
    with pytest.raises(UserError, match="two sources"):
        examples.load([parse_source(str(mixed))], spec_of(), 1, Chats(), 0)

    class Backwards(Chats):
        chat_template = "{% filter reverse %}" + Chats.chat_template + "{% endfilter %}"

    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(UserError, match="turn by turn"):
        list(examples.pieces(turns, parse_source("x.jsonl"), Backwards()))
