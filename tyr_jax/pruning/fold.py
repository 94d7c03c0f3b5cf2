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
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.errors import UserError
from tyr_jax.model.spec import OUTPUTS, Block, ModelConfig, Params, layer_block
from tyr_jax.pruning import hessian, stream
from tyr_jax.pruning.reconstruction import Learnt, Plan, Text, reconstructed
from tyr_jax.pruning.settings import Accumulation, PruningSettings
from tyr_jax.pruning.site import PrunedSite, keep_experts, prune_experts, prune_site
from tyr_jax.pruning.supernet import (
    RANK_FIELDS,
    WEIGHT_FIELDS,
    Layer,
    Supernet,
    empty_supernet,
    with_layer,
)
from tyr_jax.runtime import devices
from tyr_jax.runtime.batches import BATCH_TOKENS, batches
from tyr_jax.runtime.offload import Scratch, on_disk
from tyr_jax.space import ATTENTION, FFN, KINDS, LevelGrid


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
    those of the sites' outputs, if they have any. `heads [L, U]` are the ranks of attention's units, if these
    are settled. Every site corrects a fraction `drift` of the gap to the dense residual stream. Where sites
    have one level, what is left of each FFN is reconstructed in `passes` over the text. With `scratch`,
    weights and residuals are on disk.
    """

    config: ModelConfig
    grid: LevelGrid
    settings: PruningSettings
    seed: int = 0
    metrics: Any = None
    heads: np.ndarray | None = None
    drift: float = 0.0
    passes: int = 0
    scratch: Scratch | None = None

    def rank(self, kind: int, layer: int) -> jax.Array | None:
        """Rank `[U]` of a site's units, if it is settled."""
        if self.heads is None or kind != ATTENTION:
            return None
        return jnp.asarray(self.heads[layer])

    def metric(self, kind: int, layer: int) -> jax.Array | None:
        """Metric `[D, D]` of a site's output, if it has one."""
        if self.metrics is None:
            return None
        return devices.place(jnp.asarray(self.metrics[layer][kind]), 1)

    def left_to_learn(self, layer: int) -> int:
        """Neurons of a layer's FFN that are left to be reconstructed; 0 if the FFN is not reconstructed."""
        whole = self.settings.whole(self.config)[FFN, layer]
        return 0 if whole or not self.passes else int(self.grid.kept[FFN, layer, 0])


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


def collect(kind: int, block: Block, fold: Fold, size: int, config: ModelConfig) -> tuple[Entering, Fold]:
    """What enters the site of a kind, which has `size` input channels; and the fold. If the fold follows the
    dense model, that model's residuals are now those after the site."""
    stays, apart = on_disk(fold.residual), stream.by_expert(kind, config)
    gram = devices.copies(jnp.zeros(stream.gram_shape(kind, config)))
    dense = None if fold.dense is None else list(fold.dense)
    pull = None if dense is None else devices.copies(jnp.zeros((size, config.hidden)))
    units: list[jax.Array | None] = []
    for index, (x, real) in enumerate(zip(fold.residual, fold.real, strict=True)):
        x = devices.place(jnp.array(x)) if stays else x
        plain = dense is None and real == len(x)
        weights = None if plain else stream.token_weights(x, jnp.int32(real), even=dense is None)
        unit, gram = devices.settle(stream.site_statistics(block, x, gram, weights, kind, config))
        if dense is not None:
            before = devices.place(jnp.array(dense[index])) if stays else dense[index]
            after, pull = devices.settle(
                stream.follow_dense(block, x, unit, weights, before, pull, kind, config)
            )
            if stays:
                dense[index][...] = devices.fetch(after)
            else:
                dense[index] = after
        units.append(None if (stays or apart) and units else unit)
    return Entering(units, gram, pull), fold._replace(dense=dense)


