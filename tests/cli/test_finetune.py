"""Recovery from the command line: what it writes, what it refuses, and that an interruption costs nothing."""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

from tyr_jax.cli import evaluate, finetune, prune
from tyr_jax.errors import UserError
from tyr_jax.evaluation import writing
from tyr_jax.io.checkpoint import load_model
from tyr_jax.model.decoder import forward
from tyr_jax.recovery.settings import RecoverySettings, step_rows, step_shape
from tyr_jax.report.tables import regained
from tyr_jax.run import recover
from tyr_jax.runtime import devices
from tyr_jax.workspace.store import Store

pytestmark = pytest.mark.slow


class Died(BaseException):
    """Raised where a process would have been killed."""


@pytest.fixture(scope="module")
def pruned(tiny_arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, pruned to 50%."""
    output = tmp_path_factory.mktemp("pruned") / "pruned"
    prune.main([*tiny_arguments, "--sparsity", "0.5", "--rounds", "0", "--output", str(output)])
    return output


@pytest.fixture
def command(pruned: Path, tiny_text: Path, tmp_path: Path) -> list[str]:
    """Arguments of a training that takes seconds."""
    small = """--tokens 2048 --sequence-length 32 --step-tokens 256 --save-every 3 --rank 4
        --evaluation-length 32 --evaluation-windows 4 --learning-rate 0.01"""
    own = ["--data", str(tiny_text), "--trust-record", "--output", str(tmp_path / "recovered")]
    return [str(pruned), *own, *small.split()]


def record(directory: Path) -> dict:
    return json.loads((directory / "recovery.json").read_text())


@pytest.mark.parametrize(
    "extra",
    [
        [],
        ["--method", "full", "--hidden", "0.1", "--learning-rate", "0.002"],
        ["--optimizer", "muon"],
        ["--goal", "next-token"],
    ],
    ids=str,
)
def test_it_gets_better_and_loads_in_torch(extra: list[str], command: list[str], tmp_path: Path) -> None:
    finetune.main([*command, *extra])
    found = record(tmp_path / "recovered")
    ((name, after),) = found["quality"]["recovered"].items()
    # With random weights, a model that is close to the dense one is not better at the text.
    figure = "perplexity" if "next-token" in extra else "kl"
    assert after[figure] < found["quality"]["pruned"][name][figure]
    assert found["quality"]["dense"].keys() == ({name} if figure == "kl" else set())
    assert found["losses"][-1] < found["losses"][0]
    assert found["trained_tokens"] == 2048
    for page in ("README.md", "report.html"):
        text = (tmp_path / "recovered" / page).read_text()
        assert "2,048 tokens" in text
        assert f"{after['perplexity']:.2f}" in text
    model = load_model(str(tmp_path / "recovered"))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "recovered", trust_remote_code=True)
    tokens = np.arange(20)[None] % 90
    ours = forward(model.params, jax.numpy.asarray(tokens), model.config)
    with torch.no_grad():
        np.testing.assert_allclose(theirs(torch.tensor(tokens)).logits, ours, atol=1e-4)


@pytest.mark.parametrize("when", ["before", "after"])
def test_dying_at_every_write(
    when: str, command: list[str], tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process dies before or after its first to fourth write or deletion, in turn."""
    command = [*command, "--data", str(tiny_text), "self"]
    finetune.main(command)
    recovered, whole = tmp_path / "recovered", tmp_path / "whole"
    recovered.rename(whole)
    left = 0

    def dying(act: Callable[..., None], *arguments: Any, **more: Any) -> None:
        nonlocal left
        left -= 1
        if left or when == "after":
            act(*arguments, **more)
        if not left:
            raise Died

    for name in ("save", "clear"):
        act = getattr(Store, name)
        monkeypatch.setattr(Store, name, lambda *rest, act=act, **more: dying(act, *rest, **more))
    lives = 0
    while not recovered.is_dir():
        left, lives = lives % 4 + 1, lives + 1
        with contextlib.suppress(Died):
            finetune.main(command)
    assert lives > 3
    for name in ("model.safetensors", "config.json"):
        assert (recovered / name).read_bytes() == (whole / name).read_bytes()
    assert record(recovered)["losses"] == record(whole)["losses"]
    assert {path.name for path in tmp_path.iterdir()} >= {"recovered", "whole"}
    assert not list(tmp_path.glob(".*"))


def test_it_learns_from_what_the_dense_model_writes(
    command: list[str], tiny_text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This is half of the tokens. They are written once, however often the training is interrupted."""
    command = [*command, "--data", str(tiny_text), "self"]
    written = []
    write = writing.write_texts

    def watched(*arguments: Any) -> Iterator[np.ndarray]:
        for group in write(*arguments):
            written.append(group)
            yield group

    def die(*_: object) -> None:
        raise Died

    monkeypatch.setattr(writing, "write_texts", watched)
    with monkeypatch.context() as patch, contextlib.suppress(Died):
        patch.setattr(recover, "train_steps", die)
        finetune.main(command)
    finetune.main(command)
    assert [group.shape for group in written] == [(2048 // 32 // 2, 32)]
    found = record(tmp_path / "recovered")
    assert found["passes"]["self"] == 1
    ((name, after),) = found["quality"]["recovered"].items()
    assert after["kl"] < found["quality"]["pruned"][name]["kl"]


def test_a_teacher_that_only_the_record_names_is_not_loaded(
    command: list[str], pruned: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        finetune.main([word for word in command if word != "--trust-record"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert (
        f"the record of {pruned} says that it was pruned from {tiny_model}: if you trust the record" in said
    )


def test_it_is_measured_again_on_the_same_text(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finetune.main(command)
    ((_, after),) = record(tmp_path / "recovered")["quality"]["recovered"].items()
    measure = f"python -m tyr_jax.evaluate {tmp_path / 'recovered'} --trust-record"
    told = f"written to {tmp_path / 'recovered'}: evaluate with `{measure}`"
    assert capsys.readouterr().out.splitlines()[-1] == told
    evaluate.main([str(tmp_path / "recovered"), "--trust-record", "--json"])
    (row,) = json.loads(capsys.readouterr().out)["texts"]
    assert row["perplexity"] == pytest.approx(after["perplexity"], rel=1e-5)
    assert row["perplexity_when_made"] == pytest.approx(after["perplexity"], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rank", "0"], "--rank is 0"),
        (["--learning-rate", "-1"], "--learning-rate is -1"),
        (["--seed", "-1"], "--seed is -1, but must be from 0 to 4294967295"),
        (["--tokens", "9"], "--tokens is 9"),
        (["--tokens", "64"], "raise --tokens or lower --step-tokens"),
        (["--goal", "next-token", "--hidden", "1"], "--hidden compares"),
        (["--data", "none.txt"], "there is no file"),
        (["--evaluation-length", "0"], "--evaluation-length is 0, but must be at least 2"),
        (["--teacher", "OTHER"], "name the model that was pruned with --teacher"),
        (["--goal", "next-token", "--data", "self", "builtin"], "train with --goal kd"),
        (["--data", "self"], "name a text with --evaluation"),
        (["--learning-rate", "1e30", "--goal", "next-token"], "is not finite; lower --learning-rate"),
        (["--sequence-length", "256", "--step-tokens", "256"], "has only 128 positions"),
    ],
    ids=str,
)
def test_what_cannot_be(
    arguments: list[str],
    says: str,
    command: list[str],
    tmp_path: Path,
    save_tiny: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "OTHER" in arguments:
        arguments = ["--teacher", str(save_tiny(tmp_path / "other", hidden=64))]
    with pytest.raises(SystemExit) as stopped:
        finetune.main([*command, *arguments])
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "recovered").exists()


def test_another_teacher_is_refused(
    command: list[str],
    tmp_path: Path,
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its head is the same, so only what is remembered of the whole model tells."""

    def die(*_: object) -> None:
        raise Died

    with monkeypatch.context() as patch, contextlib.suppress(Died):
        patch.setattr(recover, "train_steps", die)
        finetune.main(command)
    weights = tiny_model / "model.safetensors"
    before = weights.read_bytes()
    try:
        tensors = {
            name: array * (1.01 if "layers" in name else 1) for name, array in load_file(weights).items()
        }
        save_file(tensors, weights)
        with pytest.raises(SystemExit):
            finetune.main(command)
    finally:
        weights.write_bytes(before)
    assert "the teacher of the interrupted run changed since it began" in capsys.readouterr().err
    finetune.main(command)
    assert (tmp_path / "recovered").is_dir()


def test_other_settings_are_refused(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise Died

    with monkeypatch.context() as patch, contextlib.suppress(Died):
        patch.setattr(recover, "write_weights", die)
        finetune.main(command)
    with pytest.raises(SystemExit):
        finetune.main([*command, "--rank", "8"])
    assert "used a different --rank; " in capsys.readouterr().err
    finetune.main([*command, "--rank", "8", "--restart"])
    assert record(tmp_path / "recovered")["settings"]["training"]["rank"] == 8


@pytest.mark.parametrize(
    ("perplexities", "share"), [((10, 40, 20), "50%"), ((10, 20, 40), "-100%"), ((10, 10, 9), "–")]
)
def test_what_was_regained(perplexities: tuple[float, float, float], share: str) -> None:
    assert regained(*perplexities) == share


def shape_of(settings: RecoverySettings) -> tuple[int, int, int]:
    return step_shape(settings, step_rows(settings))


def test_every_device_has_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "count", lambda: 8)
    assert shape_of(RecoverySettings("pruned")) == (300_000 // 512 // 8, 1, 8)
    long = RecoverySettings("pruned", step_tokens=65536, tokens=131072)
    assert shape_of(long) == (2, 2, 64)
    with pytest.raises(UserError, match="not a multiple of the 8 devices"):
        shape_of(dataclasses.replace(long, step_tokens=2048))
