"""Give malformed input to every command, and check that it is refused properly.

  python scripts/fuzz.py --seconds 60
  python scripts/fuzz.py --case 4711

Each case runs in a process of its own, which can only write to its own folder. The command must
- end with status 0 or 2, within a minute and with at most a gibibyte of memory beyond what it starts with;
- say what is wrong in one line, without a traceback or an escape sequence;
- leave nothing half written;
- run no code that comes with the input.

Cases that fail are printed. The number of a case reproduces it.
"""

import dataclasses
import importlib
import json
import os
import random
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import tyro

WORK = Path(os.environ.get("TYR_JAX_FUZZ") or tempfile.mkdtemp(prefix="fuzz-"))
# Libraries read the locations of their caches when they are imported.
os.environ |= {"HOME": str(WORK / "home"), "TMPDIR": str(WORK / "tmp"), "HF_HUB_OFFLINE": "1"}
os.environ |= {"TYR_JAX_CACHE": str(WORK / "home" / "tyr_jax"), "XDG_CACHE_HOME": str(WORK / "home")}
os.environ.pop("JAX_COMPILATION_CACHE_DIR", None)  # a place that cases must not write to
os.environ |= {"HF_HOME": str(WORK / "home" / "hf"), "JAX_PLATFORMS": "cpu", "PYTHONDONTWRITEBYTECODE": "1"}
os.environ |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}

from fuzzing import cases, material, sandbox  # noqa: E402
from fuzzing.cases import Case, Place  # noqa: E402
from fuzzing.sandbox import Ended, Limits  # noqa: E402

from tyr_jax.cli import command as command_line  # noqa: E402
from tyr_jax.formatting import printable  # noqa: E402

LIMITS = Limits(seconds=60, memory=2**30)
MAKING = Limits(seconds=600, memory=2**33)

ESCAPES = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

ALLOWED = re.compile(r"\.[^/]+\.unfinished(/.*)?|.*\.(out|err)")
"""What an interrupted job may leave for the next."""


@dataclasses.dataclass(frozen=True)
class Fuzz:
    """How long to fuzz, and with what input."""

    seconds: float = 60
    """Seconds to run."""
    seed: int = 0
    """Random seed of the cases."""
    kinds: tuple[str, ...] = tuple(cases.CASES)
    """Kinds of input."""
    case: Annotated[int | None, tyro.conf.arg(metavar="NUMBER")] = None
    """Run only this case, and show everything that it prints."""


def tree(directory: Path) -> dict[str, object]:
    """Contents of everything below a directory, by name."""
    return {
        str(path.relative_to(directory)): (
            str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        )
        for path in sorted(directory.rglob("*"))
    }


def faults(case: Case, ended: Ended, before: dict[str, object], after: dict[str, object]) -> list[str]:
    """Everything that is wrong with how a case ended."""
    lines = ended.err.splitlines()
    found = []
    if ended.limit:
        found.append(f"more than it may take of {ended.limit}")
    elif ended.status not in (0, 2, *(() if case.stop is None else (128 + case.stop.number,))):
        found.append(f"status {ended.status}")
    if "Traceback" in ended.out + ended.err or "Exception ignored" in ended.err:
        found.append("a trace")
    if ended.status == 2 and not (lines and lines[-1].startswith("error: ")):
        found.append("no sentence")
    if len([line for line in lines if line.startswith("error: ")]) > 1 or len(ended.err) > 20_000:
        found.append("too many words")
    if re.search(
        r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", ended.err + ("" if case.command == "generate" else ended.out)
    ):
        found.append("an escape sequence")
    if any("RUN" in Path(name).name for name in after):
        found.append("foreign code was run")
    found += [
        f"took {name}"
        for name, content in before.items()
        if isinstance(content, bytes)
        and content.startswith(cases.MINE.encode())
        and after.get(name) != content
    ]
    left = {name for name in after if after[name] != before.get(name, b"\0") and not ALLOWED.fullmatch(name)}
    gone = {name for name in before if name not in after and not ALLOWED.fullmatch(name)}
    # A signal may arrive when the job is done, just before the command reports it.
    told = case.stop is not None and bool(lines) and lines[-1].endswith(" is complete")
    if ended.status and not ended.limit and (gone or (left and not told)):
        found.append(f"left {sorted(left)}, took {sorted(gone)}")
    found += [
        f"{name} is no JSON"
        for name in sorted(left)
        if (told or not ended.status) and not is_json(name, after[name])
    ]
    return found


