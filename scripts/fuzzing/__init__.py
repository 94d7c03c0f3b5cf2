"""Malformed input for every command: what is made of it, and the sandbox that the commands run in."""
