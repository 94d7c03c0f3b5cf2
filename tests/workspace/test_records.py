"""Stored records are input. A record that was changed is either read as it is or refused in a sentence."""

import dataclasses
import functools
import json
import os
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import record_samples
from record_samples import altered, benchmark, events, recovery, summary
from speeds import only_quick

from tyr_jax.data import DataSpec, check_sizes
from tyr_jax.errors import UserError
from tyr_jax.evaluation.provenance import provenance_of
from tyr_jax.options import as_json
from tyr_jax.recovery.loss import Loss
from tyr_jax.recovery.train import Training
from tyr_jax.report import card, page, tables
from tyr_jax.report.files import summary_of
from tyr_jax.run.summary import health
from tyr_jax.settings import Settings
from tyr_jax.workspace import records, schema
from tyr_jax.workspace.events import EventLog, StageEvent, read_entries
from tyr_jax.workspace.records import Recovery, SavedSpec, Speed, Summary
from tyr_jax.workspace.schema import read, versioned

Read = Callable[[Path], Any]


def read_events_of(directory: Path) -> Any:
    return read_entries(directory / "events.jsonl") or None


READERS: dict[str, tuple[Callable[[], Any], Read]] = {
    "summary.json": (summary, functools.partial(read, Summary)),
    "recovery.json": (recovery, functools.partial(read, Recovery)),
    "benchmark.json": (benchmark, functools.partial(read, Speed)),
    "events.jsonl": (events, read_events_of),
}
EVERY = pytest.mark.parametrize("name", READERS)


def write(path: Path, record: Any) -> None:
    lines = record if path.suffix == ".jsonl" else [record]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def check_sentence(sentence: str, path: Path) -> str:
    """Check that a sentence is one line, fits a terminal, and names the file."""
    assert "\n" not in sentence
    assert str(path) in sentence
    assert len(sentence) < 400 + len(str(path))
    return sentence


def refused(directory: Path, name: str) -> str:
    """Read a record that must be refused, and return the error sentence."""
    with pytest.raises(UserError) as error:
        READERS[name][1](directory)
    return check_sentence(str(error.value), directory / name)


@EVERY
def test_a_record_is_read_as_it_is(name: str, tmp_path: Path) -> None:
    make, read = READERS[name]
    assert read(tmp_path) is None
    record = make()
    (record[1] if isinstance(record, list) else record)["of a later day"] = {"x": [None]}
    write(tmp_path / name, record)
    found = read(tmp_path)
    assert (found if name == "events.jsonl" else versioned(found)) == record


def show(directory: Path) -> None:
    """Show everything that is known about a model."""
    made, won = summary_of(directory), read(Recovery, directory)
    assert page.render(made, read(Speed, directory), won)
    assert card.render(made, True, won)
    assert tables.closing_tables([made])
    assert tables.closing_tables([made, made])
    tables.complaints(made.health)
    provenance = provenance_of(made, won)
    assert provenance is not None
    assert isinstance(provenance.spec, DataSpec)
    perplexities = [provenance.perplexity(name, np.zeros((1, 2))) for name in provenance.fingerprints]
    assert not any(perplexities)


@pytest.mark.parametrize("name", only_quick(READERS, "events.jsonl", "benchmark.json"))
def test_whatever_is_done_to_a_record(name: str, tmp_path: Path) -> None:
    """The record is shown, or refused in a sentence that names it. Nothing else may happen."""
    for other, (make, _) in READERS.items():
        write(tmp_path / other, make())
    refusals = shown = 0
    for what, record in altered(READERS[name][0]()):
        write(tmp_path / name, record)
        try:
            READERS[name][1](tmp_path)
        except UserError as error:
            check_sentence(str(error), tmp_path / name)
            refusals += 1
            continue
        try:
            take_up(tmp_path / name) if name == "events.jsonl" else show(tmp_path)
        except Exception as error:
            raise AssertionError(what) from error
        shown += 1
    assert min(refusals, shown) > 20


def take_up(path: Path) -> None:
    """Read the records that a job reads when it continues."""
    with EventLog(path) as log:
        assert all(StageEvent(**entry).ended.seconds >= 0 for entry in log.written("stage"))
        assert health(log).objectives_not_finite >= 0


