"""Widths that a site runs at when it keeps only some of its units: shapes must be static."""

import numpy as np

from tyr_jax.runtime import devices

BUCKETS = 8
"""Maximum number of widths that a site runs at. Each is compiled; all of them take almost two minutes for a
large model."""


CPU_BUCKETS = 16
"""The same on a CPU, where they compile in seconds."""


NARROWEST = 16
"""Least distance between widths, in channels: a smaller one is not worth a program of its own."""


def bucket_widths(units: int, channels: int = 1) -> tuple[int, ...]:
    """At most `BUCKETS` (on a CPU `CPU_BUCKETS`) widths, in units of `channels` channels each, evenly spaced
    up to all `units`."""
    most = CPU_BUCKETS if devices.are_cpus() else BUCKETS
    count = min(most, max(1, units * channels // NARROWEST))
    edges = np.unique(-(-units * np.arange(1, count + 1) // count))
    return tuple(int(edge) for edge in edges)
