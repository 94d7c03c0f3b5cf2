"""Alternatives to the paper's saliency, each by the statistics of a site alone.

With `--pruner keep`, units leave in this order and no weight changes, as in the papers that these come from.
With the default pruner, the remaining weights are refitted after every removal.

Axis letters here: `U` units of a site, `d_in` its input channels, `D` outputs.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from tyr_jax.pruning.saliency import Saliency, SiteStatistics


@dataclasses.dataclass(frozen=True)
class Magnitude(Saliency):
    """The size of a unit's weights: ‖W_u‖², a mean over its channels.

    Han, Pool, Tran and Dally, "Learning both Weights and Connections for Efficient Neural Networks",
    NeurIPS 2015.
    """

    name: ClassVar[str] = "magnitude"

    def __call__(self, site: SiteStatistics) -> jax.Array:
        """Saliency of every unit `[U]`."""
        return site.per_unit(jnp.sum(site.weight**2, axis=1))


@dataclasses.dataclass(frozen=True)
class WandaSP(Saliency):
    """Weights times activations: Σ_j |W_pj| · ‖X_p‖ per channel, a mean over a unit's channels.

    Sun, Liu, Bair and Kolter, "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024;
    for units, as in An, Zhao, Yu, Tang and Wang, "Fluctuation-based Adaptive Structured Pruning for Large
    Language Models", AAAI 2024.
    """

    name: ClassVar[str] = "wanda-sp"

    def __call__(self, site: SiteStatistics) -> jax.Array:
        """Saliency of every unit `[U]`."""
        norms = jnp.sqrt(jnp.maximum(jnp.diagonal(site.gram), 0))
        return site.per_unit(norms * jnp.sum(jnp.abs(site.weight), axis=1))


@dataclasses.dataclass(frozen=True)
class BrainDamage(Saliency):
    """What a channel puts out by itself: ‖X_p‖² ‖W_p‖², a mean over a unit's channels.

    It is the error of removing the channel alone if no other weight changes: only the diagonal of the Hessian
    counts (LeCun, Denker and Solla, "Optimal Brain Damage", NeurIPS 1989).
    """

    name: ClassVar[str] = "obd"

    def __call__(self, site: SiteStatistics) -> jax.Array:
        """Saliency of every unit `[U]`."""
        return site.per_unit(jnp.diagonal(site.gram) * jnp.sum(site.weight**2, axis=1))
