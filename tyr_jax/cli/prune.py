"""Prune a model and write the smaller one: `python -m tyr_jax.prune`.

Every prunable sublayer, or site (attention heads, FFN neurons), is pruned
locally to several sparsity levels; all copies form a supernet; an evolutionary
search finds how much each layer should keep so that the whole model meets one
target sparsity and still behaves like the dense one. This is repeated with
finer levels around the result. What is pruned is removed: the output directory
holds a smaller model. The method is that of Týr-the-Pruner (arXiv 2503.09657),
which is called the paper below.

Examples:

  python -m tyr_jax.prune --preset quick --output pruned
      the `builtin` model at 25% sparsity, in minutes

  python -m tyr_jax.prune --model HuggingFaceTB/SmolLM2-135M --sparsity 0.5 \\
      --calibration builtin my-text.jsonl@2 \\
      --evaluation Salesforce/wikitext:wikitext-2-raw-v1:test \\
      --output smollm2-50
      a hub model at 50% sparsity, two calibration sources (the second with
      twice the weight), and a further text to measure on

  python -m tyr_jax.prune --sparsity 0.125 0.25 0.5 --output pruned
      three models, in pruned/0.125, pruned/0.25 and pruned/0.5, in less time
      than three runs

  python -m tyr_jax.prune --model meta-llama/Llama-3.1-8B --sparsity 0.5 \\
      --compute-dtype bfloat16 --plan --plan-devices 8 --plan-flops 1e14
      what that would take, from the model's configuration alone
"""

import dataclasses
import itertools
from collections.abc import Sequence

from tyr_jax import api, process
from tyr_jax.cli import command
from tyr_jax.errors import require
from tyr_jax.options import check_names
from tyr_jax.planning.plan import PlanSettings
from tyr_jax.report import tables
from tyr_jax.report.identity import choice_of
from tyr_jax.run.models import NamedModel
from tyr_jax.run.prune import repositories_of
from tyr_jax.runtime import hosts
from tyr_jax.runtime.cache import keep_compiled
from tyr_jax.runtime.hosts import HostSettings
from tyr_jax.settings import PRESETS, ComponentNames, Settings, with_components
from tyr_jax.workspace.records import Summary


@dataclasses.dataclass(frozen=True)
class PruneArguments:
    """What to prune and how, or to plan."""

    settings: command.Flat[Settings]
    plan: PlanSettings = dataclasses.field(default_factory=PlanSettings)
    """Plan"""
    hosts: HostSettings = dataclasses.field(default_factory=HostSettings)
    """Several hosts"""
    components: ComponentNames = dataclasses.field(default_factory=ComponentNames)
    reading: command.Flat[command.Reading] = dataclasses.field(default_factory=command.Reading)


def parse(arguments: list[str]) -> PruneArguments:
    """The job that command-line arguments ask for.

    Defaults come from the preset that `--preset` names, and the options of components from the classes that
    are named.

    Raises:
        UserError: the arguments cannot be understood.
    """
    named = {
        field.name: values_of(f"--{field.name}", arguments) for field in dataclasses.fields(ComponentNames)
    }
    chosen = {role: values if role == "search" else values[0] for role, values in named.items() if values}
    preset = PRESETS.get("".join(values_of("--preset", arguments)[:1]), PRESETS["standard"])
    settings = with_components(preset, chosen)
    default = PruneArguments(settings, components=ComponentNames.of(settings))
    check_names(default)
    prog = "python -m tyr_jax.prune"
    asked = command.parse(PruneArguments, arguments, prog=prog, description=__doc__, default=default)
    require(bool(asked.components.search), "--search", (), "at least one search")
    return asked


def values_of(flag: str, arguments: list[str]) -> list[str]:
    """The values of a flag in arguments that are not parsed yet. The last time that it is there counts."""
    found = []
    for number, argument in enumerate(arguments, start=1):
        name, equals, value = argument.partition("=")
        if name == flag:
            after = itertools.takewhile(lambda each: not each.startswith("-"), arguments[number:])
            found = [value] if equals else [*after]
    return found


def main(arguments: list[str]) -> None:
    """Entry point of the main job."""
    keep_compiled()
    process.run(lambda: carry_out(parse(arguments), arguments))


def carry_out(asked: PruneArguments, arguments: list[str]) -> None:
    """Prune, or print what pruning would need.

    Raises:
        UserError: a problem with the model, the data, the output or the settings.
    """
    settings, wanted = asked.settings, asked.plan
    model = asked.reading.named(settings.model)
    if wanted.plan:
        planned = api.plan_pruning(
            model,
            sparsity=settings.sparsity,
            settings=settings,
            devices=wanted.plan_devices,
            flops=wanted.plan_flops,
        )
        command.show(planned.tables())
        return
    with hosts.joined(asked.hosts):
        run(model, settings, arguments)


def run(model: NamedModel, settings: Settings, arguments: list[str]) -> None:
    """Prune, write the output directory, print the closing tables, and upload what was asked for.

    Raises:
        UserError: a problem with the model, the data, the output, the settings or an upload.
    """
    results = api.prune_model(
        model,
        sparsity=settings.sparsity,
        settings=settings,
        output=settings.output,
        arguments=arguments,
    )
    if not hosts.is_first():
        return
    print_results([result.record for result in results], [result.name for result in results])
    for result, name in zip(results, repositories_of(settings), strict=False):
        command.say(f"uploaded to {result.push_to_hub(name, overwrite=settings.overwrite)}")


def print_results(summaries: Sequence[Summary], outputs: Sequence[object]) -> None:
    """Print a run's results for each of its targets, and the directories that they were written to."""
    command.show(tables.closing_tables(summaries))
    for summary in summaries:
        target = f"{summary.sparsity.asked:.1%}: " if len(summaries) > 1 else ""
        if chosen := choice_of(summary):
            command.say(f"{target}{chosen}")
    notes = [sentence for summary in summaries for sentence in tables.complaints(summary.health)]
    for sentence in dict.fromkeys(notes):
        command.say(f"note: {sentence}")
    for summary, output in zip(summaries, outputs, strict=True):
        command.tell_model(output, summary.settings.data)
