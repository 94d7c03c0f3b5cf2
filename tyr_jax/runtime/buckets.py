"""Widths that what keeps only some of a site's units runs at: shapes must be static."""

import numpy as np

from tyr_jax.runtime import devices

BUCKETS = 8
"""Widths that what keeps only some of a site's units runs at, at most: each is compiled, which takes most of
two minutes for those of a large model."""


CPU_BUCKETS = 16
"""The same on a CPU, where they compile in seconds."""


def bucket_widths(units: int, unit_size: int = 1) -> tuple[int, ...]:
    """At most `BUCKETS` widths from small to whole, evenly apart, each of whole units of `unit_size`."""
    count = CPU_BUCKETS if devices.are_cpus() else BUCKETS
    edges = np.unique(-(-units * np.arange(1, count + 1) // count))
    return tuple(int(edge) * unit_size for edge in edges)
