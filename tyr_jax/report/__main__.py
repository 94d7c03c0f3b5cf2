"""`python -m tyr_jax.report`: see `tyr_jax.cli.report`."""

from tyr_jax import process


def main() -> None:
    """Run the command."""
    process.launch("report")


if __name__ == "__main__":
    main()
