"""The wheel that a user installs: in a fresh environment without torch, run from another directory."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

import tyr_jax

pytestmark = [pytest.mark.slow, pytest.mark.long]

ROOT = Path(tyr_jax.__file__).parents[1]
MINUTES = 60.0


def run(command: list[Any], **options: Any) -> str:
    """Standard output of a command that must succeed."""
    ended = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, timeout=10 * MINUTES, **options
    )
    assert ended.returncode == 0, f"{command}: {ended.stdout}{ended.stderr}"
    return ended.stdout


def find_python(version: str) -> str | None:
    """A Python of that version that can make virtual environments."""
    versions = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser() / "versions"
    candidates = [sys.executable, shutil.which(f"python{version}")]
    candidates += map(str, sorted(versions.glob(f"{version}*/bin/python{version}")))
    check = f"import sys, venv, ensurepip; sys.exit('%d.%d' % sys.version_info[:2] != '{version}')"
    for candidate in filter(None, candidates):
        if not subprocess.run([candidate, "-c", check], capture_output=True, check=False).returncode:
            return candidate
    return None


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel built from the current sources."""
    if not (ROOT / "pyproject.toml").is_file():
        pytest.fail("the tests must run from the repository")
    directory = tmp_path_factory.mktemp("wheel")
    run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", directory, ROOT])
    (path,) = directory.iterdir()
    return path


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment with the wheel and its dependencies.

    It is made with Python 3.13 if there is one. A newer Python than that of the tests may have other versions
    of the dependencies.
    """
    made_with = find_python("3.13") or sys.executable
    directory = tmp_path_factory.mktemp("environment") / "venv"
    run([made_with, "-m", "venv", directory])
    python = directory / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    run([python, "-m", "pip", "install", "--quiet", wheel])
    return python


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "tyr_jax/py.typed" in names
    assert "tyr_jax/prune.py" in names
    assert {name.partition("/")[0].split("-")[0] for name in names} == {"tyr_jax"}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "tyr_jax").rglob("*.py")}
    assert modules == {name for name in names if name.endswith(".py")}


def test_it_prunes_and_evaluates_without_torch(
    python: Path, tiny_arguments: list[str], tmp_path: Path
) -> None:
    # Other versions of JAX may not know the flags that tests have.
    ours = ("PYTHONPATH", "XLA_FLAGS")
    environment = {key: value for key, value in os.environ.items() if key not in ours}
    environment |= {"JAX_PLATFORMS": "cpu"}

    def module(name: str, *arguments: str) -> str:
        return run([python, "-m", name, *arguments], cwd=tmp_path, env=environment)

    check = "import importlib.util as u, tyr_jax; print(u.find_spec('torch'), tyr_jax.__file__)"
    torch, _, location = run([python, "-c", check], cwd=tmp_path, env=environment).strip().partition(" ")
    assert torch == "None"
    assert not location.startswith(str(ROOT))
    said = run([python, "-c", "import sys; sys.stderr = sys.stdout; import tyr_jax.prune"], env=environment)
    assert said == ""
    turns = [{"role": "user", "content": "the cat and the hat"}, {"role": "assistant", "content": "on a mat"}]
    (tmp_path / "chat.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 20)
    chat = ["--chat-template", "--evaluation", "chat.jsonl"]
    few = ["--rounds", "1", "--generations", "1", "--survivors", "1", "--stage-tokens", "32"]
    shown = module("tyr_jax.prune", *tiny_arguments, *chat, *few, "--output", "pruned")
    assert "searched" in shown
    rows = json.loads(module("tyr_jax.evaluate", "pruned", "--trust-record", "--json"))["texts"]
    assert [row["text"] for row in rows] == ["words.txt", "chat.jsonl"]
    for row in rows:
        assert row["perplexity"] == pytest.approx(row["perplexity_when_made"], rel=1e-4)
    scripts = {path.stem for path in python.parent.iterdir()}
    assert {"tyr-prune", "tyr-evaluate"} <= scripts
