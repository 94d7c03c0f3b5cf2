"""Measure and record every figure of the documentation, and write it into its page.

  pip install -e '.[measure]'
  python scripts/fetch_wikipedia.py wikipedia.txt
  python scripts/fetch_news.py news.txt
  python scripts/fetch_model.py gemma3-270m gemma-3-270m.gguf
  python scripts/fetch_model.py qwen2.5-coder-0.5b qwen2.5-coder-0.5b.gguf
  python scripts/fetch_model.py qwen2.5-coder-1.5b qwen2.5-coder-1.5b.gguf
  python scripts/fetch_tasks.py tasks
  python scripts/measure.py --again

Without names, it measures everything, which takes most of a day on two cores. Without --again, it leaves out
what has a record in docs/measurements. --pages measures nothing, and only writes the tables into their pages.
The ablations, which reproduce tables of the paper, can be made on less text, here on a quarter of it:

  python scripts/measure.py ablation objectives rounds spread budget combinations --again --budget 0.25
"""

import dataclasses
import datetime
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import tyro
from matmul_rate import matmul_rate
from pages import RECORDS, ROOT, Record, Table, fill_pages

from tyr_jax.cli import command
from tyr_jax.errors import UserError, require
from tyr_jax.files import read_json, write_json
from tyr_jax.settings import WIKITEXT


class Measurement(NamedTuple):
    """A script with its options, and the file, if any, to which it writes more than it prints.

    In the options, {wikitext} and {news} are replaced by the texts to measure on, {wikipedia} by text to
    prune and train on, {gemma}, {qwen} and {qwen_large} by the files of models, {tasks} by the directory of
    the tasks' data, and {budget:NUMBER} by the number times --budget.
    """

    script: str
    results: str = ""


MAIN = "main_results.py --calibration builtin {wikipedia} self@2 --evaluation {wikitext} {news}"
"""The `standard` preset, on text that a user could have."""

DEMO = (
    "--no-refit --calibration-tokens 9216 --metric-tokens 2048 --levels 7 "
    "--estimate.score-tokens 512 --generations 1"
)
"""What `demo.sh` adds to the `quick` preset, except that it measures on less text."""

QUICK = (
    "main_results.py --sparsities 0.25 0.5 --preset quick --reconstruct 0 --seeds 0 1 2 "
    "--evaluation {wikitext} {news}"
)
"""The `quick` preset, over seeds."""

