"""Untrusted chat templates: what they write, and how a template that never ends is stopped."""

import os
import signal
import time
from typing import Any

import pytest
from data_samples import CHAT, Bytes
from speeds import only_quick
from transformers import PreTrainedTokenizerFast

from tyr_jax import confinement
from tyr_jax.confinement import Limits
from tyr_jax.data import chat
from tyr_jax.errors import UserError


class Stranger(Bytes):
    def __init__(self, template: str) -> None:
        self.chat_template = template


@pytest.fixture(scope="module")
def patience() -> Any:
    """Stop templates after two seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(confinement, "Limits", lambda: Limits(seconds=2))
        yield


RANGE = "{% for i in range(99999) %}"
BOMBS = {
    "loops": RANGE * 3 + "{% endfor %}" * 3,
    "writes": RANGE + "x" * 1000 + "{% endfor %}",
    "doubles": "{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "adds": "{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "joins": "{% set n = namespace(s='x') %}{% for i in range(99) %}{% set n.s = [n.s]*9|join %}{% endfor %}",
    "multiplies": "{{ 'x' * 10**11 }}",
    "lists": "{% set x = [0] * 10**10 %}",
    "pads": "{{ '%100000000000s' % 'x' }}",
    "formats": "{{ '{:>100000000000}'.format('x') }}",
    "centres": "{{ 'x' | center(10**11) }}",
    "counts": "{{ 10**10**8 }}",
    "recurses": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "replaces": "{{ ('x' * 10**6) | replace('x', 'x' * 10**6) }}",
    "searches": "{{ ('a' * 10**5 + 'b') | urlize }}",
    "deep": "{{ " + "(" * 10**5 + "1" + ")" * 10**5 + " }}",
    "long": "{% if x %}" * 10**4 + "{% endif %}" * 10**4,
    "reads": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "broken": "{% for %}",
    "undefined": "{{ nothing.at.all }}",
    "raises": "{{ raise_exception('no system\nrole') }}",
    "divides": "{{ 1 // 0 }}",
}


@pytest.mark.parametrize("name", only_quick(BOMBS, *BOMBS.keys() - {"loops", "doubles"}))
def test_templates_end_in_seconds(name: str, patience: None) -> None:
    start = time.monotonic()
    try:
        text = chat.written(Stranger(BOMBS[name]), CHAT)
    except UserError as error:
        text = ""
        message = str(error)
    else:
        message = "the model's chat template fails: "
    assert message.startswith("the model's chat template fails: ")
    assert "\n" not in message
    assert len(text) < 2**20
    assert time.monotonic() - start < 30


@pytest.mark.slow
def test_after_one_that_is_stopped_the_next_is_written(patience: None) -> None:
    with pytest.raises(UserError, match="it takes more than 2 s of processor time"):
        chat.written(Stranger(BOMBS["loops"]), CHAT)
    with pytest.raises(UserError, match="too much memory"):
        chat.written(Stranger(BOMBS["multiplies"]), CHAT)
    assert chat.written(Bytes(), CHAT) == "<user>hi<assistant>ho"


def test_an_answer_is_never_taken_for_another_requests() -> None:
    """A signal arrives while a template runs."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)
    chat.written(Bytes(), CHAT)
    try:
        process = confinement._process.process
        assert process is not None
        os.system(f"(sleep 0.3; kill -USR1 {os.getpid()}) &")
        with pytest.raises(KeyboardInterrupt):
            chat.written(Stranger(RANGE + "{% for i in range(200) %}{% endfor %}{% endfor %}late"), CHAT)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert process.poll() is not None
    assert chat.written(Bytes(), CHAT) == "<user>hi<assistant>ho"


def test_as_transformers_writes_them(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    template = (
        "{%- for message in messages %}{{ bos_token + message.role | upper }}: "
        "{{ message['content'] | trim }}{% if not loop.last %}{{ eos_token }}{% endif %}\n{%- endfor %}"
        "{% if add_generation_prompt %}{{ '>' }}{% endif %}{{ tools | tojson }}"
    )
    conversation = [*CHAT, {"role": "user", "content": '  äöü \u2028 "quoted" \n👩‍👧 '}]
    for options in ({}, {"add_generation_prompt": True}):
        theirs = tiny_tokenizer.apply_chat_template(
            conversation, tokenize=False, chat_template=template, **options
        )
        assert chat.written(tiny_tokenizer, conversation, template, **options) == theirs
    plain = tiny_tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert chat.written(tiny_tokenizer, CHAT) == plain == "<s>hi</s><s>ho</s>"


def test_a_model_without_a_template() -> None:
    with pytest.raises(UserError, match="has no chat template"):
        chat.template_of(PreTrainedTokenizerFast(tokenizer_object=tokenizer()))


def tokenizer() -> Any:
    from tokenizers import Tokenizer, models

    return Tokenizer(models.BPE())
