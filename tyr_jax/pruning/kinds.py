"""The table of the kinds of site: what can be removed from a model, and how.

A kind of site is what `tyr_jax.model.spec.BLOCK_TENSORS` is for tensors: one record that says all that the
rest of the package needs. A stage loops over the kinds that a model has, and none asks which kind it holds.
So a kind of your own needs a record and nothing else::

    WHOLE = dataclasses.replace(
        NEURONS, unit="whole", noun="FFNs", count=lambda config: 1, fine=False, learns=False
    )

`--units my_module:WHOLE` then removes FFNs as a whole.

Axis letters as in `tyr_jax.model.spec`; `B` sequences, `T` tokens, `U` units of a site.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tyr_jax.errors import UserError, first_line, require
from tyr_jax.model import decoder
from tyr_jax.model.decoder import Rope
from tyr_jax.model.linear import linear
from tyr_jax.model.spec import Block, LayerShape, ModelConfig, Sublayer
from tyr_jax.plugins import load_object
from tyr_jax.pruning.cut import Picks, pick_experts, pick_heads, pick_neurons
from tyr_jax.pruning.site import LocalPruner, PrunedSite, Site, keep_experts, prune_experts, prune_site
from tyr_jax.space import Kind


@dataclasses.dataclass(frozen=True)
class SiteKind:
    """One kind of site: a projection whose inputs are removed unit by unit.

    The units lie along one `axis` of the projection's tensor, `output`: as many entries for each as the axis
    has for each of `count` units. An axis before it is one of sites that are pruned by themselves, such as
    experts; each of these keeps as many units.
    """

    name: str
    """Its name in records. A model has at most one kind of a name."""
    unit: str
    """Its name among the kinds of that name, for `--units`."""
    noun: str
    """What reports call its units."""
    sublayer: Sublayer
    """The sublayer that it belongs to, which is absent without units."""
    output: str
    """The tensor that is pruned: every level of a supernet has its own."""
    axis: str
    """The axis of `output` that the units lie along."""
    count: Callable[[ModelConfig], int]
    """Units of a layer. They divide the axis, so a unit is a run of equally many neighbours."""
    inputs: Callable[[Block, jax.Array, Rope, ModelConfig], jax.Array]
    """What enters the site, `[B, T, ...]`, from the residual `x [B, T, D]`."""
    after: Callable[[Block, jax.Array, jax.Array, ModelConfig], jax.Array]
    """What the site adds to the residual `x [B, T, D]`, from the product `[B, T, D]` with its output
    weights."""
    post_norm: str
    """The norm between the two, in models that have it."""
    keep: str
    """The field of `PruningSettings` that lists the layers whose sites stay whole."""
    pick: Callable[[np.ndarray, ModelConfig, int], Picks]
    """The picks of a layer that keeps these entries along `axis` (sorted), `[U]` or `[X, U]`. If none are
    kept but a bias must stay, the last argument is the number of units that carry it."""
    prune: Callable[[Site, LocalPruner], PrunedSite] = prune_site
    """How a site is pruned to all of its levels."""
    there: Callable[[ModelConfig], bool] = lambda config: True
    """Which models have it."""
    layers: Callable[[ModelConfig], tuple[bool, ...]] = lambda config: ()
    """Which layers have it; empty if all have. The sublayer adds nothing in the others."""
    whole: Callable[[ModelConfig], bool] = lambda config: False
    """From which models none of its units can be removed."""
    fine: bool = False
    """Whether there are many units of one entry each, kept in multiples of `--neuron-multiple`."""
    learns: bool = False
    """Whether what is left of its sublayer, which must be an FFN, can be reconstructed."""
    follow: Callable[[np.ndarray, ModelConfig], dict[str, np.ndarray]] = lambda kept, config: {}
    """Masks of further axes, by axis, whose entries serve only removed units, from the mask of `axis`."""
    reads: tuple[tuple[str, Callable[[jax.Array, ModelConfig], jax.Array]], ...] = ()
    """Tensors along `axis` that a block needs once its units are in another order, from that order."""
    admit: Callable[[Any], Block] | None = None
    """Tensors that tell the sublayer which units are kept, from a mask `[..., U]`: for units without which
    the inputs of others change. None for units of which each computes its own."""
    spreads: Callable[[int, ModelConfig], Iterator[np.ndarray]] | None = None
    """The choices of this many entries along `axis` that differ in price; None if only their number
    counts."""
    cached: Callable[[ModelConfig, LayerShape], int] = lambda config, shape: 0
    """Numbers of a token in the cache of keys and values."""
    paired: Callable[[ModelConfig, LayerShape], int] = lambda config, shape: 0
    """FLOPs for every pair of a token with one that it attends to."""

    def of(self, config: ModelConfig, multiple: int) -> Kind:
        """The kind as the search sees it, with its number of units and what these are multiples of."""
        return Kind(self.name, self.count(config), multiple if self.fine else 1, self.layers(config))

    def has(self, config: ModelConfig, layer: int) -> bool:
        """Whether a layer has it."""
        return (self.layers(config) or (True,) * config.depth)[layer]

    def shape(self, config: ModelConfig) -> tuple[int, ...]:
        """Shape of `output` in a dense model."""
        return tuple(config.sizes()[axis] for axis in config.axes[self.output])

    def span(self, config: ModelConfig) -> int:
        """Entries along `axis` of a unit."""
        return config.sizes()[self.axis] // self.count(config)

    def rank_shape(self, config: ModelConfig) -> tuple[int, ...]:
        """Shape of the ranks of a site's units: `[U]`, or `[X, U]` if experts are pruned by themselves."""
        before = config.axes[self.output].partition(self.axis)[0]
        return (*(config.sizes()[axis] for axis in before), self.count(config))

    def apart(self, config: ModelConfig) -> bool:
        """Whether every expert has an XᵀX of its own."""
        return "X" in config.axes[self.output]

    def gram_shape(self, config: ModelConfig) -> tuple[int, ...]:
        """Shape of XᵀX in a dense model: `[d_in, d_in]`, or with experts `[X, F, F]`."""
        *rows, _ = self.shape(config)
        experts = rows[:1] if self.apart(config) else []
        size = math.prod(rows[len(experts) :])
        return (*experts, size, size)

    def entries(self, units: Any, config: ModelConfig) -> Any:
        """Entries along `axis` of `units [..., U]`: `[..., U · span]`."""
        span, xp = self.span(config), jnp if isinstance(units, jax.Array) else np
        return (units[..., None] * span + xp.arange(span)).reshape(*units.shape[:-1], -1)

    def out(self, block: Block, x: jax.Array, units: jax.Array, config: ModelConfig) -> jax.Array:
        """What the site adds to the residual `x [B, T, D]` before it, from what enters it, `units [B, T,
        ...]`."""
        # For a product over two axes, XLA would copy and transpose both operands.
        return self.after(block, x, linear(units.reshape(*units.shape[:2], -1), block[self.output]), config)

    def add(self, block: Block, x: jax.Array, rope: Rope, config: ModelConfig) -> jax.Array:
        """The residual `[B, T, D]` after the site; unchanged if its sublayer is absent."""
        if self.output not in block:
            return x
        return x + self.out(block, x, self.inputs(block, x, rope, config), config)