def is_json(name: str, content: object) -> bool:
    """Whether a file is valid JSON, if its name says that it is. NaN and infinity are not valid JSON."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    if not name.endswith(".json") or not isinstance(content, bytes):
        return True
    try:
        json.loads(content, parse_constant=refuse)
    except ValueError:
        return False
    return True


def call(name: str, given: str) -> None:
    """Call a function of the Python API, and treat its `UserError` as a command does."""
    import tyr_jax

    try:
        getattr(tyr_jax, name)(**eval(given))
    except tyr_jax.UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None


def run(case: Case, here: Path) -> Ended:
    """Run the command of a case in the sandbox."""

    def work() -> None:
        if case.command == "api":
            call(*case.arguments)
            return
        importlib.import_module(f"tyr_jax.cli.{case.command}").main(case.arguments)

    return sandbox.run(work, here, [WORK / "home", WORK / "tmp"], LIMITS, case.stop)


def try_case(asked: Fuzz, number: int) -> tuple[Case, Ended, list[str]]:
    """Make a case, run it, and return it with how it ended and its faults."""
    draw = random.Random(f"{asked.seed}-{number}")
    with tempfile.TemporaryDirectory(dir=WORK) as scratch:
        place = Place(WORK / "base", Path(scratch, "given"), Path(scratch, "here"))
        place.given.mkdir()
        place.here.mkdir()
        case = cases.CASES[draw.choice(asked.kinds)](draw, place)
        before = tree(place.here)
        ended = run(case, place.here)
        return case, ended, faults(case, ended, before, tree(place.here))


def prepare() -> None:
    """Make the valid input, once."""
    if (WORK / "base" / "done").exists():
        return
    for name in ("base", "home", "tmp"):
        (WORK / name).mkdir(parents=True, exist_ok=True)

    def make() -> None:
        from tyr_jax.runtime.cache import keep_compiled

        keep_compiled()
        material.make(WORK / "base")

    ended = sandbox.run(make, WORK / "base", [WORK], MAKING)
    if ended.status:
        raise SystemExit(f"the valid input could not be made: {ended.err}")
    (WORK / "base" / "done").touch()


def tell(number: int, case: Case, ended: Ended, found: list[str], whole: bool) -> None:
    """Print a case."""
    print(f"case {number}: {'; '.join(found) or 'refused well'}")
    print(f"  {case.command} {cases.shown(case.arguments)}")
    print(f"  {case.how}")
    print(f"  status {ended.status}, {ended.seconds:.1f} s, {ended.memory / 1e6:.0f} MB")
    text = ended.out + ended.err
    for line in (text if whole else ended.err).splitlines()[-(1000 if whole else 6) :]:
        print(f"  | {line[:300]!r}")


def main() -> None:
    """Run cases until the time is up, and print those that fail."""
    asked = command_line.parse(Fuzz, sys.argv[1:], prog="python scripts/fuzz.py", description=__doc__ or "")
    if not sandbox.is_available():
        raise SystemExit("this system cannot confine a process (Landlock 3, of Linux 6.2, is needed)")
    prepare()
    if "tasks" in asked.kinds:
        # Imports before the fork need not be repeated in every child process.
        importlib.import_module("tyr_jax.evaluation.harness").known_tasks()
    started, count, bad = time.monotonic(), 0, 0
    numbers = iter([asked.case]) if asked.case is not None else iter(range(10**9))
    statuses: dict[int, int] = {}
    for number in numbers:
        if time.monotonic() - started > asked.seconds and asked.case is None:
            break
        case, ended, found = try_case(asked, number)
        count, bad = count + 1, bad + bool(found)
        statuses[ended.status] = statuses.get(ended.status, 0) + 1
        if found or asked.case is not None:
            tell(number, case, ended, found, asked.case is not None)
            sys.stdout.flush()
    print(f"{count} cases in {time.monotonic() - started:.0f} s, by status {statuses}: {bad} refused badly")
    if "TYR_JAX_FUZZ" not in os.environ:
        shutil.rmtree(WORK, ignore_errors=True)
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()
