"""llama.cpp's own quantiser, for the types that it alone writes."""

import functools
from pathlib import Path
from typing import Any

from gguf import LlamaFileType

from tyr_jax.errors import UserError

TYPES = {
    "q6_k": LlamaFileType.MOSTLY_Q6_K,
    "q5_k_m": LlamaFileType.MOSTLY_Q5_K_M,
    "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M,
    "q3_k_m": LlamaFileType.MOSTLY_Q3_K_M,
}
"""Mixtures of types by llama.cpp's names for them."""

MULTIPLE = 256
"""Numbers that these types store together: rows that are no multiple get a larger type."""


def bindings() -> tuple[Any, Any]:
    """(cffi's interface, llama.cpp), silenced.

    Raises:
        UserError: it is not installed.
    """
    try:
        from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib
    except ImportError:
        raise UserError(
            f"{', '.join(TYPES)} are written by llama.cpp, which is not installed: pip install "
            "'tyr-jax[llama]', or choose another type with --quantize"
        ) from None
    ffi, lib = get_ffi(), get_lib()
    lib.llama_log_set(_silence(ffi), ffi.NULL)
    lib.llama_backend_init()
    return ffi, lib


@functools.cache
def _silence(ffi: Any) -> Any:
    """A callback that drops llama.cpp's log; kept, as it must outlive the call that takes it."""
    return ffi.callback("void(enum ggml_log_level, char *, void *)", lambda level, text, data: None)


def quantise_file(source: Path, target: Path, kind: str) -> None:
    """Write the GGUF file `source` again as `target`, in `kind` of `TYPES`.

    Raises:
        UserError: llama.cpp is not installed, or refuses.
    """
    ffi, lib = bindings()
    parameters = ffi.new("llama_model_quantize_params *", lib.llama_model_quantize_default_params())
    parameters.ftype = int(TYPES[kind])
    if lib.llama_model_quantize(str(source).encode(), str(target).encode(), parameters):
        raise UserError(f"llama.cpp could not quantise {source} to {kind}; choose another with --quantize")
