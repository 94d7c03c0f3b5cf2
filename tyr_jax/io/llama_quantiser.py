"""The process in which llama.cpp quantises a file; `tyr_jax.io.llama_cpp` starts it, as a file of its own.

Where llama.cpp finds a file not to be what it takes for granted, it aborts the process that it runs in. What
it logs goes to stderr. It imports nothing of this package.
"""

import os
import sys


def main(source: str, target: str, kind: int) -> int:
    """Write a GGUF file again, in the type that has this number; returns zero if that worked."""
    from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

    ffi, lib = get_ffi(), get_lib()
    lib.llama_backend_init()
    parameters = ffi.new("llama_model_quantize_params *", lib.llama_model_quantize_default_params())
    parameters.ftype = kind
    return int(lib.llama_model_quantize(os.fsencode(source), os.fsencode(target), parameters))


if __name__ == "__main__":
    raise SystemExit(bool(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
