"""The pictures of the documentation. `scripts/measure.py` draws them from its records; this script draws one
from the results of your own runs, next to them:

  python scripts/pictures.py comparison runs/comparison.json
"""

import dataclasses
import functools
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from markupsafe import Markup
from scipy.stats import binom

from tyr_jax.cli import command
from tyr_jax.errors import UserError
from tyr_jax.files import read_json
from tyr_jax.report import figures

STYLE = """
svg { color-scheme: light dark; } text { fill: #5c5b57; font: 12px system-ui, sans-serif; }
.mark { fill: #2a78d6; } .grid { stroke: #dddcd7; } .reference { stroke: #1d1d1b; stroke-width: 1.5; }
@media (prefers-color-scheme: dark) {
  text { fill: #a9a8a2; } .mark { fill: #5598e7; } .grid { stroke: #3a3a37; }
  .reference { stroke: #ebeae6; } }
"""


def stacked(parts: list[tuple[str, Markup]]) -> str:
    """SVG of figures below one another, each with its title."""
    drawn, top = [], 0.0
    for title, figure in parts:
        height = ElementTree.fromstring(figure).attrib["viewBox"].split()[3]
        drawn.append(f'<text x="56" y="{top + 14:g}">{title}</text>')
        drawn.append(str(figure).replace("<svg", f'<svg y="{top + 20:g}" width="640" height="{height}"', 1))
        top += float(height) + 26
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 {top:g}"><style>{STYLE}</style>'
    return "\n".join([head, *drawn, "</svg>\n"])


NOUNS = {"attention": "attention heads", "ffn": "FFN neurons"}


