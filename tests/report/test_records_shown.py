"""Pages and cards of records made by hand: infinite and huge values and odd names are shown, too."""

import json
import re
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from record_samples import quality, recovery, rounds, summary, units

from tyr_jax.cli import report
from tyr_jax.evaluation.scores import TaskScore, TextPerplexity
from tyr_jax.report import card, figures, page, tables
from tyr_jax.report.files import changed_pages, renew_report
from tyr_jax.report.render import as_text
from tyr_jax.results import Benchmark, Perplexities, PruneResult, TaskScores
from tyr_jax.workspace.events import EventLog
from tyr_jax.workspace.manifest import seal
from tyr_jax.workspace.records import MEASURES, Recovery, Speed, Summary, Timing


def test_what_is_not_finite_is_said() -> None:
    made, won = summary(), recovery()
    made["dense"]["quality"] = made["uniform"]["quality"] = made["searched"]["quality"] = quality(None, None)
    won["quality"]["pruned"] = quality(None, None)
    for record in made["rounds"]:
        record["history"] = [{"generation": 1, "objective": None, "parent": None, "candidate_tokens": 0}]
    pruned, trained = Summary(**made), Recovery(**won)
    shown = page.render(pruned, None, trained)
    assert "not finite" in shown
    assert "not finite" in card.render(pruned, True, trained)
    closing = [*tables.closing_tables([pruned]), *tables.closing_tables([pruned, pruned])]
    assert "not finite" in as_text(closing)
    assert "<h2>Search</h2>" in shown
    assert "None" not in re.sub(r"<[^>]*>", " ", shown).replace("&#34;None", "")


def test_headline_figures_are_those_of_the_model_that_was_written() -> None:
    """It is the searched one if the reconstruction did not improve it."""
    record = summary()
    worse = record["searched"] | {"quality": quality(600.25, 0.75)}
    record |= {"reconstructed": worse, "written": "searched"}
    shown = page.tiles(Summary(**record))
    assert [figure for figure, _ in shown[:2]] == ["556.30", "0.5000"]
    assert shown[1][1].startswith("KL to dense, searched;")


def test_too_large_a_figure_takes_no_more_room() -> None:
    assert tables.number(1e304, ".2f") == "1e+304"
    assert tables.number(float("inf"), ".2f") == "not finite"
    assert tables.number(12345.678, ".2f") == "12345.68"


@pytest.mark.parametrize(
    ("perplexities", "share"),
    [((None, 2.0, 1.5), "–"), ((1.0, None, 1.5), "–"), ((1.0, 2.0, None), "–"), ((1.0, 4.0, 2.0), "50%")],
)
def test_what_was_regained_is_known_or_not(perplexities: Any, share: str) -> None:
    assert tables.regained(*perplexities) == share


def test_figures_that_are_not_finite_are_valid_json() -> None:
    text = TextPerplexity("a", "a.txt", "all", 1, 8, 8, False, float("nan"), None)
    score = TaskScore("arc", 0, 1, "acc", float("inf"), float("nan"))
    for found in (Perplexities("m", [text]), TaskScores("m", [score])):
        told = json.dumps(found.as_json(), allow_nan=False)
        assert "null" in told
        assert "not finite" in repr(found)


def test_a_search_that_notes_nothing_has_no_figure() -> None:
    made = summary()
    for record in made["rounds"]:
        record["history"] = []
    assert "<circle" not in page.render(Summary(**made))
    made["rounds"][1] = rounds()[1]
    assert "<circle" in page.render(Summary(**made))


@pytest.mark.parametrize("value", [0.0, 1e-13, 1e39, 1.7e308, -1.7e308])
def test_objectives_that_are_all_the_same(value: float) -> None:
    root = ElementTree.fromstring(
        figures.search_lines([[("evolution", [(0, value, value), (0, value, None)])], []])
    )
    assert len(list(root.iter("circle"))) == 3
    ElementTree.fromstring(figures.loss_line([value, value], 1))


@pytest.mark.parametrize("ratio", [1e-9, 0.4, 9.0, 12.0, 999.0, 4e17])
def test_an_axis_has_a_few_numbers_whatever_its_end(ratio: float) -> None:
    root = ElementTree.fromstring(figures.speed_bars([("JAX", ratio, ratio / 2)], MEASURES[0]))
    assert 1 <= len([line for line in root.iter("line") if line.attrib["class"] == "grid"]) <= 11


def test_figures_have_no_more_points_than_columns() -> None:
    count = 300_000
    began = time.monotonic()
    long = [(step, 1 / step, None) for step in range(1, count)]
    root = ElementTree.fromstring(figures.search_lines([[("long", long)], [("short", [(1, 2.0, 3.0)])]]))
    assert len(list(root.iter("circle"))) < 3000
    assert f"objective of {count:,} generations".replace(",", "") in root.attrib["aria-label"]
    (curve,) = ElementTree.fromstring(figures.loss_line([1.0, 2.0] * count, 9)).iter("polyline")
    assert len(curve.attrib["points"].split()) < 3000
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("count", [0, 1, 2, 9, 10, 11, 12345])
def test_thinned_values_have_the_last(count: int) -> None:
    values = list(range(count))
    some = figures.thinned(values, 10)
    assert list(some[-1:]) == values[-1:]
    assert len(some) <= 11
    assert list(some) == sorted(set(some))
    assert count > 10 or some == values


