"""Tables: a run's models, times and plan; perplexities, tasks and speed; and what training recovered."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tyr_jax.evaluation.scores import TaskScore, TextPerplexity
from tyr_jax.formatting import duration, in_words
from tyr_jax.planning.plan import Need
from tyr_jax.report.render import Row, Table
from tyr_jax.workspace.records import (
    MEASURES,
    MODELS,
    Health,
    ModelRecord,
    Recovery,
    Sizes,
    Speed,
    Summary,
    Timing,
)


def number(value: float | None, form: str) -> str:
    """A figure formatted by `form`, in three digits if it is too large, or "not finite"."""
    if value is None or not math.isfinite(value):
        return "not finite"
    return f"{value:{form if abs(value) < 1e9 else '.3g'}}"


def models_of(summary: Summary) -> dict[str, ModelRecord]:
    """The models that a run compared, by name."""
    return {"dense": summary.dense, **summary.pruned}


def heading(summary: Summary, text: str) -> str:
    """An evaluation text's name, and whether other parts of it were calibrated on: there, a model shows less
    of what pruning costs."""
    known = summary.texts.get(text)
    return f"{text} (calibrated on)" if known and known.calibrated else text


def quality_rows(summary: Summary) -> list[Row]:
    """Perplexity and KL of every model on every text."""
    rows = []
    for text in summary.dense.quality:
        measured, head = (
            [model.quality[text] for model in models_of(summary).values()],
            heading(summary, text),
        )
        rows.append(Row("perplexity", [number(each.perplexity, ".2f") for each in measured], head))
        rows.append(Row("KL to dense", [number(each.kl, ".4f") for each in measured], head))
    return rows


def parameter_rows(models: Sequence[ModelRecord]) -> list[Row]:
    """Parameters in millions, and by what share they are fewer than the first model's."""

    def millions(count: int, first: int) -> str:
        return f"{count / 1e6:.1f} M" + (f" (−{1 - count / first:.1%})" if count < first else "")

    sizes = [model.size for model in models]
    counts: dict[str, list[Any]] = {
        "parameters": [size.parameters for size in sizes],
        "… in blocks": [size.block_parameters for size in sizes],
        "… used by a token": [size.active_parameters for size in sizes],
    }
    return [
        Row(label, [millions(count, found[0]) for count in found])
        for label, found in counts.items()
        if None not in found
    ]


def size_rows(summary: Summary) -> list[Row]:
    """Parameters, bytes and units of every model."""
    models = list(models_of(summary).values())
    rows = parameter_rows(models)
    rows.append(Row("size", [f"{model.size.bytes / 1e6:.0f} MB" for model in models]))
    for kind, noun in summary.nouns.items():
        units = [model.units[kind] for model in summary.pruned.values()]
        rows.append(Row(f"{noun} kept", [str(units[0].total), *(str(each.kept) for each in units)]))
        removed = [f"{each.removed} ({each.sparsity:.2%})" for each in units]
        rows.append(Row("… removed", ["0", *removed]))
    return rows


def quality_table(summary: Summary) -> Table:
    """Quality and size of the dense, the uniform, the searched and the reconstructed model, if they exist."""
    title = f"pruned to {summary.sparsity.asked:.1%} sparsity"
    return Table(["", *models_of(summary)], [*quality_rows(summary), *size_rows(summary)], title)


def sample_tables(summaries: Sequence[Summary]) -> list[Table]:
    """What the models of a run write after its prompt, in one row each; no table if there was no prompt."""
    prompt = summaries[0].settings.prompt
    if not prompt:
        return []
    models = {"dense": summaries[0].dense}
    for summary in summaries:
        target = f", {summary.sparsity.asked:.1%}" if len(summaries) > 1 else ""
        models |= {f"{name}{target}": model for name, model in summary.pruned.items()}
    rows = [Row(name, [in_one_line(model.sample or "")]) for name, model in models.items()]
    return [Table(["", "writes"], rows, f"after \u201c{in_one_line(prompt)}\u201d", words=["writes"])]


def in_one_line(text: str) -> str:
    """Text on one line, with a single space for every run of whitespace."""
    return " ".join(text.split())


