"""The local pruner that changes no weight: units leave in the order of their saliency in the dense model.

Axis letters here: `U` units of a site, `b` input channels of a unit, `d_in = U·b`, `D` outputs.
"""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from tyr_jax.pruning import linalg
from tyr_jax.pruning.linalg import HIGHEST
from tyr_jax.pruning.obs import factorise
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
        dense = site.weight.astype(site.gram.dtype)
        hessian, inverse, _ = factorise(site.gram, site.damping, site.damping_scale)
        gradient = jnp.matmul(hessian.T, dense, precision=HIGHEST)
        if site.metric is not None:
            # In these output coordinates every change counts alike.
            root = linalg.factor(site.metric)
            dense, gradient = (linalg.matmul(array, root) for array in (dense, gradient))
        blocks = unit_blocks(inverse, site.unit_size)
        score = site.saliency(SiteStatistics(site.gram, dense, gradient, blocks))
        return keep_rows(site, rank_by(score))