MEASUREMENTS = {
    "main": Measurement(
        f"{MAIN} --results runs/main "
        "--recovery='--method full --data builtin {wikipedia}@2 --tokens 400000'",
        "runs/main/results.json",
    ),
    "exact-half": Measurement(
        f"{MAIN} --sparsities 0.5 --reconstruct 0 --results runs/exact-half", "runs/exact-half/results.json"
    ),
    "families": Measurement("family_table.py"),
    "demo": Measurement(
        "main_results.py --sparsities 0.25 --preset quick --reconstruct 0 --seeds 0 1 2 "
        f"--evaluation {{wikitext}} {{news}} --options='{DEMO}' --results runs/demo_results",
        "runs/demo_results/results.json",
    ),
    **{
        name: Measurement(f"{QUICK} --model {model} --results runs/{name}", f"runs/{name}/results.json")
        for name, model in (
            ("quick-smollm2", "builtin"),
            ("quick-gemma", "{gemma}"),
            ("quick-qwen", "{qwen}"),
        )
    },
    "demo-qwen": Measurement(
        "main_results.py --model {qwen} --sparsities 0.25 --preset quick --reconstruct 0 "
        f"--evaluation {{wikitext}} {{news}} --options='{DEMO}' --results runs/demo-qwen",
        "runs/demo-qwen/results.json",
    ),
    "bfloat16": Measurement(
        "main_results.py --sparsities 0.25 --preset quick --reconstruct 0 --evaluation {wikitext} {news} "
        f"--options='--compute-dtype bfloat16 {DEMO}' --results runs/bfloat16",
        "runs/bfloat16/results.json",
    ),
    "spread": Measurement(
        "spread.py --evaluation {wikitext} {news} "
        "--options='--calibration-tokens {budget:8192} --search-tokens {budget:8192}' "
        "--results runs/spread-{budget:100}",
        "runs/spread-{budget:100}/results.json",
    ),
    "serving": Measurement("bench_serving.py builtin runs/main/seed0/0.4463"),
    "steps": Measurement(
        "ablation_steps.py --seeds 0 1 2 --evaluation {wikitext} {news} --results runs/steps.json",
        "runs/steps.json",
    ),
    "forward": Measurement("bench_forward.py"),
    "search": Measurement("bench_search.py"),
    "pipeline": Measurement("bench_pipeline.py"),
    "fold": Measurement("bench_fold.py"),
    "gram": Measurement("bench_gram.py"),
    "teacher": Measurement("bench_teacher.py"),
    "stages": Measurement("profile_stages.py"),
    "plan": Measurement("plan_table.py"),
    "recovery": Measurement("bench_recovery.py"),
    "recovery-ways": Measurement(
        "recovery_curve.py runs/demo_results/seed0 --tokens 50000 --ways 'full 0.0001' 'full 0.0003' "
        "'lora 0.001' 'lora 0.003' 'full muon 0.0003' --evaluation {wikitext} {news} "
        "--options='--evaluation-windows 4'",
        "runs/recovery_curve/results.json",
    ),
    "recovery-curve": Measurement(
        "recovery_curve.py runs/exact-half/seed0 --ways full --data builtin {wikipedia}@2 "
        "--evaluation {wikitext} {news} --options='--evaluation-windows 4' --results runs/recovery_tokens",
        "runs/recovery_tokens/results.json",
    ),
    "searches": Measurement("bench_searches.py"),
    "estimate": Measurement("estimate_fit.py --models builtin {gemma} {qwen}", "runs/estimate_fit.json"),
    "estimate-large": Measurement(
        "estimate_fit.py --models {qwen_large} --compute-dtype bfloat16 "
        "--results runs/estimate_fit_large.json",
        "runs/estimate_fit_large.json",
    ),
    "comparison": Measurement("compare_searches.py --processes 2", "runs/comparison.json"),
    "exact": Measurement(
        "compare_searches.py --problems exact --seeds 20 --passes 16 --processes 2 --results runs/exact.json",
        "runs/exact.json",
    ),
    "on-model": Measurement(
        "compare_on_model.py --settings docs/measurements/comparison.json", "runs/compare_on_model.json"
    ),
    "objectives": Measurement(
        "compare_on_model.py --settings docs/measurements/comparison.json --searches evolution "
        "--objectives kl hidden+kl perplexity --passes {budget:36} "
        "--results runs/objectives-{budget:100}.json"
    ),
    "ablation": Measurement(
        "ablation.py --seeds 0 1 --calibration-tokens {budget:16384} --windows 4 --wikitext {wikitext} "
        "--results runs/ablation-{budget:100}.json"
    ),
    "rounds": Measurement(
        "ablation_rounds.py --seeds 0 1 --evaluation {wikitext} {news} "
        "--calibration-tokens {budget:8192} --search-tokens {budget:4096} --results runs/rounds-{budget:100}",
        "runs/rounds-{budget:100}/results.json",
    ),
    "budget": Measurement(
        "ablation_budget.py --evaluation {wikitext} {news} "
        "--options='--calibration-tokens {budget:8192} --search-tokens {budget:8192}' "
        "--results runs/budget-{budget:100}",
        "runs/budget-{budget:100}/results.json",
    ),
    "texts": Measurement(
        "ablation_text.py --texts builtin 'builtin self' '{wikipedia}' 'builtin {wikipedia}' "
        "'{wikipedia} self' 'builtin {wikipedia} self@2' --evaluation {wikitext} {news}",
        "runs/ablation_text.json",
    ),
    "gradual": Measurement("ablation_gradual.py --seeds 0 --evaluation {wikitext} {news}"),
    "combinations": Measurement(
        "combinations.py builtin runs/rounds-{budget:100}/4-rounds-seed0 --wikitext {wikitext} "
        "--calibration-tokens {budget:4096} --results runs/combinations-{budget:100}.json"
    ),
    "tasks": Measurement(
        "paper_table.py builtin runs/demo_results/seed0 runs/rounds-{budget:100}/4-rounds-seed0 "
        "--data-dir {tasks} --wikitext {wikitext} --windows 20 --limit 200 --mmlu-limit 2 "
        "--kept runs/paper_table.json",
        "runs/paper_table.json",
    ),
}
"""The measurements that the pages quote, by name."""


@dataclasses.dataclass(frozen=True)
class Measure:
    """What to measure."""

    names: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="NAME")] = ()
    """Measurements to make; by default, all without a record."""
    again: bool = False
    """Also measure what has a record."""
    pages: bool = False
    """Only write the tables into their pages."""
    budget: float = 1.0
    """Share of the tokens that the ablations use."""
    wikitext: str = WIKITEXT
    """Test text of WikiText-2: the hub's, or a local file."""
    news: str = "news.txt"
    """File that `fetch_news.py` has written."""
    wikipedia: str = "wikipedia.txt"
    """File that `fetch_wikipedia.py` has written."""
    gemma: str = "gemma-3-270m.gguf"
    """Gemma 3 270M, as `fetch_model.py` writes it."""
    qwen: str = "qwen2.5-coder-0.5b.gguf"
    """Qwen2.5-Coder-0.5B, likewise."""
    qwen_large: str = "qwen2.5-coder-1.5b.gguf"
    """Qwen2.5-Coder-1.5B, likewise."""
    tasks: str = "tasks"
    """Directory that `fetch_tasks.py` has written."""


FILES = "news", "wikipedia", "gemma", "qwen", "qwen_large", "tasks"
"""Options that name files."""


