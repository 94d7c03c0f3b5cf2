"""Results of the Python API: models with their records, and measurements. All display as tables."""

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from tyr_jax.errors import UserError
from tyr_jax.evaluation.quality import Quality
from tyr_jax.evaluation.scores import TaskScore, TextPerplexity
from tyr_jax.files import read_json, write_json
from tyr_jax.io import hub
from tyr_jax.io.checkpoint import LoadedModel, save_model
from tyr_jax.model.tensors import iter_tensors
from tyr_jax.options import as_json, converted
from tyr_jax.planning.plan import Need
from tyr_jax.report import page, render, tables
from tyr_jax.report.files import portable_records, renew_report, write_report
from tyr_jax.report.render import Table
from tyr_jax.runtime import devices, hosts
from tyr_jax.workspace.events import EventLog
from tyr_jax.workspace.output import new_directory, staged_file
from tyr_jax.workspace.progress import Progress
from tyr_jax.workspace.records import Recovery, Sizes, Speed, Summary, Timing
from tyr_jax.workspace.schema import read, versioned, write


class Shown:
    """Base of results that display as tables: as text when printed, as HTML in a notebook."""

    def tables(self) -> list[Table]:
        """The tables to display."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return render.as_text(self.tables())

    def _repr_html_(self) -> str:
        return str(render.as_html(self.tables()))


def write_weights(directory: Path, model: LoadedModel, progress: Progress) -> None:
    """Write a model's weights, configuration and tokenizer.

    With several hosts, only the first one writes; the others send it their shards of the weights.

    Raises:
        UserError: as `save_model`.
    """
    if not hosts.is_first():
        for _, tensor in iter_tensors(model.params, model.config):
            devices.fetch(tensor)
        return
    directory.mkdir(exist_ok=True)
    with progress.stage("write", 1, "models") as stage:
        save_model(directory, model)
        stage.advance()


def write_records(directory: Path, summary: Summary | None, recovery: Recovery | None = None) -> None:
    """Write the records of how the model in `directory` was made, and its report.

    With several hosts, only the first one writes.

    Raises:
        UserError: as `write_report`.
    """
    if not hosts.is_first():
        return
    for record in filter(None, (summary, recovery)):
        write(directory, record)
    if summary:
        write_report(directory, summary, recovery)


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class ModelResult(Shown):
    """A model that a job made.

    Attributes:
        summary: the contents of `summary.json`, how it was pruned; None if that is not known.
        recovery: the contents of `recovery.json`, how it was trained; None if it was not.
        events: the events of the job that made it.
        directory: where it was written; None if it was not.
    """

    _load: Callable[[], LoadedModel]
    summary: dict[str, Any] | None
    events: EventLog
    recovery: dict[str, Any] | None = None
    directory: Path | None = None

    @functools.cached_property
    def model(self) -> LoadedModel:
        """The params, config and tokenizer. With a directory, they are read from there on first use."""
        return self._load()

    @property
    def name(self) -> str:
        """The model's name: its directory, or else the name of the model that it came from."""
        return str(self.directory) if self.directory else self.model.source

    @property
    def argument(self) -> str:
        """The model as a command-line argument: its directory, or the one that the command would write."""
        summary, recovery = self.records()
        if recovery and not self.directory:
            return str(Path(recovery.settings.output))
        if self.directory or summary is None:
            return self.name
        several = len(summary.settings.sparsity) > 1
        return str(Path(summary.settings.output, f"{summary.sparsity.asked:g}" if several else ""))

    def records(self) -> tuple[Summary | None, Recovery | None]:
        """How it was pruned, and how it was trained, each None if that is not known."""
        return (
            None if self.summary is None else Summary.model_validate(self.summary),
            None if self.recovery is None else Recovery.model_validate(self.recovery),
        )

    def _speed(self) -> Speed | None:
        """Its measured speed, if its directory has a benchmark."""
        return read(Speed, self.directory) if self.directory else None

    def save(self, output: str | Path, *, overwrite: bool = False) -> Path:
        """Write what the command writes: model, tokenizer, records, report, model card and events.

        Args:
            output: a directory that does not exist yet, or is empty.
            overwrite: replace a directory that is not empty, once the new one is complete.

        Returns:
            The directory.

        Raises:
            UserError: the directory is not empty (unless `overwrite`), may not be replaced, or cannot be
                written.
        """
        target, model, quiet = converted("output", Path, output), self.model, Progress(quiet=True)
        if not hosts.is_first():
            write_weights(target, model, quiet)
            return target
        with new_directory(target, overwrite) as staging:
            write_weights(staging, model, quiet)
            write_records(staging, *self.records())
            self.events.save(staging)
        return target

    def push_to_hub(self, name: str, *, overwrite: bool = False) -> str:
        """Upload what `save` writes to the Hugging Face hub. The uploaded records do not show the folders of
        files on this machine.

        Args:
            name: the repository, such as `user/model`.
            overwrite: replace the contents of a repository that exists.

        Returns:
            The repository's address.

        Raises:
            UserError: the hub refuses the upload, or the repository exists already (unless `overwrite`).
        """
        hub.check_upload(name, overwrite)
        if self.directory:
            return hub.upload(self.directory, name, changed=portable_records(self.directory))
        with tempfile.TemporaryDirectory() as scratch:
            saved, mend = self.save(scratch), "try again, or save it and upload that"
            return hub.upload(saved, name, mend, portable_records(saved))


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class PruneResult(ModelResult):
    """A pruned model. Displays its quality and size next to those of the dense and the uniform model; in a
    notebook, with the report's figures."""

    summary: dict[str, Any]

    @property
    def distribution(self) -> dict[str, list[int]]:
        """Number of units that each layer keeps, by kind: `attention`, `ffn`."""
        return dict(self.summary["distribution"])

    @property
    def kept(self) -> np.ndarray:
        """The distribution as an array `[S, L]`."""
        return np.array(list(self.distribution.values()))

    @property
    def quality(self) -> dict[str, Quality]:
        """Perplexity, and mean KL to the dense model in nats per token, by evaluation text. NaN for a value
        that is not finite."""
        final = self.record.final
        return {text: Quality.of(figures) for text, figures in final.quality.items()}

    def tables(self) -> list[Table]:
        """Quality and size."""
        return [tables.quality_table(self.record)]

    def _repr_html_(self) -> str:
        return str(page.fragment(self.record, self._speed()))

    @property
    def record(self) -> Summary:
        """The summary, with attributes for its fields."""
        return Summary.model_validate(self.summary)


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class RecoverResult(ModelResult):
    """A model that was trained. Displays its perplexity before and after; in a notebook, with the report's
    figures if the record of its pruning is known."""

    recovery: dict[str, Any]

    @property
    def quality(self) -> dict[str, dict[str, float | None]]:
        """`perplexity`, and mean `kl` to the dense model in nats per token, by evaluation text. None for a
        value that was not measured or is not finite."""
        return {text: quality.as_json() for text, quality in self.record.quality.recovered.items()}

    def tables(self) -> list[Table]:
        """Perplexities before and after training."""
        return [tables.recovery_table(self.record, f"perplexity of {self.name}")]

    def _repr_html_(self) -> str:
        summary, recovery = self.records()
        if summary is None:
            return super()._repr_html_()
        return str(page.fragment(summary, self._speed(), recovery))

    @property
    def record(self) -> Recovery:
        """The record of the training, with attributes for its fields."""
        return Recovery.model_validate(self.recovery)