def head_groups(kept: np.ndarray, config: ModelConfig) -> dict[str, np.ndarray]:
    """The key/value groups of which the mask `kept [N]` keeps a head."""
    return {"K": np.any(kept.reshape(config.dense_shape.kv_heads, -1), axis=-1)}


def group_of_heads(order: jax.Array, config: ModelConfig) -> jax.Array:
    """The key/value head of each of the query heads `order [..., N]`."""
    return order // (config.dense_shape.heads // config.dense_shape.kv_heads)


def head_spreads(count: int, config: ModelConfig) -> Iterator[np.ndarray]:
    """Every way to spread `count` heads over key/value groups."""
    groups, size = config.dense_shape.kv_heads, config.dense_shape.heads // config.dense_shape.kv_heads
    for choice in itertools.combinations_with_replacement(range(size + 1), groups):
        if sum(choice) == count:
            heads = [group * size + np.arange(kept) for group, kept in enumerate(choice)]
            yield np.concatenate(heads).astype(int)


HEADS = SiteKind(
    name="attention",
    unit="head",
    noun="heads",
    sublayer="attention",
    output="o",
    axis="N",
    count=lambda config: config.dense_shape.heads,
    inputs=decoder.attention_units,
    after=lambda block, x, out, config: decoder.after_attention(block, out, config),
    post_norm="attn_post_norm",
    keep="keep_heads",
    pick=pick_heads,
    # A norm over all heads would divide by another number without some of them.
    whole=lambda config: config.wide_qk_norm,
    follow=head_groups,
    reads=(("kv_head", group_of_heads),),
    spreads=head_spreads,
    cached=lambda config, shape: 2 * config.head_dim * shape.kv_heads,
    paired=lambda config, shape: 4 * config.head_dim * shape.heads,
)
"""Single heads of attention (the paper)."""

