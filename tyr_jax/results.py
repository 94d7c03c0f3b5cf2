"""What the Python API gives back: models with their records, and figures; all show themselves as tables."""

import dataclasses
import functools
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from tyr_jax.evaluation import speed
from tyr_jax.evaluation.quality import Quality
from tyr_jax.evaluation.scores import TaskScore, TextPerplexity
from tyr_jax.evaluation.speed import Sizes, Speed, Timing, read_speed
from tyr_jax.files import write_json
from tyr_jax.io import hub
from tyr_jax.io.checkpoint import LoadedModel, save_model
from tyr_jax.model.spec import iter_tensors
from tyr_jax.options import as_json
from tyr_jax.planning.plan import Need
from tyr_jax.report import page, render, tables
from tyr_jax.report.files import renew_report, write_report
from tyr_jax.report.render import Table
from tyr_jax.runtime import devices, hosts
from tyr_jax.space import KINDS
from tyr_jax.workspace.events import EventLog
from tyr_jax.workspace.output import new_directory, staged_file
from tyr_jax.workspace.progress import Progress
from tyr_jax.workspace.records import (
    FORMAT_VERSION,
    RECOVERY,
    SUMMARY,
    read_recovery,
    read_summary,
    written_model,
)


class Shown:
    """What shows itself: as text where it is printed, as HTML in a notebook."""

    def tables(self) -> list[Table]:
        """What is shown."""
        raise NotImplementedError

    def __repr__(self) -> str:
        return render.as_text(self.tables())

    def _repr_html_(self) -> str:
        return str(render.as_html(self.tables()))


def write_weights(directory: Path, model: LoadedModel, progress: Progress) -> None:
    """Write a model's weights, configuration and tokenizer. Of several hosts, the others than the first only
    lend it what they have of the weights.

    Raises:
        UserError: as `save_model`.
    """
    if not hosts.is_first():
        for _, tensor in iter_tensors(model.params, model.config):
            devices.fetch(tensor)
        return
    directory.mkdir(exist_ok=True)
    with progress.stage("write", 1, "models") as stage:
        save_model(
            directory,
            model.config,
            model.params,
            model.hf_config,
            model.tokenizer,
            model.generation_config,
            dtype=model.stored_dtype,
        )
        stage.advance()


def write_records(
    directory: Path, summary: Mapping[str, Any] | None, recovery: Mapping[str, Any] | None = None
) -> None:
    """Write what is known of how the model in `directory` was made, and its report. (Of several hosts, the
    first does.)

    Raises:
        UserError: as `write_report`.
    """
    if not hosts.is_first():
        return
    if summary:
        write_json(directory / SUMMARY, summary)
    if recovery:
        write_json(directory / RECOVERY, recovery)
    if summary:
        write_report(directory, summary, recovery)


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class ModelResult(Shown):
    """A model that a job made.

    Attributes:
        summary: what `summary.json` holds of how it was pruned; None where that is not known.
        recovery: what `recovery.json` holds of how it was trained; None if it was not.
        events: what happened while it was made.
        directory: where it was written, if it was.
    """

    _load: Callable[[], LoadedModel]
    summary: dict[str, Any] | None
    events: EventLog
    recovery: dict[str, Any] | None = None
    directory: Path | None = None

    @functools.cached_property
    def model(self) -> LoadedModel:
        """Its params, config and tokenizer; if it has a directory, read from there when first asked for."""
        return self._load()

    @property
    def name(self) -> str:
        """What it is called: its directory, or what it came from."""
        return str(self.directory) if self.directory else self.model.source

    @property
    def argument(self) -> str:
        """What stands for it on a command line: its directory, or the one that the command would write."""
        record = self.recovery or self.summary
        if self.directory or record is None:
            return self.name
        several = not self.recovery and len(record["settings"]["sparsity"]) > 1
        return str(Path(record["settings"]["output"], f"{record['sparsity']['asked']:g}" if several else ""))

    def _speed(self) -> Speed | None:
        """How fast it is, if that was measured in its directory."""
        return read_speed(self.directory) if self.directory else None

    def save(self, output: str | Path, *, overwrite: bool = False) -> Path:
        """Write what the command writes: model, tokenizer, records, report, model card and events.

        Args:
            output: a directory that does not exist yet, or is empty.
            overwrite: replace it if it is not, once the new one is complete.

        Returns:
            The directory.

        Raises:
            UserError: it exists and is not empty, or cannot be written.
        """
        target, model, quiet = Path(output), self.model, Progress(quiet=True)
        if not hosts.is_first():
            write_weights(target, model, quiet)
            return target
        with new_directory(target, overwrite) as staging:
            write_weights(staging, model, quiet)
            write_records(staging, self.summary, self.recovery)
            self.events.save(staging)
        return target

    def push_to_hub(self, name: str, *, overwrite: bool = False) -> str:
        """Upload what `save` writes to the Hugging Face hub.

        Args:
            name: the repository, such as `user/model`.
            overwrite: replace what it holds, if it exists.

        Returns:
            Its address.

        Raises:
            UserError: the hub refuses it, or there is such a repository.
        """
        hub.check_upload(name, overwrite)
        if self.directory:
            return hub.upload(self.directory, name)
        with tempfile.TemporaryDirectory() as scratch:
            return hub.upload(self.save(scratch), name, "try again, or save it and upload that")


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class PruneResult(ModelResult):
    """A pruned model; shows how good and how large it is beside the dense and the uniform one, in a notebook
    with the report's figures."""

    summary: dict[str, Any]

    @property
    def distribution(self) -> dict[str, list[int]]:
        """Units that each layer keeps, by kind: `attention`, `ffn`."""
        return dict(self.summary["distribution"])

    @property
    def kept(self) -> np.ndarray:
        """The same as an array `[2, L]`."""
        return np.array([self.distribution[kind] for kind in KINDS])

    @property
    def quality(self) -> dict[str, Quality]:
        """Perplexity, and mean KL to the dense model in nats a token, by evaluation text; NaN where it is not
        finite."""
        final = written_model(self.summary)
        return {text: Quality.of(figures) for text, figures in final["quality"].items()}

    def tables(self) -> list[Table]:
        """Quality and size."""
        return [tables.quality_table(self.summary)]

    def _repr_html_(self) -> str:
        return str(page.fragment(self.summary, self._speed()))


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class RecoverResult(ModelResult):
    """A model that was trained; shows its perplexity before and after, in a notebook with the report's
    figures, if it was pruned here."""

    recovery: dict[str, Any]

    @property
    def quality(self) -> dict[str, dict[str, float | None]]:
        """`perplexity`, and mean `kl` to the dense model in nats a token, by evaluation text; None for what
        there is none of, or is not finite."""
        return dict(self.recovery["quality"]["recovered"])

    def tables(self) -> list[Table]:
        """Perplexities before and after."""
        return [tables.recovery_table(self.recovery, f"perplexity of {self.name}")]

    def _repr_html_(self) -> str:
        if self.summary is None:
            return super()._repr_html_()
        return str(page.fragment(self.summary, self._speed(), self.recovery))


