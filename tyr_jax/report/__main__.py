"""`python -m tyr_jax.report`: see `tyr_jax.cli.report`."""

from tyr_jax import process


def main(arguments: list[str] | None = None) -> None:
    """Run the command, with the arguments of the process if none are given."""
    process.launch("report", arguments)


if __name__ == "__main__":
    main()