def time_table(seconds: Mapping[str, float], title: str = "time") -> Table:
    """How long every stage took, and all of them together."""
    rows = [Row(stage, [duration(value)]) for stage, value in seconds.items()]
    total = Row("total", [duration(sum(seconds.values()))], total=True)
    return Table(["stage", ""], [*rows, total], title)


def targets_table(summaries: Sequence[Summary]) -> Table:
    """Results of one run for each of its several targets."""
    dense, models = summaries[0].dense, list(summaries[0].pruned)
    rows = []
    for text, quality in dense.quality.items():
        head = heading(summaries[0], text)
        measured = {
            name: [quality, *(summary.pruned[name].quality[text] for summary in summaries)] for name in models
        }
        for name, found in measured.items():
            rows.append(Row(f"perplexity, {name}", [number(each.perplexity, ".4g") for each in found], head))
        for name, found in measured.items():
            rows.append(Row(f"KL to dense, {name}", [number(each.kl, ".4g") for each in found], head))
    rows += parameter_rows([dense, *(summary.final for summary in summaries)])
    alone = [duration(sum(summary.seconds.values())) for summary in summaries]
    rows.append(Row("time for this target alone", ["", *alone]))
    asked = [f"{summary.sparsity.asked:.1%}" for summary in summaries]
    return Table(["", "dense", *asked], rows, "sparsity")


def closing_tables(summaries: Sequence[Summary]) -> list[Table]:
    """Results of a run for each of its targets, and how long it took."""
    samples = sample_tables(summaries)
    if len(summaries) == 1:
        return [quality_table(summaries[0]), *samples, time_table(summaries[0].seconds)]
    shared = time_table(summaries[0].shared_seconds, "time shared by all targets")
    return [targets_table(summaries), *samples, shared]


def result_tables(summary: Summary, speed: Speed | None, recovery: Recovery | None) -> list[Table]:
    """Results of a model that was written: quality and size, samples, speed, and what training recovered."""
    found = [quality_table(summary), *sample_tables([summary])]
    found += [speedup_table(speed)] if speed else []
    return found + ([recovery_table(recovery, "after recovery")] if recovery else [])


def listed(things: Iterable[str]) -> str:
    """Things in a sentence, such as `a, b and c`."""
    *before, last = things
    return f"{', '.join(before)} and {last}" if before else last


def counted(count: int, noun: str) -> str:
    """A number of things, such as `1 site` or `2 sites`."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def complaints(health: Health) -> list[str]:
    """A run's problems in sentences, from its health record; none if there were no problems."""
    raised, lost = health.damping_raised, health.objectives_not_finite
    sentences = []
    if raised:
        worst = max(raised, key=lambda entry: entry.damping)
        sentences.append(
            f"damping was raised at {counted(len(raised), 'site')} whose Hessian could not be inverted "
            f"accurately, most at {worst.site} ({worst.stage}), to {worst.damping:.2g}: more "
            "calibration text may help"
        )
    if lost:
        were = "was" if lost == 1 else "were"
        sentences.append(f"{counted(lost, 'candidate')} whose objective was not finite {were} discarded")
    return sentences


def regained(dense: float | None, pruned: float | None, recovered: float | None) -> str:
    """The share of the log-perplexity gap between the dense and the pruned model that is closed. A dash if
    there is no gap, or if it is not known."""
    if dense is None or pruned is None or recovered is None:
        return "–"
    first, worst, last = map(math.log, (dense, pruned, recovered))
    return f"{(worst - last) / (worst - first):.0%}" if worst > first else "–"


def recovery_table(recovery: Recovery, title: str = "", digits: int = 3) -> Table:
    """Perplexities before and after a training."""
    models = recovery.quality.models
    compared = "dense" in models
    rows = []
    for text in recovery.quality.pruned:
        values = [quality[text].perplexity for quality in models.values()]
        share = [regained(*values)] if compared else []
        rows.append(Row(text, [*(number(value, f".{digits}f") for value in values), *share]))
    corner = "" if title else "perplexity"
    return Table([corner, *models, *(["gap closed"] if compared else [])], rows, title)


