"""The order of stages (Algorithm 4): rounds of supernet and search, then refit, compress and measure.

Several targets share the model, its text, the dense answers and the first round's supernet, which then has
the levels of all of them.

Everything that joins stages is here; each stage itself is a pure function elsewhere. Side effects are the
progress display, the event log, and what is kept for a run that is interrupted.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from tyr_jax import space
from tyr_jax.components import broken
from tyr_jax.io.checkpoint import LoadedModel
from tyr_jax.model import decoder
from tyr_jax.model.spec import Block, ModelConfig, Params
from tyr_jax.pruning.compress import compress, mask
from tyr_jax.pruning.prices import level_prices
from tyr_jax.pruning.target import Target
from tyr_jax.run.measure import Qualities, measure
from tyr_jax.run.models import GivenModel
from tyr_jax.run.prepare import Dense, Run, prepare
from tyr_jax.run.rounds import (
    SearchProgress,
    first_rounds,
    fold,
    progress_so_far,
    round_grid,
    search,
    search_pool,
)
from tyr_jax.run.samples import sample_of
from tyr_jax.runtime import devices
from tyr_jax.space import LevelGrid


@dataclasses.dataclass(frozen=True)
class Pruned:
    """A pruned model: physically smaller params and config, units kept `[2, L]`, the parameters that its
    blocks have, or would have without zeros, how good it is, and what it writes behind the prompt."""

    params: Params
    config: ModelConfig
    kept: np.ndarray
    block_parameters: int
    quality: Qualities
    sample: str | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """All that a run found for a target; `rounds` has a record per round. `reconstructed` is the model found,
    with what is left of its FFNs trained, if that was asked for."""

    run: Run
    dense: Dense
    target: Target
    uniform: Pruned
    searched: Pruned | None
    rounds: list[dict[str, Any]]
    reconstructed: Pruned | None = None

    @property
    def written(self) -> str:
        """Which model to write: the reconstructed one, if training has helped on the text to evaluate on, the
        searched one, or the uniform one."""
        found = "searched" if self.searched else "uniform"
        pruned, learnt = getattr(self, found), self.reconstructed
        return "reconstructed" if learnt and mean_kl(learnt) < mean_kl(pruned) else found

    @property
    def final(self) -> Pruned:
        """The model to write."""
        return getattr(self, self.written)

    @property
    def model(self) -> LoadedModel:
        """The model to write, with all that has to be kept of the dense one."""
        return dataclasses.replace(
            self.dense.model,
            config=self.final.config,
            params=self.final.params,
            source=f"{self.dense.model.source}, pruned to {self.target.sparsity:.1%} sparsity",
            stored_dtype=self.dense.dtype,
        )


def mean_kl(pruned: Pruned) -> float:
    """KL to the dense model, the mean over texts."""
    return float(np.mean([quality.kl for quality in pruned.quality.values()]))


def realise(
    run: Run,
    dense: Dense,
    kept: np.ndarray,
    grid: LevelGrid | None,
    name: str,
    heads: np.ndarray | None = None,
    passes: int = 0,
) -> Pruned:
    """The physically smaller model that keeps `kept [2, L]` units, measured with weights as written.

    A supernet's weights were fitted to the expectation over many distributions. Once one is chosen, every
    site is pruned anew to its one level, seeing what the chosen layers before it really pass on; the
    uniform baseline gets the same, so that the two compare. With `--no-refit` the weights are those of the
    supernet of `grid`, in which the distribution was found (None where none was built). As many parameters as
    it was found to have it keeps: its heads are those of least rank in `heads [L, U]`, if given. As it is
    pruned for the last time, its sites take back the drift, and what is left of its FFNs is reconstructed in
    so many `passes`, if any.
    """
    model, settings = dense.model, run.settings
    pruning, drift = settings.pruning, 0.0
    if settings.rounds.refit or grid is None or passes:
        drift = pruning.drift
        grid = space.level_grid(dense.kinds, kept, 1, settings.rounds.interval)
        pruning = dataclasses.replace(pruning, accumulation="centre")
    what, store = f"prune {name}", run.store.part(f"prune-{name}")
    supernet = fold(run, dense, grid, pruning, what, store, heads, drift, passes)
    levels = space.levels_of(grid, kept)
    ranks = devices.fetch(supernet.attn_rank)
    parameters = int(level_prices(model.config, pruning, kept[..., None], ranks).sum())
    if heads is not None:
        found = int(level_prices(model.config, pruning, kept[..., None], heads).sum())
        if parameters != found:
            raise broken(
                pruning.pruner,
                f"keeps other heads than the site's `rank` says, of {parameters:,} parameters in place of "
                f"{found:,}: it must keep to it where it is given, as `keep_rows` does",
            )

    finish = functools.partial(finished, run, dense)
    if settings.layout == "masked":
        params, config = mask(model.params, supernet, levels, model.config, finish), model.config
    else:
        multiple = pruning.neuron_multiple
        params, config = compress(model.params, supernet, levels, model.config, multiple, finish)
    params = devices.spread(params | rounded(decoder.outside(params), dense.dtype), config.hidden)
    measured = measure(run, name, params, config, dense.texts)
    pruned = dataclasses.replace(model, params=params, config=config)
    sample = sample_of(name, pruned, settings.prompt, run.progress)
    return Pruned(params, config, kept, parameters, measured, sample)


def reconstructed(
    run: Run, dense: Dense, kept: np.ndarray, grid: LevelGrid | None, heads: np.ndarray | None = None
) -> Pruned | None:
    """The model that `realise` makes, pruned once more, with what is left of its FFNs reconstructed; None if
    that was not asked for."""
    passes = run.settings.pruning.reconstruct
    return realise(run, dense, kept, grid, "reconstructed", heads, passes) if passes else None


def finished(run: Run, dense: Dense, block: Block) -> Any:
    """A block with weights rounded to what they are written in, on disk where weights stay there."""
    written = rounded(block, dense.dtype)
    return run.scratch.keep(written) if run.scratch else written


def rounded(weights: Any, dtype: np.dtype) -> Any:
    """Weights, a pytree, rounded to the type that they will be written in."""
    return jax.tree.map(lambda array: array.astype(dtype).astype(array.dtype), weights)


def prune_targets(run: Run, given: GivenModel | None = None) -> Iterator[Outcome]:
    """Prune a model as the settings say (Algorithm 4), to each of their targets in turn; the model is the one
    that they name, or what was `given` by that name.

    Raises:
        UserError: anything in the settings, the model or the text that cannot work.
    """
    yield from prune_prepared(run, prepare(run, given))


def prune_prepared(run: Run, dense: Dense) -> Iterator[Outcome]:
    """Prune a model that `prepare` has read, to each of its targets in turn."""
    targets = dense.targets
    parts = [run.part(target) for target in targets] if len(targets) > 1 else [run]
    centres = [target.kept for target in targets]
    if not run.settings.rounds.rounds:
        for part, target, kept in zip(parts, targets, centres, strict=True):
            uniform = realise(part, dense, kept, None, "uniform")
            yield Outcome(part, dense, target, uniform, None, [], reconstructed(part, dense, kept, None))
        return
    pool = search_pool(run, dense)
    first = space.joint_grid([round_grid(run, dense, kept, 1) for kept in centres])
    searches = [
        progress_so_far(part, SearchProgress(kept, first, []))
        for part, kept in zip(parts, centres, strict=True)
    ]
    if len(targets) > 1:
        searches = first_rounds(run, parts, dense, pool, targets, searches)
    for part, target, kept, begun in zip(parts, targets, centres, searches, strict=True):
        uniform = realise(part, dense, kept, first, "uniform")
        ended = search(part, dense, pool, target, begun)
        searched = realise(part, dense, ended.kept, ended.grid, "searched", ended.heads)
        learnt = reconstructed(part, dense, ended.kept, ended.grid, ended.heads)
        yield Outcome(part, dense, target, uniform, searched, ended.rounds, learnt)
