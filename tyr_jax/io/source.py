"""What a checkpoint of any format gives: its tensors."""

from typing import Protocol

import numpy as np


class TensorSource(Protocol):
    """Named tensors of a checkpoint, in Hugging Face's names and layout, read one at a time."""

    def keys(self) -> set[str]:
        """Names of all tensors."""
        ...

    def read(self, key: str) -> np.ndarray:
        """One tensor (float32, bfloat16 or float16).

        Raises:
            UserError: it cannot be read; names it.
        """
        ...

    def dtype(self, key: str) -> np.dtype:
        """The type in which a tensor is stored; float32 if it is quantised."""
        ...