@dataclasses.dataclass(frozen=True, repr=False)
class Perplexities(Shown):
    """How well a model predicts texts, one for each of `texts`."""

    model: str
    texts: Sequence[TextPerplexity]

    def as_json(self) -> dict[str, Any]:
        """The same, as JSON has it."""
        return as_json({"model": self.model, "texts": [text._asdict() for text in self.texts]})

    def tables(self) -> list[Table]:
        """A row for each text."""
        return [tables.perplexity_table(self.model, self.texts)]


@dataclasses.dataclass(frozen=True, repr=False)
class TaskScores(Shown):
    """What lm-evaluation-harness makes of a model: a score for every metric of every task in `tasks`."""

    model: str
    tasks: Sequence[TaskScore]

    def as_json(self) -> dict[str, Any]:
        """The same, as JSON has it."""
        return as_json({"model": self.model, "tasks": [score._asdict() for score in self.tasks]})

    def tables(self) -> list[Table]:
        """A row for each score."""
        return [tables.task_table(self.model, self.tasks)]


def claimed_benchmark(path: Path, overwrite: bool) -> AbstractContextManager[Path]:
    """Where to write a benchmark that becomes the file `path`, which nothing else may write meanwhile.

    Raises:
        UserError: as `staged_file`; or it is for a report of records that cannot be read.
    """
    if _is_reported(path):
        # It is known before anything is timed.
        read_recovery(path.parent)
    return staged_file(path, overwrite, speed.is_ours)


def _is_reported(benchmark: Path) -> bool:
    """Whether a benchmark is that of a pruned model in its directory."""
    return benchmark.name == speed.NAME and read_summary(benchmark.parent) is not None


def reports_of(benchmark: Path) -> list[Path]:
    """Make the report of a pruned model show the benchmark in its directory, if that is where it is; returns
    the files that were written.

    Raises:
        UserError: as `renew_report`.
    """
    return renew_report(benchmark.parent) if _is_reported(benchmark) else []


@dataclasses.dataclass(frozen=True, repr=False)
class Benchmark(Shown):
    """How fast a pruned model is beside the dense one, on `device`; `models` are their names, and `sizes`
    what each takes."""

    models: dict[str, str]
    device: str
    sizes: Sizes
    timings: Sequence[Timing]

    def as_json(self) -> dict[str, Any]:
        """What `benchmark.json` holds."""
        return {
            "format_version": FORMAT_VERSION,
            "models": self.models,
            "device": self.device,
            "sizes": self.sizes,
            "rows": [speed.as_json(timing) for timing in self.timings],
        }

    def save(self, output: str | Path, *, overwrite: bool = False) -> list[Path]:
        """Write it as JSON; as `benchmark.json` in a pruned model's directory, it goes into the report there.

        Args:
            output: the file.
            overwrite: replace a benchmark that is there.

        Returns:
            All files that were written.

        Raises:
            UserError: there is such a file, or a file cannot be written.
        """
        path = Path(output)
        with claimed_benchmark(path, overwrite) as staged:
            write_json(staged, self.as_json())
        return [path, *reports_of(path)]

    def tables(self) -> list[Table]:
        """Seconds, and sizes."""
        return tables.speed_tables(self.timings, self.sizes)


@dataclasses.dataclass(frozen=True, repr=False)
class PruningPlan(Shown):
    """What a run will need.

    Attributes:
        needs: memory of a device and FLOPs of every stage, and how often it runs.
        host_bytes: bytes of the host's memory beside that, by what they are for.
        disk_bytes: bytes on disk while it lasts, by what they are for.
        devices: for how many it is.
        flops: FLOPs that a device reaches in a second, if times are to be told.
    """

    needs: Sequence[tuple[Need, int]]
    host_bytes: Mapping[str, float]
    disk_bytes: Mapping[str, float]
    devices: int
    flops: float | None = None

    def tables(self) -> list[Table]:
        """Of devices, of the host's memory, and of the disk."""
        return [
            tables.needs_table(self.needs, self.devices, self.flops),
            tables.bytes_table("memory of the host", self.host_bytes),
            tables.bytes_table("disk", self.disk_bytes),
        ]
