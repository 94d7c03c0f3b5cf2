"""`python -m tyr_jax.generate` on tiny models."""

from pathlib import Path

import jax.numpy as jnp
import pytest

from tyr_jax.cli import generate
from tyr_jax.evaluation.continuation import pieces, stop_tokens
from tyr_jax.formatting import shown
from tyr_jax.io.checkpoint import LoadedModel, load_model
from tyr_jax.model.decoder import forward

pytestmark = pytest.mark.slow

PROMPT = "the cat and the hat"


def continued(model: LoadedModel, prompt: str, count: int) -> str:
    """The likeliest text after `prompt`, as shown, by a whole forward for each token, up to its end."""
    start = model.tokenizer(prompt).input_ids
    ids = list(start)
    for _ in range(count):
        ids.append(int(jnp.argmax(forward(model.params, jnp.asarray(ids)[None], model.config)[0, -1])))
        if ids[-1] in stop_tokens(model):
            break
    return shown(str(model.tokenizer.decode(ids[len(start) :], skip_special_tokens=True)))


def test_one_prompt(pruned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate.main([str(pruned), PROMPT, "--max-tokens", "12"])
    assert capsys.readouterr().out == continued(load_model(str(pruned)), PROMPT, 12) + "\n"


def test_half_precision(pruned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The cache is in the same type as the weights."""
    generate.main([str(pruned), PROMPT, "--max-tokens", "12", "--compute-dtype", "bfloat16"])
    model = load_model(str(pruned), jnp.bfloat16)
    assert capsys.readouterr().out == continued(model, PROMPT, 12) + "\n"


def test_several_prompts(pruned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generate.main([str(pruned), PROMPT, "other", "--max-tokens", "6"])
    model = load_model(str(pruned))
    expected = [f"== {prompt}\n{continued(model, prompt, 6)}\n" for prompt in (PROMPT, "other")]
    assert capsys.readouterr().out == "".join(expected)


def test_what_a_model_writes_does_not_reach_the_terminal_as_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "tyr_jax.api.stream_text", lambda *_, **__: iter(["red \x1b[31m", "\nand\ta\x07bell"])
    )
    generate.main(["builtin", "one"])
    assert capsys.readouterr().out == "red \\x1b[31m\nand\ta\\x07bell\n"
    monkeypatch.setattr("tyr_jax.api.generate_text", lambda *_, **__: ["\x1b]0;title\x07", "fine"])
    generate.main(["builtin", "one", "two"])
    assert capsys.readouterr().out == "== one\n\\x1b]0;title\\x07\n== two\nfine\n"


def test_a_chat(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The template of the tiny tokenizer puts a message between bos and eos."""
    generate.main([str(tiny_model), "the cat", "--chat", "--max-tokens", "5"])
    model = load_model(str(tiny_model))
    text = "<s>the cat</s>"
    assert model.tokenizer(text).input_ids[0] == model.tokenizer.bos_token_id
    assert capsys.readouterr().out == continued(model, text, 5) + "\n"


def test_sampling(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for seed in (0, 0, 1):
        generate.main(
            [str(tiny_model), PROMPT, "--max-tokens", "20", "--temperature", "1.5", "--seed", str(seed)]
        )
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] != texts[2]


def test_characters_of_several_tokens_come_whole(tiny_model: Path) -> None:
    tokenizer = load_model(str(tiny_model)).tokenizer
    text = "a €5 note, naïve"
    ids = tokenizer(text).input_ids
    assert len(ids) > len(text)
    parts = list(pieces(tokenizer, iter(ids)))
    assert "".join(parts) == text
    assert "€" in parts
    # A character that is cut off at the end is shown as the replacement character.
    assert "".join(pieces(tokenizer, iter(tokenizer("€").input_ids[:1]))) == "\N{REPLACEMENT CHARACTER}"


def test_what_ends_a_text(tiny_model: Path) -> None:
    assert stop_tokens(load_model(str(tiny_model))) == {2}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "PROMPT"),
        (["x", "--max-tokens", "0"], "--max-tokens is 0"),
        (["x", "--max-tokens", "128"], "more than the 128 positions"),
        (["x", "--temperature", "-1"], "--temperature is -1.0"),
        (["x", "--top-p", "0"], "--top-p is 0.0"),
        (["x", "--top-k", "-1"], "--top-k is -1"),
        ([""], "the prompt '' has no token"),
    ],
)
def test_bad_input(
    arguments: list[str], sentence: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        generate.main([str(tiny_model), *arguments])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error


def test_a_model_without_a_chat_template(
    pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in pruned.iterdir():
        if path.name != "chat_template.jinja":
            (copy / path.name).write_bytes(path.read_bytes())
    with pytest.raises(SystemExit):
        generate.main([str(copy), "x", "--chat"])
    assert "has no chat template; leave --chat out" in capsys.readouterr().err