@EVERY
@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", '"x"', "\ud800", "[" * 2000, '{"a": 1e999}'])
def test_what_is_no_record(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content.encode("utf-8", "surrogatepass") + b"\n")
    sentence = refused(tmp_path, name)
    assert re.search("restore the file, or|delete the file, or|--restart", sentence)


@EVERY
def test_what_is_no_file(name: str, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to(tmp_path / "gone")
    refused(tmp_path, name)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    refused(tmp_path, name)
    (tmp_path / name).unlink()
    (tmp_path / name).mkdir()
    refused(tmp_path, name)


@EVERY
@pytest.mark.parametrize(
    ("version", "message"),
    [
        (None, "has no format_version: an earlier tyr_jax"),
        (0, "has format_version 0: an earlier tyr_jax"),
        (-1, "has format_version -1: an earlier tyr_jax"),
        (
            2,
            "has format_version 2, written by a later tyr_jax; this one reads 1: update tyr_jax, or ",
        ),
        (10**30, "written by a later tyr_jax"),
        (True, "format_version is true, but must be 1"),
        ("1", 'format_version is "1", but must be 1'),
        (1.0, "format_version is 1.0, but must be 1"),
    ],
)
def test_other_versions_are_told(name: str, version: Any, message: str, tmp_path: Path) -> None:
    record = READERS[name][0]()
    first = record[0] if isinstance(record, list) else record
    first |= {"format_version": version}
    if version is None:
        del first["format_version"]
    write(tmp_path / name, record)
    assert message in refused(tmp_path, name)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("rounds.1.kept.ffn.2", -3, "rounds[1].kept.ffn[2] is -3, but must be greater than or equal to 0;"),
        ("rounds.1.kept.ffn.2", 49, "rounds[1].kept.ffn[2] is 49, but must be at most 48, what a layer has;"),
        (
            "rounds.0.kept.attention",
            [1, 2],
            "rounds[0].kept.attention is a list of 2, but must have 3 layers",
        ),
        ("rounds.0.kept.ffn", ..., "lacks rounds[0].kept.ffn;"),
        ("written", "reconstructed", 'written is "reconstructed", but must be one of uniform, searched;'),
        ("written", "dense", 'written is "dense", but must be '),
        ("distribution.ffn", [24, 24, 24], "distribution.ffn is a list of 3, but must be what searched.kept"),
        (
            "searched.units.ffn.kept",
            71,
            "searched.units.ffn.kept is 71, but must be 72, what the layers keep",
        ),
        ("uniform.units.ffn.removed", 0, "uniform.units.ffn.removed is 0, but must be 72, what is not kept"),
        ("uniform.units.ffn.total", 145, "must be a multiple of the 3 layers"),
        ("uniform.quality", {}, "uniform.quality is a mapping of 0, but must have at least 1 item;"),
        (
            "uniform.quality.extra",
            {"perplexity": 1, "kl": 0},
            "must have the same texts as the others: words",
        ),
        (
            "dense.quality.words.txt.kl",
            float("inf"),
            'dense.quality["words.txt"].kl is Infinity, but must be a',
        ),
        ("settings.data.bos", "no", 'settings.data.bos is "no", but must be a valid boolean;'),
        ("settings.data.calibration.0", "builtin:x", "must name a text: there is no builtin text 'x'"),
        ("settings.layout", "round", "settings.layout is \"round\", but must be 'compressed' or 'masked';"),
        ("sparsity.asked", 1.5, "sparsity.asked is 1.5, but must be less than 1;"),
        (
            "seconds.prune uniform",
            -1,
            'seconds["prune uniform"] is -1, but must be greater than or equal to 0',
        ),
    ],
)
def test_the_field_is_named(path: str, value: Any, message: str, tmp_path: Path) -> None:
    record = owner = summary()
    *above, last = path.replace("words.txt", "words/txt").split(".")
    for key in above:
        owner = owner[int(key) if key.isdigit() else key.replace("words/txt", "words.txt")]
    owner[int(last) if last.isdigit() else last] = value
    if value is ...:
        del owner[last]
    write(tmp_path / "summary.json", record)
    sentence = refused(tmp_path, "summary.json")
    assert message in sentence
    assert sentence.endswith("; restore the file, or prune again with python -m tyr_jax.prune")


