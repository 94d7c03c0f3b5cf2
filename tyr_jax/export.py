"""`python -m tyr_jax.export`: see `tyr_jax.cli.export`."""

from tyr_jax import process


def main() -> None:
    """Run the command."""
    process.launch("export")


if __name__ == "__main__":
    main()
