"""The example of the Python API runs unchanged, with a tiny model in place of `builtin`."""

import functools
import runpy
from pathlib import Path
from typing import Any

import pytest

import tyr_jax

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "examples" / "notebook.py"


def test_it_leaves_a_model_and_a_file(
    tiny_model: Path,
    tiny_options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    small = functools.partial(tyr_jax.prune_model, tiny_model)
    monkeypatch.setattr(tyr_jax, "prune_model", lambda _, **asked: small(**(asked | tiny_options)))
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(SCRIPT), run_name="__main__")
    shown = capsys.readouterr().out
    assert "pruned to 25.0% sparsity" in shown
    assert "perplexity of" in shown
    assert names["result"].summary["settings"]["preset"] == "quick"
    assert {path.name for path in tmp_path.iterdir()} == {"pruned"}
    assert (tmp_path / "pruned" / "model-q8_0.gguf").read_bytes()[:4] == b"GGUF"
