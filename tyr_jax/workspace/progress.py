"""Progress of every stage on stderr: a bar on a terminal, occasional lines anywhere else."""

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Column

from tyr_jax.formatting import duration, printable
from tyr_jax.workspace.facts import Ended


class Stage:
    """The state of one stage. `Progress.stage` creates it, and the work calls `advance`."""

    def __init__(
        self,
        name: str,
        total: int | None,
        unit: str,
        clock: Callable[[], float],
        changed: Callable[["Stage"], None],
    ) -> None:
        self.name = name
        self.total = total
        self.unit = unit
        self.done = 0
        self.note = ""
        self._clock = clock
        self._changed = changed
        self._started = clock()
        self._first: tuple[int, float] | None = None

    def advance(self, steps: int = 1, note: str | None = None) -> None:
        """Count `steps` more as done, and show `note` (such as a figure) from now on."""
        self.done += steps
        self.note = self.note if note is None else note
        if self._first is None:
            self._first = (self.done, self._clock())
        self._changed(self)

    @property
    def elapsed(self) -> float:
        """Seconds since the stage began."""
        return self._clock() - self._started

    @property
    def rate(self) -> float | None:
        """Units per second, without the first advance, which includes compilation; None if not known yet."""
        if self._first is None:
            return None
        steps, since = self.done - self._first[0], self._clock() - self._first[1]
        return steps / since if steps > 0 and since > 0 else None

    def status(self, ended: bool = False) -> str:
        """One line such as `12/60 sites · 0.8 sites/s · 1:00 left · KL 0.53`."""
        count = f"{self.done} {self.unit}" if self.total is None else f"{self.done}/{self.total} {self.unit}"
        parts = [f"{count} in {duration(self.elapsed)}" if ended else count]
        rate = self.rate
        if rate is not None and not ended:
            parts.append(f"{rate:.3g} {self.unit}/s")
            if self.total is not None:
                parts.append(f"{duration(max(self.total - self.done, 0) / rate)} left")
        return " · ".join([*parts, self.note] if self.note else parts)


class Progress:
    """Shows stages, and records the time of each in `timings` (seconds by name; equal names are added up).

    `part` returns the same display for one of several similar parts of the work. There, `shared` has the
    timings of what all parts share.

    Args:
        quiet: show nothing, but still record times.
        console: where to print (default: stderr).
        clock: the current time in seconds.
        every: without a terminal, a stage prints its first and last line, and in between at most one line in
            this many seconds.
        earlier: stages of the interrupted run that this one continues.
        on_end: called with each stage that ends.
        on_sign: called at most every `every` seconds, with the time that the current stage has taken so far.
    """

    def __init__(
        self,
        *,
        quiet: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        every: float = 5.0,
        earlier: Sequence[Ended] = (),
        on_end: Callable[[Ended], None] = lambda ended: None,
        on_sign: Callable[[Ended], None] = lambda ended: None,
    ) -> None:
        self.shared: dict[str, float] = {}
        self._earlier = earlier
        self._on_end, self._on_sign = on_end, on_sign
        self._part = ""
        self.timings = self._timings_of("")
        self._quiet = quiet
        self._console = console or Console(stderr=True)
        self._clock = clock
        self._every = every
        self._printed = self._signed = 0.0
        self._bars: Bars | None = None
        if not quiet and self._console.is_terminal and not self._console.is_dumb_terminal:
            self._bars = Bars(
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[status]}", markup=False),
                TimeElapsedColumn(table_column=Column(min_width=7, no_wrap=True)),
                console=self._console,
                get_time=clock,
                transient=True,
            )

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars is not None:
            self._bars.stop()

    def part(self, name: str) -> "Progress":
        """The same display for a part of the work, whose stages show its name and are timed separately."""
        part = copy.copy(self)
        part.timings, part.shared = self._timings_of(name), self.timings
        part._part = name
        return part

    def _timings_of(self, part: str) -> dict[str, float]:
        """Seconds that an interrupted run spent on each stage of a part."""
        timings: dict[str, float] = {}
        for ended in self._earlier:
            if ended.part == part:
                timings[ended.stage] = timings.get(ended.stage, 0.0) + ended.seconds
        return timings

    @contextlib.contextmanager
    def stage(self, name: str, total: int | None = None, unit: str = "steps") -> Iterator[Stage]:
        """A context for a stage of `total` units (None: unknown), which is shown while the body runs."""
        shown = f"{self._part}: {name}" if self._part else name
        task = self._bars.add_task(shown, total=total, status="") if self._bars is not None else None

        def changed(stage: Stage) -> None:
            if self._clock() - self._signed >= self._every:
                self._signed = self._clock()
                self._on_sign(Ended(part=self._part, stage=name, seconds=stage.elapsed))
            if self._bars is not None and task is not None:
                self._bars.update(task, completed=stage.done, status=stage.status())
            elif self._clock() - self._printed >= self._every:
                self.log(f"{shown}: {stage.status()}")

        stage = Stage(name, total, unit, self._clock, changed)
        if task is None:
            self.log(f"{shown}: {stage.status()}")
        ended = "stopped at "
        try:
            yield stage
            ended = ""
        finally:
            seconds = stage.elapsed
            self.timings[name] = self.timings.get(name, 0.0) + seconds
            self._on_end(Ended(part=self._part, stage=name, seconds=seconds))
            if self._bars is not None and task is not None:
                self._bars.remove_task(task)
            self.log(f"{shown}: {ended}{stage.status(ended=True)}")

    def log(self, line: str) -> None:
        """Print a line (above the bars, if there are any)."""
        self._printed = self._clock()
        if not self._quiet:
            # A full disk or a closed stream must not end the run.
            with contextlib.suppress(OSError):
                self._console.print(printable(line), markup=False, highlight=False, soft_wrap=True)
