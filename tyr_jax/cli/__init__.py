"""The command lines: one module per command, each a thin shell over the Python API."""
