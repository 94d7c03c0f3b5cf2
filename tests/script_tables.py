"""The scripts, and the tables that they print."""

from pathlib import Path

SCRIPTS = Path(__file__).parents[1] / "scripts"

Rows = list[list[str]]
"""Cells of the Markdown rows that a script prints."""
