"""A run that is interrupted anywhere ends with the same result as one that is not."""

import contextlib
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import orbax.checkpoint as ocp
import pytest
from commands import main_job
from interrupted import Died, die_at, result
from record_samples import read_events
from safetensors.numpy import load_file, save_file

from tyr_jax.cli import prune
from tyr_jax.errors import UserError
from tyr_jax.evaluation import writing
from tyr_jax.run import resume
from tyr_jax.runtime.offload import Stack
from tyr_jax.scoring import scorer
from tyr_jax.workspace import job
from tyr_jax.workspace.store import Store

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def few_texts_at_a_time() -> Iterator[None]:
    """The model's own text is written in several groups, in every run here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writing, "SEQUENCES", 3)
        yield


@pytest.fixture
def command(tiny_arguments: list[str], tmp_path: Path) -> list[str]:
    """Arguments of a small run to `pruned`."""
    return [*tiny_arguments, "--output", str(tmp_path / "pruned")]


@pytest.fixture(scope="module")
def uninterrupted(tiny_arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Result of an uninterrupted run with further arguments."""
    found: dict[tuple[str, ...], Any] = {}

    def run(*arguments: str) -> dict[str, Any]:
        if arguments not in found:
            output = tmp_path_factory.mktemp("whole") / "pruned"
            prune.main([*tiny_arguments, "--output", str(output), *arguments])
            found[arguments] = result(output)
        return found[arguments]

    return run


