"""Kinds of site defined outside the package: whole sublayers, and tiles of neurons, as one record each.

What a unit is follows from how many units a layer has, because they divide the axis that they lie along. With
a single unit, a sublayer stays or goes as a whole. Tiles of 16 neurons keep FFN widths multiples of 16.

Run these from the directory above this one:

    python -m tyr_jax.prune --preset quick --units examples.kind:WHOLE_FFN --output fewer-ffns
    python -m tyr_jax.prune --preset quick --units examples.kind:TILES --output tiles
"""

import dataclasses

from tyr_jax.pruning.kinds import HEADS, NEURONS

WHOLE_ATTENTION = dataclasses.replace(
    HEADS,
    unit="whole",
    noun="attention sublayers",
    count=lambda config: 1,
    whole=lambda config: False,  # without all heads, no norm over them is left
    spreads=None,
)
WHOLE_FFN = dataclasses.replace(
    NEURONS, unit="whole", noun="FFNs", count=lambda config: 1, fine=False, learns=False
)
TILES = dataclasses.replace(
    NEURONS,
    unit="tile",
    noun="tiles of 16 neurons",
    count=lambda config: config.dense_shape.ffn // 16,
    there=lambda config: config.one_ffn and config.dense_shape.ffn % 16 == 0,
    fine=False,
)
