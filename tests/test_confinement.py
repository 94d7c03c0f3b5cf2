"""The process with limits: what it replies, what ends it, and that it answers the next request."""

import itertools
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from tyr_jax import confined, confinement
from tyr_jax.confinement import Kept, Limits, call, stream
from tyr_jax.errors import UserError


def test_values_arrays_and_sentences() -> None:
    assert call("x", "operator:add", "a\ud800", "é") == "a\ud800é"
    assert call("x", "operator:add", [1, {"a": None}], [2.5]) == [1, {"a": None}, 2.5]
    np.testing.assert_array_equal(call("x", "numpy:arange", 3), np.arange(3, dtype=np.int32))
    with pytest.raises(UserError, match=r"^--seed is -1, but must be 0 or more$"):
        call("x", "tyr_jax.errors:require", False, "--seed", -1, "0 or more")


def test_a_bug_is_not_taken_for_a_users_mistake() -> None:
    with pytest.raises(RuntimeError, match="factorial"):
        call("x", "math:factorial", -1)


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        ("operator:mul", ([0], 10**9), "needs too much memory"),
        ("math:factorial", (10**8,), "takes more than 1 s of processor time"),
        ("os:abort", (), "needs too much memory"),
        ("os:_exit", (3,), "ended with status 3"),
    ],
)
def test_what_takes_too_much_is_refused(function: str, arguments: tuple[object, ...], message: str) -> None:
    start = time.monotonic()
    with pytest.raises(UserError, match=rf"^'a\.txt' cannot be read: .*{message}"):
        call("'a.txt' cannot be read", function, *arguments, limits=Limits(seconds=1))
    assert time.monotonic() - start < 10
    assert call("x", "operator:add", 1, 1) == 2


def test_limits_hold_for_each_request() -> None:
    for _ in range(3):
        assert call("x", "math:gcd", 4, 6, limits=Limits(seconds=0.1)) == 2
        time.sleep(0.1)


def test_long_texts_are_sent_once_and_forgotten_in_time() -> None:
    confinement._process.stop()
    texts = [Kept(str(number)) for number in range(confinement.MOST_KEPT + 2)]
    for text in [*texts, texts[0], texts[0], texts[-1]]:
        assert call("x", "operator:add", text, "!") == f"{text.text}!"
    assert len(confinement._process._kept) == confinement.MOST_KEPT
    assert confinement._process._given([texts[-1]])["texts"] == {}


def test_a_stream_comes_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    values = stream("x", "itertools:repeat", "a" * (confined.BATCH // 2))
    asked = []
    ask = confinement._process.ask
    monkeypatch.setattr(confinement._process, "ask", lambda *given: asked.append(given[1]) or ask(*given))
    assert [len(value) for value in itertools.islice(values, 5)] == [confined.BATCH // 2] * 5
    assert call("x", "operator:add", 1, 1) == 2
    values.close()
    assert asked == ["opened", "batch", "batch", "batch", "called", "closed"]
    assert list(stream("x", "builtins:list", ["a", "b"])) == ["a", "b"]


def test_a_stream_does_not_outlive_its_process() -> None:
    values = stream("'a.txt' cannot be read", "itertools:repeat", "a" * confined.BATCH)
    next(values)
    confinement._process.stop()
    with pytest.raises(UserError, match=r"^'a\.txt' cannot be read: reading it was interrupted"):
        next(values)


FORK = """
import os
from tyr_jax.confinement import call
assert call("x", "operator:add", 1, 1) == 2
child = os.fork()
if not child:
    os._exit(0 if call("x", "operator:add", 2, 2) == 4 else 1)
assert os.waitpid(child, 0)[1] == 0
assert call("x", "operator:add", 1, 1) == 2
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_child_starts_its_own() -> None:
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60)
