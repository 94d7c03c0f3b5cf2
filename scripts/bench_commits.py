"""Whether the code is slower than at an earlier commit: both versions, in turn, on the same machine. Usage:

  python scripts/bench_commits.py --before COMMIT

It prints the seconds (median over processes) of a forward pass with the head, of the fold that builds a
supernet of the first layers, and of scoring a population, and the ratio of the two versions. The code is that
of the working tree; the earlier one is checked out into a temporary directory.
"""

import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from markdown_table import print_header, print_row
from on_model import OnModel

from tyr_jax import space
from tyr_jax.errors import UserError
from tyr_jax.model import decoder
from tyr_jax.model.prediction import log_normaliser
from tyr_jax.pruning.fold import FoldPlan, build_supernet
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.runtime.timing import medians
from tyr_jax.scoring import nested, scorer
from tyr_jax.scoring.objective import KL
from tyr_jax.scoring.teacher import teacher_targets

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Bench(OnModel):
    """What to measure."""

    before: str = ""
    """The earlier commit. Without one, only this version is measured, and its times are printed as JSON."""
    processes: int = 3
    """Processes of each version, in turn."""
    repeats: int = 3
    """Timings in a process, interleaved."""
    layers: int = 2
    """Layers that are folded."""
    tokens: int = 8192
    """Calibration tokens of the fold."""
    length: int = 512
    """Tokens of a sequence."""
    candidates: int = 16
    """Candidates of a population."""


def times(bench: Bench) -> dict[str, float]:
    """Seconds of each job with the code that is imported."""
    model = bench.load()
    params, config, settings = model.params, model.config, PruningSettings()
    rng, kinds = np.random.default_rng(0), settings.kinds(config)
    text = rng.integers(0, config.vocab, (max(2, bench.tokens // bench.length), bench.length))
    few = dataclasses.replace(config, layers=config.layers[: bench.layers])
    first = params | {"blocks": {name: each[: bench.layers] for name, each in params["blocks"].items()}}
    folded = space.uniform_grid(kinds, bench.layers, 0.5, 5, 0.125)
    grid = space.uniform_grid(kinds, config.depth, 0.5, 3, 0.125)
    plan = FoldPlan(config, grid, settings)
    net = nested.nest(params, build_supernet(params, [text[:2]], plan), config)
    pool = teacher_targets(params, text[:1], config, KL())
    present = [[np.flatnonzero(site) for site in kind] for kind in grid.exists]
    levels = [[[rng.choice(site) for site in kind] for kind in present] for _ in range(bench.candidates)]

    @jax.jit
    def forward(params: Any, tokens: jax.Array) -> jax.Array:
        return log_normaliser(decoder.head(params), decoder.hidden_states(params, tokens, config))

    runs: dict[str, Callable[[], object]] = {
        "forward": functools.partial(forward, params, jnp.asarray(text[:2])),
        "fold": lambda: build_supernet(first, [text], FoldPlan(few, folded, settings)).error,
        "scoring": functools.partial(
            scorer.score_population, net, np.array(levels, np.int32), pool, np.arange(1), config, KL()
        ),
    }
    return medians(runs, bench.repeats)


def measured(root: Path, bench: Bench) -> dict[str, float]:
    """Seconds of each job with the code in `root`, in a process of its own."""
    names = {field.name for field in dataclasses.fields(bench)} - {"before", "processes"}
    options = [f"--{name.replace('_', '-')}={getattr(bench, name)}" for name in sorted(names)]
    path = os.pathsep.join([str(root), str(root / "scripts")])
    ours = [sys.executable, str(Path(__file__).resolve()), *options]
    run = subprocess.run(
        ours, env=os.environ | {"PYTHONPATH": path}, cwd=root, stdout=subprocess.PIPE, text=True, check=False
    )
    if run.returncode:
        raise UserError(f"the benchmark failed with the code in {root}; see its output above")
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def main(bench: Bench) -> None:
    """Print a row per job."""
    if not bench.before:
        print(json.dumps(times(bench)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        clone = Path(scratch) / "before"
        for command in (
            ["clone", "--quiet", str(ROOT), str(clone)],
            ["-C", str(clone), "checkout", "-q", bench.before],
        ):
            if subprocess.run(["git", *command], check=False).returncode:
                raise UserError(f"git cannot check out {bench.before}; see its output above")
        found: dict[Path, list[dict[str, float]]] = {clone: [], ROOT: []}
        for _ in range(bench.processes):
            for root, each in found.items():
                each.append(measured(root, bench))
    print_header("job", f"{bench.before}: s", "now: s", "now / before")
    for job in found[ROOT][0]:
        before, now = (statistics.median(run[job] for run in runs) for runs in found.values())
        print_row(job, f"{before:.2f}", f"{now:.2f}", f"{now / before:.2f}")


if __name__ == "__main__":
    main(tyro.cli(Bench, description=__doc__))
