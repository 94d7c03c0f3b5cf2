"""What a pruned model is called, what it was made from, and what was gained, in words fit to publish.

Where files are on the maker's machine is private: only the last part of a path is shown.
"""

import re
import shlex
from typing import Any

import numpy as np

from tyr_jax.data import parse_source
from tyr_jax.report.tables import Record
from tyr_jax.workspace.records import written_model, written_name

ABSOLUTE = re.compile(r"(?:~|/|[A-Za-z]:[\\/]).*[\\/](?=[^\\/])|/(?=[^/])|[A-Za-z]:[\\/](?=[^\\/])")
"""The folders of a path that starts at a root or at home."""


def portable(text: str) -> str:
    """An argument or setting, without the folders of a path from a root or home, also one after its `=`."""
    flag, equals, value = text.partition("=") if text.startswith("--") else ("", "", text)
    return f"{flag}{equals}{ABSOLUTE.sub('', value, count=1) if ABSOLUTE.match(value) else value}"


def portable_values(value: Any) -> Any:
    """JSON values with every text `portable`."""
    if isinstance(value, dict):
        return {key: portable_values(each) for key, each in value.items()}
    if isinstance(value, list):
        return [portable_values(each) for each in value]
    return portable(value) if isinstance(value, str) else value


def base_model(summary: Record) -> dict[str, Any]:
    """Name, hub id and licence of the dense model, the last two if they are known."""
    unknown = {"name": portable(summary["settings"]["model"]), "hub_id": None, "licence": None}
    return dict(summary.get("base_model", unknown))


def title_of(summary: Record) -> str:
    """What the model is called."""
    return f"{base_model(summary)['name']}, pruned to {summary['sparsity']['asked']:.1%} sparsity"


def command_of(summary: Record, recovery: Record | None) -> str:
    """The command lines that made the model."""
    jobs = {"prune": summary, "finetune": recovery}
    lines = [
        shlex.join(["python", "-m", f"tyr_jax.{job}", *map(portable, done["arguments"])])
        for job, done in jobs.items()
        if done
    ]
    return "\n".join(lines)


def datasets_of(summary: Record) -> list[str]:
    """Hub datasets that the model was calibrated on."""
    sources = map(parse_source, summary["settings"]["data"]["calibration"])
    return list(dict.fromkeys(source.name for source in sources if source.kind == "hub"))


def ffn_units(summary: Record) -> str:
    """What the units of FFNs are called."""
    pruning = summary["settings"].get("pruning")
    if isinstance(pruning, dict) and pruning.get("expert_unit") == "expert":
        return "experts"
    return "neurons of every expert" if "active_parameters" in summary["dense"]["size"] else "FFN neurons"


def mean_kl(model: Record) -> float | None:
    """KL divergence from the dense model, averaged over texts; None if it is not known for all of them."""
    values = [quality["kl"] for quality in model["quality"].values()]
    return None if None in values else float(np.mean(values))


def gain_of(summary: Record) -> str:
    """What pruning gained, in one sentence."""
    final, name = written_model(summary), written_name(summary)
    dense, size = (one["size"]["parameters"] for one in (summary["dense"], final))
    found, uniform = mean_kl(final), mean_kl(summary["uniform"])
    masked = summary["settings"]["layout"] == "masked"
    kept = (
        "It keeps the dense model's shapes" if masked else f"It has {1 - size / dense:.0%} fewer parameters"
    )
    if found is None:
        return f"{kept}."
    text = f"{kept} and a mean KL divergence of {found:.3f} nats per token from the dense model"
    if name == "uniform" or not uniform:
        return f"{text}."
    change = 1 - found / uniform
    word = "below" if change >= 0 else "above"
    return f"{text}, {abs(change):.0%} {word} that of uniform pruning."
