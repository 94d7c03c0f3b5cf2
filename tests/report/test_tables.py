"""The closing table and the JSON of a run, on figures given by hand."""

import contextlib
import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from record_samples import summary, units

from tyr_jax.cli.prune import print_results
from tyr_jax.options import as_json
from tyr_jax.report.render import Row, Table, as_html, as_text, grid, markdown_table
from tyr_jax.report.tables import quality_table, time_table
from tyr_jax.settings import PRESETS
from tyr_jax.workspace.records import Summary


def model(parameters: int, perplexity: float, kept: tuple[int, int] | None = None) -> dict[str, Any]:
    quality = {"perplexity": perplexity, "kl": 0.25}
    result: dict[str, Any] = {
        "quality": {"builtin:topics": quality, "builtin:docstrings": quality},
        "size": {"parameters": parameters, "block_parameters": parameters // 2, "bytes": 4 * parameters},
    }
    if kept:
        named = {"attention": (270, "heads"), "ffn": (46080, "FFN neurons")}
        result["kept"] = {kind: [count] for kind, count in zip(named, kept, strict=True)}
        result["units"] = {
            kind: units(total, count, noun)
            for (kind, (total, noun)), count in zip(named.items(), kept, strict=True)
        }
    return result


@pytest.fixture
def report() -> dict[str, Any]:
    made = summary()
    made["settings"]["data"]["calibration"] = ["builtin"]
    return made | {
        "sparsity": {"asked": 0.25},
        "dense": model(134_515_008, 21.234),
        "uniform": model(107_600_000, 35.5, (202, 34560)),
        "searched": model(107_600_000, 29.25, (202, 34560)),
        "health": {"damping_raised": [], "objectives_not_finite": 0},
        "seconds": {"load model": 1.5, "prune": 61.0, "search": 3600.0},
    }


def cells(*reports: dict[str, Any]) -> list[list[str]]:
    """The lines printed on 80 columns, cut into cells."""
    outputs = [Path("out", str(number)) if number else Path("out") for number in range(len(reports))]
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream), pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        print_results([Summary(**report) for report in reports], outputs)
    lines = [line.split("  ") for line in stream.getvalue().splitlines()]
    return [[cell.strip() for cell in line if cell.strip()] for line in lines]


def test_the_table(report: dict[str, Any]) -> None:
    shown = cells(report)
    for row in (
        ["pruned to 25.0% sparsity"],
        ["dense", "uniform", "searched"],
        ["builtin:topics"],
        ["builtin:docstrings"],
        ["… perplexity", "21.23", "35.50", "29.25"],
        ["… KL to dense", "0.2500", "0.2500", "0.2500"],
        ["parameters", "134.5 M", "107.6 M (−20.0%)", "107.6 M (−20.0%)"],
        ["size", "538 MB", "430 MB", "430 MB"],
        ["heads kept", "270", "202", "202"],
        ["… removed", "0", "68 (25.19%)", "68 (25.19%)"],
        ["FFN neurons kept", "46080", "34560", "34560"],
        ["… removed", "0", "11520 (25.00%)", "11520 (25.00%)"],
        ["load model", "1.5 s"],
        ["prune", "1:01"],
        ["search", "1:00:00"],
        ["total", "1:01:02"],
        ["written to out: evaluate with `python -m tyr_jax.evaluate out`"],
    ):
        assert row in shown


def test_a_run_without_rounds_has_no_searched_column(report: dict[str, Any]) -> None:
    shown = cells(report | {"searched": None})
    assert ["dense", "uniform"] in shown
    assert ["FFN neurons kept", "46080", "34560"] in shown


