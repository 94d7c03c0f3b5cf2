"""Which families of models work, from the results of the tests. Usage:

  python scripts/family_table.py

The tests compare a tiny random model of every family, written by transformers in torch, with what this
package computes, and a pruned one, written by this package, with what transformers and llama.cpp compute.
"""

import dataclasses
import runpy
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from pathlib import Path

from markdown_table import print_header, print_row

from tyr_jax.cli import command
from tyr_jax.errors import UserError
from tyr_jax.model.families import BUILT_IN

ROOT = Path(__file__).parents[1]
TESTS = {
    "test_tiny_logits": "logits",
    "test_a_pruned_model_is_the_same_everywhere": "pruned",
    "test_in_llama_cpp_or_refused": "gguf",
}
"""What a test shows, by its name."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Takes no options."""


def test_results() -> dict[str, dict[str, set[str]]]:
    """What the tests of every family found, by family and what they show."""
    cases = runpy.run_path(str(ROOT / "tests" / "family_samples.py"))["CASES"]
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.xml"
        files = ["tests/model/test_parity.py", "tests/run/test_every_family.py"]
        chosen = ["-k", " or ".join(TESTS), "-o", "junit_family=xunit1", f"--junitxml={report}"]
        subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:xdist", *chosen, *files], cwd=ROOT, check=False
        )
        if not report.is_file():
            raise UserError("the tests did not run; see their output above")
        results = list(ElementTree.parse(report).iter("testcase"))
    for case in results:
        test, _, name = str(case.get("name")).partition("[")
        if test not in TESTS or (name := name.removesuffix("]")) not in cases:
            continue
        failed = any(case.find(kind) is not None for kind in ("failure", "error", "skipped"))
        refused = any(each.get("value") == "refused" for each in case.iter("property"))
        outcome = "**no**" if failed else "refused" if refused else "yes"
        found[cases[name]["model_type"]][TESTS[test]].add(outcome)
    return found


def summary(outcomes: set[str]) -> str:
    """One word for all cases of a family."""
    for word in ("**no**", "yes", "refused"):
        if word in outcomes:
            return word
    return "–"


def main(_: Table) -> None:
    """Run the tests and print a row per family in Markdown."""
    found = test_results()
    columns = "logits as in transformers", "pruned model: as in transformers", "pruned model: as in llama.cpp"
    print_header("models", "`model_type`", *columns)
    for family in BUILT_IN:
        shown = found[family.model_type]
        print_row(
            family.models,
            f"`{family.model_type}`",
            *(summary(shown[what]) for what in ("logits", "pruned", "gguf")),
        )


if __name__ == "__main__":
    command.execute(main, Table, None, prog="python scripts/family_table.py", description=__doc__)
