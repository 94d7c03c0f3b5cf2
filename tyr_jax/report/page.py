"""A page about one pruned model, out of its summary: self-contained, for any width, in light and dark."""

import importlib.resources
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from tyr_jax.evaluation.speed import MEASURES, Speed
from tyr_jax.formatting import duration
from tyr_jax.report import figures
from tyr_jax.space import KINDS

Report = Mapping[str, Any]
"""A run's summary (`summary.json`)."""

NOUNS = {"attention": "heads", "ffn": "neurons"}

TableRows = Sequence[Sequence[object]]
"""A table: its header, then its rows."""


class Figure(NamedTuple):
    """A picture, what it shows, and the numbers in it."""

    svg: Markup
    caption: str
    numbers: TableRows


class Section(NamedTuple):
    """A part of the page."""

    title: str
    text: str = ""
    figures: Sequence[Figure] = ()
    table: TableRows = ()


def html_table(rows: TableRows) -> Markup:
    """An HTML table of `rows`, that scrolls by itself where it is too wide."""
    if not rows:
        return Markup("")
    cell = Markup("<{0}>{1}</{0}>")
    lines = [
        Markup("<tr>{}</tr>").format(
            Markup("").join(cell.format(Markup("td" if number else "th"), value) for value in row)
        )
        for number, row in enumerate(rows)
    ]
    return Markup('<div class="wide"><table>{}</table></div>').format(Markup("").join(lines))


def models_of(report: Report) -> dict[str, Mapping[str, Any]]:
    """The models that a run compared, by name."""
    return {name: report[name] for name in ("dense", "uniform", "searched") if report[name]}


def quality_rows(report: Report) -> TableRows:
    """Perplexity and KL of every model on every text."""
    models = models_of(report)
    rows: list[Sequence[object]] = [["", *models]]
    for text in report["dense"]["quality"]:
        values = [model["quality"][text] for model in models.values()]
        rows.append([f"{text}, perplexity", *(f"{value['perplexity']:.2f}" for value in values)])
        rows.append([f"{text}, KL to dense", *(f"{value['kl']:.4f}" for value in values)])
    return rows


def size_rows(report: Report) -> TableRows:
    """Parameters, bytes and units of every model."""
    models = models_of(report)
    rows: list[Sequence[object]] = [["", *models]]
    for label, key in (("parameters", "parameters"), ("parameters in blocks", "block_parameters")):
        rows.append([label, *(f"{model['size'][key] / 1e6:.1f} M" for model in models.values())])
    rows.append(["size", *(f"{model['size']['bytes'] / 1e6:.0f} MB" for model in models.values())])
    for kind in KINDS:
        units = report["uniform"]["units"][kind]
        kept = [
            model["units"][kind]["kept"] if "units" in model else units["total"] for model in models.values()
        ]
        rows.append([NOUNS[kind], *kept])
    return rows


def layer_section(report: Report, kind: str) -> Section:
    """What each layer keeps of one kind, and how the rounds got there."""
    noun, units = NOUNS[kind], report["uniform"]["units"][kind]
    uniform, kept = report["uniform"]["kept"][kind], report["distribution"][kind]
    per_layer = units["total"] // len(kept)
    steps = [("uniform", uniform), *((f"round {r['round']}", r["kept"][kind]) for r in report["rounds"])]
    numbers = [["layer", *(name for name, _ in steps)]]
    numbers += [
        [str(layer), *map(str, row)] for layer, row in enumerate(zip(*(k for _, k in steps), strict=True))
    ]
    pictures = [
        Figure(
            figures.kept_bars(kept, uniform, per_layer, noun),
            f"{noun.capitalize()} that each layer keeps, of {per_layer}; the line is the uniform share.",
            numbers,
        )
    ]
    if report["rounds"]:
        caption = f"The same, round by round: the more {noun} a layer keeps, the stronger the colour."
        pictures.append(Figure(figures.kept_rows(steps, per_layer, noun), caption, ()))
    obtained = f"{units['kept']:,} of {units['total']:,} {noun} are kept"
    return Section(f"Layers: {noun}", f"{obtained}; {units['sparsity']:.2%} are gone.", pictures)


def search_section(report: Report) -> Section:
    """The objective over candidate-tokens."""
    rounds = [
        [(entry["candidate_tokens"], entry["objective"], entry.get("parent")) for entry in record["history"]]
        for record in report["rounds"]
    ]
    numbers: list[Sequence[object]] = [["round", "generation", "candidate-tokens", "objective", "parent"]]
    numbers += [
        [
            record["round"],
            e["generation"],
            f"{e['candidate_tokens']:,}",
            f"{e['objective']:.4f}",
            f"{e['parent']:.4f}" if "parent" in e else "",
        ]
        for record in report["rounds"]
        for e in record["history"]
    ]
    legend = Markup('<span class="key" style="background:var(--mark)"></span>winner of a generation')
    text = f"The search was {report['settings']['search'].get('search', 'evolution')}."
    if any("parent" in entry for record in report["rounds"] for entry in record["history"]):
        legend += Markup(
            '<span class="key" style="border:2px solid var(--other)"></span>the parent it had to beat, on '
            "the same tokens"
        )
        text = "Every generation is scored on other tokens, so compare a winner with its own parent."
    return Section("Search", text, [Figure(figures.search_lines(rounds), legend, numbers)])


