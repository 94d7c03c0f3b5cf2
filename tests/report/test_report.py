"""The page and the card of a real run, and `python -m tyr_jax.report`."""

import html
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import record_samples
from huggingface_hub import ModelCard

from tyr_jax.cli import prune
from tyr_jax.cli import report as command
from tyr_jax.evaluation import quality
from tyr_jax.report import card, page
from tyr_jax.report.files import summary_of, write_report
from tyr_jax.report.identity import gain_of
from tyr_jax.scoring import scorer
from tyr_jax.workspace.events import read_entries
from tyr_jax.workspace.records import MEASURES, Recovery, Speed, Summary, Timing
from tyr_jax.workspace.schema import versioned

pytestmark = pytest.mark.slow

VOID = {"meta", "br", "rect", "line", "circle", "polyline"}


class Reader(HTMLParser):
    """Collects text, and checks that tags are closed in the right order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.links: list[str] = []
        self.figures = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open += [tag] if tag not in VOID else []
        values = dict(attrs)
        self.links += [str(values[name]) for name in ("src", "href") if name in values]
        if tag == "svg":
            self.figures += 1
            assert values["role"] == "img"
            assert values["aria-label"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def html_of(source: str) -> Reader:
    reader = Reader()
    reader.feed(source)
    assert reader.open == []
    return reader


def test_the_page_tells_what_the_summary_has(pruned: Path, summary: dict[str, Any]) -> None:
    source = (pruned / "report.html").read_text(encoding="utf-8")
    reader = html_of(source)
    text = " ".join(" ".join(reader.text).split())
    for name in ("dense", "uniform", "searched"):
        quality = summary[name]["quality"]["words.txt"]
        assert f"{quality['perplexity']:.2f}" in text
        assert f"{quality['kl']:.4f}" in text
    assert "pruned to 50.0% sparsity" in text
    heads = summary["searched"]["units"]["attention"]
    assert f"{heads['kept']} of 12 heads are kept; {heads['sparsity']:.2%} are removed." in text
    model = Path(summary["settings"]["model"]).name
    assert f"python -m tyr_jax.prune --model {model}" in text
    assert f"{model}, pruned to 50.0% sparsity" in text
    assert gain_of(Summary(**summary)) in text
    assert str(pruned.parent) not in source
    assert '"generations": 2' in text
    assert summary["versions"]["jax"] in text
    # Bars and rows for both kinds, and the search.
    assert reader.figures == 5
    # Nothing is fetched.
    assert reader.links == []
    assert "url(" not in source


def test_a_run_without_rounds(summary: dict[str, Any]) -> None:
    plain = summary | {"rounds": [], "searched": None, "distribution": summary["uniform"]["kept"]}
    plain["written"] = "uniform"
    reader = html_of(page.render(Summary(**plain)))
    assert reader.figures == 2
    assert "Search" not in reader.text
    assert "| searched |" not in card.render(Summary(**plain), False)


def test_a_card_of_experts(summary: dict[str, Any]) -> None:
    """The units have their name, and llama.cpp is named only if it can run the model."""
    plain = card.render(Summary(**summary), False)
    assert "FFN neurons are removed" in plain
    assert "llama-cli" in plain
    assert "llama" not in card.render(Summary(**summary), False, gguf=False).partition("## Run it")[2]
    kinds = summary["uniform"]["units"]
    kinds["ffn"]["noun"] = "experts"
    mixture = Summary(**summary)
    assert "experts are removed" in card.render(mixture, False)
    assert "Experts that each layer keeps" in page.render(mixture)
    del kinds["ffn"]["noun"]
    assert "ffn are removed" in card.render(Summary(**summary), False)
    other = kinds | {"state": kinds["attention"] | {"noun": "state heads"}}
    for name in ("uniform", "searched"):
        summary[name]["units"], summary[name]["kept"]["state"] = other, summary[name]["kept"]["ffn"]
    summary["distribution"]["state"] = summary["distribution"]["ffn"]
    for record in summary["rounds"]:
        record["kept"]["state"] = record["kept"]["ffn"]
    assert "Heads, ffn and state heads are removed" in page.render(Summary(**summary))


def test_what_a_name_may_hold_is_escaped(summary: dict[str, Any]) -> None:
    settings = summary["settings"] | {"model": "<script>alert(1)</script>"}
    base = summary["base_model"] | {"name": "<script>alert(2)</script>"}
    odd = summary | {"settings": settings, "base_model": base, "arguments": ["--model", "a b&c"]}
    source = page.render(Summary(**odd))
    assert "<script" not in source
    assert not re.search(r"(?<!\\)<script", card.render(Summary(**odd), False).partition("\n---\n")[2])
    assert html.escape("--model 'a b&c'", quote=True) in source.replace("&#39;", "&#x27;")


def test_the_card(pruned: Path, summary: dict[str, Any]) -> None:
    text = (pruned / "README.md").read_text(encoding="utf-8")
    assert str(pruned.parent) not in text
    heads, neurons = (summary["searched"]["units"][kind]["removed"] for kind in ("attention", "ffn"))
    assert f"{heads} of 12 heads and {neurons} of 144 FFN neurons" in " ".join(text.split())
    assert "trust_remote_code=True" in text
    assert "trust_remote_code" not in card.render(Summary(**summary), False)
    final = summary["searched"]["quality"]["words.txt"]
    assert re.search(rf"\| words.txt \(calibrated on\), perplexity \|.*\| {final['perplexity']:.2f} \|", text)
    assert f"--model {Path(summary['settings']['model']).name}" in text
    assert gain_of(Summary(**summary)) in " ".join(text.split())


def test_the_headline_of_a_trained_model_is_its_own() -> None:
    summary, recovery = Summary(**record_samples.summary()), Recovery(**record_samples.recovery())
    source = page.render(summary, recovery=recovery)
    text = " ".join(" ".join(html_of(source).text).split())
    assert gain_of(summary, recovery) in text
    assert "550.10 perplexity, words.txt; before training 556.30" in text
    assert "0.3000 KL to dense, recovered; before training 0.4000" in text
    assert gain_of(summary, recovery) in " ".join(card.render(summary, False, recovery).split())


def test_what_the_hub_reads_of_the_card(tmp_path: Path) -> None:
    """The hub's own library reads the model that was pruned, its licence, and the results of this one."""
    summary = record_samples.summary()
    summary["settings"]["data"]["calibration"] = ["someone/texts:en:train", "/home/me/mine.txt@2", "self"]
    path = tmp_path / "README.md"
    hub_text = summary["searched"]["quality"]["words.txt"]
    summary["settings"]["data"]["evaluation"] = ["someone/other:raw:test"]
    summary["searched"]["quality"]["other:raw:test"] = hub_text
    for recovery in (None, record_samples.recovery()):
        trained = recovery and Recovery(**recovery)
        path.write_text(card.render(Summary(**summary), False, trained), encoding="utf-8")
        found = ModelCard.load(path, ignore_metadata_errors=False)
        assert found.data.base_model == "someone/Dense-1M"
        assert found.data.license == "mit"
        assert found.data.datasets == ["someone/texts"]
        assert found.data.library_name == "transformers"
        quality = recovery["quality"]["recovered"] if recovery else summary["searched"]["quality"]
        measured = {result.dataset_name: result.metric_value for result in found.data.eval_results}
        assert measured == {text: figures["perplexity"] for text, figures in quality.items()}
        for result in found.data.eval_results if not recovery else ():
            known = result.dataset_type, result.dataset_config, result.dataset_split
            on_hub = result.dataset_name == "other:raw:test"
            assert known == (
                ("someone/other", "raw", "test") if on_hub else (result.dataset_name, None, None)
            )
    del summary["base_model"]
    path.write_text(card.render(Summary(**summary), False), encoding="utf-8")
    assert ModelCard.load(path).data.base_model is None


