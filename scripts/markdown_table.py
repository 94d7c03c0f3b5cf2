"""Print Markdown tables, one row at a time."""


def print_row(*cells: object) -> None:
    """Print a row."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def print_header(*columns: str) -> None:
    """Print the header of a table."""
    print_row(*columns)
    print("|---" * len(columns) + "|")
