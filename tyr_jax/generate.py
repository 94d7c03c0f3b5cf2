"""`python -m tyr_jax.generate`: see `tyr_jax.cli.generate`."""

from tyr_jax import process


def main(arguments: list[str] | None = None) -> None:
    """Run the command, with the arguments of the process if none are given."""
    process.launch("generate", arguments)


if __name__ == "__main__":
    main()
