"""Prune a model and write the smaller one: `python -m tyr_jax.prune`.

Every prunable sublayer (attention heads, FFN neurons) is pruned locally to
several sparsity levels; all copies form a supernet; an evolutionary search
finds how much each layer should keep so that the whole model meets one target
sparsity and still behaves like the dense one; then again, finer, around the
answer. What is pruned is physically removed: the output directory holds a
smaller model.

Examples:

  python -m tyr_jax.prune --preset quick --output pruned
      the embedded model to 25 % on the embedded text, in minutes

  python -m tyr_jax.prune --model HuggingFaceTB/SmolLM2-135M --sparsity 0.5 \\
      --calibration builtin my-text.jsonl@2 \\
      --evaluation Salesforce/wikitext:wikitext-2-raw-v1:test \\
      --output smollm2-50
      a hub model to 50 %, two calibration sources (the second with twice the
      weight), and a further text to measure on

  python -m tyr_jax.prune --sparsity 0.125 0.25 0.5 --output pruned
      three models, in pruned/0.125, pruned/0.25 and pruned/0.5, in less time
      than three runs

  python -m tyr_jax.prune --model meta-llama/Llama-3.1-8B --sparsity 0.5 \\
      --compute-dtype bfloat16 --plan --plan-devices 8 --plan-flops 1e14
      what that would take, from the model's configuration alone
"""

import dataclasses
import itertools
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from tyr_jax import errors
from tyr_jax.cli import command
from tyr_jax.components import Component, broken
from tyr_jax.data import anchored
from tyr_jax.errors import UserError, require
from tyr_jax.io import hub
from tyr_jax.io.checkpoint import load_config, save_model
from tyr_jax.model.spec import iter_tensors
from tyr_jax.planning.plan import PlanSettings
from tyr_jax.report import summary, write_report
from tyr_jax.run.pipeline import Outcome, prune_model
from tyr_jax.runtime import devices, hosts
from tyr_jax.runtime.cache import keep_compiled
from tyr_jax.runtime.hosts import HostSettings
from tyr_jax.settings import PRESETS, ComponentNames, Settings, validate, with_components
from tyr_jax.workspace import job
from tyr_jax.workspace.files import write_json


@dataclasses.dataclass(frozen=True)
class PruneArguments:
    """What to prune and how, or to plan."""

    settings: Settings
    """Settings"""
    plan: PlanSettings = dataclasses.field(default_factory=PlanSettings)
    """Plan"""
    hosts: HostSettings = dataclasses.field(default_factory=HostSettings)
    """Several hosts"""
    components: ComponentNames = dataclasses.field(default_factory=ComponentNames)
    """Components"""


def parse(arguments: list[str]) -> PruneArguments:
    """The job that command-line arguments ask for; defaults come from the preset that `--preset` names,
    and the options of components from the classes that are named.

    Raises:
        UserError: the arguments cannot be understood.
    """
    given = {
        field.name: value_of(f"--{field.name}", arguments) for field in dataclasses.fields(ComponentNames)
    }
    names = ComponentNames(**{name: value for name, value in given.items() if value})
    preset = PRESETS.get(value_of("--preset", arguments) or "", PRESETS["standard"])
    default = PruneArguments(with_components(preset, names), components=names)
    check_options(default)
    return command.parse(
        tyro.conf.OmitArgPrefixes[PruneArguments],
        arguments,
        prog="python -m tyr_jax.prune",
        description=__doc__ or "",
        default=default,
    )


def options(settings: Any, owner: Component | None = None) -> Iterator[tuple[str, Component | None]]:
    """(name, component that it belongs to, if any) of every option of nested settings."""
    owner = settings if isinstance(settings, Component) else owner
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            yield from options(value, owner)
        else:
            yield field.name, owner


def check_options(default: PruneArguments) -> None:
    """Refuse a component whose options are called as others are.

    Raises:
        UserError: names the component and the option.
    """
    names = Counter(name for name, _ in options(default))
    for name, owner in options(default):
        if owner is not None and ":" in owner.name and names[name] > 1:
            flag = f"--{name.replace('_', '-')}"
            raise broken(
                owner, f"has an option {flag}, which the command or another part has already: rename it"
            )


