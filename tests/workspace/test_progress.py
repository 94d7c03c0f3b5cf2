import io
from collections.abc import Callable

import pytest
from rich.console import Console

from tyr_jax.formatting import duration
from tyr_jax.workspace.facts import Ended
from tyr_jax.workspace.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def plain(clock: Callable[[], float], **options: object) -> tuple[Progress, io.StringIO]:
    stream = io.StringIO()
    return Progress(console=Console(file=stream, width=40), clock=clock, **options), stream  # type: ignore[arg-type]


def test_lines_first_last_and_now_and_then() -> None:
    clock = Clock()
    progress, stream = plain(clock)
    with progress, progress.stage("supernet round 1/2", total=60, unit="sites") as stage:
        for site in range(60):
            clock.now += 10.0 if site == 0 else 1.0
            stage.advance(note=f"KL {site}")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "supernet round 1/2: 0/60 sites"
    assert lines[1] == "supernet round 1/2: 1/60 sites · KL 0"
    assert lines[2] == "supernet round 1/2: 6/60 sites · 1 sites/s · 0:54 left · KL 5"
    assert lines[-1] == "supernet round 1/2: 60/60 sites in 1:09 · KL 59"
    assert len(lines) == 2 + 1 + 59 // 5
    assert progress.timings == {"supernet round 1/2": 69.0}


def test_an_unknown_total_shows_no_time_left() -> None:
    clock = Clock()
    progress, stream = plain(clock, every=0.0)
    with progress.stage("read", unit="rows") as stage:
        for _ in range(2):
            clock.now += 0.5
            stage.advance(4)
    assert stream.getvalue().splitlines() == [
        "read: 0 rows",
        "read: 4 rows",
        "read: 8 rows · 8 rows/s",
        "read: 8 rows in 1.0 s",
    ]


def test_parts_are_named_and_timed_apart() -> None:
    clock = Clock()
    progress, stream = plain(clock)
    with progress.stage("load"):
        clock.now += 1.0
    parts = [progress.part(name) for name in ("a", "b")]
    for seconds, part in enumerate(parts, start=2):
        with part.stage("search"):
            clock.now += seconds
    assert progress.timings == {"load": 1.0}
    assert [part.timings for part in parts] == [{"search": 2.0}, {"search": 3.0}]
    assert all(part.shared == progress.timings for part in parts)
    assert stream.getvalue().splitlines()[-1] == "b: search: 0 steps in 3.0 s"


def test_times_add_up_by_name_and_nest() -> None:
    clock = Clock()
    progress, _ = plain(clock)
    with progress.stage("all"):
        for _ in range(2):
            with progress.stage("part"):
                clock.now += 2.0
    assert progress.timings == {"part": 4.0, "all": 4.0}


def ended_after(part: str, stage: str, seconds: float) -> Ended:
    return Ended(part=part, stage=stage, seconds=seconds)


def test_what_an_interrupted_run_took_counts() -> None:
    clock, ended = Clock(), []
    earlier = [ended_after("", "a", 2.0), ended_after("", "a", 1.0), ended_after("0.5", "b", 4.0)]
    progress, _ = plain(clock, earlier=earlier, on_end=ended.append)
    part = progress.part("0.5")
    for stages, name in ((progress, "a"), (part, "b"), (part, "c")):
        with stages.stage(name):
            clock.now += 1.0
    assert (progress.timings, part.timings, part.shared) == ({"a": 4.0}, {"b": 5.0, "c": 1.0}, {"a": 4.0})
    assert ended == [ended_after("", "a", 1.0), ended_after("0.5", "b", 1.0), ended_after("0.5", "c", 1.0)]


def test_signs_of_life_come_now_and_then() -> None:
    clock = Clock()
    signs: list[Ended] = []
    progress, _ = plain(clock, on_sign=signs.append)
    with progress.part("0.5").stage("a", 10) as stage:
        for _ in range(10):
            clock.now += 2.0
            stage.advance()
    assert [sign.seconds for sign in signs] == [2.0, 8.0, 14.0, 20.0]
    assert {(sign.part, sign.stage) for sign in signs} == {("0.5", "a")}


def test_a_stage_that_fails_says_where_it_stopped() -> None:
    clock = Clock()
    progress, stream = plain(clock)

    def search() -> None:
        with progress, progress.stage("search", total=3) as stage:
            stage.advance()
            clock.now += 1.0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search()
    assert stream.getvalue().splitlines()[-1] == "search: stopped at 1/3 steps in 1.0 s"
    assert progress.timings == {"search": 1.0}


def test_quiet_keeps_the_time_and_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress, stream = plain(clock, quiet=True)
    with progress, progress.stage("search", total=1) as stage:
        clock.now += 3.0
        stage.advance()
        progress.log("x")
    assert stream.getvalue() == ""
    assert progress.timings == {"search": 3.0}


def test_a_terminal_gets_a_bar_and_a_last_line() -> None:
    clock = Clock()
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120, _environ={"TERM": "xterm"})
    with Progress(console=console, clock=clock) as progress:
        with progress.stage("search [1/2]", total=4, unit="generations") as stage:
            for _ in range(4):
                clock.now += 15.0
                stage.advance(note="KL 0.53")
        progress.log("saved to runs/[a]")
    text = stream.getvalue()
    assert "━" in text
    assert "search [1/2]: 4/4 generations in 1:00 · KL 0.53" in text
    assert "saved to runs/[a]" in text
    assert progress.timings == {"search [1/2]": 60.0}


def test_the_default_writes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress:
        progress.log("hello")
    out, err = capsys.readouterr()
    assert (out, err) == ("", "hello\n")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0.0 s"), (3.21, "3.2 s"), (9.97, "10.0 s"), (59.6, "1:00"), (3725, "1:02:05")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
