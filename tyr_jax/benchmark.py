"""`python -m tyr_jax.benchmark`: see `tyr_jax.cli.benchmark`."""

from tyr_jax import process


def main(arguments: list[str] | None = None) -> None:
    """Run the command, with the arguments of the process if none are given."""
    process.launch("benchmark", arguments)


if __name__ == "__main__":
    main()