def test_both_are_made_again(
    pruned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], summary: dict[str, Any]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(pruned, copy)
    for name in ("report.html", "README.md"):
        (copy / name).unlink()
    command.main([str(copy)])
    for name in ("report.html", "README.md"):
        assert (copy / name).read_text() == (pruned / name).read_text()
        assert f"written to {copy / name}" in capsys.readouterr().out or name == "README.md"
    assert [path.name for path in write_report(copy, Summary(**summary))] == ["report.html", "README.md"]


def test_directories_that_are_not_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], summary: dict[str, Any]
) -> None:
    for content, sentence in (
        (None, "has no summary.json: name a directory that `python -m tyr_jax.prune` wrote"),
        (
            {"format_version": 1, "settings": {"data": {}}},
            "lacks arguments; restore the file, or prune again",
        ),
    ):
        if content is not None:
            (tmp_path / "summary.json").write_text(json.dumps(content))
        with pytest.raises(SystemExit) as stopped:
            command.main([str(tmp_path)])
        assert stopped.value.code == 2
        assert sentence in capsys.readouterr().err


def test_a_run_whose_figures_are_not_finite(
    tiny_arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pruned model overflows, and so does a parent in the search. All files are still valid JSON that can
    be read again."""
    score = scorer.score_population

    def overflowing(net: Any, candidates: Any, *rest: Any) -> Any:
        return np.where(np.arange(len(candidates)) == 0, np.nan, score(net, candidates, *rest))

    monkeypatch.setattr(scorer, "score_population", overflowing)
    monkeypatch.setattr(quality, "measure", lambda *_: quality.Quality(math.nan, math.inf))
    output = tmp_path / "pruned"
    prune.main([*tiny_arguments, "--sparsity", "0.5", "--rounds", "1", "--output", str(output)])
    text = (output / "summary.json").read_text()
    made = json.loads(text, parse_constant=pytest.fail)
    assert made == versioned(summary_of(output))
    assert set(made["searched"]["quality"]["words.txt"].values()) == {None}
    history = made["rounds"][0]["history"]
    assert {entry["parent"] for entry in history if entry["search"] == "evolution"} == {None}
    assert made["health"]["objectives_not_finite"] > 0
    for line in (output / "events.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    assert read_entries(output / "events.jsonl")
    assert "not finite" in (output / "report.html").read_text()
    assert "not finite" in (output / "README.md").read_text()


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--help"])
    assert "DIR is what `python -m tyr_jax.prune` wrote, or `finetune` from" in capsys.readouterr().out


BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on the PATH")
@pytest.mark.parametrize("width", [360, 1200])
def test_in_a_browser(width: int, summary: dict[str, Any], tmp_path: Path) -> None:
    """At the width of a phone and of a desktop, nothing scrolls sideways and there are no console errors."""
    timings = [
        Timing(engine=engine, prompt=512, batch=4, measure=measure, dense=0.2, pruned=0.1, limit=2.2)
        for engine in ("JAX", "llama.cpp")
        for measure in MEASURES
    ]
    source = html.escape(page.render(Summary(**summary), Speed(device="4 × TPU", rows=timings)))
    probe = """<title></title>
<iframe id="frame" style="border:0;width:{0}px;height:800px" srcdoc="{1}"></iframe>
<script>addEventListener("load", () => {{
  const page = document.getElementById("frame").contentDocument;
  page.querySelectorAll("details").forEach(part => part.open = true);
  const {{scrollWidth, clientWidth}} = page.documentElement;
  document.title = [scrollWidth - clientWidth, page.querySelectorAll("svg").length];
}})</script>"""
    path = tmp_path / "probe.html"
    path.write_text(probe.format(width, source), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    result = subprocess.run(
        [str(BROWSER), *options, f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "<title>0,7</title>" in result.stdout
    assert "CONSOLE" not in result.stderr
