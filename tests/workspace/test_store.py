"""Finished work is read back unchanged, or not at all."""

import contextlib
import functools
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interrupted import Died

from tyr_jax.errors import UserError
from tyr_jax.evaluation.quality import Quality
from tyr_jax.model.prediction import Prediction
from tyr_jax.run import resume
from tyr_jax.run.measure import figures, qualities_of
from tyr_jax.scoring.objective import TeacherBatch
from tyr_jax.workspace.facts import QualityFacts, RoundFacts, SearchFacts, TrainingFacts, Work
from tyr_jax.workspace.pytrees import SAVED
from tyr_jax.workspace.store import Saved, Store

PIECE = {
    "weights": np.random.default_rng(0).standard_normal((40, 30)).astype(np.float32),
    "parts": [np.arange(3), {"half": jnp.ones((2, 2), jnp.bfloat16)}],
    "number": np.float32(3),
}
VALUES = {"history": [0.1, 1e-30, {"x": None}], "a b/c": 1e300}
FACTS = Work(**VALUES)


def same(one: Any, other: Any) -> bool:
    """Whether two pytrees are equal, including the types of numbers."""
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
    assert same(PIECE, saved.tree)
    assert saved.facts == FACTS
    facts = again.part("c").load("facts")
    assert facts is not None
    assert (facts.tree, facts.facts) == (None, FACTS)