def speed_section(report: Report, speed: Speed | None) -> Section:
    """How many times faster than the dense model."""
    if speed is None:
        line = f"python -m tyr_jax.benchmark {shlex.quote(report['settings']['model'])} DIR"
        return Section("Speed", f"Not measured yet. {line} does, and adds it here.")
    pictures = []
    for measure, time, resource in zip(
        MEASURES, ("Time to the first token", "Time of each token after"), ("FLOPs", "bytes"), strict=True
    ):
        timings = {
            f"{timing.engine}, prompt {timing.prompt}, batch {timing.batch}": timing
            for timing in speed.timings
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


def recovery_rows(recovery: Report) -> TableRows:
    """Perplexity of every model on every text, before and after a training."""
    models = {name: texts for name, texts in recovery["quality"].items() if texts}
    rows: list[Sequence[object]] = [["perplexity", *models]]
    for text in recovery["quality"]["recovered"]:
        rows.append([text, *(f"{texts[text]['perplexity']:.2f}" for texts in models.values())])
    return rows


def recovery_section(recovery: Report) -> Section:
    """What a training won back."""
    settings, tokens = recovery["settings"], recovery["trained_tokens"]
    learnt = {
        "kd": "the dense model's predictions",
        "next-token": "the text",
        "kd+next-token": "the dense model's predictions and the text",
    }
    what = "low-rank changes" if settings["training"]["method"] == "lora" else "all of the blocks"
    text = (
        f"Then {what} learnt {learnt[settings['loss']['goal']]} on {tokens:,} tokens of "
        f"{', '.join(recovery['sources'])}. The figures above are those before."
    )
    picture = Figure(figures.loss_line(recovery["losses"], tokens), "The loss of every step.", ())
    return Section("Recovery", text, [picture], recovery_rows(recovery))


def sections(report: Report, speed: Speed | None, recovery: Report | None) -> list[Section]:
    """The parts of the page."""
    seconds = {**report["shared_seconds"], **report["seconds"]}
    times: list[Sequence[object]] = [["stage", ""]]
    times += [[stage, duration(value)] for stage, value in seconds.items()]
    times.append(["all", duration(sum(seconds.values()))])
    return [
        Section("Quality", "On text that neither calibration nor search saw.", table=quality_rows(report)),
        *([recovery_section(recovery)] if recovery else []),
        Section("Size", table=size_rows(report)),
        speed_section(report, speed),
        *(layer_section(report, kind) for kind in KINDS),
        *([search_section(report)] if report["rounds"] else []),
        Section("Time", f"On {report['device']}.", table=times),
    ]


def tiles(report: Report) -> list[tuple[str, str]]:
    """What to see first: (figure, name)."""
    name, final = list(models_of(report).items())[-1]
    dense = report["dense"]
    text, quality = next(iter(final["quality"].items()))
    gone = 1 - final["size"]["parameters"] / dense["size"]["parameters"]
    return [
        (
            f"{quality['perplexity']:.2f}",
            f"perplexity, {text}; dense {dense['quality'][text]['perplexity']:.2f}",
        ),
        (
            f"{quality['kl']:.4f}",
            f"KL to dense, {name}; uniform {report['uniform']['quality'][text]['kl']:.4f}",
        ),
        (f"{final['size']['parameters'] / 1e6:.0f} M", f"parameters, {gone:.1%} fewer"),
        (duration(sum({**report["shared_seconds"], **report["seconds"]}.values())), "to make it"),
    ]


def provenance(report: Report) -> TableRows:
    """Versions, and what the texts were."""
    rows: list[Sequence[object]] = [["", ""], *report["versions"].items()]
    for name, text in report["texts"].items():
        rows.append([name, f"{text['sequences']} × {text['length']} tokens, {text['source'] or 'sampled'}"])
    return rows


def command_of(report: Report, recovery: Report | None) -> str:
    """The command lines that made the model."""
    jobs = {"prune": report, "finetune": recovery}
    lines = [
        shlex.join(["python", "-m", f"tyr_jax.{job}", *done["arguments"]])
        for job, done in jobs.items()
        if done
    ]
    return "\n".join(lines)


def title_of(report: Report) -> str:
    """What the model is called."""
    return f"{report['settings']['model']}, pruned to {report['sparsity']['asked']:.1%} sparsity"


def fate_of(report: Report) -> str:
    """What became of the units that were pruned."""
    masked = report["settings"]["layout"] == "masked"
    return "zero, in the dense model's shapes" if masked else "physically gone"


def render(report: Report, speed: Speed | None = None, recovery: Report | None = None) -> str:
    """The page about the model of `report`, with its `speed` where that was measured, and its `recovery`
    where it was trained, as HTML."""
    source = importlib.resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(source).render(
        title=title_of(report),
        subtitle=f"Structured pruning: attention heads and FFN neurons are {fate_of(report)}.",
        tiles=tiles(report),
        sections=sections(report, speed, recovery),
        table=html_table,
        command=command_of(report, recovery),
        settings=json.dumps(report["settings"], indent=2, ensure_ascii=False),
        provenance=provenance(report),
    )
