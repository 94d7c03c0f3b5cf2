"""`python -m tyr_jax.export`: see `tyr_jax.cli.export`."""

from tyr_jax import process


def main(arguments: list[str] | None = None) -> None:
    """Run the command, with the arguments of the process if none are given."""
    process.launch("export", arguments)


if __name__ == "__main__":
    main()