def pass_on(kind: int, block: Block, fold: Fold, units: list[Any], config: ModelConfig) -> Fold:
    """The fold with the residuals after the site of a kind in place of those before it."""
    pairs = zip(fold.residual, units, strict=True)
    if not on_disk(fold.residual):
        after = [devices.settle(stream.add_output(block, x, unit, kind, config)) for x, unit in pairs]
        return fold._replace(residual=after)
    for x, unit in pairs:
        x[...] = devices.fetch(stream.add_output(block, devices.place(jnp.array(x)), unit, kind, config))
    return fold


def prune_kind(
    kind: int, layer: int, entering: Entering, block: Block, plan: FoldPlan, rank: jax.Array | None = None
) -> tuple[PrunedSite, jax.Array]:
    """Prune the site of a kind in a layer, whose dense tensors are `block`. Returns the pruned site and the
    weight `[d_in, D]` under which its output is passed on, W̄ of Eq. 5. If the `rank [U]` of its units is
    given, it is settled.

    Raises:
        UserError: the site's Hessian is not finite or cannot be factorised; names the site.
    """
    settings, units = plan.settings, plan.settings.kinds(plan.config)[kind].units
    apart = stream.by_expert(kind, plan.config)
    kept, exists = plan.grid.kept[kind, layer], plan.grid.exists[kind, layer]
    weight = block[OUTPUTS[KINDS[kind]]].reshape(-1, plan.config.hidden)
    metric = stream.metric_behind(plan.metric(kind, layer), stream.behind_gain(kind, block, plan.config))
    rank = plan.rank(kind, layer) if rank is None else rank
    gram, known = devices.settle(hessian.finish(entering.gram)), (metric, rank)
    # A site that stays whole keeps its weights.
    if entering.pull is not None and not settings.whole(plan.config)[kind, layer]:
        share = plan.drift / plan.config.routed if apart else plan.drift
        weight = devices.settle(stream.corrected_weight(weight, gram, entering.pull, jnp.float32(share)))
    made = settings.site(gram, weight, kept, exists, units, *known)
    if kind == FFN and settings.drops_experts(plan.config):
        site = keep_experts(made)
    else:
        site = (prune_experts if apart else prune_site)(made, settings.pruner)
    if not np.isfinite(devices.fetch(site.error)).all():
        raise UserError(
            f"the inputs of {site_name(kind, layer)} gave a Hessian that is not finite or cannot be "
            "factorised even with more damping; check the weights of this layer and of those before it"
        )
    if settings.accumulation == "none":
        return site, weight
    rng = np.random.default_rng((plan.seed, layer, kind))
    p = level_probabilities(settings.accumulation, kept, exists, units, rng)
    return site, devices.settle(jnp.einsum("e,eio->io", p, site.weights).astype(weight.dtype))


def choose_experts(block: Block, fold: Fold, plan: FoldPlan) -> tuple[Block, jax.Array | None]:
    """(the next `block`, whose tokens are routed only to the experts that its layer keeps; their rank `[X]`).

    The block stays as it is, and there is no rank, if the grid has several levels or the units are not whole
    experts.
    """
    layer, config = fold.done, plan.config
    if plan.grid.kept.shape[-1] > 1 or not plan.settings.drops_experts(config):
        return block, None
    size = block[OUTPUTS["ffn"]].size // config.hidden
    entering, _ = collect(FFN, block, fold._replace(dense=None), size, config)
    rank = prune_kind(FFN, layer, entering, block, plan)[0].rank
    return block | {"kept_experts": rank < int(plan.grid.kept[FFN, layer, 0])}, rank


def reconstruct(block: Block, site: PrunedSite, fold: Fold, plan: FoldPlan) -> Learnt:
    """What the FFN of the next block, whose dense tensors are `block`, has learnt after its `site` is pruned,
    in dense shapes. `fold` has the residuals before the FFN, and the dense ones after it."""
    layer, projection = fold.done, OUTPUTS["ffn"]
    weight = block[projection]
    pruned = block | {projection: site.weights.reshape(weight.shape).astype(weight.dtype)}
    text = Text(fold.residual, fold.dense, fold.real)
    how = Plan(plan.config, plan.passes, plan.drift, (plan.seed, layer), plan.scratch)
    kept, metric = plan.left_to_learn(layer), plan.metric(FFN, layer)
    return reconstructed(pruned, block, site.rank, kept, text, metric, how)