def value_of(flag: str, arguments: list[str]) -> str | None:
    """The value of a flag among arguments that are not parsed yet; the last one counts."""
    found = None
    for argument, after in itertools.zip_longest(arguments, arguments[1:]):
        name, equals, value = argument.partition("=")
        if name == flag:
            found = value if equals else after
    return found


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the main job."""
    arguments = sys.argv[1:] if arguments is None else arguments
    keep_compiled()
    errors.run(lambda: carry_out(parse(arguments), arguments))


def carry_out(asked: PruneArguments, arguments: list[str]) -> None:
    """Prune, or say what that would need.

    Raises:
        UserError: anything that cannot work.
    """
    if asked.plan.plan:
        describe(asked.settings, asked.plan)
    else:
        with hosts.joined(asked.hosts):
            if asked.settings.offload and jax.process_count() > 1:
                raise UserError("--offload is for one host; several divide the weights among their devices")
            run(asked.settings, arguments)


def describe(settings: Settings, asked: PlanSettings) -> None:
    """Print what a run would need.

    Raises:
        UserError: there is no such model, its configuration is not understood, or a setting cannot be.
    """
    for flag, value in (("--plan-devices", asked.plan_devices), ("--plan-flops", asked.plan_flops)):
        require(value is None or value > 0, flag, value, "above 0")
    validate(settings)
    config, stored = load_config(settings.model)
    if not config.uniform:
        raise UserError(f"{settings.model} is pruned already: its layers differ; plan for the dense model")
    written = stored if settings.dtype == "as-stored" else jnp.dtype(settings.dtype)
    number = asked.plan_devices or len(jax.devices())
    summary.print_plan(config, settings, written.itemsize, number, asked.plan_flops)


def anchor(settings: Settings) -> Settings:
    """The same settings for any folder, so that a summary can be used in another than it was made in."""
    calibration, evaluation = (
        tuple(map(anchored, sources)) for sources in (settings.data.calibration, settings.data.evaluation)
    )
    data = dataclasses.replace(settings.data, calibration=calibration, evaluation=evaluation)
    return dataclasses.replace(settings, data=data)


def run(settings: Settings, arguments: list[str]) -> None:
    """Prune, write the output directory, print the closing tables, upload what was asked to be.

    Raises:
        UserError: anything that cannot work.
    """
    settings = anchor(settings)
    several = len(settings.sparsity) > 1
    parts = [f"{sparsity:g}" if several else "" for sparsity in settings.sparsity]
    repositories = repository_names(settings.push_to_hub, parts) if hosts.is_first() else []
    for name in repositories:
        hub.check_upload(name, settings.overwrite)
    reports = []
    with job.open_workspace(settings, arguments) as desk:
        outcomes = prune_model(settings, desk.progress, desk.events, desk.store)
        for part, outcome in zip(parts, outcomes, strict=True):
            reports.append(write(desk.staging / part, outcome, arguments))
    if not hosts.is_first():
        return
    directories = [settings.output / part for part in parts]
    summary.print_tables(reports, directories)
    for directory, name in zip(directories, repositories, strict=False):
        print(f"uploaded to {hub.upload(directory, name)}")


def repository_names(name: str | None, parts: Sequence[str]) -> list[str]:
    """The repositories of the hub to upload the `parts` of an output directory to; none without a `name`."""
    return [] if name is None else [f"{name}-{part}" if part else name for part in parts]


def write(directory: Path, outcome: Outcome, arguments: list[str]) -> dict[str, Any]:
    """Write the model, the summary and the report of one target; returns the summary. Of several hosts, the
    others than the first only lend it what they have of the weights."""
    final, model = outcome.final, outcome.dense.model
    if not hosts.is_first():
        for _, tensor in iter_tensors(final.params, final.config):
            devices.fetch(tensor)
        return {}
    directory.mkdir(exist_ok=True)
    with outcome.run.progress.stage("write", 1, "models") as stage:
        save_model(
            directory,
            final.config,
            final.params,
            model.hf_config,
            model.tokenizer,
            model.generation_config,
            dtype=outcome.dense.dtype,
        )
        stage.advance()
    report = summary.summarise(outcome, arguments)
    write_json(directory / "summary.json", report)
    write_report(directory, report)
    return report


if __name__ == "__main__":
    main()