@dataclasses.dataclass(frozen=True, repr=False)
class Perplexities(Shown):
    """Perplexities of a model, one for each of `texts`."""

    model: str
    texts: Sequence[TextPerplexity]

    def as_json(self) -> dict[str, Any]:
        """The perplexities as a JSON object."""
        return as_json({"model": self.model, "texts": [text._asdict() for text in self.texts]})

    def tables(self) -> list[Table]:
        """A row for each text."""
        return [tables.perplexity_table(self.model, self.texts)]


@dataclasses.dataclass(frozen=True, repr=False)
class TaskScores(Shown):
    """Scores of a model in lm-evaluation-harness: one for every metric of every task in `tasks`."""

    model: str
    tasks: Sequence[TaskScore]

    def as_json(self) -> dict[str, Any]:
        """The scores as a JSON object."""
        return as_json({"model": self.model, "tasks": [score._asdict() for score in self.tasks]})

    def tables(self) -> list[Table]:
        """A row for each score."""
        return [tables.task_table(self.model, self.tasks)]


def _is_benchmark(path: Path) -> bool:
    """Whether a benchmark wrote this file, in any version."""
    try:
        return {"models", "device", "rows"} <= read_json(path).keys()
    except UserError:
        return False


def claimed_benchmark(path: Path, overwrite: bool) -> AbstractContextManager[Path]:
    """A context with a temporary path for a benchmark, which becomes the file `path` on success.

    No other command can write that file meanwhile.

    Raises:
        UserError: as `staged_file`; or `path` is in a pruned model's directory whose records cannot be read.
    """
    if is_reported(path):
        # Damaged records should be found before anything is timed.
        read(Recovery, path.parent)
    return staged_file(path, overwrite, _is_benchmark)


