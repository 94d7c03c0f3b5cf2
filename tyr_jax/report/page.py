"""A page about one pruned model, made from its summary: self-contained, for any width, in light and dark."""

import functools
import itertools
import json
import shlex
from collections.abc import Sequence
from typing import NamedTuple

import jinja2
from markupsafe import Markup

from tyr_jax.formatting import duration, shown
from tyr_jax.report import figures
from tyr_jax.report.identity import (
    choice_of,
    command_of,
    gain_of,
    portable,
    portable_values,
    title_of,
)
from tyr_jax.report.render import Grid, Row, Table, grid, html_table
from tyr_jax.report.tables import (
    listed,
    models_of,
    number,
    quality_rows,
    recovery_table,
    sample_tables,
    size_rows,
    time_table,
)
from tyr_jax.workspace.records import MEASURES, Recovery, Speed, Summary

MOST_ROUNDS = 32
"""At most this many rounds are shown layer by layer: the last ones."""

MOST_STEPS = 1000
"""About this many generations of all rounds are listed one by one, at most."""


class Figure(NamedTuple):
    """A picture, what it shows, and the numbers in it."""

    svg: Markup
    caption: str
    numbers: Grid


class Section(NamedTuple):
    """A part of the page."""

    title: str
    text: str = ""
    figures: Sequence[Figure] = ()
    table: Grid = ()
    words: bool = False
    """Whether the table holds sentences."""


def capitalised(text: str) -> str:
    """Text that begins a sentence."""
    return text[:1].upper() + text[1:]


def models_grid(summary: Summary, rows: Sequence[Row]) -> Grid:
    """Rows with a column for each model that a run compared."""
    return grid(Table(["", *models_of(summary)], rows))


def layer_section(summary: Summary, kind: str) -> Section:
    """What each layer keeps of one kind of unit, and how that changed from round to round."""
    noun, units = summary.nouns[kind], summary.final.units[kind]
    uniform, kept = summary.uniform.kept[kind], summary.distribution[kind]
    per_layer = units.total // len(kept)
    rounds = summary.rounds[-MOST_ROUNDS:]
    steps = [("uniform", uniform), *((f"round {each.round}", each.kept[kind]) for each in rounds)]
    numbers = [["layer", *(name for name, _ in steps)]]
    numbers += [
        [str(layer), *map(str, row)] for layer, row in enumerate(zip(*(k for _, k in steps), strict=True))
    ]
    pictures = [
        Figure(
            figures.kept_bars(kept, uniform, per_layer, noun),
            f"{capitalised(noun)} that each layer keeps, of {per_layer}; the line is the uniform share.",
            numbers,
        )
    ]
    if summary.rounds:
        caption = f"The same, round by round: the more {noun} a layer keeps, the stronger the colour."
        pictures.append(Figure(figures.kept_rows(steps, per_layer, noun), caption, ()))
    obtained = f"{units.kept:,} of {units.total:,} {noun} are kept"
    return Section(f"Layers: {noun}", f"{obtained}; {units.sparsity:.2%} are removed.", pictures)


def search_section(summary: Summary) -> Section:
    """The objective over candidate-tokens."""
    rounds = [
        [
            (name, [(step.candidate_tokens, step.objective, step.parent) for step in steps])
            for name, steps in itertools.groupby(record.history, lambda step: step.search)
        ]
        for record in summary.rounds
    ]
    steps = [(record.round, step) for record in summary.rounds for step in record.history]
    names = "round", "search", "generation", "candidate-tokens", "objective", "parent"
    numbers: list[Sequence[object]] = [names]
    numbers += [
        [
            number_of_round,
            step.search,
            step.generation,
            f"{step.candidate_tokens:,}",
            number(step.objective, ".4f"),
            number(step.parent, ".4f") if step.has_parent else "",
        ]
        for number_of_round, step in figures.thinned(steps, MOST_STEPS)
    ]
    legend = Markup('<span class="key" style="background:var(--mark)"></span>winner of a generation')
    text = f"The search was {', then '.join(each.search for each in summary.settings.search)}."
    if any(step.has_parent for _, step in steps):
        legend += Markup(
            '<span class="key" style="border:2px solid var(--other)"></span>the parent it had to beat, on '
            "the same tokens"
        )
        text += " Every generation is scored on different tokens, so compare a winner with its own parent."
    # A user's own search may record nothing, or nothing finite.
    drawn = any(value is not None for _, step in steps for value in (step.objective, step.parent))
    if drawn:
        text += " The horizontal axis has candidate-tokens: candidates times the tokens they were scored on."
        text += " Each search of a round has a line of its own." if len(summary.settings.search) > 1 else ""
    return Section("Search", text, [Figure(figures.search_lines(rounds), legend, numbers)] if drawn else [])


def speed_section(summary: Summary, speed: Speed | None) -> Section:
    """How many times faster the model is than the dense one, or how to measure that."""
    if speed is None:
        model = shlex.quote(portable(summary.settings.model))
        line = f"python -m tyr_jax.benchmark {model} DIR"
        return Section("Speed", f"Not measured yet. Run {line} to measure it and add it here.")
    pictures = []
    for measure, time, resource in zip(
        MEASURES, ("Time to the first token", "Time of each token after"), ("FLOPs", "bytes"), strict=True
    ):
        timings = {
            f"{timing.engine}, prompt {timing.prompt}, batch {timing.batch}": timing
            for timing in speed.rows
            if timing.measure == measure
        }
        bars = [(name, timing.ratio, timing.limit) for name, timing in timings.items()]
        caption = f"{time}: how many times shorter than the dense model's. The mark is what {resource} allow."
        numbers: list[Sequence[object]] = [["", "dense, ms", "pruned, ms"]]
        numbers += [
            [name, f"{1e3 * timing.dense:.1f}", f"{1e3 * timing.pruned:.1f}"]
            for name, timing in timings.items()
        ]
        pictures.append(Figure(figures.speed_bars(bars, measure), caption, numbers))
    return Section("Speed", f"On {speed.device}, in turn with the dense model.", pictures)


