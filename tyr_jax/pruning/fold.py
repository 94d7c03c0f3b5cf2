"""The fold over the blocks that builds a supernet (method §2, Algorithm 2).

Each block runs once: attention → its Hessian → prune `o_proj` → the FFN's input from the accumulated result →
its Hessian → prune `down_proj` → next block. A site passes on its output under the weight `W̄ = Σ_e p_e W_e`.
The site is linear in its weight, so this is the expectation of Eq. 5 over levels with probabilities `p`.
Every mode of error accumulation is one choice of `p`. With reconstruction, a pruned FFN is trained before it
passes on its output.

Axis letters: `S` kinds of site, `L` layers, `E` levels, `B` sequences, `T` tokens, `D` hidden, `N` heads, `H`
head dim, `F` FFN width, `U` units of a site.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from tyr_jax.components import broken
from tyr_jax.errors import UserError
from tyr_jax.model.spec import Block, ModelConfig, Params
from tyr_jax.model.tensors import layer_block
from tyr_jax.pruning import hessian, linalg, stream
from tyr_jax.pruning.kinds import SiteKind
from tyr_jax.pruning.reconstruction import LearningPlan, Learnt, Text, reconstructed
from tyr_jax.pruning.settings import Accumulation, PruningSettings
from tyr_jax.pruning.site import PrunedSite
from tyr_jax.pruning.supernet import Layer, Supernet, empty_supernet, with_layer
from tyr_jax.runtime import devices
from tyr_jax.runtime.batches import BATCH_TOKENS, batches
from tyr_jax.runtime.offload import Scratch, on_disk
from tyr_jax.space import LevelGrid


def level_probabilities(
    mode: Accumulation, kept: np.ndarray, exists: np.ndarray, units: int, rng: np.random.Generator
) -> np.ndarray:
    """Weights `p [E]` with which a site's levels are passed on (Eq. 5 and the modes of Table 4).

    `expectation`: proportional to `1 − S_e`, the share kept. `uniform`: equal over the levels that exist.
    `random`: one level drawn per site. `centre`: the middle level. (`none` passes on the dense weight,
    which need not be a level: the fold handles it.)
    """
    levels = len(kept)
    if mode == "expectation":
        share = np.where(exists, kept / units, 0.0)
    elif mode == "uniform":
        share = exists.astype(float)
    elif mode == "random":
        share = np.eye(levels)[rng.choice(np.flatnonzero(exists))]
    else:
        share = np.eye(levels)[levels // 2]
    return (share / share.sum()).astype(np.float32)


class Fold(NamedTuple):
    """The state of a fold over the blocks.

    The first `done` layers of the `supernet` are filled. `residual` has the residuals `[B, T, D]` that enter
    the next layer, one array per batch of calibration text, on devices or on disk. Of each batch, the first
    `real` sequences count. If drift is corrected, `dense` has the same residuals of the dense model. With
    reconstruction, `learnt` has what each finished FFN has learnt, None for those that were not to learn.
    """

    supernet: Supernet
    done: int
    residual: list[Any]
    real: list[int]
    dense: list[Any] | None = None
    learnt: tuple[Learnt | None, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class FoldPlan:
    """What a fold does: prune every site of a model of `config` to the levels of `grid`, as `settings` say.

    `seed` is that of the `random` mode of accumulation and of reconstruction. `metrics [L, S, D, D]` are
    those of the sites' outputs, if they have any. `ranks` has the ranks `[L, U]` of the units of those kinds,
    by name, for which these are settled. Every site corrects a fraction `drift` of the gap to the dense
    residual stream. Where sites have one level, what is left of each FFN is reconstructed in `passes` over
    the text. With `scratch`, weights and residuals are on disk.
    """

    config: ModelConfig
    grid: LevelGrid
    settings: PruningSettings
    seed: int = 0
    metrics: Any = None
    ranks: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    drift: float = 0.0
    passes: int = 0
    scratch: Scratch | None = None

    def tasks(self, layer: int) -> list["SiteTask"]:
        """The sites of a layer, in the order in which they run."""
        kinds, whole = self.settings.site_kinds(self.config), self.settings.whole(self.config)
        return [self.task(row, kind, layer, bool(whole[row, layer])) for row, kind in enumerate(kinds)]

    def task(self, row: int, kind: SiteKind, layer: int, whole: bool) -> "SiteTask":
        """The site of a kind in a layer."""
        levels = self.grid.kept[row, layer], self.grid.exists[row, layer]
        metric = None if self.metrics is None else devices.place(jnp.asarray(self.metrics[layer][row]), 1)
        rank = jnp.asarray(self.ranks[kind.name][layer]) if kind.name in self.ranks else None
        return SiteTask(row, layer, kind, *levels, whole, metric, rank)


class SiteTask(NamedTuple):
    """A site to prune, of a `kind`, which is row `row` of the grid, in a `layer`: levels that keep `kept [E]`
    units, of which those in `exists [E]` exist; whether it stays `whole`; the `metric [D, D]` of its output,
    if it has one; and the `rank [U]` of its units, if that is settled."""

    row: int
    layer: int
    kind: SiteKind
    kept: np.ndarray
    exists: np.ndarray
    whole: bool
    metric: jax.Array | None
    rank: jax.Array | None

    @property
    def name(self) -> str:
        """The site's name, such as `layer 3 ffn`."""
        return f"layer {self.layer} {self.kind.name}"

    def left_to_learn(self, plan: FoldPlan) -> int:
        """Entries along the axis of units that are left to be reconstructed; 0 if there is nothing to
        learn."""
        learns = self.kind.learns and plan.passes and not self.whole
        return int(self.kept[0]) * self.kind.span(plan.config) if learns else 0