def perplexity_table(model: str, measured: Sequence[TextPerplexity]) -> Table:
    """Perplexities of a model, and what was read of each text."""

    def row(one: TextPerplexity) -> Row:
        windows, tokens = f"{one.windows} × {one.length}", f"{one.tokens:,}"
        then = number(one.perplexity_when_made, ".3f") if one.perplexity_when_made else ""
        return Row(one.text, [one.part, windows, tokens, number(one.perplexity, ".3f"), then])

    bos = "with" if measured[0].bos else "without"
    columns = ["text", "part", "windows", "tokens", "perplexity", "recorded"]
    title = f"perplexity of {model}, {bos} BOS"
    return Table(columns, [row(one) for one in measured], title, words=["part"], framed=True)


def task_table(model: str, scores: Sequence[TaskScore]) -> Table:
    """Metrics of a model on tasks."""

    def row(score: TaskScore) -> Row:
        error = "" if score.standard_error is None else number(score.standard_error, ".4f")
        shots = "" if score.shots is None else str(score.shots)
        cells = [shots, str(score.questions), score.metric, number(score.value, ".4f"), error]
        return Row(score.task, cells + ([score.data[:16] if score.data else ""] if local else []))

    local = any(score.data for score in scores)
    columns = ["task", "shots", "questions", "metric", "value", "± standard error"]
    columns += ["sha256 of the data"] if local else []
    rows = [row(score) for score in scores]
    return Table(columns, rows, f"tasks of {model}", words=["metric", "sha256 of the data"], framed=True)


def speedup_table(speed: Speed) -> Table:
    """How many times faster a pruned model is than the dense one."""
    rows: dict[str, dict[str, str]] = {}
    for timing in speed.rows:
        run = f"{timing.engine}, prompt of {timing.prompt} tokens, batch of {timing.batch}"
        rows.setdefault(run, {})[timing.measure] = f"{timing.ratio:.2f}×"
    cells = [Row(run, [ratios.get(measure, "") for measure in MEASURES]) for run, ratios in rows.items()]
    return Table(["", *MEASURES], cells, f"speed-up on {speed.device}")


def speed_tables(timings: Sequence[Timing], sizes: Sizes) -> list[Table]:
    """Seconds that a dense and a pruned model take, and their sizes."""
    rows = [
        Row(
            f"{timing.engine}, {timing.measure}",
            [
                *(str(timing.prompt), str(timing.batch), f"{timing.dense:.4f}", f"{timing.pruned:.4f}"),
                *(f"{timing.ratio:.2f}×", f"{timing.limit:.2f}×"),
            ],
        )
        for timing in timings
    ]
    labels = {
        "parameters": "parameters",
        "bytes": "bytes",
        "cache_bytes_per_token": "cache bytes for a token",
    }
    counts = [Row(label, [f"{sizes[model][key]:,}" for model in MODELS]) for key, label in labels.items()]
    columns = ["", "prompt", "batch", *MODELS, "faster", "at best"]
    return [Table(columns, rows, "seconds, medians"), Table(["", *MODELS], counts)]


def gigabytes(size: float) -> str:
    """Bytes in GB, such as `0.538`."""
    return f"{size / 1e9:.3g}"


def needs_table(needs: Sequence[tuple[Need, int]], n: int, flops: float | None) -> Table:
    """Memory of each of `n` devices, FLOPs, and time if a device reaches `flops` a second, by stage."""

    def work_cells(work: float) -> list[str]:
        return [f"{work:.1e}", *([duration(work / (n * flops))] if flops else [])]

    rows = []
    for need, times in needs:
        parts = (need.weights, need.supernet, need.text, need.working, need.memory)
        name = need.stage + (f" × {times}" if times > 1 else "")
        rows.append(Row(name, [*map(gigabytes, parts), *work_cells(times * need.flops)]))
    most, work = max(need.memory for need, _ in needs), sum(times * need.flops for need, times in needs)
    rows.append(Row("total", ["", "", "", "", gigabytes(most), *work_cells(work)], total=True))
    columns = ["", "weights", "supernet", "text", "working", "total", "FLOPs", *(["time"] if flops else [])]
    devices = "the device" if n == 1 else f"each of {n} devices"
    return Table(columns, rows, f"memory of {devices} in GB, and FLOPs", narrow=True)


def bytes_table(title: str, parts: Mapping[str, float]) -> Table:
    """Bytes by what they are for."""
    return Table(["", ""], [Row(name, [in_words(size)]) for name, size in parts.items()], title)
