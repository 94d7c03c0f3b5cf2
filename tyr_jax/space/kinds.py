"""The two kinds of site: row 0 is attention (units: heads or key/value groups), row 1 the FFN (neurons)."""

import dataclasses
from typing import Literal

KINDS: tuple[Literal["attention"], Literal["ffn"]] = ("attention", "ffn")


ATTENTION, FFN = 0, 1


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of site: the `units` that a layer has, and the `multiple` that they are counted in."""

    name: str
    units: int
    multiple: int