def recovery_section(recovery: Recovery) -> Section:
    """What training recovered."""
    settings, tokens = recovery.settings, recovery.trained_tokens
    learnt = {
        "kd": "the dense model's predictions",
        "next-token": "the text",
        "kd+next-token": "the dense model's predictions and the text",
    }
    what = "low-rank updates" if settings.training.method == "lora" else "all weights of the blocks"
    text = (
        f"After pruning, {what} were trained on {tokens:,} tokens of "
        f"{', '.join(portable_values(recovery.sources))} to learn {learnt[settings.loss.goal]}. The "
        "tables above are from before this training."
    )
    picture = Figure(figures.loss_line(recovery.losses, tokens), "The loss of every step.", ())
    return Section("Recovery", text, [picture], grid(recovery_table(recovery, digits=2)))


def sections(summary: Summary, speed: Speed | None, recovery: Recovery | None) -> list[Section]:
    """The parts of the page."""
    times = grid(time_table({**summary.shared_seconds, **summary.seconds}))
    chosen = choice_of(summary)
    qualities, sizes = (models_grid(summary, rows) for rows in (quality_rows(summary), size_rows(summary)))
    samples = [
        Section("Samples", f"What each model writes {table.title}.", table=grid(table), words=True)
        for table in sample_tables([summary])
    ]
    return [
        Section("Quality", f"On text that neither calibration nor search saw. {chosen}", table=qualities),
        *samples,
        *([recovery_section(recovery)] if recovery else []),
        Section("Size", table=sizes),
        speed_section(summary, speed),
        *(layer_section(summary, kind) for kind in summary.nouns),
        *([search_section(summary)] if summary.rounds else []),
        Section("Time", f"On {summary.device}.", table=times),
    ]


def tiles(summary: Summary) -> list[tuple[str, str]]:
    """The headline figures of the model that was written: (figure, name)."""
    final, dense = summary.final, summary.dense
    text, quality = next(iter(final.quality.items()))
    gone = 1 - final.size.parameters / dense.size.parameters
    even = summary.uniform.quality[text]
    return [
        (
            number(quality.perplexity, ".2f"),
            f"perplexity, {text}; dense {number(dense.quality[text].perplexity, '.2f')}",
        ),
        (
            number(quality.kl, ".4f"),
            f"KL to dense, {summary.written_name}; uniform {number(even.kl, '.4f')}",
        ),
        (f"{final.size.parameters / 1e6:.0f} M", f"parameters, {gone:.1%} fewer"),
        (duration(sum({**summary.shared_seconds, **summary.seconds}.values())), "to make it"),
    ]


def recovered_tiles(summary: Summary, recovery: Recovery) -> list[tuple[str, str]]:
    """The headline figures of a model that was trained: (figure, name)."""
    text, found = next(iter(recovery.quality.recovered.items()))
    before = recovery.quality.pruned[text]
    perplexity, was = (number(quality.perplexity, ".2f") for quality in (found, before))
    shown = [(perplexity, f"perplexity, {text}; before training {was}")]
    if found.kl is not None:
        was = number(before.kl, ".4f")
        shown.append((number(found.kl, ".4f"), f"KL to dense, recovered; before training {was}"))
    jobs = (summary.shared_seconds, summary.seconds, recovery.seconds)
    spent = sum(sum(stages.values()) for stages in jobs)
    return [*shown, tiles(summary)[2], (duration(spent), "to make it")]


def provenance(summary: Summary) -> Grid:
    """Versions, and the texts that were used."""
    rows: list[Sequence[object]] = [["", ""], *summary.versions.items()]
    for name, text in summary.texts.items():
        source = portable(text.source or "sampled")
        rows.append([name, f"{text.sequences} × {text.length} tokens, {source}"])
    return rows


def fate_of(summary: Summary) -> str:
    """What became of the units that were pruned."""
    masked = summary.settings.layout == "masked"
    return "set to zero, in the dense model's shapes" if masked else "removed"


@functools.cache
def templates() -> jinja2.Environment:
    """The package's templates."""
    loader = jinja2.PackageLoader("tyr_jax.report", "")
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)


def fragment(summary: Summary, speed: Speed | None = None, recovery: Recovery | None = None) -> Markup:
    """The content of the page about the model of `summary`, as HTML to put into another page.

    `speed` is given if it was measured, and `recovery` if the model was trained.
    """
    content = (
        templates()
        .get_template("fragment.html")
        .render(
            title=title_of(summary, recovery),
            subtitle=f"{gain_of(summary, recovery)} {capitalised(listed(summary.nouns.values()))} are "
            f"{fate_of(summary)}.",
            tiles=recovered_tiles(summary, recovery) if recovery else tiles(summary),
            sections=sections(summary, speed, recovery),
            table=html_table,
            command=command_of(summary, recovery),
            settings=json.dumps(portable_values(summary.settings.as_json()), indent=2, ensure_ascii=False),
            provenance=provenance(summary),
        )
    )
    return Markup(shown(content))


def render(summary: Summary, speed: Speed | None = None, recovery: Recovery | None = None) -> str:
    """The page about the model of `summary`. The arguments are those of `fragment`."""
    content = fragment(summary, speed, recovery)
    title = shown(title_of(summary, recovery))
    return templates().get_template("page.html").render(title=title, fragment=content)
