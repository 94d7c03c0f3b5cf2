"""Exact problems: the pruned forward pass of a small language model is the objective itself.

The package ships the model, of 1.4 million parameters, and text that it was not trained on
(`scripts/make_language_model.py` has made both). Building a problem prunes the model, which takes seconds. No
table stands between a search and what it searches, so that the results of good searches can be told apart.

Axis letters: `C` candidates, `B` sequences, `S` kinds of site, `L` layers, `E` levels.
"""

import functools
import json
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax import space
from tyr_jax.errors import UserError
from tyr_jax.io.checkpoint import LoadedModel, load_model
from tyr_jax.pruning import fisher
from tyr_jax.pruning.fold import FoldPlan, build_supernet
from tyr_jax.pruning.prices import level_prices
from tyr_jax.pruning.settings import PruningSettings
from tyr_jax.pruning.supernet import Supernet
from tyr_jax.scoring import traced
from tyr_jax.scoring.nested import Nested, nest
from tyr_jax.scoring.objective import KL, Scoring, TeacherBatch
from tyr_jax.scoring.teacher import take, teacher_targets
from tyr_jax.search.contract import Query, SearchSpace, Sites

MODEL = Path(__file__).parent / "data" / "thimble"
"""The model, with `unseen.txt` beside it."""

BEST = Path(__file__).parent / "data" / "exact.json"
"""The best distributions known, by problem: `scripts/best_known.py` writes it."""

CALIBRATION, SEARCH, HELD_OUT = (128, 128), (32, 64), (64, 64)
"""Sequences, and tokens of each, that the model is pruned on, and that a search and its judge see."""

LEVELS, INTERVAL = 9, 0.125
"""Levels of a site, and the share of its units from one to the next."""

Counted = Literal["units", "parameters"]
"""What the budget counts: units of each kind by themselves, or parameters of both together."""


class ExactProblem(flax.struct.PyTreeNode):
    """An exact objective, and the space that it is defined on.

    What may be chosen, `space`; the levels to start from, `start [S, L]`; the nested supernet `net`; the
    search text and the held-out text with the dense model's predictions, `text` and `held_out_text`; and the
    `best [S, L]` levels known for the held-out text.
    """

    space: SearchSpace
    start: jax.Array
    net: Nested
    text: TeacherBatch
    held_out_text: TeacherBatch
    best: jax.Array
    scoring: Scoring = flax.struct.field(pytree_node=False)

    def answer(self, query: Query) -> jax.Array:
        """The fitness `[C]` of the query's candidates, or slopes `[C, P, S, L, E]`, of one sequence each."""
        batch, candidates = take(self.text, query.sequences), jnp.asarray(query.candidates)
        if query.purpose != "slopes":
            return traced.scores(self.net, candidates, batch, self.scoring)
        return jax.lax.map(lambda one: traced.slopes(self.net, one, batch, self.scoring), candidates)

    def held_out(self, levels: jax.Array | np.ndarray) -> jax.Array:
        """The objective `[...]` of `levels [..., S, L]` on held-out text."""
        levels = jnp.asarray(levels)
        flat = levels.reshape(-1, *levels.shape[-2:])
        return traced.scores(self.net, flat, self.held_out_text, self.scoring).reshape(levels.shape[:-2])

    @property
    def optimum(self) -> jax.Array:
        """The least objective known on held-out text."""
        return self.held_out(self.best)


class Instance(NamedTuple):
    """Which problem: the share of the blocks that is removed, and what the budget counts."""

    sparsity: float
    counted: Counted

    @property
    def name(self) -> str:
        """Its name, such as `exact-50-units`."""
        return f"exact-{round(100 * self.sparsity)}-{self.counted}"


INSTANCES = {
    one.name: one
    for one in (Instance(s, counted) for s in (0.25, 0.5, 0.75) for counted in get_args(Counted))
}
"""The problems that searches are compared on, by name."""

TUNING = {one.name: one for one in (Instance(0.4, counted) for counted in get_args(Counted))}
"""Problems to choose settings on."""


def problem_names(*, tuning: bool = False) -> list[str]:
    """Names of the exact problems to compare searches on, or of those to choose settings on."""
    return list(TUNING if tuning else INSTANCES)


@functools.cache
def dense() -> tuple[LoadedModel, list[np.ndarray]]:
    """The model, and its text: tokens `[B, T]` to prune, to search and to judge on."""
    model = load_model(str(MODEL))
    text = (MODEL / "unseen.txt").read_text(encoding="utf-8")
    stream = np.array(model.tokenizer.backend_tokenizer.encode(text).ids, np.int32)
    parts, used = [], 0
    for rows, length in (CALIBRATION, SEARCH, HELD_OUT):
        parts.append(stream[used : used + rows * length].reshape(rows, length))
        used += rows * length
    return model, parts


@functools.cache
def supernet_of(sparsity: float) -> tuple[space.LevelGrid, Supernet]:
    """The levels around the uniform distribution of a sparsity, and the model pruned to them."""
    model, (calibration, *_) = dense()
    settings, config = PruningSettings(), model.config
    kinds = settings.site_kinds(config)
    metrics = fisher.output_metrics(model.params, calibration[:32], config, kinds, 0)
    grid = space.uniform_grid(settings.kinds(config), config.depth, sparsity, LEVELS, INTERVAL)
    plan = FoldPlan(config, grid, settings, metrics=metrics)
    return grid, build_supernet(model.params, [calibration], plan)


def load_problem(name: str) -> ExactProblem:
    """The exact problem of a name.

    Raises:
        UserError: there is none.
    """
    instances = INSTANCES | TUNING
    if name not in instances:
        raise UserError(f"there is no problem {name}: name one of {', '.join(instances)}")
    instance = instances[name]
    model, (_, *texts) = dense()
    grid, supernet = supernet_of(instance.sparsity)
    config, settings = model.config, PruningSettings()
    start = space.centre_distribution(grid)
    if instance.counted == "units":
        budget = space.Budget.of_units(grid.kept, space.kept_units(grid, start).sum(axis=-1))
    else:
        ranks = {kind.name: np.asarray(supernet.ranks[kind.name]) for kind in supernet.kinds}
        prices = level_prices(config, settings, grid.kept, ranks)
        budget = space.Budget.of_prices(prices, [int(space.values_at(prices[0], start).sum())])
    sites = Sites(np.asarray(supernet.error), np.asarray(supernet.share), grid.exists)
    scoring = Scoring.of_model(config, KL())
    search, held_out = (teacher_targets(model.params, text, config, scoring.objective) for text in texts)
    net = nest(model.params, supernet, config)
    choice = SearchSpace(grid.kept, grid.exists, budget, sites, *texts[0].shape)
    best = best_known().get(name, {"levels": start.tolist()})["levels"]
    problem = ExactProblem(choice, jnp.asarray(start), net, search, held_out, jnp.asarray(best), scoring)
    return jax.tree.map(jnp.asarray, problem)


def best_known() -> dict[str, dict[str, Any]]:
    """What is known of the problems, by name: the best distribution for the held-out text, as `levels`
    `[S, L]`, its `kl`, and that of the `start`."""
    return json.loads(BEST.read_text(encoding="utf-8"))["problems"] if BEST.is_file() else {}