def test_a_piece_can_be_replaced_and_forgotten(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for number in (1, 2):
        store.save("piece", np.full(3, number))
    saved = store.load("piece")
    assert saved is not None
    assert saved.tree.tolist() == [2, 2, 2]
    store.drop("piece")
    store.drop("piece")
    assert store.load("piece") is None
    assert list(tmp_path.iterdir()) == []


def test_the_last_step_is_kept(tmp_path: Path) -> None:
    store = Store(tmp_path)
    begun = Saved(np.zeros(2))
    assert store.last_step("work", begun) == (0, begun)
    store.save("work-x", np.ones(1))
    store.save("other-work-7", np.ones(1))
    for step in (1, 2, 10):
        store.save_step("work", step, np.full(2, step), Work(step=step))
        done, (tree, facts) = store.last_step("work", begun)
        assert (done, tree.tolist(), facts) == (step, [step] * 2, Work(step=step))
    assert {path.name for path in tmp_path.iterdir()} == {"work-x", "other-work-7", "work-10"}


def test_half_of_a_piece_is_none(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save_step("work", 1, np.ones(2))
    shutil.copytree(tmp_path / "work-1", tmp_path / "work-2.orbax-checkpoint-tmp")
    shutil.copytree(tmp_path / "work-1", tmp_path / "work-3.dropped")
    assert store.last_step("work", Saved(SAVED))[0] == 1
    store.save_step("work", 2, np.zeros(2))
    store.save_step("work", 3, np.zeros(2))
    store.clear()
    assert not tmp_path.exists()


def work(directory: Path) -> list[float]:
    """Two steps of work, as far as they are not done, from a piece that is dropped after the first."""
    directory.mkdir(exist_ok=True)
    store = Store(directory)
    done, (array, facts) = store.last_step("work", Saved(SAVED, TrainingFacts(losses=[])))
    if not done and store.load("start") is None:
        store.save("start", np.arange(3.0))
    for step in range(done + 1, 3):
        before = array if step > 1 else store.load("start").tree  # type: ignore[union-attr]
        array, facts = 2 * before + step, TrainingFacts(losses=[step])
        store.save_step("work", step, array, facts)
        store.drop("start")
    assert facts.losses == [2]
    store.part("rest").save("piece", array)
    store.clear()
    return [float(number) for number in array]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_dying_at_every_change_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies before it makes, moves or deletes any file or directory, and the next one goes on from
    what is left."""
    whole, left = work(tmp_path / "whole"), 0

    def dying(change: Callable[..., None], *arguments: Any, **options: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Died
        change(*arguments, **options)

    for name in ("mkdir", "rename", "replace", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, functools.partial(dying, getattr(os, name)))
    deaths, found = 0, None
    while found is None:
        left = deaths = deaths + 1
        with contextlib.suppress(Died):
            found = work(tmp_path / f"{deaths}")
        left = 0
        assert found is not None or work(tmp_path / f"{deaths}") == whole
        assert not (tmp_path / f"{deaths}").exists()
    assert found == whole
    assert deaths > 20


def test_without_a_directory_nothing_is_kept() -> None:
    store = Store().part("a")
    store.save("piece", PIECE)
    store.save_step("work", 1)
    store.clear()
    begun = Saved(3)
    assert (store.load("piece"), store.last_step("work", begun)) == (None, (0, begun))


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
            assert same(PIECE, saved.tree)
            assert saved.facts == FACTS
    assert found >= 2


@pytest.mark.parametrize(("version", "said"), [(1, "an earlier tyr_jax"), (5, "a later tyr_jax")])
def test_work_of_another_version_is_told(
    version: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("tyr_jax.workspace.facts.Work.version", version)
        store.save_step("work", 3, PIECE, FACTS)
    with pytest.raises(UserError, match=rf"work-3 has format_version {version}.*{said}.* --restart"):
        store.last_step("work", Saved(SAVED))


def step(name: str, tree: Any, facts: Work) -> Any:
    """A reader of the last step of a work that begins with a pytree and facts."""
    return lambda store: store.last_step(name, Saved(tree, facts))


PREDICTION = Prediction(SAVED, SAVED, SAVED)


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (lambda store: store.load("dense", QualityFacts, {"a": PREDICTION}), "dense"),
        (lambda store: store.load("pool", like=TeacherBatch(SAVED, PREDICTION, SAVED)), "pool"),
        (step("round", (SAVED, {"kept": SAVED}, SAVED), RoundFacts(rounds=[])), "round-1"),
        (step("search", np.zeros(2), SearchFacts(history=[], spent=0)), "search-1"),
        (lambda store: store.load("uniform", QualityFacts), "uniform"),
        (step("step", np.zeros(2), TrainingFacts(losses=[])), "step-1"),
        (lambda store: resume.check_models(store, {}), "models"),
        (lambda store: resume.check_inputs(store, {}, print), "inputs"),
    ],
)
def test_kept_work_of_another_kind_is_refused(read: Any, name: str, tmp_path: Path) -> None:
    """The facts or arrays are complete, but belong to another piece."""
    right = {
        "dense": {"quality": {"a": {"perplexity": 2.0, "kl": None}}},
        "round-1": {"rounds": []},
        "search-1": {"history": [], "spent": 0},
        "step-1": {"losses": [1.0]},
    }
    pieces = [
        (PIECE, {"x": -1}),
        (PIECE, {"rounds": [{}], "history": 3, "losses": ["a"]}),
        (None, {"real": 3}),
    ]
    if name not in ("uniform", "models", "inputs"):
        pieces += [(PIECE, right.get(name, {})), ([np.ones(1)] * 3, right.get(name, {}))]
    for arrays, facts in pieces:
        Store(tmp_path).save(name, arrays, Work(**facts))
        with pytest.raises(UserError, match=rf"{name}.*--restart"):
            read(Store(tmp_path))


def test_what_is_not_finite_is_kept_as_none(tmp_path: Path) -> None:
    store, measured = Store(tmp_path), {"a": Quality(math.nan, 0.5), "b": Quality(2.0, math.inf)}
    store.save("uniform", facts=QualityFacts(quality=figures(measured)))
    saved = store.load("uniform", QualityFacts)
    assert saved is not None
    assert str(qualities_of(saved.facts.quality)) == str(
        {"a": Quality(math.nan, 0.5), "b": Quality(2.0, math.nan)}
    )


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot keep finished work in .*file.*run the same command again"):
        Store(tmp_path).part("file").save("piece", PIECE)
