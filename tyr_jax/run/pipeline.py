"""The order of stages (Algorithm 4): rounds of supernet and search, then refit, compress and measure.

Several targets share the model, its text, the dense model's predictions and the first round's supernet, which
then has the levels of all targets.

Everything that joins stages is here; each stage itself is a pure function elsewhere. The only side effects
are the progress display, the event log, and what is saved for an interrupted run.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import numpy as np

from tyr_jax import space
from tyr_jax.components import broken
from tyr_jax.io.checkpoint import LoadedModel
from tyr_jax.model import decoder
from tyr_jax.model.spec import Block, ModelConfig, Params
from tyr_jax.model.tensors import as_stored
from tyr_jax.pruning.compress import compress, mask
from tyr_jax.pruning.fold import FoldPlan
from tyr_jax.pruning.prices import level_prices
from tyr_jax.pruning.supernet import Supernet
from tyr_jax.pruning.target import Target
from tyr_jax.run.choice import choose
from tyr_jax.run.fold import fold, fold_plan
from tyr_jax.run.measure import Qualities, choice_divergence, evaluate_model
from tyr_jax.run.models import GivenModel
from tyr_jax.run.prepare import Dense, Run, prepare
from tyr_jax.run.rounds import (
    Ranks,
    SearchProgress,
    first_rounds,
    progress_so_far,
    round_grid,
    search,
    search_pool,
    settled_ranks,
)
from tyr_jax.run.samples import sample_of
from tyr_jax.runtime import devices
from tyr_jax.space import Levels
from tyr_jax.workspace import records


@dataclasses.dataclass(frozen=True)
class Pruned:
    """A pruned model: params and config (physically smaller, unless its layout is masked), units kept
    `[S, L]`, the parameters in its blocks (without masked zeros), quality, divergences `[B]` from the dense
    model on the text for the choice (None where there is nothing to choose), and continuation of the
    prompt."""

    params: Params
    config: ModelConfig
    kept: np.ndarray
    block_parameters: int
    quality: Qualities
    divergence: np.ndarray | None = None
    sample: str | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """All that a run found for a target. `rounds` has a record per round. `reconstructed` is the model found,
    with its remaining FFN weights trained, if that was requested."""

    run: Run
    dense: Dense
    target: Target
    uniform: Pruned
    searched: Pruned | None
    rounds: list[records.RoundRecord]
    reconstructed: Pruned | None = None

    @functools.cached_property
    def chosen(self) -> tuple[records.Name, records.Choice | None]:
        """The name of the model to write, and how it was chosen if there were several."""
        models: dict[str, Pruned | None] = {name: getattr(self, name) for name in records.PRUNED}
        known = {
            name: model.divergence for name, model in models.items() if model and model.divergence is not None
        }
        return choose(known) if len(known) > 1 else ("uniform", None)

    @property
    def written(self) -> records.Name:
        """The name of the model to write."""
        return self.chosen[0]

    @property
    def final(self) -> Pruned:
        """The model to write."""
        return getattr(self, self.written)

    @property
    def model(self) -> LoadedModel:
        """The model to write, with everything that it takes over from the dense one."""
        return dataclasses.replace(
            self.dense.model,
            config=self.final.config,
            params=self.final.params,
            source=f"{self.dense.model.source}, pruned to {self.target.sparsity:.1%} sparsity",
            stored_dtype=self.dense.dtype,
        )


def realise(run: Run, dense: Dense, found: SearchProgress, name: str, passes: int = 0) -> Pruned:
    """Prune the model to the units that were `found`, and measure it with weights as they will be written.

    A supernet's weights were fitted to the expectation over many distributions. Once a distribution is
    chosen, every site is pruned again to its one level, on the inputs that the chosen earlier layers really
    produce; sites then also correct the drift. The uniform baseline gets the same refit, so that the two are
    comparable. With `--no-refit`, the weights are those of the supernet of `found.grid`; unless `found` has
    it still, it is built again.

    The model keeps as many parameters as the search found: of kinds in `found.ranks`, it keeps the units of
    lowest rank there. The remaining FFN weights are reconstructed in `passes` passes over the text, if any.

    Raises:
        UserError: the pruner keeps other units than `found.ranks` says.
    """
    model, rounds, kept = dense.model, run.settings.rounds, found.kept
    refit = rounds.refit or not rounds.rounds or bool(passes)
    plan, supernet = fold_plan(run, dense, found.grid), None if refit else found.supernet
    plan = dataclasses.replace(plan, ranks=found.ranks)
    if refit:
        plan = dataclasses.replace(
            plan,
            grid=space.level_grid(dense.kinds, kept, 1, rounds.interval),
            settings=dataclasses.replace(plan.settings, accumulation="centre"),
            drift=plan.settings.drift,
            passes=passes,
        )
    if supernet is None:
        store = run.store.part(f"prune-{name}")
        supernet = fold(run, model, dense.splits, plan, f"prune {name}", store)
    block_parameters = parameters_kept(plan, kept, settled_ranks(supernet))
    if found.ranks and block_parameters != (searched := parameters_kept(plan, kept, found.ranks)):
        raise broken(
            plan.settings.pruner,
            f"keeps other heads than the site's `rank` says, of {block_parameters:,} parameters in place of "
            f"{searched:,}: it must keep to it where it is given, as `keep_rows` does",
        )
    params, config = cut_out(run, dense, supernet, space.levels_of(plan.grid, kept))
    # Measuring needs the model alone, and a plan counts on that.
    del supernet, found
    params = devices.spread(
        params | as_stored(decoder.outside(params), dense.dtype, config), config.hidden_axes
    )
    measured = evaluate_model(run, name, params, config, dense.texts)
    divergence = None
    if dense.choice is not None:
        divergence = choice_divergence(run, name, params, config, dense.splits.choice, dense.choice)
    pruned = dataclasses.replace(model, params=params, config=config)
    sample = sample_of(name, pruned, run.settings.prompt, run.progress)
    return Pruned(params, config, kept, block_parameters, measured, divergence, sample)


def parameters_kept(plan: FoldPlan, kept: np.ndarray, ranks: Ranks) -> int:
    """Parameters of blocks that keep the `kept [S, L]` units of lowest rank."""
    return int(level_prices(plan.config, plan.settings, kept[..., None], ranks).sum())


def cut_out(run: Run, dense: Dense, supernet: Supernet, levels: Levels) -> tuple[Params, ModelConfig]:
    """The model at `levels [S, L]` of the supernet, in the layout of the settings, with blocks as they will
    be written."""
    model, finish = dense.model, functools.partial(finished, run, dense)
    if run.settings.layout == "masked":
        return mask(model.params, supernet, levels, model.config, finish), model.config
    multiple = run.settings.pruning.neuron_multiple
    return compress(model.params, supernet, levels, model.config, multiple, finish)


def finished(run: Run, dense: Dense, block: Block) -> Any:
    """A block with weights rounded to the dtype they are written in; on disk with `--offload`."""
    written = as_stored(block, dense.dtype, dense.model.config)
    return run.scratch.keep(written) if run.scratch else written


def prune_targets(run: Run, given: GivenModel | None = None) -> Iterator[Outcome]:
    """Prune a model to each target in turn, as the settings say (Algorithm 4). The model is the `given` one,
    or else the one that the settings name.

    Raises:
        UserError: the settings, the model or the text cannot be used.
    """
    yield from prune_prepared(run, prepare(run, given))


def prune_prepared(run: Run, dense: Dense) -> Iterator[Outcome]:
    """Prune a model that `prepare` has read, to each of its targets in turn."""
    targets = dense.targets
    parts = [run.part(target) for target in targets] if len(targets) > 1 else [run]
    grid = space.joint_grid([round_grid(run, dense, target.kept, 1) for target in targets])
    starts = [SearchProgress(target.kept, grid, []) for target in targets]
    if not run.settings.rounds.rounds:
        for part, target, start in zip(parts, targets, starts, strict=True):
            uniform = realise(part, dense, start, "uniform")
            yield Outcome(part, dense, target, uniform, None, [], reconstructed(part, dense, start))
        return
    pool = search_pool(run, dense.model, dense.splits.search)
    begun = [progress_so_far(part, start) for part, start in zip(parts, starts, strict=True)]
    if len(targets) > 1:
        begun = first_rounds(run, parts, dense, pool, begun)
    for part, target, start, so_far in zip(parts, targets, starts, begun, strict=True):
        found = search(part, dense, pool, target, so_far)
        # The first round's supernet is also the one of the uniform distribution.
        known = found.supernet if run.settings.rounds.rounds == 1 else None
        uniform = realise(part, dense, dataclasses.replace(start, supernet=known), "uniform")
        del known
        searched = realise(part, dense, found, "searched")
        found = dataclasses.replace(found, supernet=None)
        yield Outcome(part, dense, target, uniform, searched, found.rounds, reconstructed(part, dense, found))


def reconstructed(run: Run, dense: Dense, found: SearchProgress) -> Pruned | None:
    """The model of `realise`, pruned once more with its remaining FFN weights reconstructed; None unless that
    was requested."""
    passes = run.settings.pruning.reconstruct
    return realise(run, dense, found, "reconstructed", passes) if passes else None
