"""Widths that what keeps only some of a site's units runs at: shapes must be static."""

import numpy as np

from tyr_jax.runtime import devices

BUCKETS = 8
"""Widths that what keeps only some of a site's units runs at, at most: each is compiled, which takes most of
two minutes for those of a large model."""


CPU_BUCKETS = 16
"""The same on a CPU, where they compile in seconds."""


NARROWEST = 16
"""Channels that widths are at least apart: fewer are not worth a program."""


def bucket_widths(units: int, channels: int = 1) -> tuple[int, ...]:
    """At most `BUCKETS` widths, in units of so many `channels`, from small to whole and evenly apart."""
    most = CPU_BUCKETS if devices.are_cpus() else BUCKETS
    count = min(most, max(1, units * channels // NARROWEST))
    edges = np.unique(-(-units * np.arange(1, count + 1) // count))
    return tuple(int(edge) for edge in edges)