def begin_fold(
    params: Params,
    supernet: Supernet,
    texts: Sequence[np.ndarray],
    batch_tokens: int = BATCH_TOKENS,
    scratch: Scratch | None = None,
    follow: bool = False,
) -> Fold:
    """A fold before its first block, over `texts`, arrays of tokens `[B, T]` of any lengths T.

    `supernet` is empty. A device runs `batch_tokens` tokens at a time, in whole sequences. With `scratch`,
    residuals are on disk. With `follow`, those of the dense model are kept too.
    """
    residual, real = stream.embedded(params, texts, batch_tokens, scratch)
    dense = stream.embedded(params, texts, batch_tokens, scratch)[0] if follow else None
    return Fold(supernet, 0, residual, real, dense)


def dealt_anew(
    residual: Sequence[np.ndarray], real: Sequence[int], batch_tokens: int = BATCH_TOKENS
) -> tuple[list[np.ndarray], list[int]]:
    """(residuals `[B, T, D]`, how many sequences of each count), in the batches that `begin_fold` would make
    on the devices now in use.

    Of each array of `residual`, which may come from a run on other devices, the first `real` sequences count.
    """
    batched, counts = [], []
    pairs = zip(residual, real, strict=True)
    for _, group in itertools.groupby(pairs, key=lambda pair: pair[0].shape[1]):
        text = np.concatenate([x[:count] for x, count in group])
        for rows in batches(text[..., 0], batch_tokens):
            batched.append(text[rows.indices])
            counts.append(rows.real)
    return batched, counts


class Entering(NamedTuple):
    """What enters a site: the inputs `units` of every batch (of the first only, if residuals are on disk or
    there are experts); their XᵀX in the parts `gram [n, d_in, d_in]` of n devices, or with
    experts `[n, X, F, F]`; and Xᵀd in the parts `pull [n, d_in, D]`, if drift is corrected."""

    units: list[jax.Array | None]
    gram: jax.Array
    pull: jax.Array | None


