"""How sites are pruned, and what a pruned site passes on to the next."""

import dataclasses
import math
from typing import Annotated, Literal, cast, get_args

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from tyr_jax.errors import UserError, require
from tyr_jax.model.spec import ModelConfig
from tyr_jax.pruning.hessian import DampingScale
from tyr_jax.pruning.kinds import SITE_KINDS, SiteKind, check_kinds, find_kind
from tyr_jax.pruning.latency import Latencies, read_latencies
from tyr_jax.pruning.obs import OBS
from tyr_jax.pruning.saliency import Saliency, TaylorSaliency
from tyr_jax.pruning.site import LocalPruner, Site, removal_schedule
from tyr_jax.space import Kind

Resource = Literal["parameters", "active-parameters", "flops", "kv-cache", "latency"]
RESOURCES: tuple[str, ...] = get_args(Resource)
"""What the blocks of a model take, and a budget can limit."""

Accumulation = Literal["expectation", "uniform", "random", "centre", "none"]


@dataclasses.dataclass(frozen=True)
class PruningSettings:
    """How sites are pruned and errors accumulated."""

    budget: Literal["parameters", "active-parameters", "flops", "latency", "units"] = "parameters"
    """What the sparsity is a share of: `parameters` of the blocks, which heads and neurons compete for; in a
    mixture of experts, `active-parameters`, those that a token uses; `flops` of a sequence of 2,048 tokens;
    the `latency` of the blocks, by the table of `--latencies`; or `units`, heads and neurons
    separately (as in the paper)."""
    at_most: Annotated[tuple[str, ...], tyro.conf.arg(metavar="RESOURCE=SHARE")] = ()
    """Further limits that the pruned model meets, as shares of what the dense model's blocks take:
    `kv-cache=0.5` halves the KV cache, `flops=0.6` leaves 60% of the FLOPs; also
    `parameters`, `active-parameters` and `latency`. With grouped-query attention, the KV cache shrinks only
    when whole key/value groups go: use `--units kv_group`."""
    latencies: Annotated[str, tyro.conf.arg(metavar="FILE")] = ""
    """Table of latencies that `scripts/measure_latencies.py` has written, for the device that the pruned
    model is to be fast on."""
    accumulation: Accumulation = "expectation"
    """What a pruned site passes on to the next: the expectation over its levels (Eq. 5), their `uniform`
    mean, a `random` level, the `centre` level, or `none` (the dense output)."""
    pruner: LocalPruner = dataclasses.field(default_factory=OBS)
    """Local pruner"""
    saliency: Saliency = dataclasses.field(default_factory=TaylorSaliency)
    """Saliency"""
    metric: Literal["fisher", "none"] = "fisher"
    """How a change of a site's output counts: `fisher` by how much it changes the model's predictions, from
    one backward pass of the dense model, so that the errors of all sites are in nats; `none` by its squared
    size (as in the paper)."""
    metric_tokens: int = 16384
    """Tokens of the calibration text that `--metric fisher` is computed on."""
    drift: float = 0.5
    """Drift is how far the pruned sites before a site have moved the residual stream away from the dense
    model's. The last pruning (`--refit`) corrects this share of it; 0 corrects none (as in the paper)."""
    reconstruct: Annotated[int, tyro.conf.arg(metavar="PASSES")] = 0
    """Passes over the calibration text that train what is left of each FFN, as soon as it is pruned to the
    distribution found. This project's results in the documentation use 4; 0, the default, skips
    this (as in the paper)."""
    damping: float = 0.01
    """Damping added to the diagonal of XᵀX, as a fraction of that diagonal."""
    damping_scale: DampingScale = "channel"
    """Damping relative to the `mean` of the diagonal (as in the paper), or to each `channel`'s own entry."""
    neuron_chunk: int = 16
    """Neurons removed between two updates of the remaining weights."""
    units: Annotated[tuple[str, ...], tyro.conf.arg(metavar="UNIT [UNIT ...]")] = ()
    """What is removed, where that is not the default. Of attention: `head`, single heads (the default, as in
    the paper), or `kv_group`, whole key/value groups. Of FFNs: `neuron` (the default); in a mixture of
    experts, that is the same number of neurons of every expert of a layer, and `expert` removes whole
    experts: those of the smallest outputs first, whatever the `--pruner`, and their tokens go to the
    remaining ones. Or MODULE:NAME of a kind of site of your own."""
    neuron_multiple: int = 8
    """FFN widths are kept a multiple of this; 128 suits TPUs."""
    keep_heads: tuple[int, ...] = ()
    """Layers, counted from 0, whose attention is not pruned; other layers are pruned more to compensate."""
    keep_neurons: tuple[int, ...] = ()
    """Layers, counted from 0, whose FFN is not pruned; other layers are pruned more to compensate."""

    @property
    def shares(self) -> dict[Resource, float]:
        """The limits of `--at-most`: shares of the dense model's blocks, by resource.

        Raises:
            UserError: one is not a limit; names it and says what is wanted.
        """
        found: dict[Resource, float] = {}
        for limit in self.at_most:
            name, _, share = limit.partition("=")
            try:
                value = float(share)
            except ValueError:
                value = math.nan
            wanted = f"RESOURCE=SHARE, such as kv-cache=0.5, with a resource of {', '.join(RESOURCES)}"
            require(name in RESOURCES and 0 < value <= 1, "--at-most", limit, wanted)
            wanted = "one limit for each resource, and none for that of --budget, which --sparsity limits"
            require(name not in found and name != self.budget, "--at-most", limit, wanted)
            found[cast(Resource, name)] = value
        require(not found or self.budget != "units", "--at-most", " ".join(self.at_most),
                "left out with --budget units, which counts heads and neurons apart")  # fmt: skip
        return found

    @property
    def resources(self) -> tuple[Resource, ...]:
        """What is limited: that of `--budget` first, then those of `--at-most`; nothing with a budget of
        units."""
        further = self.shares
        return () if self.budget == "units" else (self.budget, *further)

    def table(self, resource: Resource) -> Latencies | None:
        """The table of `latencies`, if it is what the resource is counted by.

        Raises:
            UserError: the file is no table.
        """
        return read_latencies(self.latencies) if self.latencies and resource == "latency" else None

    def site_kinds(self, config: ModelConfig) -> tuple[SiteKind, ...]:
        """The kinds of site of a model.

        Raises:
            UserError: `units` names one that the model does not have, or cannot be used as asked.
        """
        chosen: dict[str, SiteKind] = {}
        for kind in SITE_KINDS:
            if kind.there(config):
                chosen.setdefault(kind.name, kind)
        named: dict[str, str] = {}
        for unit in self.units:
            kind = find_kind(unit, config)
            if kind.name in named:
                raise UserError(
                    f"--units names {named[kind.name]} and {unit}, but a model has one kind of {kind.name} "
                    "units: name one"
                )
            named[kind.name], chosen[kind.name] = unit, kind
        kinds = tuple(chosen.values())
        check_kinds(kinds, config)
        if self.reconstruct and not any(kind.learns for kind in kinds):
            raise UserError(
                "--reconstruct cannot train FFNs that have lost experts: leave out either it or "
                "--units expert"
            )
        return kinds

    def kinds(self, config: ModelConfig) -> tuple[Kind, ...]:
        """The kinds of site of a model, with their unit counts.

        Raises:
            UserError: see `site_kinds`.
        """
        return tuple(kind.of(config, self.neuron_multiple) for kind in self.site_kinds(config))

    def whole(self, config: ModelConfig) -> np.ndarray:
        """The sites that stay whole, as a mask `[S, L]`; also those of layers that lack the kind.

        Raises:
            UserError: a flag names a layer that the model does not have.
        """
        kinds, depth = self.site_kinds(config), config.depth
        sites = np.zeros((len(kinds), depth), bool)
        for row, kind in zip(sites, kinds, strict=True):
            row[:] = [kind.whole(config) or not kind.has(config, layer) for layer in range(depth)]
            for layer in getattr(self, kind.keep):
                if not 0 <= layer < depth:
                    flag = "--" + kind.keep.replace("_", "-")
                    raise UserError(f"{flag} names layer {layer}, but the model has layers 0 to {depth - 1}")
                row[layer] = True
        return sites

    def site(
        self,
        gram: jax.Array,
        weight: jax.Array,
        kept: np.ndarray,
        exists: np.ndarray,
        units: int,
        metric: jax.Array | None = None,
        rank: jax.Array | None = None,
    ) -> Site:
        """A site of `units` units with levels `kept [E]`, of which those in `exists [E]` exist.

        `gram [d_in, d_in]` is XᵀX of its inputs, `weight [d_in, D]` its dense weight, and `metric [D, D]`
        that of its output. `rank [U]` is that of its units, if it is settled. All arrays may be abstract. A
        site of experts has `gram [X, F, F]`.
        """
        unit_size = gram.shape[-1] // units
        chunk = min(self.neuron_chunk, units) if unit_size == 1 else 1
        schedule = removal_schedule(units, chunk, kept, exists)
        counts = jnp.asarray(kept), jnp.asarray(schedule)
        given = metric, rank
        return Site(
            gram, weight, *counts, unit_size, chunk, self.damping, self.damping_scale, self.saliency, *given
        )
