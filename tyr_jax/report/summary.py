"""The result of a run as JSON (`summary.json`) and as a table at its end."""

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from tyr_jax import __version__
from tyr_jax.data import DataSpec, fingerprint
from tyr_jax.errors import UserError
from tyr_jax.formatting import duration, in_words
from tyr_jax.model.spec import ModelConfig, count_parameters
from tyr_jax.planning import plan
from tyr_jax.planning.plan import Need
from tyr_jax.run.pipeline import Outcome, Pruned
from tyr_jax.run.rounds import kept_by_kind
from tyr_jax.settings import Settings
from tyr_jax.space import KINDS
from tyr_jax.workspace.events import EventLog
from tyr_jax.workspace.files import as_json

FORMAT_VERSION = 1

PACKAGES = ("jax", "jaxlib", "flax", "transformers", "tokenizers", "safetensors", "gguf", "numpy")


def size(config: ModelConfig, dtype: np.dtype) -> dict[str, int]:
    """Parameters inside the blocks, parameters in all, and the bytes they take in `dtype`."""
    block, total = count_parameters(config)
    return {"block_parameters": block, "parameters": total, "bytes": total * dtype.itemsize}


def units(outcome: Outcome, pruned: Pruned) -> dict[str, dict[str, Any]]:
    """Units a kind had, keeps and loses, and the sparsity that is, beside what was asked in units."""
    depth = outcome.dense.model.config.depth
    result = {}
    for row, kind in enumerate(outcome.dense.kinds):
        total, kept = depth * kind.units, int(pruned.kept[row].sum())
        result[kind.name] = {
            "total": total,
            "kept": kept,
            "removed": total - kept,
            "sparsity": 1 - kept / total,
            "budget": outcome.target.budgets[row],
        }
    return result


def describe(outcome: Outcome, pruned: Pruned) -> dict[str, Any]:
    """One pruned model: units per layer, sparsity obtained, size and quality."""
    return {
        "kept": kept_by_kind(pruned.kept),
        "units": units(outcome, pruned),
        "size": size(pruned.config, outcome.dense.dtype),
        "quality": {text: measured._asdict() for text, measured in pruned.quality.items()},
    }


def health(events: EventLog) -> dict[str, Any]:
    """What a run had to work around: sites whose damping was raised, to what and in which stage, as their
    Hessian was not positive definite; and how many candidates' objectives were not finite."""
    raised = [
        {name: entry[name] for name in ("stage", "site", "damping")}
        for entry in events.written("damping raised")
    ]
    lost = sum(entry["candidates"] for entry in events.written("objective not finite"))
    return {"damping_raised": raised, "objectives_not_finite": lost}


def complaints(health: Mapping[str, Any]) -> list[str]:
    """A run's health in sentences; none if it was perfect."""
    raised, lost = health["damping_raised"], health["objectives_not_finite"]
    sentences = []
    if raised:
        worst = max(raised, key=lambda entry: entry["damping"])
        sentences.append(
            f"damping was raised at {len(raised)} sites whose Hessian was not positive definite, most at "
            f"{worst['site']} ({worst['stage']}), to {worst['damping']:.2g}: more calibration text may help"
        )
    if lost:
        sentences.append(f"{lost} candidates whose objective was not finite were discarded")
    return sentences


PARTS = (
    *("arguments", "versions", "device", "sparsity", "distribution", "dense", "uniform", "searched"),
    *("rounds", "health", "texts", "seconds", "shared_seconds"),
)
"""What a summary has beside its format and the settings."""


def read_summary(directory: str | Path) -> dict[str, Any] | None:
    """The summary of the run that made `directory`, or None if it is not one of ours.

    Raises:
        UserError: there is a summary, but it cannot be read.
    """
    path = Path(directory) / "summary.json"
    if not path.is_file():
        return None
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        version = summary["format_version"]
        DataSpec(**summary["settings"]["data"])
        missing = [part for part in PARTS if part not in summary]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not the summary of a run ({error}); restore it or delete it") from None
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has format_version {version}, but this tyr_jax reads {FORMAT_VERSION}")
    if missing:
        raise UserError(
            f"{path} lacks '{missing[0]}': it is not the summary of a run; restore it or delete it"
        )
    return dict(summary)


def rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds by name of the stage, to a tenth."""
    return {name: round(value, 1) for name, value in seconds.items()}


def summarise(outcome: Outcome, arguments: list[str]) -> dict[str, Any]:
    """Everything needed to judge and to repeat what a run did for one target, as JSON values."""
    dense, settings = outcome.dense, outcome.run.settings
    texts = {
        "calibration": dense.splits.calibration,
        "search": dense.splits.search,
        **dense.splits.evaluation,
    }
    searched = outcome.searched
    return {
        "format_version": FORMAT_VERSION,
        "arguments": arguments,
        "settings": as_json(settings),
        "versions": {
            "tyr_jax": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "sparsity": {
            "asked": outcome.target.sparsity,
            **{k: u["sparsity"] for k, u in units(outcome, outcome.final).items()},
        },
        "distribution": kept_by_kind(outcome.final.kept),
        "dense": {
            "size": size(dense.model.config, dense.model.stored_dtype),
            "quality": {text: measured._asdict() for text, measured in dense.quality.items()},
        },
        "uniform": describe(outcome, outcome.uniform),
        "searched": None if searched is None else describe(outcome, searched),
        "rounds": outcome.rounds,
        "health": health(outcome.run.events),
        "texts": {
            name: {
                "sequences": len(tokens),
                "length": int(np.shape(tokens)[1]),
                "sha256": fingerprint(tokens),
                "source": dense.splits.sources.get(name),
            }
            for name, tokens in texts.items()
        },
        "seconds": rounded(outcome.run.progress.timings),
        "shared_seconds": rounded(outcome.run.progress.shared),
    }


def megas(model: Mapping[str, Any], dense: Mapping[str, Any], key: str) -> str:
    """A count of parameters in millions, and by how much it is below the dense model's."""
    count, first = model["size"][key], dense["size"][key]
    return f"{count / 1e6:.1f} M" + (f" (−{1 - count / first:.1%})" if count < first else "")