def is_reported(benchmark: Path) -> bool:
    """Whether a benchmark's path is that of the benchmark in a pruned model's directory."""
    return benchmark.name == Speed.file and read(Summary, benchmark.parent) is not None


def update_reports(benchmark: Path) -> list[Path]:
    """Update the report of a pruned model after its benchmark was written.

    Returns:
        The files that were written; none if the benchmark is not in a pruned model's directory.

    Raises:
        UserError: as `renew_report`.
    """
    return renew_report(benchmark.parent) if is_reported(benchmark) else []


@dataclasses.dataclass(frozen=True, repr=False)
class Benchmark(Shown):
    """Speed of a pruned model compared with the dense one, on `device`. `models` are their names, `sizes`
    their sizes."""

    models: dict[str, str]
    device: str
    sizes: Sizes
    timings: Sequence[Timing]

    def as_json(self) -> dict[str, Any]:
        """The contents of `benchmark.json`."""
        rows = [Timing(**timing.as_json(), ratio=timing.ratio) for timing in self.timings]
        return versioned(Speed(models=self.models, device=self.device, sizes=self.sizes, rows=rows))

    def save(self, output: str | Path, *, overwrite: bool = False) -> list[Path]:
        """Write the benchmark as JSON; as `benchmark.json` of a pruned model, it also goes into the report.

        Args:
            output: the file to write.
            overwrite: replace a benchmark that exists.

        Returns:
            All files that were written.

        Raises:
            UserError: the file exists already (unless `overwrite`), or a file cannot be written.
        """
        path = converted("output", Path, output)
        with claimed_benchmark(path, overwrite) as staged:
            write_json(staged, self.as_json())
        return [path, *update_reports(path)]

    def tables(self) -> list[Table]:
        """Times and sizes."""
        return tables.speed_tables(self.timings, self.sizes)


@dataclasses.dataclass(frozen=True, repr=False)
class PruningPlan(Shown):
    """What a pruning run needs.

    Attributes:
        needs: for every stage, its device memory and FLOPs, and how often it runs.
        host_bytes: bytes of host memory in addition, by purpose.
        disk_bytes: bytes on disk during the run, by purpose.
        devices: the number of devices that the plan is for.
        flops: FLOPs that a device reaches in a second; None if no times are estimated.
    """

    needs: Sequence[tuple[Need, int]]
    host_bytes: Mapping[str, float]
    disk_bytes: Mapping[str, float]
    devices: int
    flops: float | None = None

    def tables(self) -> list[Table]:
        """Tables of the devices, the host's memory and the disk."""
        return [
            tables.needs_table(self.needs, self.devices, self.flops),
            tables.bytes_table("memory of the host", self.host_bytes),
            tables.bytes_table("disk", self.disk_bytes),
        ]