GROUPS = dataclasses.replace(
    HEADS,
    unit="kv_group",
    noun="key/value groups",
    count=lambda config: config.dense_shape.kv_heads,
    # All whole groups cost the same.
    spreads=lambda count, config: iter([np.arange(count)]),
)
"""Whole key/value groups."""

NEURONS = SiteKind(
    name="ffn",
    unit="neuron",
    noun="FFN neurons",
    sublayer="ffn",
    output="down",
    axis="F",
    count=lambda config: config.dense_shape.ffn,
    inputs=lambda block, x, rope, config: decoder.ffn_units(block, x, config),
    after=decoder.after_ffn,
    post_norm="mlp_post_norm",
    keep="keep_neurons",
    pick=pick_neurons,
    there=lambda config: config.one_ffn,
    fine=True,
    learns=True,
)
"""Neurons of an FFN (the paper)."""

EXPERT_NEURONS = dataclasses.replace(
    NEURONS, noun="neurons of every expert", prune=prune_experts, there=lambda config: config.experts
)
"""The same number of neurons of every expert of a layer."""

EXPERTS = dataclasses.replace(
    EXPERT_NEURONS,
    unit="expert",
    noun="experts",
    axis="X",
    count=lambda config: config.dense_shape.experts,
    pick=pick_experts,
    prune=keep_experts,
    fine=False,
    learns=False,
    admit=lambda kept: {"kept_experts": kept},
)
"""Whole experts."""

SITE_KINDS = (HEADS, GROUPS, NEURONS, EXPERT_NEURONS, EXPERTS)
"""All kinds. The first of a name that a model has is its default."""


def find_kind(unit: str, config: ModelConfig) -> SiteKind:
    """The kind of site of a model whose units have this name, or that MODULE:NAME refers to.

    Raises:
        UserError: there is no such kind, or the model does not have it.
    """
    if ":" in unit:
        kind = load_object(unit, "unit", SiteKind)
        known, wanted = [kind], "a model that it is made for"
    else:
        known = [kind for kind in SITE_KINDS if kind.unit == unit]
        wanted = "a mixture of experts"
        names = ", ".join(dict.fromkeys(kind.unit for kind in SITE_KINDS))
        require(bool(known), "--units", unit, f"{names}, or MODULE:NAME of your own")
    for kind in known:
        if kind.there(config):
            return kind
    raise UserError(f"--units {unit} needs {wanted}, which this {config.family} model is not: leave it out")


def check_kinds(kinds: Sequence[SiteKind], config: ModelConfig) -> None:
    """Check that kinds of site fit a model and each other.

    Raises:
        UserError: units do not divide their axis, a kind cannot count them, or two kinds prune one tensor.
    """
    for kind in kinds:
        named, size = f"the kind of site '{kind.unit}'", config.sizes()[kind.axis]
        try:
            count = kind.count(config)
        except Exception as error:
            what = f"{type(error).__name__}: {first_line(error)}"
            raise UserError(f"{named} failed in `count` with {what}; correct it") from error
        if not isinstance(count, int) or count < 1 or size % count:
            raise UserError(
                f"{named} counts {count} units in a layer, but must count a divisor of the {size} entries of "
                f"axis {kind.axis} of `{kind.output}`; change `count`, or exclude the model by `there`"
            )
        rivals = [other.unit for other in kinds if other.output == kind.output and other is not kind]
        if rivals:
            raise UserError(
                f"the kinds of site '{kind.unit}' and '{rivals[0]}' both prune `{kind.output}`: give them "
                "the same `name`, of which a model has one kind"
            )
