"""The result of a run as JSON (`summary.json`) and as a table at its end."""

import dataclasses
import importlib.metadata
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from tyr_jax import __version__
from tyr_jax.config import Settings
from tyr_jax.data import fingerprint
from tyr_jax.io.progress import duration
from tyr_jax.model.spec import ModelConfig, count_parameters
from tyr_jax.pipeline import Dense, Outcome, Pruned, kept_by_kind
from tyr_jax.search.space import KINDS

FORMAT_VERSION = 1

PACKAGES = ("jax", "jaxlib", "flax", "transformers", "tokenizers", "safetensors", "gguf", "numpy")


def size(config: ModelConfig, dtype: np.dtype) -> dict[str, int]:
    """Parameters inside the blocks, parameters in all, and the bytes they take in `dtype`."""
    block, total = count_parameters(config)
    return {"block_parameters": block, "parameters": total, "bytes": total * dtype.itemsize}


def units(dense: Dense, pruned: Pruned) -> dict[str, dict[str, Any]]:
    """Units a kind had, keeps and loses, and the sparsity that is, beside what was asked in units."""
    depth = dense.model.config.depth
    result = {}
    for row, kind in enumerate(dense.kinds):
        total, kept = depth * kind.units, int(pruned.kept[row].sum())
        result[kind.name] = {
            "total": total,
            "kept": kept,
            "removed": total - kept,
            "sparsity": 1 - kept / total,
            "budget": dense.budgets[row],
        }
    return result


def plain(value: Any) -> Any:
    """`value` with dataclasses, tuples and paths turned into what JSON knows."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value


def describe(pruned: Pruned, dense: Dense) -> dict[str, Any]:
    """One pruned model: units per layer, sparsity obtained, size and quality."""
    return {
        "kept": kept_by_kind(pruned.kept),
        "units": units(dense, pruned),
        "size": size(pruned.config, dense.dtype),
        "quality": {text: measured._asdict() for text, measured in pruned.quality.items()},
    }


def summarise(
    outcome: Outcome, settings: Settings, arguments: list[str], timings: Mapping[str, float]
) -> dict[str, Any]:
    """Everything needed to judge and to repeat a run, as JSON values."""
    dense = outcome.dense
    texts = {
        "calibration": dense.splits.calibration,
        "search": dense.splits.search,
        **dense.splits.evaluation,
    }
    searched = outcome.searched
    return {
        "format_version": FORMAT_VERSION,
        "arguments": arguments,
        "settings": plain(settings),
        "versions": {
            "tyr_jax": __version__,
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "device": f"{jax.device_count()} × {jax.devices()[0].device_kind}",
        "sparsity": {
            "asked": settings.sparsity,
            **{k: u["sparsity"] for k, u in units(dense, outcome.final).items()},
        },
        "distribution": kept_by_kind(outcome.final.kept),
        "dense": {
            "size": size(dense.model.config, dense.model.stored_dtype),
            "quality": {text: measured._asdict() for text, measured in dense.quality.items()},
        },
        "uniform": describe(outcome.uniform, dense),
        "searched": None if searched is None else describe(searched, dense),
        "rounds": outcome.rounds,
        "texts": {
            name: {
                "sequences": len(tokens),
                "length": int(np.shape(tokens)[1]),
                "sha256": fingerprint(tokens),
                "source": dense.splits.sources.get(name),
            }
            for name, tokens in texts.items()
        },
        "seconds": {name: round(seconds, 1) for name, seconds in timings.items()},
    }


def print_table(report: Mapping[str, Any], output: Path, console: Console | None = None) -> None:
    """Print the closing table of `report`: quality and size of each model, time per stage."""
    console = console or Console()
    models = {name: report[name] for name in ("dense", "uniform", "searched") if report[name]}
    title = f"pruned to {report['settings']['sparsity']:.1%} sparsity"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for name in models:
        table.add_column(name, justify="right")
    for text in report["dense"]["quality"]:
        values = [model["quality"][text] for model in models.values()]
        table.add_row(text)
        table.add_row("… perplexity", *(f"{value['perplexity']:.2f}" for value in values))
        table.add_row("… KL to dense", *(f"{value['kl']:.4f}" for value in values))
    for label, key in (("parameters", "parameters"), ("… in blocks", "block_parameters")):
        first = report["dense"]["size"][key]
        cells = [model["size"][key] for model in models.values()]
        table.add_row(
            label, *(f"{n / 1e6:.1f} M" + (f" (−{1 - n / first:.1%})" if n < first else "") for n in cells)
        )
    table.add_row("size", *(f"{model['size']['bytes'] / 1e6:.0f} MB" for model in models.values()))
    for kind in KINDS:
        total = report["uniform"]["units"][kind]["total"]
        rest = [model["units"][kind] for model in models.values() if "units" in model]
        table.add_row(f"{kind} units kept", str(total), *(str(unit["kept"]) for unit in rest))
        table.add_row("… removed", "0", *(f"{unit['removed']} ({unit['sparsity']:.2%})" for unit in rest))
    console.print(table)
    times = Table(title="time", title_justify="left", box=box.SIMPLE_HEAD)
    times.add_column("stage")
    times.add_column("", justify="right")
    for stage, seconds in report["seconds"].items():
        times.add_row(stage, duration(seconds))
    times.add_row("all", duration(sum(report["seconds"].values())), style="bold")
    console.print(times)
    console.print(f"written to {output}: evaluate with `python -m tyr_jax.evaluate {output}`", soft_wrap=True)