def collect(kind: SiteKind, block: Block, fold: Fold, config: ModelConfig) -> tuple[Entering, Fold]:
    """What enters the site of a kind; and the fold. If the fold follows the dense model, that model's
    residuals are now those after the site."""
    stays, size = on_disk(fold.residual), block[kind.output].size // config.hidden
    gram = devices.copies(jnp.zeros(kind.gram_shape(config)))
    dense = None if fold.dense is None else list(fold.dense)
    pull = None if dense is None else devices.copies(jnp.zeros((size, config.hidden)))
    units: list[jax.Array | None] = []
    for index, (x, real) in enumerate(zip(fold.residual, fold.real, strict=True)):
        x = devices.place(jnp.array(x)) if stays else x
        plain = dense is None and real == len(x)
        weights = None if plain else stream.token_weights(x, jnp.int32(real), even=dense is None)
        unit, gram = devices.settle(stream.site_statistics(block, x, gram, weights, kind, config))
        if dense is not None and pull is not None:
            before = devices.place(jnp.array(dense[index])) if stays else dense[index]
            after, pull = devices.settle(
                stream.follow_dense(block, x, unit, weights, stream.Drift(before, pull), kind, config)
            )
            if stays:
                dense[index][...] = devices.fetch(after)
            else:
                dense[index] = after
        units.append(None if (stays or kind.apart(config)) and units else unit)
    return Entering(units, gram, pull), fold._replace(dense=dense)


def pass_on(kind: SiteKind, block: Block, fold: Fold, units: list[Any], config: ModelConfig) -> Fold:
    """The fold with the residuals after the site of a kind in place of those before it."""
    pairs = zip(fold.residual, units, strict=True)
    if not on_disk(fold.residual):
        after = [devices.settle(stream.add_output(block, x, unit, kind, config)) for x, unit in pairs]
        return fold._replace(residual=after)
    for x, unit in pairs:
        x[...] = devices.fetch(stream.add_output(block, devices.place(jnp.array(x)), unit, kind, config))
    return fold


def prune_task(
    task: SiteTask, entering: Entering, block: Block, plan: FoldPlan
) -> tuple[PrunedSite, jax.Array]:
    """Prune a site of a layer, whose dense tensors are `block`. Returns the pruned site and the weight
    `[d_in, D]` under which its output is passed on, W̄ of Eq. 5.

    Raises:
        UserError: the site's Hessian is not finite or cannot be factorised, or the user's own pruner or
            saliency gives such numbers; names the site.
    """
    settings, config, kind = plan.settings, plan.config, task.kind
    weight = block[kind.output].reshape(-1, config.hidden)
    metric = stream.metric_behind(task.metric, stream.behind_gain(kind, block, config))
    gram, known = devices.settle(hessian.finish(entering.gram)), (metric, task.rank)
    # A site that stays whole keeps its weights.
    if entering.pull is not None and not task.whole:
        share = plan.drift / config.routed if kind.apart(config) else plan.drift
        weight = devices.settle(stream.corrected_weight(weight, gram, entering.pull, jnp.float32(share)))
    units = kind.count(config)
    site = kind.prune(settings.site(gram, weight, task.kept, task.exists, units, *known), settings.pruner)
    if not np.isfinite(devices.fetch(site.error)).all():
        own = next((each for each in (settings.pruner, settings.saliency) if ":" in each.name), None)
        if own is not None and np.isfinite(devices.fetch(gram)).all():
            raise broken(own, f"gives numbers that are not finite for {task.name}")
        raise UserError(
            f"the inputs of {task.name} gave a Hessian that is not finite or cannot be factorised even with "
            "more damping; check the weights of this layer and of those before it"
        )
    if settings.accumulation == "none":
        return site, weight
    rng = np.random.default_rng((plan.seed, task.layer, task.row))
    p = level_probabilities(settings.accumulation, task.kept, task.exists, units, rng)
    return site, devices.settle(passed_weight(site.weights, jnp.asarray(p), weight.dtype))


def passed_weight(weights: jax.Array, p: jax.Array, dtype: DTypeLike) -> jax.Array:
    """W̄ `[d_in, D]` of Eq. 5, the sum of levels `weights [E, d_in, D]` with `p [E]`."""
    return jnp.einsum("e,eio->io", p, weights, precision=linalg.HIGHEST).astype(dtype)


