"""A kind of site as the search sees it: how many units a layer has, and in which multiples they are kept.

Axis letters: `L` layers.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of site: the `units` that a layer has, and the `multiple` that they are counted in. Layers for
    which `layers [L]` is false lack the kind; where it is empty, all have it."""

    name: str
    units: int
    multiple: int
    layers: tuple[bool, ...] = ()

    def there(self, depth: int) -> np.ndarray:
        """Which of `depth` layers have it, `[L]`."""
        return np.array(self.layers or [True] * depth)

    def most(self, depth: int) -> np.ndarray:
        """Units that each of `depth` layers has, `[L]`."""
        return self.units * self.there(depth)
