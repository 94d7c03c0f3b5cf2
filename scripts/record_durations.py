"""Run tests and record the seconds of each in tests/durations.json, by which tests/conftest.py orders them.

Without arguments it runs all tests, of every speed, in one process. Arguments go to pytest; then what is
known of tests that did not run is kept: `python scripts/record_durations.py tests/cli`.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DURATIONS = ROOT / "tests" / "durations.json"


class Recorder:
    """A plugin of pytest that adds up the seconds of each test's phases."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add a phase: what comes before the test, the test, or what comes after it."""
        self.seconds[report.nodeid] += report.duration


def main(arguments: list[str]) -> int:
    """Run the tests and write what they took; returns pytest's status."""
    recorder = Recorder()
    status = pytest.main(["--rootdir", str(ROOT), *arguments], plugins=[recorder])
    found = {test: round(took, 2) for test, took in recorder.seconds.items()}
    known = json.loads(DURATIONS.read_text(encoding="utf-8")) if arguments and DURATIONS.is_file() else {}
    there = {test: took for test, took in known.items() if (ROOT / test.partition("::")[0]).is_file()}
    merged = dict(sorted((there | found).items()))
    DURATIONS.write_text(json.dumps(merged, indent=0, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