def test_several_targets_stand_side_by_side(report: dict[str, Any]) -> None:
    shared = {"load model": 1.5, "round 1/2: supernet": 30.0}
    half = report | {"sparsity": {"asked": 0.5}, "searched": model(60_000_000, 1234.5, (135, 23040))}
    shown = cells(report | {"shared_seconds": shared}, half | {"seconds": {"prune": 9.0}})
    for row in (
        ["dense", "25.0%", "50.0%"],
        ["… perplexity, uniform", "21.23", "35.5", "35.5"],
        ["… perplexity, searched", "21.23", "29.25", "1234"],
        ["… KL to dense, searched", "0.25", "0.25", "0.25"],
        ["parameters", "134.5 M", "107.6 M (−20.0%)", "60.0 M (−55.4%)"],
        ["time for this target alone", "1:01:02", "9.0 s"],
        ["load model", "1.5 s"],
        ["total", "0:32"],
        ["written to out: evaluate with `python -m tyr_jax.evaluate out`"],
        ["written to out/1: evaluate with `python -m tyr_jax.evaluate out/1`"],
    ):
        assert row in shown


def test_rows_say_what_they_are_about_where_nothing_else_does(report: dict[str, Any]) -> None:
    header, *rows = grid(quality_table(Summary(**report)))
    assert header == ["", "dense", "uniform", "searched"]
    assert rows[:2] == [
        ["builtin:topics, perplexity", "21.23", "35.50", "29.25"],
        ["builtin:topics, KL to dense", "0.2500", "0.2500", "0.2500"],
    ]
    assert rows[4] == ["parameters", "134.5 M", "107.6 M (−20.0%)", "107.6 M (−20.0%)"]
    assert markdown_table([header, rows[4]]).splitlines() == [
        "|  | dense | uniform | searched |",
        "|---|---|---|---|",
        "| parameters | 134.5 M | 107.6 M (−20.0%) | 107.6 M (−20.0%) |",
    ]


def test_text_is_what_a_terminal_shows(report: dict[str, Any]) -> None:
    lines = as_text([quality_table(Summary(**report)), time_table(report["seconds"])]).splitlines()
    shown = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]
    assert lines[0] == "pruned to 25.0% sparsity"
    assert ["… perplexity", "21.23", "35.50", "29.25"] in shown
    assert shown[-1] == ["total", "1:01:02"]
    assert all(line == line.rstrip() for line in lines)


def test_tables_as_html_are_escaped() -> None:
    shown = as_html([Table(["<a>", "b"], [Row("x&y", ["1"], "t")], "title")])
    assert shown == (
        '<p>title</p><div class="wide"><table><tr><th>&lt;a&gt;</th><th>b</th></tr>'
        "<tr><td>t, x&amp;y</td><td>1</td></tr></table></div>"
    )


def test_values_as_json_has_them() -> None:
    @dataclasses.dataclass
    class Inner:
        path: Path
        pair: tuple[int, ...]

    nested = {1: Inner(Path("a/b"), (1, 2)), "none": None}
    assert as_json(nested) == {"1": {"path": "a/b", "pair": [1, 2]}, "none": None}
    assert as_json([np.float64(0.5)]) == [0.5]
    settings = as_json(PRESETS["paper"])
    assert settings["output"] == "pruned"
    assert settings["search"][0]["survivors"] == [16, 4, 1]
    assert settings["pruning"]["saliency"] == {
        "saliency": "taylor",
        "first_order": "abs",
        "second_order": "channel",
    }


def test_what_went_wrong_is_told_once(report: dict[str, Any]) -> None:
    raised = [{"stage": "prune searched", "site": "layer 3 ffn", "damping": 0.1}]
    ill = report | {"health": {"damping_raised": raised, "objectives_not_finite": 7}, "shared_seconds": {}}
    told = [" ".join(line) for line in cells(ill, ill) if line and line[0].startswith("note:")]
    assert len(told) == 2
    assert "at 1 site whose Hessian" in told[0]
    assert "layer 3 ffn (prune searched), to 0.1" in told[0]
    assert "7 candidates" in told[1]
    assert not [line for line in cells(report) if line and line[0].startswith("note:")]
