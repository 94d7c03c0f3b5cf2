"""A custom saliency and a custom local pruner, both based on the size of weights and activations.

python -m tyr_jax.prune --preset quick --saliency examples.pruner:Energy --output by-energy
python -m tyr_jax.prune --preset quick --pruner examples.pruner:KeepRows --output without-update
"""

import dataclasses

import jax
import jax.numpy as jnp

from tyr_jax.pruning.saliency import Saliency, SiteStatistics
from tyr_jax.pruning.site import LocalPruner, PrunedSite, Site, keep_rows, rank_by


@dataclasses.dataclass(frozen=True)
class Energy(Saliency):
    """Order units by the energy that their channels add, ‖X_p‖² ‖W_p‖², after every update of the weights."""

    def __call__(self, site: SiteStatistics) -> jax.Array:
        """The mean over the channels of each unit."""
        return site.per_unit(jnp.diagonal(site.gram) * jnp.sum(site.weight**2, axis=1))


@dataclasses.dataclass(frozen=True)
class KeepRows(LocalPruner):
    """Use the same order from the dense weights, and never update the weights (with a
    power of 1, the saliency of optimal brain damage: LeCun et al. 1989)."""

    power: float = 1.0
    """Power of the activations' energy."""

    def __call__(self, site: Site) -> PrunedSite:
        """The dense rows of the units with the most energy."""
        energy = jnp.diagonal(site.gram) ** self.power * jnp.sum(site.weight**2, axis=1)
        return keep_rows(site, rank_by(site.per_unit(energy)))
