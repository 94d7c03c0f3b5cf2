"""How much a unit of a site would be missed (Eq. 4). The units of least saliency are removed first.

Your own saliency is a frozen dataclass that maps the statistics of a site to a number for every unit::

    @dataclasses.dataclass(frozen=True)
    class Magnitude(Saliency):
        def __call__(self, site: SiteStatistics) -> jax.Array:
            return site.per_unit(jnp.linalg.norm(site.weight, axis=1))

`--saliency my_module:Magnitude` then removes units in that order.

Axis letters here: `U` units of a site, `b` input channels of a unit, `d_in = U·b`, `D` outputs.
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp

from tyr_jax.components import Component, broken, guarded
from tyr_jax.errors import require
from tyr_jax.pruning.linalg import HIGHEST


class SiteStatistics(NamedTuple):
    """What is known of a site after some of its units have been removed.

    `gram [d_in, d_in]` is XᵀX of its inputs. `weight [d_in, D]` is the remaining weight, zero for removed
    units. `gradient [d_in, D]` is G = Hs·W of the dense weight. `inverse [U, b, b]` has the diagonal blocks
    of Hs⁻¹, zero for removed units.
    """

    gram: jax.Array
    weight: jax.Array
    gradient: jax.Array
    inverse: jax.Array

    def per_unit(self, channels: jax.Array) -> jax.Array:
        """Means `[U]` of values `[d_in]` over the channels of every unit."""
        return channels.reshape(self.inverse.shape[:2]).mean(axis=1)


class Saliency(Component):
    """Base of all saliencies."""

    role: ClassVar[str] = "saliency"

    def __call__(self, site: SiteStatistics) -> jax.Array:
        """The saliency of every unit, `[U]`; pure and traceable by JAX."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class TaylorSaliency(Saliency):
    """The terms of Eq. 4 that count, and how a unit of several channels combines them.

    The default is the exact rise of the layer's error, which measured best on held-out text. It is that of
    Kurtic, Frantar and Alistarh, "ZipLM: Inference-Aware Structured Pruning of Language Models", NeurIPS
    2023. The paper's is `abs` and `channel`.
    """

    name: ClassVar[str] = "taylor"

    first_order: Literal["abs", "signed", "none"] = "none"
    """First-order term: `abs` is |G_p · W_p| per channel (as in the paper), `signed` the sum over a unit's
    channels without the modulus (the public code)."""
    second_order: Literal["channel", "block", "none"] = "block"
    """Second-order term: `channel` is ‖W_p‖² / 2[Hs⁻¹]_pp per channel (as in the paper), `block` the joint
    form ½ tr(W_uᵀ ([Hs⁻¹]_uu)⁻¹ W_u) of a unit, the exact rise of the layer's error."""

    def check(self) -> None:
        """Refuse a saliency without any term."""
        both_off = self.first_order == self.second_order == "none"
        require(not both_off, "--second-order", "none", "something else where --first-order is none too")

    def __call__(self, site: SiteStatistics) -> jax.Array:
        """Saliency of every unit `[U]` (Eq. 4).

        Terms are per channel and averaged over a unit. The `signed` and `block` terms are joint over the
        unit, and divided by its number of channels to stay on the same scale.
        """
        weight, blocks = site.weight, site.inverse
        units, unit_size = blocks.shape[:2]
        first = jnp.sum(site.gradient * weight, axis=1)
        if self.first_order == "abs":
            first = jnp.abs(first)
        elif self.first_order == "none":
            first = jnp.zeros_like(first)
        score = site.per_unit(first)
        if self.second_order == "none":
            return score
        if self.second_order == "channel" or unit_size == 1:
            variance = jnp.maximum(jnp.diagonal(blocks, axis1=1, axis2=2), jnp.finfo(blocks.dtype).tiny)
            second = jnp.sum(weight * weight, axis=1).reshape(units, unit_size) / (2 * variance)
            return score + second.mean(axis=1)
        # Removed units have an empty block; the identity keeps the solve finite and they are masked anyway.
        empty = jnp.trace(blocks, axis1=1, axis2=2) <= 0
        blocks = jnp.where(empty[:, None, None], jnp.eye(unit_size, dtype=blocks.dtype), blocks)
        rows = weight.reshape(units, unit_size, -1)
        energy = jnp.einsum("ubd,ubd->u", rows, jnp.linalg.solve(blocks, rows), precision=HIGHEST)
        return score + energy / (2 * unit_size)


PAPER_SALIENCY = TaylorSaliency("abs", "channel")


def check_saliency(saliency: Saliency) -> None:
    """Try a saliency on abstract arrays.

    Raises:
        UserError: the saliency breaks its contract; names it and says how.
    """
    for units, unit_size in ((3, 1), (3, 2)):
        size, outputs = units * unit_size, 5
        shapes = (size, size), (size, outputs), (size, outputs), (units, unit_size, unit_size)
        arrays: Any = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
        site = SiteStatistics(*arrays)
        with guarded(saliency, "__call__"):
            score = jax.eval_shape(saliency.__call__, site)
        if getattr(score, "shape", None) != (units,):
            raise broken(
                saliency, f"returns {score!r} for {units} units: it must return an array of shape ({units},)"
            )
        if not jnp.issubdtype(score.dtype, jnp.floating):
            raise broken(saliency, f"returns numbers of type {score.dtype}: they must be floating-point ones")