@pytest.mark.slow
def test_a_page_of_many_layers_and_rounds_is_bounded() -> None:
    depth = 1000
    made, kept = summary(), {"attention": [1] * depth, "ffn": [1] * depth}
    for model in ("uniform", "searched"):
        made[model] |= {"kept": kept, "units": dict.fromkeys(kept, units(2 * depth, depth, "heads"))}
    made |= {"distribution": kept, "rounds": [rounds()[0] | {"kept": kept} for _ in range(200)]}
    began = time.monotonic()
    shown = page.render(Summary(**made))
    assert len(shown) < 20e6
    assert "width=&#34;-" not in shown
    assert 'width="-' not in shown
    assert time.monotonic() - began < 10


def timings(engine: str) -> list[Timing]:
    case = {"engine": engine, "prompt": 16, "batch": 1, "dense": 0.2, "pruned": 0.1, "limit": 2.0}
    return [Timing(**case, measure=measure) for measure in MEASURES]


MARKUP = "a|b`````<script>alert(1)</script>](x)[/y]\n# z\x1b\u202e"


def test_names_are_text_in_the_page_and_the_card() -> None:
    made, won = summary(), recovery()
    made["settings"]["model"] = made["device"] = MARKUP
    made["arguments"] = ["--model", MARKUP]
    won["sources"] = [MARKUP]
    for model in (made["dense"], made["uniform"], made["searched"]):
        model["quality"] = {MARKUP: model["quality"]["words.txt"]}
    for name in ("dense", "pruned", "recovered"):
        won["quality"][name] = {MARKUP: won["quality"][name]["words.txt"]}
    won["fingerprints"] = {MARKUP: "94"}
    made["texts"][MARKUP] = made["texts"].pop("words.txt")
    made["seconds"] = {MARKUP: 1.0}
    for model in (made["uniform"], made["searched"]):
        for each in model["units"].values():
            each["noun"] = MARKUP
    pruned, trained = Summary(**made), Recovery(**won)
    shown = page.render(pruned, Speed(device=MARKUP, rows=timings(MARKUP)), trained)
    assert "<script" not in shown
    assert not {"\x1b", "\u202e"} & set(shown)
    text = card.render(pruned, True, trained)
    above, fence, command = text.partition("\n``````bash\n")
    assert fence
    assert command.endswith("\n``````\n")
    assert not {"\x1b", "\u202e"} & set(text)
    metadata, _, shown = above.partition("\n---\n")
    assert not re.search(r"(?<!\\)<script", shown)
    # What the hub reads is data, whatever it holds.
    (result,) = ModelCard(f"{metadata}\n---\n").data.eval_results
    assert result.dataset_name == MARKUP
    assert len([line for line in above.splitlines() if line.startswith("# ")]) == 1
    lines = [line for line in above.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {5, 6}


def write(directory: Path, name: str, record: Any) -> None:
    (directory / name).write_text(json.dumps(record), encoding="utf-8")


def test_a_benchmark_keeps_the_recovery(tmp_path: Path) -> None:
    write(tmp_path, "summary.json", summary())
    write(tmp_path, "recovery.json", recovery())
    renew_report(tmp_path)
    seal(tmp_path)
    found = Benchmark({"dense": "d", "pruned": "p"}, "1 × cpu", {}, timings("JAX"))
    names = [path.name for path in found.save(tmp_path / "benchmark.json")]
    assert names == ["benchmark.json", "report.html", "README.md"]
    assert json.loads((tmp_path / "benchmark.json").read_text())["format_version"] == 1
    shown = (tmp_path / "report.html").read_text()
    assert "2.00 times faster" in shown
    assert "to learn the dense model" in shown
    assert "Then the model was trained on 2,048 tokens" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize("name", ["summary.json", "recovery.json"])
def test_a_benchmark_is_not_written_beside_records_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    write(tmp_path, "summary.json", summary())
    write(tmp_path, "recovery.json", recovery())
    (tmp_path / name).write_text("{")
    found = Benchmark({}, "cpu", {}, timings("JAX"))
    with pytest.raises(Exception, match=rf"{name} is not valid JSON"):
        found.save(tmp_path / "benchmark.json")
    assert not (tmp_path / "benchmark.json").exists()


def test_a_page_that_was_changed_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "summary.json", summary())
    renew_report(tmp_path)
    seal(tmp_path)
    (tmp_path / "README.md").write_text("my own card")
    (tmp_path / "report.html").unlink()
    report.main([str(tmp_path)])
    told = capsys.readouterr().out
    assert "written to" in told
    assert re.search(r"README\.md\s+stays\s+as\s+it\s+is", told)
    assert (tmp_path / "README.md").read_text() == "my own card"
    assert changed_pages(tmp_path) == [tmp_path / "README.md"]


def test_pages_are_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "summary.json", summary())
    renew_report(tmp_path)
    seal(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write_text = Path.write_text

    def full(path: Path, text: str, *rest: Any, **more: Any) -> int:
        write_text(path, text[: len(text) // 2], *rest, **more)
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(Exception, match=r"cannot write .*No space left on device"):
        renew_report(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_result_says_what_is_not_finite() -> None:
    made = summary()
    made["searched"]["quality"] = quality(None, None)
    result = PruneResult(lambda: None, made, EventLog())  # type: ignore[arg-type]
    assert str(result.quality["words.txt"]) == "Quality(perplexity=nan, kl=nan)"
    assert "not finite" in repr(result)
    assert "not finite" in result._repr_html_()