def settle_admitted(task: SiteTask, block: Block, fold: Fold, plan: FoldPlan) -> tuple[SiteTask, Block]:
    """If removing units changes the inputs of others, and the site has one level: the task with a settled
    rank, and the block which knows the units that are kept. Otherwise both as they are."""
    kind = task.kind
    if kind.admit is None or len(task.kept) > 1:
        return task, block
    entering, _ = collect(kind, block, fold._replace(dense=None), plan.config)
    rank = prune_task(task, entering, block, plan)[0].rank
    return task._replace(rank=rank), block | kind.admit(rank < int(task.kept[0]))


def reconstruct(task: SiteTask, block: Block, site: PrunedSite, fold: Fold, plan: FoldPlan) -> Learnt:
    """What the sublayer of a site, in a block whose dense tensors are `block`, has learnt after it is pruned
    to `site`, in dense shapes. `fold` has the residuals before it, and the dense ones after it."""
    weight = block[task.kind.output]
    pruned = block | {task.kind.output: site.weights.reshape(weight.shape).astype(weight.dtype)}
    text = Text(fold.residual, fold.dense, fold.real)
    how = LearningPlan(plan.config, plan.passes, plan.drift, (plan.seed, task.layer), plan.scratch)
    order = task.kind.entries(jnp.argsort(site.rank, axis=-1), plan.config)
    return reconstructed(pruned, block, order, task.left_to_learn(plan), text, task.metric, how)


class FoldedSite(NamedTuple):
    """A site as the supernet keeps it: `weights [E, ...]`, `rank [U]`, `error [E]`, `share []` and `damping
    []`; and what its sublayer has learnt, if it was reconstructed."""

    weights: jax.Array
    rank: jax.Array
    error: jax.Array
    share: jax.Array
    damping: jax.Array
    learnt: Learnt | None = None

    @classmethod
    def absent(cls, task: SiteTask, dtype: DTypeLike, config: ModelConfig) -> Self:
        """That of a layer which lacks the kind."""
        shape, ranks = task.kind.shape(config), task.kind.rank_shape(config)
        rank = jnp.broadcast_to(jnp.arange(ranks[-1], dtype=jnp.int32), ranks)
        levels, none = len(task.kept), jnp.zeros(())
        return cls(jnp.zeros((levels, *shape), dtype), rank, jnp.zeros(levels), none, none)