def plain_table(title: str, *columns: str) -> Table:
    """An empty table whose first column has names and whose others have figures."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def quality_table(report: Mapping[str, Any]) -> Table:
    """Quality and size of the dense, the uniform and the searched model."""
    models = {name: report[name] for name in ("dense", "uniform", "searched") if report[name]}
    table = plain_table(f"pruned to {report['sparsity']['asked']:.1%} sparsity", *models)
    for text in report["dense"]["quality"]:
        values = [model["quality"][text] for model in models.values()]
        table.add_row(text)
        table.add_row("… perplexity", *(f"{value['perplexity']:.2f}" for value in values))
        table.add_row("… KL to dense", *(f"{value['kl']:.4f}" for value in values))
    for label, key in (("parameters", "parameters"), ("… in blocks", "block_parameters")):
        table.add_row(label, *(megas(model, report["dense"], key) for model in models.values()))
    table.add_row("size", *(f"{model['size']['bytes'] / 1e6:.0f} MB" for model in models.values()))
    for kind in KINDS:
        total = report["uniform"]["units"][kind]["total"]
        rest = [model["units"][kind] for model in models.values() if "units" in model]
        table.add_row(f"{kind} units kept", str(total), *(str(unit["kept"]) for unit in rest))
        table.add_row("… removed", "0", *(f"{unit['removed']} ({unit['sparsity']:.2%})" for unit in rest))
    return table


def time_table(seconds: Mapping[str, float]) -> Table:
    """Seconds by stage."""
    times = Table(title="time", title_justify="left", box=box.SIMPLE_HEAD)
    times.add_column("stage")
    times.add_column("", justify="right")
    for stage, value in seconds.items():
        times.add_row(stage, duration(value))
    times.add_row("all", duration(sum(seconds.values())), style="bold")
    return times


def targets_table(reports: Sequence[Mapping[str, Any]]) -> Table:
    """What several targets of one run came to."""
    dense = reports[0]["dense"]
    models = ("uniform", "searched") if reports[0]["searched"] else ("uniform",)
    table = plain_table("sparsity", "dense", *(f"{report['sparsity']['asked']:.1%}" for report in reports))
    for text, quality in dense["quality"].items():
        table.add_row(text)
        for measure, label in (("perplexity", "perplexity"), ("kl", "KL to dense")):
            for name in models:
                values = [quality, *(report[name]["quality"][text] for report in reports)]
                table.add_row(f"… {label}, {name}", *(f"{value[measure]:.4g}" for value in values))
    final = [report["searched"] or report["uniform"] for report in reports]
    for label, key in (("parameters", "parameters"), ("… in blocks", "block_parameters")):
        table.add_row(label, *(megas(model, dense, key) for model in (dense, *final)))
    alone = [duration(sum(report["seconds"].values())) for report in reports]
    table.add_row("time of its own", "", *alone)
    return table


def print_tables(
    reports: Sequence[Mapping[str, Any]], outputs: Sequence[Path], console: Console | None = None
) -> None:
    """Print the closing tables of a run's `reports`, one for each target, written to `outputs`."""
    console = console or Console()
    if len(reports) == 1:
        console.print(quality_table(reports[0]))
        console.print(time_table(reports[0]["seconds"]))
    else:
        console.print(targets_table(reports))
        console.print(time_table(reports[0]["shared_seconds"]))
    for sentence in dict.fromkeys(line for report in reports for line in complaints(report["health"])):
        console.print(f"note: {sentence}", soft_wrap=True)
    for output in outputs:
        line = f"written to {output}: evaluate with `python -m tyr_jax.evaluate {output}`"
        console.print(line, soft_wrap=True)


def gigabytes(size: float) -> str:
    """Bytes in GB, such as `0.538`."""
    return f"{size / 1e9:.3g}"


def plan_table(needs: Sequence[tuple[Need, int]], n: int, flops: float | None) -> Table:
    """Memory of each of `n` devices, FLOPs, and time if a device reaches `flops` a second, by stage."""
    columns = ("weights", "supernet", "text", "working", "in all", "FLOPs", *(["time"] if flops else []))
    devices = "the device's" if n == 1 else f"each of {n} devices'"
    table = plain_table(f"GB of {devices} memory, and work", *columns)
    table.columns[0].no_wrap, table.padding = True, (0, 0)
    for need, times in needs:
        parts = (need.weights, need.supernet, need.text, need.working, need.memory)
        work = times * need.flops
        cells = [*map(gigabytes, parts), f"{work:.1e}", *([duration(work / (n * flops))] if flops else [])]
        table.add_row(need.stage + (f" × {times}" if times > 1 else ""), *cells)
    most, work = max(need.memory for need, _ in needs), sum(times * need.flops for need, times in needs)
    last = [gigabytes(most), f"{work:.1e}", *([duration(work / (n * flops))] if flops else [])]
    table.add_row("all", "", "", "", "", *last, style="bold")
    return table


def print_plan(
    config: ModelConfig,
    settings: Settings,
    written: int,
    n: int,
    flops: float | None,
    console: Console | None = None,
) -> None:
    """Print what a run on `n` devices, each reaching `flops` a second, needs; weights that are written take
    `written` bytes a number."""
    console = console or Console()
    itemsize = jnp.dtype(settings.compute_dtype).itemsize
    load = plan.Load(config, settings, itemsize, n)
    console.print(plan_table(plan.needs(load), n, flops))
    for title, parts in (
        ("memory of the host", plan.host_bytes(load)),
        ("disk", plan.disk_bytes(load, written)),
    ):
        table = plain_table(title, "")
        for name, size in parts.items():
            table.add_row(name, in_words(size))
        console.print(table)
