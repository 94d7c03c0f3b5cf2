"""All commands and Python code of the tutorials, in order, with a tiny model and fast presets."""

import dataclasses
import importlib
import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from tyr_jax import settings
from tyr_jax.data import DataSpec
from tyr_jax.io import checkpoint
from tyr_jax.search.descent import Descent
from tyr_jax.search.evolution import Evolution
from tyr_jax.settings import PRESETS, Rounds

pytestmark = [pytest.mark.slow, pytest.mark.long]

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"
SCRIPTS = Path(__file__).parents[1] / "scripts"
SHORT = ["--sequence-length", "16", "--search-tokens", "64", "--held-out-tokens", "32"]
SMALLER = {
    "finetune": ["--sequence-length", "32", "--step-tokens", "256", "--tokens", "1024"],
    "generate": ["--max-tokens", "8"],
    "compare_searches.py": ["--searches", "random", "--seeds", "2", "--passes", "8", "--problems", "rugged"],
    "compare_on_model.py": ["--seeds", "0", "--passes", "16", "--calibration-tokens", "128", *SHORT],
}
"""Further options of commands and scripts, for the tiny model."""
INSTALLS = ("pip ", "python -m venv", "python3 -m venv")


@pytest.fixture
def small(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Use a tiny model and presets that take seconds, in an empty directory."""
    quick = PRESETS["quick"]
    data = DataSpec(
        sequence_length=32,
        search_length=32,
        calibration_tokens=512,
        search_tokens=256,
        evaluation_length=64,
        evaluation_windows=2,
    )
    descent = Descent(generations=1, tokens=64)
    evolution = Evolution(generations=2, offspring=4, survivors=(2, 1), stage_tokens=(32, 64))
    search, rounds = (descent, evolution), dataclasses.replace(Rounds(), rounds=1, levels=3)
    pruning = dataclasses.replace(quick.pruning, metric_tokens=256, neuron_chunk=4)
    tiny = dataclasses.replace(quick, data=data, search=search, rounds=rounds, pruning=pruning)
    monkeypatch.setitem(settings.PRESETS, "quick", tiny)
    monkeypatch.setattr(checkpoint, "builtin_model", lambda: tiny_model)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").symlink_to(TUTORIALS.parent)
    monkeypatch.syspath_prepend(tmp_path)


def run_command(line: str) -> None:
    """Run a line of a shell block. It is a command of this project, or an installation, which is skipped."""
    if line.startswith(INSTALLS):
        return
    words = shlex.split(line)
    if words[1].startswith("scripts/"):
        run_script(Path(words[1]).name, words[2:])
        return
    assert words[:2] == ["python", "-m"], line
    name = words[2].removeprefix("tyr_jax.")
    arguments = words[3:]
    arguments += SMALLER.get(name, [])
    importlib.import_module(f"tyr_jax.cli.{name}").main(arguments)


def run_script(name: str, arguments: list[str]) -> None:
    """Run a script of the repository, with fewer runs."""
    sys.argv = [name, *arguments, *SMALLER.get(name, [])]
    runpy.run_path(str(SCRIPTS / name), run_name="__main__")


def run_python(block: str, names: dict[str, Any]) -> None:
    """Run a block of Python, or write it to a file if its first line names one."""
    named = re.match(r"# (\w+\.py)\n", block)
    if named:
        Path(named[1]).write_text(block)
    else:
        exec(compile(block, "tutorial", "exec"), names)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["first", "own-text", "own-search"])
def test_what_the_tutorial_says_can_be_done(
    name: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "threshold", raising=False)
    monkeypatch.setattr(sys, "argv", [])
    text, names = (TUTORIALS / f"{name}.md").read_text(encoding="utf-8"), {}
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert blocks
    for language, block in blocks:
        if language == "python":
            run_python(block, names)
            continue
        for line in block.replace("\\\n", " ").splitlines():
            run_command(line)
    for output in re.findall(r"--output (\S+)", text):
        assert list(Path(output).rglob("model.safetensors")), output
    if name == "own-search":
        tables = [line.split("|") for line in capfd.readouterr().out.splitlines() if line.startswith("|")]
        assert any(row[1:3] == [" rugged ", " threshold:Threshold "] for row in tables)
        assert any(row[1] == " threshold:Threshold " for row in tables)


@pytest.mark.usefixtures("small")
def test_the_python_of_the_readme_runs(capsys: pytest.CaptureFixture[str]) -> None:
    text = (TUTORIALS.parents[1] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        run_python(block, {})
    assert "searched" in capsys.readouterr().out
    assert list(Path("my-first-model").glob("model.safetensors"))
