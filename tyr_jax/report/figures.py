"""Figures of a report as SVG, made from plain numbers. The page sets their colours, in light and dark.

Axis letters: `L` layers.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Self, TypeVar

from markupsafe import Markup

T = TypeVar("T")

MOST_POINTS = 2000
"""About this many points are drawn in a figure, at most; it has fewer columns than that."""

WIDTH, HEIGHT = 640, 200
ROWS = 32
LEFT, RIGHT, TOP, BOTTOM = 56, 8, 18, 30
"""Sizes in the figure's own units; a page scales it to its width."""


def svg(height: float, label: str, parts: Sequence[str]) -> Markup:
    """A figure with a text alternative."""
    body = Markup("").join(Markup(part) for part in parts)
    return Markup('<svg viewBox="0 0 {} {:g}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, height, label, body
    )


def text(x: float, y: float, content: object, anchor: str = "middle") -> Markup:
    """A label."""
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, content)


def rect(
    x: float, y: float, width: float, height: float, kind: str, title: str, opacity: float = 1
) -> Markup:
    """A box that shows its `title` when the pointer rests on it."""
    return Markup(
        '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="1.5" class="{}" '
        'fill-opacity="{:.2f}"><title>{}</title></rect>'
    ).format(x, y, width, height, kind, opacity, title)


def line(x0: float, y0: float, x1: float, y1: float, kind: str) -> Markup:
    """A straight line."""
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(
        x0, y0, x1, y1, kind
    )


def thinned(values: Sequence[T], most: int) -> Sequence[T]:
    """All values, or, if there are more than `most`, about that many at even distances, and the last."""
    step = math.ceil(len(values) / most)
    return values if step <= 1 else [*values[:-1:step], values[-1]]


def layer_ticks(depth: int, y: float) -> list[Markup]:
    """Layer numbers below the first layer, the last, and round ones in between that have room."""
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if depth / step <= 12)
    shown = [layer for layer in range(0, depth, step) if layer == 0 or depth - 1 - layer >= step] + [
        depth - 1
    ]
    return [text(column_centre(layer, depth), y, layer) for layer in dict.fromkeys(shown)]


def column_centre(layer: int, depth: int) -> float:
    """The x coordinate of the middle of a layer's column."""
    return LEFT + (WIDTH - LEFT - RIGHT) * (layer + 0.5) / depth


def kept_bars(kept: Sequence[int], uniform: Sequence[int], units: int, noun: str) -> Markup:
    """What each layer keeps, `kept [L]` of `units`, over a mark of what it would keep in `uniform [L]`."""
    depth, floor = len(kept), HEIGHT - BOTTOM
    room, width = floor - TOP, (WIDTH - LEFT - RIGHT) / depth
    parts: list[str] = []
    for share in (0, 0.5, 1):
        y = floor - share * room
        parts += [line(LEFT, y, WIDTH - RIGHT, y, "grid"), text(LEFT - 6, y + 4, f"{share:.0%}", "end")]
    for layer, (count, even) in enumerate(zip(kept, uniform, strict=True)):
        x, tall = LEFT + layer * width, room * count / units
        title = f"layer {layer}: {count} of {units} {noun}"
        parts.append(rect(x + 1, floor - tall, max(width - 2, 1), tall, "mark", title))
        level = floor - room * even / units
        parts.append(line(x, level, x + width, level, "reference"))
    parts += layer_ticks(depth, HEIGHT - 8)
    least, most = min(kept), max(kept)
    label = f"{noun} kept in each of {depth} layers: from {least} to {most} of {units}, {sum(kept)} in all"
    return svg(HEIGHT, label, parts)


def kept_rows(rows: Sequence[tuple[str, Sequence[int]]], units: int, noun: str) -> Markup:
    """What each layer keeps, round by round: named rows of counts `[L]` of `units`; the more, the darker."""
    depth, tall = len(rows[0][1]), 22
    width, height = (WIDTH - LEFT - ROWS - RIGHT) / depth, TOP + len(rows) * tall + BOTTOM - 8
    parts: list[str] = []
    for number, (name, kept) in enumerate(rows):
        y = TOP + number * tall
        parts.append(text(LEFT + ROWS - 8, y + 15, name, "end"))
        for layer, count in enumerate(kept):
            title = f"{name}, layer {layer}: {count} of {units} {noun}"
            x, share = LEFT + ROWS + layer * width, count / units
            box = rect(x + 0.5, y + 1, max(width - 1, 0.1), tall - 2, "mark", title, 0.06 + 0.94 * share)
            parts.append(box)
    changed = [
        sum(a != b for a, b in zip(first, second, strict=True))
        for (_, first), (_, second) in itertools.pairwise(rows)
    ]
    names = [name for name, _ in rows[1:]]
    told = ", ".join(f"{name} changes {count} layers" for name, count in zip(names, changed, strict=True))
    return svg(height, f"{noun} kept in each layer, round by round: {told}", parts)


def speed_bars(bars: Sequence[tuple[str, float, float]], measure: str) -> Markup:
    """How many times faster each case is, with a mark at its limit; a case is `(name, ratio, limit)`."""
    tall, left = 46, 16
    end = max(value for _, *values in bars for value in values) * 1.12
    height = len(bars) * tall + BOTTOM
    room = WIDTH - left - RIGHT

    parts: list[str] = []
    for tick in range(0, int(end) + 1, 10 ** max(0, math.ceil(math.log10(end / 10)))):
        x = left + room * tick / end
        parts += [line(x, 0, x, len(bars) * tall, "grid"), text(x, height - 8, f"{tick}×")]
    for number, (name, ratio, limit) in enumerate(bars):
        y = number * tall
        title = f"{name}: {ratio:.2f} times faster, at best {limit:.2f}"
        parts.append(text(left, y + 18, f"{name}: {ratio:.2f}×", "start"))
        parts.append(rect(left, y + 25, room * ratio / end, 14, "mark", title))
        mark = left + room * limit / end
        parts.append(line(mark, y + 21, mark, y + 43, "reference"))
    cases = "; ".join(f"{name}: {ratio:.2f}, at best {limit:.2f}" for name, ratio, limit in bars)
    return svg(height, f"times faster than the dense model, {measure}. {cases}", parts)


