"""`python -m tyr_jax.export` on tiny models and on a pruned one, read back by llama.cpp."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import gguf
import jax.numpy as jnp
import llama_reference
import numpy as np
import pytest

from tyr_jax.cli import export
from tyr_jax.errors import UserError
from tyr_jax.io import deci, llama_cpp
from tyr_jax.io.checkpoint import load_model
from tyr_jax.model.decoder import forward
from tyr_jax.run.export import ExportSettings, Quantize, default_path
from tyr_jax.workspace import manifest

pytestmark = pytest.mark.slow

TOKENS = np.random.default_rng(0).integers(0, 250, 40)


def logits(name: Path) -> np.ndarray:
    model = load_model(str(name))
    return np.asarray(forward(model.params, jnp.asarray(TOKENS)[None], model.config))[0]


def test_a_pruned_model_runs_in_llama_cpp(
    pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pruned.gguf"
    export.main([str(pruned), "--quantize", "f32", "--output", str(path)])
    assert f"written to {path}" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [path]
    np.testing.assert_allclose(llama_reference.logits(path, TOKENS), logits(pruned), rtol=0, atol=1e-4)
    tokenizer = load_model(str(pruned)).tokenizer
    lines = ["the cat and the hat", "other things 123", "<s>x</s>"]
    assert llama_reference.tokenize(path, lines, True) == [tokenizer(line).input_ids for line in lines]


@pytest.mark.parametrize("kind", ["q4_k_m", "q6_k"])
def test_llama_cpps_own_types(kind: str, pruned: Path, tmp_path: Path) -> None:
    path = tmp_path / "pruned.gguf"
    export.main([str(pruned), "--quantize", kind, "--output", str(path)])
    assert list(tmp_path.iterdir()) == [path]
    widths = gguf.GGUFReader(path).fields["deci.feed_forward_length"].contents()
    assert {width % 256 for width in widths} == {0}
    exact = logits(pruned)
    error = np.linalg.norm(llama_reference.logits(path, TOKENS) - exact) / np.linalg.norm(exact)
    assert 0 < error < 0.5


def test_every_type_has_a_writer() -> None:
    assert set(get_args(Quantize)) == set(deci.TYPES) | set(llama_cpp.TYPES)


def test_the_file_lies_in_the_models_directory(pruned: Path) -> None:
    assert default_path(str(pruned), ExportSettings()) == pruned / "model-f16.gguf"
    assert default_path("builtin", ExportSettings(quantize="q8_0")) == Path("model-q8_0.gguf")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere/at-all/it-is"], "nowhere/at-all/it-is"),
        (["{model}", "--output", "{directory}"], "is a directory; choose a file with --output"),
        (["{model}", "--output", "{file}"], "exists; choose another with --output, or replace it with"),
        (["{model}", "--output", "{file}/x"], "cannot write"),
        (["{model}", "--output", "{directory}/none/x"], "cannot write"),
        (["{model}", "--quantize", "q7"], "--quantize"),
        (["{model}", "--neuron-multiple", "0"], "--neuron-multiple is 0"),
        (
            ["{model}", "--neuron-multiple", "99999999"],
            "--neuron-multiple is 99999999, but must be at",
        ),
        ([], "MODEL"),
    ],
)
def test_bad_input(
    arguments: list[str],
    sentence: str,
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    places = {"model": tiny_model, "directory": tmp_path, "file": file}
    with pytest.raises(SystemExit) as stopped:
        export.main([argument.format(**places) for argument in arguments])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert "Traceback" not in error
    assert file.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [file]


def test_a_missing_quantiser(
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in ("llama_cpp_py_sync", "llama_cpp_py_sync._cffi_bindings"):
        monkeypatch.setitem(sys.modules, module, None)
    arguments: list[Any] = [str(tiny_model), "--output", str(tmp_path / "x.gguf")]
    with pytest.raises(SystemExit):
        export.main([*arguments, "--quantize", "q4_k_m"])
    assert "pip install 'tyr-jax[llama]'" in capsys.readouterr().err
    export.main([*arguments, "--quantize", "q4_0"])
    assert (tmp_path / "x.gguf").is_file()


@contextlib.contextmanager
def room_for(size: int) -> Iterator[None]:
    """Limit file sizes, so that writing fails with the operating system's own error."""
    resource = pytest.importorskip("resource")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


OLD = "GGUF tyr_jax.version"
"""Marks a file that this package wrote."""


@pytest.mark.parametrize("kind", ["f32", "q4_k_m"])
def test_a_full_disk(kind: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.gguf"
    path.write_text(OLD)
    arguments = [str(tiny_model), "--output", str(path), "--overwrite", "--quantize", kind]
    for size in (1000, 40_000):
        with room_for(size), pytest.raises(SystemExit) as stopped:
            export.main(arguments)
        assert stopped.value.code == 2
        error = capsys.readouterr().err
        assert f"cannot write {path}" in error
        assert "Traceback" not in error
        assert [entry.name for entry in tmp_path.iterdir()] == ["x.gguf"]
        assert path.read_text() == OLD


def test_a_disk_that_is_full_for_llama_cpp(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    export.main([str(tiny_model), "--output", str(path), "--quantize", "f32"])
    with room_for(1000), pytest.raises(UserError, match=r"could not write .*y\.gguf as q4_k_m; free space"):
        llama_cpp.quantise_file(path, tmp_path / "y.gguf", "q4_k_m")


def test_an_existing_file_is_replaced_if_asked(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    export.main([str(tiny_model), "--output", str(path), "--quantize", "f32"])
    size = path.stat().st_size
    export.main([str(tiny_model), "--output", str(path), "--overwrite"])
    assert path.stat().st_size < size


def test_a_file_of_a_result_that_was_changed_is_not_replaced(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "result" / "x.gguf"
    path.parent.mkdir()
    again = [str(tiny_model), "--output", str(path), "--overwrite"]
    export.main(again)
    manifest.seal(path.parent)
    export.main(again)
    changed = path.read_bytes() + b"mine"
    path.write_bytes(changed)
    with pytest.raises(SystemExit):
        export.main(again)
    assert f"{path} was not written by this program, or was changed since" in capsys.readouterr().err
    assert path.read_bytes() == changed


@pytest.mark.parametrize("content", ["notes", "GGUF of another program", ""])
def test_a_file_of_another_program_is_not_replaced(
    content: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x.gguf"
    path.write_text(content)
    with pytest.raises(SystemExit):
        export.main([str(tiny_model), "--output", str(path), "--overwrite"])
    assert f"{path} was not written by this program" in capsys.readouterr().err
    assert path.read_text() == content


@pytest.mark.parametrize("kind", ["f32", "q4_k_m"])
def test_a_file_of_any_type_is_known_again(kind: str, tiny_model: Path, tmp_path: Path) -> None:
    export.main([str(tiny_model), "--output", str(tmp_path / "x"), "--quantize", kind])
    assert deci.is_ours(tmp_path / "x")


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        export.main(["--help"])
    assert not stopped.value.code
    shown = capsys.readouterr().out
    assert shown.startswith("Write a model, dense or pruned, as a GGUF file")
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert "--quantize" in shown
