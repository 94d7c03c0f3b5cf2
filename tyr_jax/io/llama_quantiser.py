"""The script in which llama.cpp quantises a file; `tyr_jax.io.llama_cpp` runs it as a separate process.

If a file is not as llama.cpp assumes, llama.cpp aborts the process that it runs in. Its log goes to stderr.
This script imports nothing of this package.
"""

import os
import sys


def main(source: str, target: str, kind: int) -> int:
    """Quantise a GGUF file to llama.cpp's file type number `kind`. Returns zero on success."""
    from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

    ffi, lib = get_ffi(), get_lib()
    lib.llama_backend_init()
    parameters = ffi.new("llama_model_quantize_params *", lib.llama_model_quantize_default_params())
    parameters.ftype = kind
    return int(lib.llama_model_quantize(os.fsencode(source), os.fsencode(target), parameters))


if __name__ == "__main__":
    raise SystemExit(bool(main(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