def round_ticks(low: float, high: float) -> list[float]:
    """Two to seven round numbers, evenly spaced, that span `low` to `high`."""
    span = max(high - low, abs(high) * 1e-3, 1e-9)
    power = 10 ** math.floor(math.log10(span / 4))
    step = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= 5)
    first = math.floor(low / step)
    last = max(math.ceil(high / step), first + 1)
    return [round(step * number, 12) for number in range(first, last + 1)]


class Axis(NamedTuple):
    """A vertical axis that starts at `floor` and goes up, from the first to the last of its round `ticks`."""

    ticks: list[float]
    floor: float

    @classmethod
    def of(cls, values: Sequence[float], floor: float) -> Self:
        """An axis with room for all `values`, clipped to ±1e300 so that their differences do not overflow."""
        low, high = (min(max(value, -1e300), 1e300) for value in (min(values), max(values)))
        return cls(round_ticks(low, high), floor)

    def y(self, value: float) -> float:
        """The y coordinate of a value."""
        low, high = self.ticks[0], self.ticks[-1]
        return self.floor - (self.floor - TOP) * (value - low) / (high - low)

    def grid(self) -> list[str]:
        """A line and a number at every tick."""
        heights = [(tick, self.y(tick)) for tick in self.ticks]
        lines = [line(LEFT + 10, y, WIDTH - RIGHT, y, "grid") for _, y in heights]
        return [*lines, *(text(LEFT + 4, y + 4, f"{tick:g}", "end") for tick, y in heights)]


def loss_line(losses: Sequence[float], tokens: int) -> Markup:
    """The loss of every step of a training on this many `tokens`."""
    axis = Axis.of(losses, HEIGHT - BOTTOM)
    left, room = LEFT + 10, WIDTH - LEFT - 10 - RIGHT
    last, points = max(len(losses) - 1, 1), thinned(list(enumerate(losses)), MOST_POINTS)
    path = " ".join(f"{left + room * step / last:.1f},{axis.y(loss):.1f}" for step, loss in points)
    curve = Markup('<polyline points="{}" class="curve"/>').format(path)
    ends = text(left, HEIGHT - 8, "0", "start"), text(WIDTH - RIGHT, HEIGHT - 8, f"{tokens:,} tokens", "end")
    label = f"loss of {len(losses)} steps, from {losses[0]:.4f} to {losses[-1]:.4f}"
    return svg(HEIGHT, label, [*axis.grid(), curve, *ends])


def step_marks(
    name: str, won: float | None, parent: float | None, place: Callable[[float], tuple[float, float]]
) -> list[Markup]:
    """Marks for a generation's parent and winner, the winner on top, each at the `place` of its objective.

    An objective that is None has no mark.
    """
    title = f"{name}: " + ("not finite" if won is None else f"{won:.4f}")
    title += "" if parent is None else f", its parent {parent:.4f}"
    circle = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="3" class="{}"><title>{}</title></circle>')
    kinds = ((parent, "parent"), (won, "winner"))
    return [circle.format(*place(value), kind, title) for value, kind in kinds if value is not None]


def search_lines(
    rounds: Sequence[Sequence[tuple[str, Sequence[tuple[float, float | None, float | None]]]]],
) -> Markup:
    """The objectives of each generation's winner, and of the parent it had to beat, over candidate-tokens.

    `rounds` has the searches of every round, in order, each with its name and `(spent in this search, winner,
    parent)` for every generation. None stands for an objective that was not finite, or for a parent in a
    search without parents. At least one objective is finite.
    """
    height = HEIGHT + 20
    floor = height - BOTTOM
    spends = [sum(points[-1][0] for _, points in searches) for searches in rounds]
    *starts, total = itertools.accumulate(spends, initial=0)
    every = [points for searches in rounds for _, points in searches]
    most = max(2, MOST_POINTS // max(1, len(every)))
    values = [value for points in every for point in points for value in point[1:] if value is not None]
    axis = Axis.of(values, floor)

    def place(spent: float, value: float) -> tuple[float, float]:
        return LEFT + 10 + (WIDTH - LEFT - 10 - RIGHT) * spent / max(total, 1), axis.y(value)

    parts: list[str] = axis.grid()
    for number, (start, end, searches) in enumerate(zip(starts, spends, rounds, strict=True), start=1):
        left, right = (place(spent, axis.ticks[0])[0] for spent in (start, start + end))
        parts.append(text((left + right) / 2, height - 8, f"round {number}"))
        if start:
            parts.append(line(left, TOP, left, floor, "divider"))
        for search, points in searches:
            numbered = thinned(list(enumerate(points, start=1)), most)
            won = [place(start + spent, best) for _, (spent, best, _) in numbered if best is not None]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in won)
            parts.append(Markup('<polyline points="{}" class="curve"/>').format(path))
            for generation, (spent, best, parent) in numbered:
                name = f"round {number}, {search}, generation {generation}"
                parts += step_marks(name, best, parent, functools.partial(place, start + spent))
            start += points[-1][0]
    generations = sum(map(len, every))
    label = f"objective of {generations} generations in {len(rounds)} rounds, {total:,.0f} candidate-tokens"
    return svg(height, label, parts)
