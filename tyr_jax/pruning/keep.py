"""The local pruner that changes no weight: units leave in the order of their saliency in the dense model.

Axis letters here: `U` units of a site, `b` input channels of a unit, `d_in = U·b`, `D` outputs.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from tyr_jax.pruning.obs import Known
from tyr_jax.pruning.saliency import SiteStatistics
from tyr_jax.pruning.site import LocalPruner, PrunedSite, Site, keep_rows, rank_by, unit_blocks


@dataclasses.dataclass(frozen=True)
class Keep(LocalPruner):
    """Dense rows of the units of greatest saliency, which is computed once, in the dense model."""

    name: ClassVar[str] = "keep"

    def __call__(self, site: Site) -> PrunedSite:
        """Every level: the dense weights of the units that it keeps."""
        if site.rank is not None:
            return keep_rows(site, site.rank)
        known = Known.of(site)
        blocks = unit_blocks(known.inverse, site.unit_size)
        score = site.saliency(SiteStatistics(site.gram, *known.turned(site.metric), blocks))
        kept = keep_rows(site, rank_by(score))
        return kept._replace(error=jnp.where(jnp.isnan(score).any(), jnp.nan, kept.error))
