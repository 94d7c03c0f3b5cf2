"""Finished work comes back as it was, or not at all."""

import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tyr_jax.errors import UserError
from tyr_jax.workspace.store import Store

PIECE = {
    "weights": np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32),
    "parts": [np.arange(3), {"half": jnp.ones((2, 2), jnp.bfloat16)}],
    "number": np.float32(3),
}
FACTS = {"history": [0.1, 1e-30, {"x": None}], "a b/c": float("inf")}


def same(one: Any, other: Any) -> bool:
    """Whether two pytrees are equal, types of numbers included."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).dtype == b.dtype and np.array_equal(np.asarray(a), b) for a, b in pairs)


def test_pieces_come_back(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    store = Store(tmp_path / "a").part("b")
    assert store.load("piece") is None
    store.save("piece", PIECE, FACTS)
    store.part("c").save("facts", facts=FACTS)
    again = Store(tmp_path / "a").part("b")
    saved = again.load("piece")
    assert saved is not None
    assert same(PIECE, saved.arrays)
    assert saved.facts == FACTS
    facts = again.part("c").load("facts")
    assert facts is not None
    assert (facts.arrays, facts.facts) == (None, FACTS)


def test_a_piece_can_be_replaced_and_forgotten(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in (1, 2):
        store.save("piece", np.full(3, number))
    saved = store.load("piece")
    assert saved is not None
    assert saved.arrays.tolist() == [2, 2, 2]
    store.drop("piece")
    store.drop("piece")
    assert store.load("piece") is None
    assert list(tmp_path.iterdir()) == []


def test_the_last_step_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.last_step("work") is None
    store.save("work-x", np.ones(1))
    store.save("other-work-7", np.ones(1))
    for step in (1, 2, 10):
        store.save_step("work", step, np.full(2, step), {"step": step})
        last = store.last_step("work")
        assert last is not None
        assert (last[0], last[1].arrays.tolist(), last[1].facts) == (step, [step] * 2, {"step": step})
    assert {path.name for path in tmp_path.iterdir()} == {"work-x", "other-work-7", "work-10"}


def test_half_of_a_piece_is_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save_step("work", 1, np.ones(2))
    shutil.copytree(tmp_path / "work-1", tmp_path / "work-2.orbax-checkpoint-tmp")
    shutil.copytree(tmp_path / "work-1", tmp_path / "work-3.dropped")
    last = store.last_step("work")
    assert last is not None
    assert last[0] == 1
    store.save_step("work", 2, np.zeros(2))
    store.save_step("work", 3, np.zeros(2))
    store.clear()
    assert not tmp_path.exists()


def test_without_a_directory_nothing_is_kept() -> None:
    store = Store().part("a")
    store.save("piece", PIECE)
    store.save_step("work", 1)
    store.clear()
    assert (store.load("piece"), store.last_step("work")) == (None, None)


@pytest.mark.parametrize("damage", ["flipped", "truncated", "gone"])
def test_damage_is_found_or_does_no_harm(damage: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save("whole", PIECE, FACTS)
    found = 0
    for file in sorted(path for path in (tmp_path / "whole").rglob("*") if path.is_file()):
        shutil.rmtree(tmp_path / "piece", ignore_errors=True)
        shutil.copytree(tmp_path / "whole", tmp_path / "piece")
        victim = tmp_path / "piece" / file.relative_to(tmp_path / "whole")
        content = bytearray(victim.read_bytes())
        if damage == "gone":
            victim.unlink()
        elif content:
            content[len(content) // 2] ^= 4
            victim.write_bytes(content[: len(content) // 2] if damage == "truncated" else content)
        try:
            saved = store.load("piece")
        except UserError:
            found += 1
        else:
            assert saved is not None
            assert same(PIECE, saved.arrays)
            assert saved.facts == FACTS
    assert found >= 2


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot keep finished work in .*file.*run the same command again"):
        Store(tmp_path).part("file").save("piece", PIECE)