def draw_kept(results: dict[str, Any], directory: Path, name: str) -> None:
    """Write the picture of what each layer keeps, next to the uniform share, for the smallest model of some
    main results (paper, Figure 5)."""
    *_, models = next(iter(results.values())).values()
    uniform, searched = models["uniform"], models["searched"]
    parts = []
    for kind, noun in NOUNS.items():
        kept, even = searched["kept"][kind], uniform["kept"][kind]
        bars = figures.kept_bars(kept, even, searched["units"][kind]["total"] // len(kept), noun)
        parts.append((f"{noun} that each layer keeps; the line is the uniform share", bars))
    (directory / name).write_text(stacked(parts), encoding="utf-8")


Line = tuple[str, list[float], np.ndarray]
"""Name of what is compared, and its values `[R, P]` by run at the points `[P]`."""


def confidence(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The bounds `[P]` of the 95% confidence interval of the median over runs, from values `[R, P]`: order
    statistics, whatever the distribution. Of five runs or fewer, these are the lowest and the highest."""
    ordered = np.sort(values, axis=0)
    rank = max(1, int(binom.ppf(0.025, len(ordered), 0.5)))
    return ordered[rank - 1], ordered[-rank]


def draw_panels(
    file: Path,
    panels: list[tuple[str, str, list[Line]]],
    value: str,
    scales: tuple[str, str] = ("log", "log"),
) -> None:
    """Write a picture of panels, two a row, each with its title, the name of its points, and a line for all
    that is compared: the median over runs, and its confidence interval around it. The scales are those of
    the points and of the values."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    plain = {
        "svg.hashsalt": "tyr_jax",
        "svg.fonttype": "none",
        "font.size": 8,
        "text.color": "#777",
        "axes.edgecolor": "#999",
    }
    plain |= dict.fromkeys(("axes.labelcolor", "xtick.color", "ytick.color"), "#777")
    names = sorted({name for _, _, lines in panels for name, _, _ in lines})
    colours = dict(zip(names, plt.get_cmap("tab20").colors, strict=False))
    with plt.rc_context(plain):
        rows = -(-len(panels) // 2)
        figure, axes = plt.subplots(rows, 2, figsize=(9, 2.8 * rows), layout="constrained", squeeze=False)
        for axis, (title, points, lines) in zip(axes.flat, panels, strict=False):
            for name, x, values in lines:
                low, high = confidence(values)
                # A line of one point could not be seen.
                axis.plot(
                    x, np.median(values, axis=0), "o" if len(x) == 1 else "-", color=colours[name], label=name
                )
                axis.fill_between(x, low, high, color=colours[name], alpha=0.15, linewidth=0)
            axis.set(xscale=scales[0], yscale=scales[1], title=title, xlabel=points, ylabel=value)
            axis.patch.set_alpha(0)
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        handles, labels = axes.flat[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
        figure.patch.set_alpha(0)
        figure.savefig(file, metadata={"Date": None})
        plt.close(figure)
    # Matplotlib writes six digits after the point; a tenth of a point is enough to draw with.
    drawn = file.read_text(encoding="utf-8")
    drawn = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d+\.\d)\d+", r"\1", tag[0]), drawn)
    file.write_text(drawn, encoding="utf-8")


MOST_EXCESS = 3.0
"""Searches that end with more of the start's excess than this are left out of a picture."""


def draw_curves(results: dict[str, Any], directory: Path, name: str) -> None:
    """Write the picture of a comparison on problems into the file of a `name`: for each group, the excess
    that is left against candidate-tokens, and against seconds of one run. Searches that end far above the
    start are left out, because no difference between the others could be seen."""
    panels = []
    found = results["results"]
    for group in next(iter(found.values()))["groups"]:
        every = {name: each["groups"][group] for name, each in found.items()}
        curves = {name: e for name, e in every.items() if np.median(e["excess"], axis=0)[-1] <= MOST_EXCESS}
        left = {name: np.clip(np.asarray(each["excess"]), 1e-3, None) for name, each in curves.items()}
        tokens = {name: np.asarray(each["tokens"]) for name, each in curves.items()}
        seconds = {name: tokens[name] / tokens[name][-1] * each["seconds"] for name, each in curves.items()}
        for points, x in (("candidate-tokens", tokens), ("seconds", seconds)):
            panels.append((group, points, [(name, x[name].tolist(), left[name]) for name in curves]))
    draw_panels(directory / name, panels, "excess left")


FAR = 1.5
"""A search ends far above the others if its KL is more than this many times the median of all."""


def draw_on_model(results: dict[str, Any], directory: Path) -> None:
    """Write the picture of a comparison on a model: held-out KL against candidate-tokens and seconds.
    Searches that end far above the others are left out, because no difference between the others could be
    seen."""
    by_search: dict[str, list[dict[str, Any]]] = {}
    for run in results["results"].values():
        by_search.setdefault(run["search"], []).append(run["curve"])
    ends = {name: np.median([curve["kl"][-1] for curve in curves]) for name, curves in by_search.items()}
    far = FAR * float(np.median(list(ends.values())))
    panels = []
    for points, shown in (("tokens", "candidate-tokens"), ("seconds", "seconds")):
        lines: list[Line] = []
        for name, curves in by_search.items():
            if ends[name] > far:
                continue
            x = np.median([curve[points] for curve in curves], axis=0)
            lines.append((name, x.tolist(), np.array([curve["kl"] for curve in curves])))
        panels.append(("", shown, lines))
    draw_panels(directory / "on-model.svg", panels, "held-out KL", ("log", "linear"))


def convergence(run: dict[str, Any]) -> tuple[list[float], list[float], list[float]]:
    """Generations, minutes, and the objective on the whole search text after each generation, of a run. The
    minutes are those of supernets and searches."""
    minutes, generation = 0.0, 0
    points: tuple[list[float], list[float], list[float]] = [], [], []
    for each in run["rounds"]:
        minutes += each["seconds"]["supernet"] / 60
        for record in each["history"]:
            generation += 1
            minutes += each["seconds"]["search"] / len(each["history"]) / 60
            for values, value in zip(points, (generation, minutes, record["objective"]), strict=True):
                values.append(value)
    return points


def draw_rounds(results: dict[str, Any], directory: Path) -> None:
    """Write how searches in several rounds and in one converge (paper, Figure 3), and what the first runs
    keep of each layer after every round (Figure 5)."""
    generations: list[Line] = []
    minutes: list[Line] = []
    for way, runs in results.items():
        x, times, values = zip(*map(convergence, runs), strict=True)
        generations.append((way, x[0], np.array(values)))
        minutes.append((way, np.median(times, axis=0).tolist(), np.array(values)))
    panels = [("", "generations", generations), ("", "minutes", minutes)]
    draw_panels(directory / "rounds.svg", panels, "KL on the search text", ("linear", "linear"))
    whole = results["search only"][0]
    fine = max((runs[0] for runs in results.values()), key=lambda run: len(run["rounds"]))
    steps = [("search only", whole["rounds"][-1]["kept"])]
    steps += [(f"round {number}", each["kept"]) for number, each in enumerate(fine["rounds"], 1)]
    parts = []
    for kind, noun in NOUNS.items():
        rows = [(name, kept[kind]) for name, kept in steps]
        units = fine["searched"]["units"][kind]["total"] // len(rows[0][1])
        figure = figures.kept_rows(rows, units, noun)
        parts.append((f"{noun} that each layer keeps: the darker, the more", figure))
    (directory / "rounds-kept.svg").write_text(stacked(parts), encoding="utf-8")


def draw_recovery(results: dict[str, Any], directory: Path) -> None:
    """Write the picture of how much recovery gains: log-perplexity on every text against training tokens,
    beside the model before training and the dense one."""
    first, *_ = results.values()
    panels = []
    for text in first[0]["quality"]["dense"]:
        lines: list[Line] = []
        for way, points in results.items():
            x = [float(point["trained_tokens"]) for point in points]
            values = [point["quality"]["recovered"][text]["perplexity"] for point in points]
            lines.append((way, x, np.log([values])))
        for model, name in (("pruned", "before training"), ("dense", "dense model")):
            known = first[0]["quality"][model][text]["perplexity"]
            lines.append((name, x, np.full((1, len(x)), np.log(known))))
        panels.append((text, "training tokens", lines))
    draw_panels(directory / "recovery-curve.svg", panels, "log-perplexity", ("log", "linear"))


Draw = Callable[[dict[str, Any], Path], None]

PICTURES: dict[str, Draw] = {
    "demo": functools.partial(draw_kept, name="kept.svg"),
    "main": functools.partial(draw_kept, name="kept-half.svg"),
    "comparison": functools.partial(draw_curves, name="comparison.svg"),
    "exact": functools.partial(draw_curves, name="exact.svg"),
    "on-model": draw_on_model,
    "rounds": draw_rounds,
    "recovery-curve": draw_recovery,
}
"""What draws the pictures of a measurement into a directory, by name."""


@dataclasses.dataclass(frozen=True)
class Drawing:
    """What to draw."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MEASUREMENT")]
    """The measurement: comparison, exact, on-model, rounds, recovery-curve, main or demo."""
    results: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RESULTS")]
    """The .json file of its results, in whose directory the picture is written."""


def main(asked: Drawing) -> None:
    """Draw the pictures of a measurement.

    Raises:
        UserError: The measurement has no picture, or its results cannot be read.
    """
    if asked.name not in PICTURES:
        raise UserError(f"there is no picture of {asked.name}: there are those of {', '.join(PICTURES)}")
    PICTURES[asked.name](read_json(asked.results), asked.results.parent)
    print(f"drawn in {asked.results.parent}")


if __name__ == "__main__":
    command.execute(main, Drawing, None, prog="python scripts/pictures.py", description=__doc__)
