"""`python -m tyr_jax.generate`: see `tyr_jax.cli.generate`."""

from tyr_jax import process


def main() -> None:
    """Run the command."""
    process.launch("generate")


if __name__ == "__main__":
    main()
