"""`python -m tyr_jax.evaluate`: see `tyr_jax.cli.evaluate`."""

from tyr_jax import process


def main() -> None:
    """Run the command."""
    process.launch("evaluate")


if __name__ == "__main__":
    main()
