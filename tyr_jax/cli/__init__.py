"""The command lines: one module a command, each a thin shell over the Python API."""
