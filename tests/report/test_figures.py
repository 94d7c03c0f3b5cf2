"""Figures of numbers given by hand: what they draw and where, and their descriptions."""

import itertools
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable

import pytest

from tyr_jax.report import figures

LAYERS = [4, 0, 2, 4]
UNIFORM = [3, 2, 3, 2]


def parse(svg: str) -> ElementTree.Element:
    return ElementTree.fromstring(svg)


def titles(boxes: Iterable[ElementTree.Element]) -> list[str]:
    return [str(box.findtext("title")) for box in boxes]


def test_bars_are_as_high_as_their_share() -> None:
    root = parse(figures.kept_bars(LAYERS, UNIFORM, 4, "heads"))
    boxes = list(root.iter("rect"))
    heights = [float(box.attrib["height"]) for box in boxes]
    assert heights[0] == heights[3] == 2 * heights[2] > 0 == heights[1]
    assert titles(boxes)[1] == "layer 1: 0 of 4 heads"
    bottoms = {round(float(box.attrib["y"]) + float(box.attrib["height"]), 1) for box in boxes}
    assert len(bottoms) == 1
    marks = [line for line in root.iter("line") if line.attrib["class"] == "reference"]
    levels = [float(line.attrib["y1"]) for line in marks]
    assert levels[0] == levels[2] < levels[1] == levels[3]
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == "heads kept in each of 4 layers: from 0 to 4 of 4, 10 in all"


@pytest.mark.parametrize("depth", [1, 2, 12, 13, 30, 80, 126])
def test_layer_numbers_have_room(depth: int) -> None:
    root = parse(figures.kept_bars([1] * depth, [1] * depth, 2, "heads"))
    labels = [node for node in root.iter("text") if not str(node.text).endswith("%")]
    places = [float(node.attrib["x"]) for node in labels]
    assert [labels[0].text, labels[-1].text] == ["0", str(depth - 1)]
    assert all(right - left > 25 for left, right in itertools.pairwise(places))
    assert all(0 < place < figures.WIDTH for place in places)


def test_rows_are_the_stronger_the_more_is_kept() -> None:
    root = parse(figures.kept_rows([("uniform", UNIFORM), ("round 1", LAYERS)], 4, "heads"))
    boxes = list(root.iter("rect"))
    assert len(boxes) == 8
    strength = [float(box.attrib["fill-opacity"]) for box in boxes[4:]]
    assert strength[0] == strength[3] == 1 > strength[2] > strength[1] > 0
    assert titles(boxes)[5] == "round 1, layer 1: 0 of 4 heads"
    assert root.attrib["aria-label"].endswith("round by round: round 1 changes 4 layers")


def test_the_search_goes_down_as_its_objective_does() -> None:
    rounds = [
        [("descent", [(10, 0.8, None)]), ("evolution", [(10, 0.6, 0.8)])],
        [("evolution", [(10, 0.5, 0.5)])],
    ]
    root = parse(figures.search_lines(rounds))
    assert len(list(root.iter("polyline"))) == 3
    points = [node for node in root.iter("circle") if node.attrib["class"] == "winner"]
    heights = [float(node.attrib["cy"]) for node in points]
    places = [float(node.attrib["cx"]) for node in points]
    assert heights == sorted(heights)
    assert titles(points)[1].startswith("round 1, evolution, generation 1")
    # Tokens of the second round come after those of the first.
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.2)
    assert len([line for line in root.iter("line") if line.attrib["class"] == "divider"]) == 1
    assert root.attrib["aria-label"] == "objective of 3 generations in 2 rounds, 30 candidate-tokens"


def test_the_loss_goes_down_as_it_does() -> None:
    root = parse(figures.loss_line([3.0, 2.0, 2.5], 6144))
    (curve,) = root.iter("polyline")
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in curve.attrib["points"].split())
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y1 - y0 == pytest.approx(2 * (y1 - y2), abs=0.3)
    assert y1 > y2 > y0
    assert root.attrib["aria-label"] == "loss of 3 steps, from 3.0000 to 2.5000"
    assert "6,144 tokens" in [label.text for label in root.iter("text")]


def test_bars_are_as_long_as_their_ratio() -> None:
    root = parse(figures.speed_bars([("JAX", 1.5, 2.0), ("llama.cpp", 0.75, 2.0)], "first token"))
    fast, slow = root.iter("rect")
    assert float(fast.attrib["width"]) == pytest.approx(2 * float(slow.attrib["width"]), rel=1e-3)
    lines = [(line.attrib["class"], float(line.attrib["x1"])) for line in root.iter("line")]
    # Lines at 0, 1 and 2 times; the marks lie on the last.
    zero, _, twice = (x for kind, x in lines if kind == "grid")
    assert [x for kind, x in lines if kind == "reference"] == [twice, twice]
    assert zero == float(fast.attrib["x"])
    assert "JAX: 1.50, at best 2.00; llama.cpp: 0.75" in root.attrib["aria-label"]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.12, 0.18, [0.12, 0.14, 0.16, 0.18]),
        (0.5, 0.87, [0.5, 0.6, 0.7, 0.8, 0.9]),
        (3.0, 3.0, [3.0, 3.001]),
        (0, 9, [0, 2, 4, 6, 8, 10]),
    ],
)
def test_ticks_are_round_and_span_the_values(low: float, high: float, ticks: list[float]) -> None:
    made = figures.round_ticks(low, high)
    assert made[0] <= low <= high <= made[-1]
    assert made[0] < made[-1]
    assert made == pytest.approx(ticks)


def test_names_are_escaped() -> None:
    root = parse(figures.kept_rows([("<b>&", UNIFORM)], 4, "heads"))
    assert titles(root.iter("rect"))[0] == "<b>&, layer 0: 3 of 4 heads"
