"""Text that the dense model writes is cached for other runs."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tyr_jax.evaluation import writing
from tyr_jax.io.checkpoint import LoadedModel, load_model
from tyr_jax.run import own_text as module
from tyr_jax.run.own_text import own_text
from tyr_jax.workspace.progress import Progress
from tyr_jax.workspace.store import Store

SHAPE = 3, 8


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """A tiny model, an empty cache, and short texts that are cached too."""
    monkeypatch.setenv("TYR_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "LEAST_TOKENS", 24)
    return load_model(str(tiny_model))


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of texts that the model was asked for, call by call."""
    asked, write = [], writing.write_texts

    def counted(*arguments: Any) -> Any:
        asked.append(arguments[2].sequences)
        return write(*arguments)

    monkeypatch.setattr(writing, "write_texts", counted)
    return asked


def texts_of(model: LoadedModel, seed: int = 0, store: Store | None = None, **other: Any) -> np.ndarray:
    shape, temperature = other.get("shape", SHAPE), other.get("temperature", 1.0)
    return own_text(model, shape, seed, temperature, Progress(quiet=True), store or Store())


def test_the_same_text_is_written_once(model: LoadedModel, written: list[int], tmp_path: Path) -> None:
    first = texts_of(model)
    np.testing.assert_array_equal(texts_of(model), first)
    assert written == [3]
    # A run that takes it from the cache continues with it, also if the cache is gone.
    (tmp_path / "kept").mkdir()
    texts_of(model, store=Store(tmp_path / "kept"))
    for file in (tmp_path / "cache" / "texts").iterdir():
        file.unlink()
    np.testing.assert_array_equal(texts_of(model, store=Store(tmp_path / "kept")), first)


@pytest.mark.slow
def test_another_text_is_not_mistaken_for_it(model: LoadedModel, written: list[int]) -> None:
    texts_of(model)
    texts_of(model, seed=1)
    texts_of(model, temperature=0.5)
    texts_of(model, shape=(4, 8))
    params = model.params | {"embed": model.params["embed"] * 1.01}
    texts_of(dataclasses.replace(model, params=params))
    assert written == [3, 3, 3, 4, 3]


def test_a_short_text_is_not_cached(model: LoadedModel, written: list[int], tmp_path: Path) -> None:
    for _ in range(2):
        texts_of(model, shape=(2, 8))
    assert written == [2, 2]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("damage", ["cut", "empty", "foreign"])
def test_a_damaged_file_is_written_anew(
    damage: str, model: LoadedModel, written: list[int], tmp_path: Path
) -> None:
    first = texts_of(model)
    (file,) = (tmp_path / "cache" / "texts").iterdir()
    whole = file.read_bytes()
    if damage == "foreign":
        np.save(file, first.astype(float))
    else:
        file.write_bytes(whole[:-7] if damage == "cut" else b"")
    np.testing.assert_array_equal(texts_of(model), first)
    assert written == [3, 3]
    assert file.read_bytes() == whole


def test_only_the_last_texts_are_kept(
    model: LoadedModel, written: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_TEXTS", 2)
    for seed in range(3):
        texts_of(model, seed=seed)
        for age, file in enumerate(sorted((tmp_path / "cache" / "texts").iterdir(), key=os.path.getmtime)):
            os.utime(file, (age, age))
    assert len(list((tmp_path / "cache" / "texts").iterdir())) == 2
    texts_of(model, seed=2)
    texts_of(model, seed=0)
    assert written == [3, 3, 3, 3]


def test_a_cache_that_cannot_be_written_is_told(
    model: LoadedModel, written: list[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("in the way")
    own_text(model, SHAPE, 0, 1.0, Progress(), Store())
    assert written == [3]
    assert "self-generated text could not be cached for other runs" in capsys.readouterr().err
