"""Latencies of sublayers, measured on some device, as a resource that a budget can limit.

A table lists the seconds of attention for each pair of head and key/value head counts, and of FFNs at
several widths; other widths are interpolated. `scripts/measure_latencies.py` measures one on the device at
hand, which need not be the one that prunes.
"""

import functools
from pathlib import Path
from typing import Annotated

import numpy as np
import pydantic

from tyr_jax.errors import UserError, first_line
from tyr_jax.files import check_regular, read_text
from tyr_jax.model.spec import LayerShape, Sublayer

NANOSECONDS = 1e9

Count = Annotated[int, pydantic.Field(ge=0, le=2**40)]
Seconds = Annotated[float, pydantic.Field(gt=0, le=1e6)]


class Latencies(pydantic.BaseModel, frozen=True, extra="forbid"):
    """A table of latencies: the `device`, the `tokens` of a timed pass, `attention` as (heads, key/value
    heads, seconds), and `ffn` as (width, seconds)."""

    device: str
    tokens: Count
    attention: Annotated[tuple[tuple[Count, Count, Seconds], ...], pydantic.Field(min_length=1)]
    ffn: Annotated[tuple[tuple[Count, Seconds], ...], pydantic.Field(min_length=1)]

    def nanoseconds(self, sublayer: Sublayer, shape: LayerShape) -> int:
        """Nanoseconds of a sublayer in a layer of this `shape`.

        Times are made monotonic, because noise can make a larger sublayer seem faster.

        Raises:
            UserError: this shape is not in the table.
        """
        by_name = {"attention": lambda: self._attention(shape), "ffn": lambda: self._ffn(shape.ffn)}
        return by_name[sublayer]()

    def _attention(self, shape: LayerShape) -> int:
        """Nanoseconds of attention."""
        if not shape.heads:
            return 0
        if (shape.heads, shape.kv_heads) not in {(heads, groups) for heads, groups, _ in self.attention}:
            raise UserError(
                f"--latencies has no attention of {shape.heads} heads and {shape.kv_heads} key/value heads: "
                "measure a table for this model"
            )
        smaller = [
            seconds
            for heads, groups, seconds in self.attention
            if heads <= shape.heads and groups <= shape.kv_heads
        ]
        return round(max(smaller) * NANOSECONDS)

    def _ffn(self, width: int) -> int:
        """Nanoseconds of an FFN."""
        widths, seconds = (np.array(column) for column in zip(*sorted(self.ffn), strict=True))
        if width > widths[-1]:
            raise UserError(
                f"--latencies has no FFN of {width} neurons, only up to {widths[-1]}: measure a table for "
                "this model"
            )
        each = np.maximum.accumulate(seconds)
        return round(float(np.interp(width, widths, each)) * NANOSECONDS) if width else 0


def read_latencies(file: str) -> Latencies:
    """The table in a JSON file.

    Raises:
        UserError: there is no such file, or it is no table.
    """
    path = Path(file).expanduser()
    check_regular(path, "--latencies")
    try:
        return _read(path, path.stat().st_mtime_ns)
    except (OSError, ValueError) as error:
        raise UserError(
            f"--latencies {file} is not a readable table ({first_line(error)}); measure it again with "
            "scripts/measure_latencies.py"
        ) from error


@functools.lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> Latencies:
    """The table in a file that was last changed at this time, in nanoseconds."""
    return Latencies.model_validate_json(read_text(path))
