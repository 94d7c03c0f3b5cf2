"""Malformed input for every command, and a check that the fuzzer finds faults."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fuzzing import sandbox
from fuzzing.sandbox import Ended, Limits, Stop

ROOT = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sandbox.is_available(), reason="needs Landlock, of Linux 6.2"),
]

LIMITS = Limits(seconds=60.0, memory=2**28)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    here = tmp_path / "here"
    here.mkdir()
    return here


@pytest.mark.long
def test_a_minute_of_it() -> None:
    ended = subprocess.run(
        [sys.executable, "-P", str(ROOT / "scripts" / "fuzz.py"), "--seconds", "60"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "scripts")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert int(ended.stdout.splitlines()[-1].split()[0]) > 20


def in_sandbox(code: str, here: Path, stop: Stop | None = None, limits: Limits = LIMITS) -> Ended:
    return sandbox.run(lambda: exec(code, {}), here, [], limits, stop)


@pytest.mark.parametrize(
    "code",
    [
        "open('../outside', 'w')",
        "import os; os.mkdir('../outside')",
        "import os; os.symlink('x', '../outside')",
        "import os; os.remove('../mine')",
        "import os; os.truncate('../mine', 0)",
        "import os; os.rename('../mine', 'mine')",
        "import subprocess; subprocess.run(['touch', '../outside'], check=True)",
    ],
)
def test_nothing_is_written_outside(code: str, here: Path) -> None:
    mine = here.with_name("mine")
    mine.write_text("mine")
    assert in_sandbox(code, here).status == 1
    assert mine.read_text() == "mine"
    assert sorted(path.name for path in here.parent.iterdir()) == ["here", "here.err", "here.out", "mine"]


def test_what_is_done_inside_is_seen(here: Path) -> None:
    code = "import sys; open('x', 'w').write('y'); print('out'); print('err', file=sys.stderr); sys.exit(2)"
    ended = in_sandbox(code, here)
    assert (ended.status, ended.limit, ended.out, ended.err) == (2, "", "out\n", "err\n")
    assert (here / "x").read_text() == "y"


def test_limits_hold(here: Path) -> None:
    assert in_sandbox("while True: pass", here, limits=LIMITS._replace(seconds=1.0)).limit == "time"
    assert in_sandbox("import time; x = b'x' * 2**29; time.sleep(99)", here).limit == "memory"
    assert "Traceback" in in_sandbox("1 / 0", here).err


def test_what_is_told_to_stop_does(here: Path) -> None:
    began = time.monotonic()
    assert in_sandbox("import time; time.sleep(59)", here, Stop(15, 0.1)).status == -15
    assert time.monotonic() - began < 50