@pytest.mark.parametrize(
    ("when", "arguments"),
    [
        ("within", ["--sparsity", "0.25", "0.5", "--reconstruct", "1", "--rounds", "1"]),
        *(
            pytest.param(*rest, marks=pytest.mark.long)
            for rest in (
                ("before", ["--metric", "fisher", "--reconstruct", "2", "--offload"]),
                ("within", ["--accumulation", "random", "--objective", "hidden+kl"]),
                ("before", ["--calibration", "self", "builtin:topics", "--rounds", "1"]),
                ("after", ["--sparsity", "0.25", "0.5", "--no-refit", "--rounds", "1"]),
            )
        ),
    ],
)
def test_dying_at_every_write(
    when: str,
    arguments: list[str],
    command: list[str],
    tmp_path: Path,
    uninterrupted: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process dies before, within or after its first to eighth write or deletion, in turn.

    Recovery dies so too, in tests/cli/test_finetune.py, and the store at every change of the disk.
    """
    save, clear = Store.save, Store.clear
    left = 0

    def dying(action: Callable[[], None], half: Callable[[], None]) -> None:
        nonlocal left
        left -= 1
        if left == 0 and when == "within":
            half()
        elif left or when == "after":
            action()
        if left == 0:
            raise Died

    def dying_save(store: Store, name: str, *rest: Any, **more: Any) -> None:
        def half() -> None:
            # This is what Orbax leaves of an unfinished piece.
            assert store.directory is not None
            unfinished = store.directory / f"{name}.orbax-checkpoint-tmp"
            unfinished.mkdir(parents=True, exist_ok=True)
            (unfinished / "manifest.ocdbt").write_bytes(b"half")

        dying(lambda: save(store, name, *rest, **more), half)

    def dying_clear(store: Store) -> None:
        def half() -> None:
            assert store.directory is not None
            if store.directory.exists():
                shutil.rmtree(
                    store.directory.with_name(f"{store.directory.name}.dropped"), ignore_errors=True
                )
                store.directory.rename(store.directory.with_name(f"{store.directory.name}.dropped"))

        dying(lambda: clear(store), half)

    monkeypatch.setattr(Store, "save", dying_save)
    monkeypatch.setattr(Store, "clear", dying_clear)
    lives = 0
    while not (tmp_path / "pruned").is_dir():
        left, lives = lives % 8 + 1, lives + 1
        with contextlib.suppress(Died):
            prune.main([*command, *arguments])
    monkeypatch.undo()
    assert lives > 15
    assert result(tmp_path / "pruned") == uninterrupted(*arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]


def end_after_a_while(
    arguments: list[str], events: Path, lines: int, delay: float, how: signal.Signals
) -> tuple[int, str]:
    """Run in a separate process and stop it, and return (status, stderr).

    It gets the signal `delay` seconds after it has written its start and `lines` more lines to `events`.
    """

    def noted() -> list[str]:
        return events.read_text().splitlines() if events.is_file() else []

    def lived() -> bool:
        now = noted()
        # If the previous process left nothing behind, this one starts a new file.
        return len(now) > lines + (len(before) if now[: len(before)] == before else 0)

    before = noted()
    process = subprocess.Popen(
        main_job(*arguments),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    while not lived() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(how)
    _, said = process.communicate(timeout=60)
    return process.returncode, said


@pytest.mark.long
@pytest.mark.parametrize(("times", "least"), [(3, 0), (10, 4)])
def test_killed_again_and_again(
    times: int, least: int, command: list[str], tmp_path: Path, uninterrupted: Callable[..., Any]
) -> None:
    """Real processes are killed at random moments, and the last one may finish."""
    longer = ["--generations", "100"]
    events = tmp_path / ".pruned.unfinished" / "events.jsonl"
    rng = random.Random(0)
    for _ in range(times):
        # Most processes die before the first generation, which takes a long time to start.
        lines = rng.choice([*range(9), 10, 14])
        delay = rng.uniform(0, 0.5)
        code, said = end_after_a_while([*command, *longer], events, lines, delay, signal.SIGKILL)
        assert code == -signal.SIGKILL, said
    subprocess.run(
        main_job(*command, *longer),
        check=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        stderr=subprocess.DEVNULL,
    )
    assert result(tmp_path / "pruned") == uninterrupted(*longer)
    assert [path.name for path in tmp_path.iterdir()] == ["pruned"]
    lines = (tmp_path / "pruned" / "events.jsonl").read_text().splitlines()
    kinds = [(event["event"], event.get("search")) for event in map(json.loads, lines)]
    # A process that finished nothing left nothing. The others repeated no generation that had been kept.
    assert least < kinds.count(("start", None)) <= times + 1
    assert kinds.count(("generation", "descent")) <= 2 * 4
    assert kinds.count(("generation", "evolution")) <= 2 * 100


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Stop ignoring Ctrl-C. Shells let background processes and their children ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_asked_to_end(
    how: signal.Signals, code: int, command: list[str], tmp_path: Path
) -> None:
    """Ctrl-C, and the signal that a scheduler sends, during the search."""
    unfinished = tmp_path / ".pruned.unfinished"
    events = unfinished / "events.jsonl"
    ended, said = end_after_a_while([*command, "--generations", "100"], events, 5, 0, how)
    assert ended == code
    assert "the same command continues where it stopped" in said
    assert "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == [unfinished.name]
    assert any((unfinished / "finished").iterdir())


def test_text_that_is_written_is_not_written_again(
    command: list[str], tmp_path: Path, uninterrupted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every process but the last writes one group, is asked for the next, and dies."""
    own = ["--calibration", "self", "builtin:topics", "--rounds", "0"]
    whole, groups, write = uninterrupted(*own), [], writing.write_texts

    def dying(*arguments: Any) -> Iterator[np.ndarray]:
        for number, group in enumerate(write(*arguments)):
            if number == 1 and len(groups) < 3:
                raise Died
            groups.append(group)
            yield group

    monkeypatch.setattr(writing, "write_texts", dying)
    lives = 0
    while not (tmp_path / "pruned").is_dir():
        lives += 1
        with contextlib.suppress(Died):
            prune.main([*command, *own])
    texts = np.concatenate(groups)
    assert lives == 3 < len(groups)
    assert len(np.unique(texts, axis=0)) == len(texts)
    assert result(tmp_path / "pruned") == whole


@pytest.fixture
def interrupted(command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The finished work of a run that ended when its first round was done."""

    with monkeypatch.context() as patch, contextlib.suppress(Died):
        die_at(patch, "round")
        prune.main(command)
    return tmp_path / ".pruned.unfinished" / "finished"


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Run arguments that must be refused, and return the error sentence."""
    with pytest.raises(SystemExit) as stopped:
        prune.main(arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


def test_other_settings_are_refused(
    interrupted: Path, command: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    changed = [*command, "--seed", "1", "--levels", "3"]
    sentence = refused(changed, capsys)
    assert "pruned used a different --levels, --seed; " in sentence
    assert "--restart" in sentence
    assert interrupted.is_dir()
    prune.main([*changed, "--restart"])
    assert json.loads((tmp_path / "pruned" / "summary.json").read_text())["settings"]["seed"] == 1
    assert not interrupted.exists()


def test_what_does_not_change_the_result_may_change(
    interrupted: Path, command: list[str], tmp_path: Path, uninterrupted: Callable[..., Any]
) -> None:
    prune.main([*command, "--overwrite"])
    assert result(tmp_path / "pruned") == uninterrupted()
    events = read_events(tmp_path / "pruned" / "events.jsonl", "stage")
    took = [
        entry["ended"]["seconds"] for entry in events if entry["ended"]["stage"] == "round 1/2: evolution"
    ]
    summary = json.loads((tmp_path / "pruned" / "summary.json").read_text())
    assert len(took) == 2
    assert summary["seconds"]["round 1/2: evolution"] == pytest.approx(sum(took), abs=0.06)


def test_what_is_met_again_counts_once(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run meets its problems again in work that was not saved."""
    score = scorer.score_population

    def losing(net: Any, candidates: Any, *rest: Any) -> Any:
        return np.where(np.arange(len(candidates)) == 0, np.nan, score(net, candidates, *rest))

    monkeypatch.setattr(scorer, "score_population", losing)
    # Fewer tokens than channels, and next to no damping: no Hessian is positive definite.
    few = ["--calibration-tokens", "32", "--calibration-openings", "0"]
    arguments = [*command, *few, "--damping", "1e-7", "--damping-scale", "mean", "--rounds", "1"]
    for unsaved in ("block", "search-0", "search-1"):
        with monkeypatch.context() as patch, contextlib.suppress(Died):
            die_at(patch, unsaved)
            prune.main(arguments)
    prune.main(arguments)
    prune.main([*arguments, "--output", str(tmp_path / "whole")])
    assert result(tmp_path / "pruned") == result(tmp_path / "whole")
    for event in ("damping raised", "objective not finite"):
        twice, once = (
            len(read_events(tmp_path / name / "events.jsonl", event)) for name in ("pruned", "whole")
        )
        assert twice > once > 0


def test_another_text_is_refused(
    interrupted: Path, command: list[str], tiny_text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tiny_text.read_text()
    try:
        tiny_text.write_text(before.replace("cat", "dog", 400))
        assert "the text of the interrupted run changed since it began" in refused(command, capsys)
    finally:
        tiny_text.write_text(before)


def test_other_inputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    store = Store(tmp_path / "work")
    tables = [{"latencies": np.full(3, number)} for number in (1.0, 2.0)]
    for others in (tables[0], tables[0]):
        resume.check_inputs(store, [], print, others=others)
    with pytest.raises(UserError, match="the latencies of the interrupted run changed since it began"):
        resume.check_inputs(store, [], print, others=tables[1])


def test_any_element_of_any_layer_on_disk_counts() -> None:
    layers = np.random.default_rng(0).standard_normal((3, 200, 300))
    stack = Stack(3, (200, 300), layers.dtype, lambda layer: layers[layer])
    before = resume.checksums(stack)
    layers[1, 17, 23] += 1e-6
    np.testing.assert_array_equal(resume.checksums(stack) == before, [True, False, True])
    np.testing.assert_array_equal(resume.checksums(layers[1]), resume.checksums(stack)[1:2])


@pytest.mark.parametrize("changed", [..., (5, 7)])
def test_another_model_is_refused(
    changed: Any, interrupted: Path, command: list[str], tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also if a single weight has changed."""
    weights = tiny_model / "model.safetensors"
    before = weights.read_bytes()
    try:
        tensors = load_file(weights)
        tensors["model.layers.1.mlp.up_proj.weight"][changed] += 0.5
        save_file(tensors, weights)
        assert "the model of the interrupted run changed since it began" in refused(command, capsys)
    finally:
        weights.write_bytes(before)


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        ("config.json", {"rope_theta": 50_000.0}, "configuration of the model"),
        ("config.json", {"rms_norm_eps": 1e-4}, "configuration of the model"),
        ("config.json", {"initializer_range": 0.5}, "configuration of the model"),
        ("generation_config.json", {"eos_token_id": 1}, "configuration of the model"),
        ("tokenizer_config.json", {"eos_token": "<s>"}, "tokenizer of the model"),
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}, "tokenizer of the model"),
    ],
)
def test_another_file_of_the_model_is_refused(
    name: str,
    change: dict[str, Any],
    named: str,
    interrupted: Path,
    command: list[str],
    tiny_model: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tiny_model / name
    before = file.read_text()
    try:
        file.write_text(json.dumps(json.loads(before) | change))
        assert f"the {named} of the interrupted run changed since it began" in refused(command, capsys)
    finally:
        file.write_text(before)


def test_other_programs_are_refused(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another version of a library, other code of this package, of a plug-in, or of what that imports: at
    once, later, or not directly."""
    (tmp_path / "of_mine.py").write_text("FACTOR = 1.0\n")
    (tmp_path / "later.py").write_text("from deep import inner\n")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "__init__.py").touch()
    (tmp_path / "deep" / "inner.py").write_text("from .. import broken\n")
    (tmp_path / "broken.py").write_text("not python")
    (tmp_path / "searching.py").write_text(
        "import dataclasses\nfrom of_mine import FACTOR\n"
        "from tyr_jax.search.evolution import Evolution\n"
        "@dataclasses.dataclass(frozen=True)\nclass Mine(Evolution):\n    factor: float = FACTOR\n"
        "    def never(self):\n        import later\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    command = [*command, "--search", "searching:Mine", "--rounds", "1"]
    with monkeypatch.context() as patch, contextlib.suppress(Died):
        die_at(patch, "round")
        prune.main(command)
    for name in ("searching.py", "of_mine.py", "later.py", "deep/inner.py", "broken.py"):
        file, module = tmp_path / name, name.replace("searching.py", "searching")
        before = file.read_text()
        file.write_text(f"{before}\n# changed\n")
        assert f"the code of {module} changed since the interrupted run" in refused(command, capsys)
        file.write_text(before)
    for what in ("version of jax", "code of tyr_jax"):
        with monkeypatch.context() as patch:
            told = job.programs_of({}) | {what: "other"}
            patch.setattr(job, "programs_of", lambda settings, told=told: told)
            assert f"the {what} changed since the interrupted run" in refused(command, capsys)
    prune.main(command)


def test_another_model_after_the_first_has_written_text_is_refused(
    command: list[str],
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its own text is the first thing that is kept."""

    def die(*_: Any, **more: Any) -> None:
        raise Died

    command = [*command, "--calibration", "self", "builtin:topics", "--rounds", "0"]
    with monkeypatch.context() as patch, contextlib.suppress(Died):
        patch.setattr(resume, "check_inputs", die)
        prune.main(command)
    weights = tiny_model / "model.safetensors"
    before = weights.read_bytes()
    try:
        save_file({name: array * 1.01 for name, array in load_file(weights).items()}, weights)
        assert "the model of the interrupted run changed since it began" in refused(command, capsys)
    finally:
        weights.write_bytes(before)


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_damaged_work_is_named(
    damage: str, interrupted: Path, command: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = max((interrupted / "work-1" / "block-1").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = bytearray(data.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    else:
        content[len(content) // 2] ^= 16
    data.write_bytes(content)
    sentence = refused(command, capsys)
    assert f"{interrupted}/work-1/block-1 is damaged" in sentence
    assert "--restart" in sentence
    prune.main([*command, "--restart"])
    assert (tmp_path / "pruned" / "summary.json").is_file()


def test_damaged_settings_are_named(
    interrupted: Path, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    settings = interrupted.parent / "settings.json"
    for content in ("{", "[]", '"x"', '{"settings": {}}', '{"format_version": 4, "settings": 3}'):
        settings.write_text(content)
        sentence = refused(command, capsys)
        assert str(settings) in sentence
        assert sentence.endswith("; start over with --restart")


def test_a_second_run_is_refused(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / ".pruned.unfinished"
    place.mkdir()
    with filelock.FileLock(place / "lock"):
        assert f"another run is writing {tmp_path / 'pruned'}" in refused(command, capsys)
        assert place.is_dir()
    prune.main(command)
    assert not place.exists()


def test_a_disk_that_fills_leaves_what_is_finished(
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    uninterrupted: Callable[..., Any],
) -> None:
    save, left = ocp.Checkpointer.save, 9

    def full(*arguments: Any, **more: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(ocp.Checkpointer, "save", full)
        sentence = refused(command, capsys)
    assert "cannot keep finished work in " in sentence
    assert "No space left on device" in sentence
    prune.main(command)
    assert result(tmp_path / "pruned") == uninterrupted()


def test_differences() -> None:
    one = {"a": 1, "b": {"c_d": [1], "e": None}, "f": 0.5}
    assert job.differences(one, one) == []
    assert job.differences(one, {"a": 2, "b": {"c_d": [2], "e": None}}) == ["--a", "--c-d", "--f"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        pytest.param(["--sparsity", "0.25", "0.5"], marks=pytest.mark.long),
        pytest.param(["--no-refit", "--objective", "hidden+kl"], marks=pytest.mark.long),
        ["--rounds", "0"],
        ["--rounds", "0", "--reconstruct", "1"],
        ["--reconstruct", "1", "--sparsity", "0.25", "0.5"],
    ],
)
def test_the_disk_that_a_run_takes_is_foreseen(
    arguments: list[str], command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    save, most, foreseen = Store.save, 0, []

    def weigh(store: Store, *rest: Any, **more: Any) -> None:
        nonlocal most
        save(store, *rest, **more)
        # Count arrays, but not Orbax's descriptions of them, which do not grow with the model.
        most = max(most, sum(p.stat().st_size for p in tmp_path.rglob("ocdbt.process_0/d/*")))

    def foresee(_: Store, needed: int) -> None:
        foreseen.append(needed)

    monkeypatch.setattr(Store, "save", weigh)
    monkeypatch.setattr(resume, "check_space", foresee)
    prune.main([*command, *arguments])
    assert most < foreseen[0] < 2.5 * most


def test_too_small_a_disk_is_refused_before_anything_is_done(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(resume.shutil, "disk_usage", lambda _: types.SimpleNamespace(free=10_000))
    sentence = refused(command, capsys)
    assert re.search(r"has 10 kB left, but this run may need [\d.]+ [kM]B more", sentence)
    assert list(tmp_path.iterdir()) == []
