"""Malformed input for every command, and the sandbox that the commands run in."""
