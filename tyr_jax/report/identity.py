"""What a pruned model is called, what it was made from, and what was gained, in words fit to publish.

Where files are on the maker's machine is private: only the last part of a path is shown.
"""

import math
import re
import shlex
from collections.abc import Mapping
from typing import Any

from tyr_jax.data import parse_source
from tyr_jax.data.sources import Source
from tyr_jax.evaluation.quality import Quality, mean_kl
from tyr_jax.workspace import records
from tyr_jax.workspace.records import Origin, Recovery, Summary

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


def base_model(summary: Summary) -> Origin:
    """Name, hub id and licence of the dense model, the last two if they are known."""
    unknown = Origin(name=portable(summary.settings.model) or "model", hub_id=None, licence=None)
    return summary.base_model or unknown


def title_of(summary: Summary, recovery: Recovery | None = None) -> str:
    """What the model is called."""
    pruned = f"{base_model(summary).name}, pruned to {summary.sparsity.asked:.1%} sparsity"
    return f"{pruned} and recovered" if recovery else pruned


def command_of(summary: Summary, recovery: Recovery | None) -> str:
    """The command lines that made the model."""
    jobs = {"prune": summary, "finetune": recovery}
    lines = [
        shlex.join(["python", "-m", f"tyr_jax.{job}", *map(portable, done.arguments)])
        for job, done in jobs.items()
        if done
    ]
    return "\n".join(lines)


def datasets_of(summary: Summary, recovery: Recovery | None = None) -> list[str]:
    """Hub datasets that the model was calibrated and trained on."""
    trained_on = recovery.settings.data if recovery else []
    sources = map(parse_source, [*summary.settings.data.spec().drawn, *trained_on])
    return list(dict.fromkeys(source.name for source in sources if source.kind == "hub"))


def hub_texts(summary: Summary, recovery: Recovery | None = None) -> dict[str, Source]:
    """The hub datasets among the texts that the model was measured on, by the names that the texts have in
    records, with and without the owner."""
    specs = [summary.settings.data, *([recovery.text] if recovery else [])]
    named = [source for spec in specs for source in spec.sources]
    found = [source for source in map(parse_source, named) if source.kind == "hub"]
    return {name: source for source in found for name in (source.label, source.label.rpartition("/")[2])}


def kl_of(quality: Mapping[str, records.QualityRecord]) -> float:
    """The mean KL of a model with this recorded quality."""
    return mean_kl(map(Quality.of, quality.values()))


def gain_of(summary: Summary, recovery: Recovery | None = None) -> str:
    """What pruning gained, in one sentence. If the model was then trained, its divergence is that after the
    training."""
    final, name = summary.final, summary.written_name
    dense, size = (one.size.parameters for one in (summary.dense, final))
    if recovery:
        found, other = map(kl_of, (recovery.quality.recovered, recovery.quality.pruned))
        than = "that before the training"
    else:
        found = kl_of(final.quality)
        other = math.inf if name == "uniform" else kl_of(summary.uniform.quality)
        than = "that of uniform pruning"
    masked = summary.settings.layout == "masked"
    kept = "It has the dense model's shapes" if masked else f"It has {1 - size / dense:.0%} fewer parameters"
    if not math.isfinite(found):
        return f"{kept}."
    text = f"{kept} and a mean KL divergence of {found:.3f} nats per token from the dense model"
    if not 0 < other < math.inf:
        return f"{text}."
    change = found / other - 1
    if abs(change) < 0.005:
        return f"{text}, about equal to {than}."
    return f"{text}, {abs(change):.0%} {'below' if change < 0 else 'above'} {than}."


def choice_of(summary: Summary) -> str:
    """Which of the run's models was written and why, in words; "" if there was only one."""
    choice, written = summary.choice, summary.written_name
    if choice is None or not choice.compared:
        return ""
    reason = "nothing that was found is surely better"
    for each in choice.compared:
        if each.model == written:
            reason = f"it is surely better than the {each.than} one"
    clauses = [
        f"the {each.model} model's KL divergence from the dense model is {compared(choice, each)} "
        f"({'p < 0.001' if each.p < 0.001 else f'p = {each.p:.3f}'})"
        for each in choice.compared
    ]
    return (
        f"The {written} model was written, because {reason}. On {choice.sequences} sequences of text that "
        f"was kept for this choice, {', and '.join(clauses)}."
    )


def compared(choice: records.Choice, each: records.Comparison) -> str:
    """The KL divergence of a compared model, and how far it is from that of the simpler one."""
    found, other = (choice.kl.get(name) for name in (each.model, each.than))
    if found is None:
        return "not finite"
    text = f"{found:.4f} nats per token"
    if other is None:
        return f"{text}, and that of the {each.than} one is not finite"
    change = found / other - 1 if other else math.inf
    if not abs(change) < math.inf or abs(change) < 0.0005:
        return f"{text}, and that of the {each.than} one {other:.4f}"
    return f"{text}, {abs(change):.1%} {'below' if change < 0 else 'above'} that of the {each.than} one"