class Budget(float):
    """A share. Formatted with a number, it is that share of the number, at least 1."""

    def __format__(self, number: str) -> str:
        return str(max(1, round(self * int(number))))


def cells_of(line: str) -> list[str]:
    """The cells of a row in Markdown."""
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]


def find_tables(output: str) -> list[Table]:
    """The Markdown tables that a script has printed."""
    lines = [line for line in output.splitlines() if line.startswith("|")]
    tables: list[Table] = []
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if following.startswith("|---"):
            tables.append([])
        if not line.startswith("|---"):
            tables[-1].append(cells_of(line))
    return tables


def machine() -> str:
    """Description of the machine that a measurement runs on."""
    device = jax.devices()[0]
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = f"{count} core{'s' if count != 1 else ''} of {processor()}"
    rate = f"{matmul_rate() / 1e9:.0f} GFLOP/s in float32 matrix products"
    on = cores if device.platform == "cpu" else f"{jax.device_count()} × {device.device_kind}"
    return f"{on} ({rate}, JAX {jax.__version__})"


def processor() -> str:
    """Name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def output_of(arguments: list[str]) -> str:
    """Run a script, show its output as it arrives, and return it.

    Raises:
        UserError: The script fails.
    """
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, encoding="utf-8"
    ) as running:
        assert running.stdout is not None
        lines = []
        for line in running.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if running.returncode:
        raise UserError(f"`python {shlex.join(arguments)}` failed; see its output above")
    return "".join(lines)


def commit() -> str:
    """The commit that is checked out, marked if the code differs from it."""

    def git(*arguments: str) -> str:
        run = ["git", *arguments]
        return subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    code = "tyr_jax", "scripts", "pyproject.toml", ":!tyr_jax/problems/data"
    changed = git("status", "--porcelain", "--", *code)
    return git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")


BEGUN = ROOT / "runs" / "begun.json"
"""Commits at which measurements began whose results are kept in runs."""


def measured_at(name: str, script: str) -> str:
    """The commit that a measurement is made at. If the script keeps results, some may be of an earlier one,
    and the range from that one on is given; remove `runs` to begin anew."""
    now = commit()
    if "from jobs import" not in (ROOT / script).read_text(encoding="utf-8"):
        return now
    begun = read_json(BEGUN) if BEGUN.is_file() else {}
    first = begun.setdefault(name, now)
    BEGUN.parent.mkdir(exist_ok=True)
    write_json(BEGUN, begun)
    return now if first == now else f"{first} to {now}"


def without_folders(found: Any, files: Iterable[str]) -> Any:
    """Results in which `files`, where they are paths, go by their names, as in the command that is shown."""
    text = json.dumps(found, ensure_ascii=False)
    for file in filter(os.path.isabs, files):
        text = text.replace(json.dumps(file)[1:-1], Path(file).name)
    return json.loads(text)


def record(name: str, asked: Measure) -> Record:
    """Run a measurement, and return its record."""
    measurement = MEASUREMENTS[name]
    budget = Budget(asked.budget)
    script, results = f"scripts/{measurement.script}", ROOT / measurement.results.format(budget=budget)
    files = {name: getattr(asked, name) for name in FILES}
    if Path(asked.wikitext).exists():
        files["wikitext"] = asked.wikitext
    given = {"wikitext": asked.wikitext} | {name: str(Path(file).absolute()) for name, file in files.items()}
    with ProcessPoolExecutor(1, get_context("spawn")) as apart:  # so that a device's memory is free after it
        on = apart.submit(machine).result()
    at, start = measured_at(name, shlex.split(script)[0]), time.monotonic()
    tables = find_tables(output_of([part.format(**given, budget=budget) for part in shlex.split(script)]))
    names = given | {name: Path(file).name for name, file in files.items()}
    return {
        "command": f"python {script.format(**names, budget=budget)}",
        "commit": at,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": on,
        "minutes": round((time.monotonic() - start) / 60, 1),
        "tables": tables,
        "results": without_folders(read_json(results), given.values()) if measurement.results else {},
    }


def main(asked: Measure) -> None:
    """Make the measurements, write each record as soon as it is complete, and fill the pages."""
    for name in asked.names:
        if name not in MEASUREMENTS:
            raise UserError(f"there is no measurement {name}: there are {', '.join(MEASUREMENTS)}")
    require(0 < asked.budget <= 1, "--budget", asked.budget, "a number above 0 and at most 1")
    RECORDS.mkdir(parents=True, exist_ok=True)
    for name in () if asked.pages else asked.names or MEASUREMENTS:
        if asked.again or not (RECORDS / f"{name}.json").is_file():
            print(f"== {name}", flush=True)
            write_json(RECORDS / f"{name}.json", record(name, asked))
    fill_pages()


if __name__ == "__main__":
    command.execute(main, Measure, None, prog="python scripts/measure.py", description=__doc__)