def test_what_differs_within_a_recovery_or_a_benchmark(tmp_path: Path) -> None:
    record = recovery()
    record["quality"]["dense"] = {}
    write(tmp_path / "recovery.json", record)
    assert versioned(READERS["recovery.json"][1](tmp_path)) == record
    del record["fingerprints"]["words.txt"]
    write(tmp_path / "recovery.json", record)
    assert "fingerprints is a mapping of 1, but must have the same texts" in refused(
        tmp_path, "recovery.json"
    )
    timed = benchmark()
    del timed["rows"][1]
    write(tmp_path / "benchmark.json", timed)
    assert "must have one of measure 'each token after'" in refused(tmp_path, "benchmark.json")


def test_a_huge_record_is_refused_at_once(tmp_path: Path) -> None:
    record = summary()
    record["distribution"]["ffn"] = [1] * 5000
    write(tmp_path / "summary.json", record)
    assert "distribution.ffn is a list of 5000, but must have at most 4096 items" in refused(
        tmp_path, "summary.json"
    )
    write(tmp_path / "summary.json", summary() | {"note": "x" * 2**24})
    assert "far more than such a file needs" in refused(tmp_path, "summary.json")


def test_text_that_can_be_asked_for_can_be_read_again() -> None:
    """The schema has the fields of the class that it describes, and allows what the command line allows."""
    fields = {field.name for field in dataclasses.fields(DataSpec)}
    assert fields == set(records.SavedSpec.model_fields)
    assert typing.get_type_hints(Loss)["goal"] == typing.get_type_hints(records.Goal)["goal"]
    assert typing.get_type_hints(Training)["method"] == typing.get_type_hints(records.Method)["method"]
    assert typing.get_type_hints(Settings)["layout"] == typing.get_type_hints(records.RunSettings)["layout"]
    spec = SavedSpec(**record_samples.spec()).spec()
    assert as_json(spec) == record_samples.spec()
    later = "self_temperature", "search_text"
    before = {name: value for name, value in record_samples.spec().items() if name not in later}
    assert SavedSpec(**before).spec() == spec
    least = dataclasses.replace(
        DataSpec(calibration=()),
        sequence_length=2,
        search_length=2,
        evaluation_length=2,
        evaluation_windows=1,
    )
    check_sizes(least)
    made = summary()
    made["settings"]["data"] = as_json(least)
    assert schema.parse(Summary, made, "here").settings.data.spec() == least


def test_a_summary_of_one_search_is_read_as_it_was_written() -> None:
    """Before searches ran in turn, descent was no search, and steps did not name theirs."""
    made = summary()
    made["settings"]["search"] = {"search": "evolution", "generations": 2}
    for record in made["rounds"]:
        steps = [step for step in record["history"] if step["search"] == "evolution"]
        unnamed = [{key: value for key, value in step.items() if key != "search"} for step in steps]
        record |= {"descent": [[0.4, 0.3, None]], "history": unnamed}
    shown = page.render(schema.parse(Summary, made, "summary.json"))
    assert "The search was evolution." in shown
    assert "<circle" in shown


@pytest.mark.parametrize(
    ("kl", "model", "message"),
    [
        ({"uniform": 0.5, "reconstructed": 0.4}, "reconstructed", "choice.kl.reconstructed is .*be one of"),
        ({"uniform": 0.5}, "searched", r"choice.compared\[0\] is .*be one of uniform"),
    ],
)
def test_a_choice_is_among_the_models(kl: dict[str, float], model: str, message: str, tmp_path: Path) -> None:
    compared = [{"model": model, "than": "uniform", "p": 0.5}]
    write(tmp_path / "summary.json", summary() | {"choice": {"sequences": 2, "kl": kl, "compared": compared}})
    assert re.search(message, refused(tmp_path, "summary.json"))
