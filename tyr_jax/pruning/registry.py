"""Saliencies and local pruners by name, as for `--saliency` and `--pruner`."""

from tyr_jax.pruning.criteria import BrainDamage, Magnitude, WandaSP
from tyr_jax.pruning.keep import Keep
from tyr_jax.pruning.obs import OBS
from tyr_jax.pruning.osscar import OSSCAR
from tyr_jax.pruning.saliency import Saliency, TaylorSaliency
from tyr_jax.pruning.site import LocalPruner

SALIENCIES: dict[str, type[Saliency]] = {
    each.name: each for each in (TaylorSaliency, Magnitude, WandaSP, BrainDamage)
}

PRUNERS: dict[str, type[LocalPruner]] = {each.name: each for each in (OBS, Keep, OSSCAR)}