def fold_site(
    task: SiteTask, block: Block, fold: Fold, plan: FoldPlan, on_site: Callable[[str, float], None]
) -> tuple[FoldedSite, Block, Fold]:
    """(a site of the next block, whose dense tensors are `block`; the block, which may know the units that
    are kept; the fold with the residuals after the site in place of those before).

    Raises:
        UserError: the site's Hessian is not finite or cannot be factorised; names the site.
    """
    kind, config, x, learnt = task.kind, plan.config, fold.residual[0], None
    if not kind.has(config, task.layer):
        return FoldedSite.absent(task, x.dtype, config), block, fold
    task, block = settle_admitted(task, block, fold, plan)
    entering, fold = collect(kind, block, fold, config)
    site, passed = prune_task(task, entering, block, plan)
    on_site(task.name, float(devices.fetch(site.damping)))
    units, count = entering.units, min(fold.real[0], max(1, stream.COST_TOKENS // x.shape[1]))
    shape, levels = block[kind.output].shape, site.weights
    share, error = stream.level_costs(block, levels, x, units[0], task.metric, kind, count, config)
    pruned = block | {kind.output: passed.reshape(shape)}
    del entering, x
    if task.left_to_learn(plan):
        units = [None] * len(units)  # These are large, and must be computed again.
        learnt = reconstruct(task, block, site, fold, plan)
        pruned, levels = block | learnt.tensors, learnt.tensors[kind.output]
    fold = pass_on(kind, pruned, fold, units, config)
    folded = FoldedSite(levels.reshape(-1, *shape), site.rank, error, share, site.damping, learnt)
    return folded, block, fold


def fold_sites(
    block: Block, fold: Fold, plan: FoldPlan, on_site: Callable[[str, float], None]
) -> tuple[Layer, Fold, Learnt | None]:
    """(the sites of the next block, whose dense tensors are `block`; the fold with the residuals after them
    in place of those before; what a sublayer has learnt, if one is reconstructed).

    Raises:
        UserError: as `fold_site`.
    """
    sites: dict[str, FoldedSite] = {}
    for task in plan.tasks(fold.done):
        sites[task.kind.name], block, fold = fold_site(task, block, fold, plan, on_site)
    rows = ([getattr(site, name) for site in sites.values()] for name in ("error", "share", "damping"))
    weights = {name: site.weights for name, site in sites.items()}
    ranks = {name: site.rank for name, site in sites.items()}
    learnt = [site.learnt for site in sites.values() if site.learnt is not None]
    return Layer(weights, ranks, *map(jnp.stack, rows)), fold, learnt[0] if learnt else None


def fold_block(params: Params, fold: Fold, plan: FoldPlan, on_site: Callable[[str, float], None]) -> Fold:
    """Prune the next block and pass the residuals on (a step of Algorithm 2). The residuals after the block
    take the place of those in `fold`.

    Raises:
        UserError: a site's Hessian is not finite or cannot be factorised; names the site.
    """
    layer = fold.done
    block = jax.tree.map(jnp.asarray, layer_block(params["blocks"], layer))
    block = devices.settle(devices.spread(block, plan.config.hidden_axes))
    sites, fold, learnt = fold_sites(block, fold, plan, on_site)
    if learnt:
        # The supernet has the projection itself.
        outputs = {kind.output for kind in plan.settings.site_kinds(plan.config)}
        rest = {name: array for name, array in learnt.tensors.items() if name not in outputs}
        learnt = learnt._replace(tensors=plan.scratch.keep(rest) if plan.scratch else rest)
    if plan.passes:
        fold = fold._replace(learnt=(*fold.learnt, learnt))
    return fold._replace(supernet=with_layer(fold.supernet, layer, sites), done=layer + 1)


def build_supernet(
    params: Params,
    texts: Sequence[np.ndarray],
    plan: FoldPlan,
    *,
    batch_tokens: int = BATCH_TOKENS,
    begun: Fold | None = None,
    on_site: Callable[[str, float], None] = lambda name, damping: None,
    on_block: Callable[[Fold], None] = lambda fold: None,
) -> Supernet:
    """Prune every site of a dense model to every level of a grid (Algorithm 2).

    Args:
        params: the dense model, with stacked blocks.
        texts: calibration tokens, arrays `[B, T]` of any lengths T.
        plan: the model's configuration, the levels of the S·L sites, and how they are pruned.
        batch_tokens: tokens that a device runs at a time, in whole sequences.
        begun: where an earlier call stopped, as given to its `on_block`.
        on_site: called with the name and damping of each finished site.
        on_block: called with the fold after each block.

    The residuals and the current sublayer's inputs of all calibration tokens are held on the devices; while
    an FFN is reconstructed, what it learns from takes the place of those inputs. If residuals are on disk,
    the inputs are computed twice instead.

    Raises:
        UserError: a site's Hessian is not finite or cannot be factorised; names the site.
    """
    chex.assert_rank(texts, 2)
    chex.assert_shape(plan.grid.kept, (len(plan.settings.site_kinds(plan.config)), plan.config.depth, None))
    fold = begun
    if fold is None:
        dtype = params["embed"].dtype
        empty = empty_supernet(dtype, plan.config, plan.grid, plan.settings, plan.scratch)
        fold = begin_fold(params, empty, texts, batch_tokens, plan.scratch, plan.drift > 0)
    while fold.done < plan.config.depth:
        fold = fold_block(params, fold, plan, on_site)
        on_block(fold)
    learnt = tuple(each and each.tensors for each in fold.learnt)
    return fold.supernet.replace(learnt=learnt)
