"""Bad input, through the command line: one sentence, exit status 2, and nothing left behind."""

import errno
import json
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import errors as hub_errors
from safetensors.numpy import load_file, save_file
from speeds import only_quick

from tyr_jax import results
from tyr_jax.cli import evaluate, prune
from tyr_jax.io import checkpoint
from tyr_jax.options import every_option
from tyr_jax.run import models
from tyr_jax.settings import PRESETS
from tyr_jax.workspace import events, job
from tyr_jax.workspace.manifest import seal

Fails = Callable[..., str]
Q = "model.layers.1.self_attn.q_proj.weight"


def tree(directory: Path) -> dict[str, bytes | None]:
    """Everything below a directory, with the contents of files."""
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in sorted(directory.rglob("*"))
    }


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """The folder for the output, which already contains another file."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "neighbour.txt").write_text("mine")
    return work


@pytest.fixture
def fails(work: Path, tiny_arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Fails:
    """Prune with further arguments, check status, stderr and the disk, and return the error sentence."""

    def run(*arguments: object, status: int = 2, unfinished: bool = False) -> str:
        before = tree(work)
        with pytest.raises(SystemExit) as stopped:
            prune.main([*tiny_arguments, "--output", str(work / "pruned"), *map(str, arguments)])
        assert stopped.value.code == status
        assert (work / ".pruned.unfinished" / "finished").is_dir() == unfinished
        left = {path: content for path, content in tree(work).items() if ".unfinished" not in path}
        assert (left if unfinished else tree(work)) == before
        stderr = capsys.readouterr().err
        assert "Traceback" not in stderr
        lines = stderr.splitlines()
        sentences = [line for line in lines if line.startswith("error: ")]
        if status == 2:
            assert len(sentences) == 1
            assert lines[-1] == sentences[0]
        return lines[-1]

    return run


@pytest.fixture
def broken_model(tmp_path: Path, tiny_model: Path) -> Path:
    """A copy of the tiny model to spoil."""
    return Path(shutil.copytree(tiny_model, tmp_path / "broken"))


def set_config(model: Path, **values: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# The command line


@pytest.mark.slow
def test_whole_numbers_that_are_too_large(fails: Fails) -> None:
    """Every flag that takes a whole number is checked before any work is done."""
    settings = prune.PruneArguments(PRESETS["quick"])
    flags = [option.flag for option in every_option(settings) if numbers_of(option.of(settings))]
    assert {"--levels", "--neuron-chunk", "--stage-tokens", "--survivors", "--evaluation-windows"} <= set(
        flags
    )
    for flag in flags:
        for value in (10**20, -(10**20)):
            assert fails(flag, value).startswith(f"error: {flag} is {value}, but must be between")


def numbers_of(value: object) -> bool:
    values = value if isinstance(value, tuple) else (value,)
    return bool(values) and all(type(each) is int for each in values)


@pytest.mark.parametrize("argument", ["\udc80", "é\udcff", "a\udc80b"])
def test_arguments_are_text(argument: str, fails: Fails) -> None:
    for arguments in (["--calibration", argument], ["--output", argument], [argument]):
        assert fails(*arguments).endswith("is not UTF-8 text; rename what it names")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nonsense"], "unrecognised arguments: --nonsense"),
        (["--sparsty", "0.3"], "--sparsty.*perhaps --sparsity was meant"),
        (["stray"], "stray"),
        (["--seed"], "error: --seed needs a value"),
        (["--levels", "many"], "error: --levels is many, but must be a whole number"),
        (["--damping", "high"], "error: --damping is high, but must be a number"),
        (["--sparsity", "0.5", "half"], "error: --sparsity is 0.5 half, but must be numbers"),
        (["--keep-heads", "0.5"], "error: --keep-heads is 0.5, but must be whole numbers"),
        (["--preset", "fast"], "error: --preset is fast, but must be one of quick, standard, paper"),
        (["--preset=fast"], "error: --preset is fast, but must be one of quick, standard, paper"),
    ],
)
def test_arguments_that_cannot_be_understood(arguments: list[str], message: str, fails: Fails) -> None:
    sentence = fails(*arguments)
    assert re.search(message, sentence)
    assert sentence.endswith("(help: python -m tyr_jax.prune --help)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sparsity", "0"], "--sparsity is 0.0, but must be between 0 and 1"),
        (["--sparsity", "1"], "--sparsity is 1.0, but must be between 0 and 1"),
        (["--sparsity", "1.5"], "--sparsity is 1.5"),
        (["--sparsity", "nan"], "--sparsity is nan"),
        # Half a head of twelve, and all but half a head.
        (["--budget=units", "--sparsity=0.04"], "would leave attention intact: of 12 units 12 would be kept"),
        (["--budget=units", "--sparsity=0.96"], "would leave attention without a single unit"),
        (["--budget=units", "--sparsity=0.1", "--neuron-multiple=48"], "would leave ffn intact"),
        (
            ["--sparsity", "0.01"],
            "is too small .* neurons, has .* parameters, but only 233 of the blocks' 23,232 are to go",
        ),
        (
            ["--sparsity", "0.99"],
            "would keep 232 of 23,232 parameters of the blocks, fewer than a model needs",
        ),
        (["--rounds", "0", "--interval", "1e308"], "--interval is 1e\\+308, but must be above 0"),
        (["--neuron-multiple", "64"], "48 ffn units, but must keep a multiple of 64"),
        (["--sequence-length", "256"], "--sequence-length is 256.*only 128"),
        (["--search-length", "256", "--search-tokens", "512"], "--search-length is 256.*only 128"),
        (["--evaluation-length", "129"], "--evaluation-length is 129.*has only 128 positions"),
        (["--calibration-tokens", "16"], "--calibration-tokens 16 is less than one sequence of 32"),
        (["--calibration-tokens", "999999"], "words.txt' has .* tokens.*are needed"),
        (["--calibration", "gone.txt"], "no file '.*gone.txt'"),
        (["--calibration", "builtin:novels"], "no builtin text 'novels'"),
        (["--calibration", "builtin@0"], "weight '0'"),
    ],
)
def test_targets_and_texts_that_cannot_be(arguments: list[str], message: str, fails: Fails) -> None:
    assert re.search(message, fails(*arguments))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"too short", "text.txt' has .* tokens"),
        (b"", "text.txt' is empty"),
        (b"\xff\xfe\x00 not text \x80" * 999, "text.txt' is not UTF-8 text"),
        (b"words\0and\0zeros " * 999, "text.txt' holds NUL bytes, so it is not text"),
    ],
)
def test_text_that_is_too_little_or_none(content: bytes, message: str, fails: Fails, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    assert re.search(message, fails("--calibration", path))


# Models


def test_no_such_model(fails: Fails, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    assert f"no such file or directory: '{gone}'" in fails("--model", gone)
    (tmp_path / "empty").mkdir()
    assert "empty has no model.safetensors" in fails("--model", tmp_path / "empty")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (hub_errors.GatedRepoError, "model 'owner/name' is gated"),
        (hub_errors.RepositoryNotFoundError, "no model 'owner/name' on the Hugging Face hub"),
        (hub_errors.LocalEntryNotFoundError, "'owner/name' .*cannot be reached"),
    ],
)
def test_models_that_the_hub_does_not_give(
    kind: type[Exception], message: str, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        # Made without its own constructor, which wants an HTTP response.
        raise kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    assert re.search(message, fails("--model", "owner/name"))


def test_unsupported_architecture(fails: Fails, broken_model: Path) -> None:
    set_config(broken_model, model_type="mamba", architectures=["MambaForCausalLM"])
    assert "mamba" in fails("--model", broken_model)


def test_truncated_safetensors(fails: Fails, broken_model: Path) -> None:
    weights = broken_model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    assert f"{weights}: it is truncated or corrupt" in fails("--model", broken_model)


def test_truncated_gguf(fails: Fails, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", np.zeros((300, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    for size in (20_000, 100, 3, 0):
        path.write_bytes(path.read_bytes()[:size])
        assert str(path) in fails("--model", path)


def test_config_that_contradicts_the_weights(fails: Fails, broken_model: Path) -> None:
    set_config(broken_model, intermediate_size=40)
    assert "config contradicts the weights" in fails("--model", broken_model)
    set_config(broken_model, intermediate_size=48, num_hidden_layers=4)
    assert "'model.layers.3." in fails("--model", broken_model)


def test_weights_that_are_not_finite(fails: Fails, broken_model: Path) -> None:
    tensors = load_file(broken_model / "model.safetensors")
    tensors[Q] = np.full_like(tensors[Q], np.nan)
    save_file(tensors, broken_model / "model.safetensors")
    assert f"tensor '{Q}' holds NaN or infinity" in fails("--model", broken_model)


# The output


def test_output_below_a_file(fails: Fails, work: Path) -> None:
    below = work / "neighbour.txt"
    for path in (below / "pruned", below / "a" / "b"):
        assert f"cannot create output {path}: {below} is a file" in fails("--output", path)
    assert f"output {below} is a file" in fails("--output", below)


def test_output_with_an_impossible_name(fails: Fails, work: Path) -> None:
    assert "cannot write output directory" in fails("--output", work / ("x" * 300))


def test_missing_folders_above_the_output_are_not_left_behind(fails: Fails, work: Path) -> None:
    assert "--sparsity" in fails("--output", work / "a" / "b" / "pruned", "--sparsity", 2)


def test_output_that_is_not_empty(fails: Fails, work: Path) -> None:
    (work / "pruned").mkdir()
    (work / "pruned" / "notes.txt").write_text("keep me")
    sentence = fails()
    assert f"output directory {work / 'pruned'} exists and is not empty" in sentence
    assert "--overwrite" in sentence


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("stage", only_quick(["settings", "weights", "summary", "events"], "settings"))
def test_a_full_disk_spares_the_old_output(
    stage: str, fails: Fails, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "pruned").mkdir()
    (work / "pruned" / "summary.json").write_text("{}")
    seal(work / "pruned")
    owner, name = {
        "settings": (job, "write"),
        "weights": (checkpoint, "save_file"),
        "summary": (results, "write"),
        "events": (events.EventLog, "write"),
    }[stage]
    monkeypatch.setattr(owner, name, full_disk)
    sentence = fails("--overwrite", "--rounds", 0, unfinished=stage in ("weights", "summary"))
    assert "No space left on device" in sentence
    assert str(work) in sentence


@pytest.mark.parametrize(
    ("stage", "said", "unfinished"),
    [
        ((models, "load_model"), "nothing was written", False),
        ((results, "save_model"), "the same command continues where it stopped", True),
    ],
)
def test_ctrl_c(
    stage: tuple[Any, str], said: str, unfinished: bool, fails: Fails, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(*stage, interrupt)
    assert fails("--rounds", 0, status=130, unfinished=unfinished) == f"interrupted: {said}"


def test_termination_leaves_what_is_finished(fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    def terminate(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(results, "save_model", terminate)
    said = "terminated: the same command continues where it stopped"
    assert fails("--rounds", 0, status=143, unfinished=True) == said
    assert signal.getsignal(signal.SIGTERM) is before


# Evaluation


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: MODEL is missing"),
        (
            ["MODEL", "--tasks", "arc_easy", "--evaluation", "builtin", "--bos", "True"],
            r"tasks bring their own text.* \(evaluation, bos\)",
        ),
        (["MODEL", "--windows", "3"], "unrecognised arguments: --windows"),
        (["gone/nowhere/at-all"], "no such file or directory: 'gone/nowhere/at-all'"),
        (["MODEL"], "--evaluation-length is 2048.*has only 128 positions"),
        (["MODEL", "--evaluation-length", "64", "--evaluation", "gone.txt"], "no file '.*gone.txt'"),
    ],
)
def test_evaluation(
    arguments: list[str], message: str, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        evaluate.main([str(tiny_model) if word == "MODEL" else word for word in arguments])
    assert stopped.value.code == 2
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(message, sentence)
