"""How well the estimate that the search starts from predicts what pruning really costs.

For each model, the first supernet of a run is built, as `tyr_jax.prune` does it. Two kinds of candidates are
scored on the search text: one site pruned to about half of its units, and all others whole, for every site;
and distributions within the budget, by random shifts from the uniform one. The table has the rank correlation
(Spearman) of the estimate with the increase of the KL divergence, and the KL divergence of the distribution
of least estimated cost. Random distributions are scored on two parts of the text. The rank correlation of
these says how much of what distinguishes the distributions is chance, which no estimate can tell.

Two estimates are compared: the relative error of a level times what the whole output of the site counts for,
both averages over all tokens; and the one in use, what the level does to the output of each token, measured.

  python scripts/fetch_model.py qwen2.5-coder-0.5b qwen2.5-coder-0.5b.gguf
  python scripts/estimate_fit.py --models builtin qwen2.5-coder-0.5b.gguf
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jobs import Results
from markdown_table import print_header, print_row
from scipy.stats import spearmanr

from tyr_jax import space
from tyr_jax.cli import command
from tyr_jax.model.spec import Block, ModelConfig
from tyr_jax.pruning import linalg, stream
from tyr_jax.pruning.kinds import SiteKind
from tyr_jax.pruning.supernet import level_index
from tyr_jax.run import rounds
from tyr_jax.run.prepare import Dense, Run, prepare
from tyr_jax.runtime import devices
from tyr_jax.runtime.offload import TEMPORARY
from tyr_jax.scoring import nested
from tyr_jax.search import surrogate
from tyr_jax.search.contract import Sites
from tyr_jax.search.draws import neighbours
from tyr_jax.settings import PRESETS, ComputeType, Preset
from tyr_jax.space import values_at
from tyr_jax.workspace.events import EventLog
from tyr_jax.workspace.progress import Progress

SHIFTS = (2, 6, 16, 40)
"""At most so many shifts lead from the uniform distribution to a random one."""


@dataclasses.dataclass(frozen=True)
class Study:
    """What to study."""

    models: tuple[str, ...] = ("builtin",)
    """Dense models."""
    sparsity: float = 0.25
    """Target."""
    preset: Preset = "quick"
    """Preset that says on how much text the supernet is built."""
    compute_dtype: ComputeType = "float32"
    """Type that weights are held in; bfloat16 takes half of the memory."""
    sequence_length: int = 256
    """Tokens of a sequence."""
    tokens: int = 1024
    """Tokens that single sites are scored on. Random distributions are scored on twice as many, and again on
    as many others."""
    each: int = 12
    """Random distributions for every maximum number of shifts."""
    seed: int = 0
    """Seed of the text and of the random distributions."""
    results: Path = Path("runs/estimate_fit.json")
    """File of the results; models that are in it are not studied again."""


class Estimates(NamedTuple):
    """Estimated costs `[S, L, E]` of the levels of a round."""

    product: np.ndarray
    measured: np.ndarray


WORDS = {"product": "error × share", "measured": "every level measured"}
"""How the table calls the estimates."""


@functools.partial(jax.jit, static_argnames=("kind", "config"))
def product_costs(
    block: Block,
    levels: jax.Array,
    units: jax.Array,
    metric: jax.Array,
    kind: SiteKind,
    config: ModelConfig,
) -> jax.Array:
    """The costs `[E]` of the levels of a site, in nats, by the first estimate."""
    inputs = units.reshape(*units.shape[:2], -1).astype(jnp.float32)
    scale = stream.behind_norm(kind, block, units, None, config)
    behind: Any = stream.metric_behind(metric, stream.behind_gain(kind, block, config))
    dense = block[kind.output].reshape(-1, config.hidden).astype(jnp.float32)

    def size(change: jax.Array) -> jax.Array:
        return jnp.mean(linalg.matmul(inputs, change) ** 2)

    out = linalg.matmul(inputs, dense)
    counted = jnp.sum(linalg.matmul(out, behind) * out, axis=-1)
    whole = jnp.mean(counted if scale is None else counted * scale**2) / 2
    sizes = jax.lax.map(lambda weight: size(dense - weight.astype(jnp.float32)), levels)
    return whole * sizes / size(dense)


def measured_round(run: Run, dense: Dense) -> tuple[rounds.Round, Estimates]:
    """The first round of a run before its search, and both estimates of its levels."""
    found, measure = [], stream.level_costs

    def with_product(*given: Any) -> tuple[jax.Array, jax.Array]:
        block, levels, _, units, metric, kind, count, config = given
        found.append(devices.fetch(product_costs(block, levels, units[:count], metric, kind, config)))
        return measure(*given)

    target, config = dense.targets[0], dense.model.config
    built = rounds.round_grid(run, dense, target.kept, 1)
    pool = rounds.search_pool(run, dense.model, dense.splits.search)
    stream.level_costs = with_product  # type: ignore[assignment]
    try:
        whole = rounds.supernet_of_round(run, dense, built, 1)
    finally:
        stream.level_costs = measure
    kinds = len(dense.kinds)
    product = np.array(found).reshape(config.depth, kinds, -1).swapaxes(0, 1)
    grid, supernet, prices, _, _ = rounds.priced_grid(run, config, target, built, whole)
    index = level_index(whole, grid)
    product = np.where(grid.exists, np.take_along_axis(product, np.asarray(index), axis=-1), np.inf)
    sites = Sites(devices.fetch(supernet.error), devices.fetch(supernet.share), grid.exists)
    net = nested.nest(dense.model.params, supernet, config, consume=True, scratch=TEMPORARY)
    budget = target.budget(grid.kept, prices)
    this = rounds.Round(run, config, pool, 1, grid, net, sites, budget)
    return this, Estimates(product, surrogate.disturbance(sites))


def single_sites(grid: space.LevelGrid) -> tuple[np.ndarray, np.ndarray]:
    """(the levels `[S, L]` that keep most, candidates `[C, S, L]` with one site each at the level nearest to
    half of its units)."""
    most = np.where(grid.exists, grid.kept, -1).argmax(axis=-1).astype(np.int32)
    units = values_at(grid.kept, most)[..., None]
    half = np.where(grid.exists, np.abs(grid.kept / np.maximum(units, 1) - 0.5), np.inf).argmin(axis=-1)
    sites = np.argwhere(half != most)
    candidates = np.repeat(most[None], len(sites), axis=0)
    for candidate, (row, layer) in zip(candidates, sites, strict=True):
        candidate[row, layer] = half[row, layer]
    return most, candidates


def drawn(study: Study, this: rounds.Round, uniform: np.ndarray) -> np.ndarray:
    """Random distributions `[C, S, L]` around the uniform one."""
    keys = jax.random.split(jax.random.key(study.seed), len(SHIFTS))
    parent, choice = jnp.asarray(uniform), this.space()
    found = (
        neighbours(key, parent, choice, study.each, most) for key, most in zip(keys, SHIFTS, strict=True)
    )
    return np.concatenate([np.asarray(each) for each in found])


def score(this: rounds.Round, candidates: np.ndarray, tokens: int, part: int = 0) -> np.ndarray:
    """Their KL `[C]` on a part of the search text, of so many tokens."""
    sequences, length = this.pool.tokens.shape
    count = max(1, min(sequences // (part + 1), tokens // length))
    text = part * count + np.arange(count)
    return this.score(candidates, text, lambda tokens: None, "study", 0)


def agreement(costs: np.ndarray, candidates: np.ndarray, values: np.ndarray) -> float:
    """The rank correlation of estimated `costs [S, L, E]`, summed over sites, with measured `values [C]`."""
    finite = np.where(np.isfinite(costs), costs, 0)
    return float(spearmanr([values_at(finite, one).sum() for one in candidates], values)[0])


def study_one(study: Study, model: str) -> dict[str, Any]:
    """The figures of a model."""
    preset, length = PRESETS[study.preset], study.sequence_length
    lengths: dict[str, Any] = {
        "sequence_length": length,
        "search_length": length,
        "evaluation_length": length,
    }
    data = dataclasses.replace(preset.data, calibration=("builtin",), evaluation_windows=1, **lengths)
    settings = dataclasses.replace(
        preset,
        model=model,
        sparsity=(study.sparsity,),
        seed=study.seed,
        data=data,
        compute_dtype=study.compute_dtype,
    )
    with Progress() as progress, EventLog() as events:
        run = Run(settings, progress, events)
        dense = prepare(run)
        this, estimates = measured_round(run, dense)
    most, singles = single_sites(this.grid)
    centre = space.levels_of(this.grid, dense.targets[0].kept)
    uniform = rounds.first_parent(this.sites, this.budget, centre)
    random = drawn(study, this, uniform)
    found = [surrogate.cheapest(costs, this.budget, uniform, reach=2) for costs in estimates]
    starts = [uniform, *(uniform if each is None else each for each in found)]
    whole, *alone = score(this, np.concatenate([most[None], singles]), study.tokens)
    rise = np.array(alone) - whole
    parts = [score(this, random, 2 * study.tokens, part) for part in range(2)]
    of_uniform, *of_starts = score(this, np.stack(starts), this.pool.tokens.size)
    rows = np.argwhere(singles != most)[:, 1]
    figures: dict[str, Any] = {"uniform": float(of_uniform), "parts": float(spearmanr(*parts)[0])}
    for name, costs, start in zip(Estimates._fields, estimates, of_starts, strict=True):
        figures[name] = {"alone": agreement(costs, singles, rise)}
        for row, kind in enumerate(dense.kinds):
            figures[name][f"alone, {kind.name}"] = agreement(costs, singles[rows == row], rise[rows == row])
        figures[name] |= {"random": agreement(costs, random, np.mean(parts, axis=0)), "start": float(start)}
    return figures


def main(study: Study) -> None:
    """Study every model, and print a table."""
    results = Results.of(study.results, dataclasses.replace(study, models=(), results=Path()))
    found = {model: results.get(model, functools.partial(study_one, study, model)) for model in study.models}
    columns = [name for name in next(iter(found.values()))["measured"] if name != "start"]
    ends = "parts of the text", "KL of the start", "KL of uniform"
    print_header("model", "estimate", *columns, *ends)
    for model, figures in found.items():
        for name, words in WORDS.items():
            own = figures[name]
            cells = *(own[column] for column in columns), figures["parts"]
            kl = f"{own['start']:.4f}", f"{figures['uniform']:.4f}"
            print_row(Path(model).stem, words, *(f"{cell:.2f}" for cell in cells), *kl)


if __name__ == "__main__":
    command.execute(main, Study, None, prog="python scripts/estimate_fit.py", description=__doc__)
