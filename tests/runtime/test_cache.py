"""Compiled programs are kept in the place that the user chooses."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tyr_jax.runtime import cache

PROGRAM = """
import jax
from tyr_jax.runtime.cache import keep_compiled
keep_compiled()
jax.jit(lambda x: x * 2 + 1)(1.0)
"""


def compile_in_a_new_process(environment: dict[str, str]) -> None:
    always = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PLATFORMS": "cpu"}
    inherited = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    subprocess.run([sys.executable, "-c", PROGRAM], check=True, env=inherited | always | environment)


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_programs_are_kept_by_kind_of_processor(tmp_path: Path) -> None:
    compile_in_a_new_process({"TYR_JAX_CACHE": str(tmp_path)})
    assert files(tmp_path / "compiled" / cache.processor())


@pytest.mark.slow
def test_a_place_of_the_users_own_is_respected(tmp_path: Path) -> None:
    own = tmp_path / "own"
    compile_in_a_new_process({"TYR_JAX_CACHE": str(tmp_path / "ours"), "JAX_COMPILATION_CACHE_DIR": str(own)})
    assert files(own)
    assert not (tmp_path / "ours").exists()


def test_the_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TYR_JAX_CACHE", str(tmp_path))
    assert cache.cache_directory() == tmp_path
    monkeypatch.setenv("TYR_JAX_CACHE", "")
    assert cache.cache_directory() == Path.home() / ".cache" / "tyr_jax"