def site_name(kind: int, layer: int) -> str:
    """The name of a site, such as `layer 3 ffn`."""
    return f"layer {layer} {KINDS[kind]}"


def fold_sites(
    block: Block, fold: Fold, plan: FoldPlan, on_site: Callable[[str, float], None]
) -> tuple[Layer, Fold, Learnt | None]:
    """(the two sites of the next block, whose dense tensors are `block`; the fold with the residuals after
    them in place of those before; what the FFN has learnt, if it is reconstructed).

    Raises:
        UserError: a site's Hessian is not finite or cannot be factorised; names the site.
    """
    layer, config, learnt, rank = fold.done, plan.config, None, None
    count = min(fold.real[0], max(1, stream.SHARE_TOKENS // fold.residual[0].shape[1]))
    sites: dict[str, Any] = {"error": [], "share": [], "damping": []}
    for kind in (ATTENTION, FFN):
        projection = OUTPUTS[KINDS[kind]]
        if kind == FFN:
            block, rank = choose_experts(block, fold, plan)
        weight = block[projection]
        entering, fold = collect(kind, block, fold, weight.size // config.hidden, config)
        site, passed = prune_kind(kind, layer, entering, block, plan, rank)
        on_site(site_name(kind, layer), float(devices.fetch(site.damping)))
        units, metric = entering.units, plan.metric(kind, layer)
        share = stream.output_share(block, fold.residual[0], units[0], metric, kind, count, config)
        pruned, weights = block | {projection: passed.reshape(weight.shape)}, site.weights
        del entering
        if kind == FFN and plan.left_to_learn(layer):
            units = [None] * len(units)  # These are large, and must be computed again.
            learnt = reconstruct(block, site, fold, plan)
            pruned, weights = block | learnt.tensors, learnt.tensors[projection]
        fold = pass_on(kind, pruned, fold, units, config)
        del units
        sites[WEIGHT_FIELDS[kind]] = weights.reshape(-1, *weight.shape)
        sites[RANK_FIELDS[kind]] = site.rank
        for name, value in (("error", site.error), ("share", share), ("damping", site.damping)):
            sites[name].append(value)
    stacked = {name: jnp.stack(part) if isinstance(part, list) else part for name, part in sites.items()}
    return stacked, fold, learnt


def fold_block(params: Params, fold: Fold, plan: FoldPlan, on_site: Callable[[str, float], None]) -> Fold:
    """Prune the next block and pass the residuals on (a step of Algorithm 2). The residuals after the block
    take the place of those in `fold`.

    Raises:
        UserError: a site's Hessian is not finite or cannot be factorised; names the site.
    """
    layer = fold.done
    block = jax.tree.map(jnp.asarray, layer_block(params["blocks"], layer))
    block = devices.settle(devices.spread(block, plan.config.hidden))
    sites, fold, learnt = fold_sites(block, fold, plan, on_site)
    if learnt:
        # The supernet has the projection itself.
        rest = {name: array for name, array in learnt.tensors.items() if name != OUTPUTS["ffn"]}
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
    chex.assert_shape(plan.grid.kept, (len(KINDS), plan.config.depth, None))
    fold = begun
    if fold is None:
        dtype = params["blocks"]["o"].dtype
        empty = empty_supernet(dtype, plan.config, plan.grid, plan.settings, plan.scratch)
        fold = begin_fold(params, empty, texts, batch_tokens, plan.scratch, plan.drift > 0)
    while fold.done < plan.config.depth:
        fold = fold_block(params, fold, plan, on_site)
        on_block(fold)
    learnt = tuple(each and each.tensors for each in fold.learnt)
    return fold.supernet.replace(learnt=learnt)  # type: ignore[attr-defined]
