"""`python -m tyr_jax.benchmark`: see `tyr_jax.cli.benchmark`."""

from tyr_jax import process


def main() -> None:
    """Run the command."""
    process.launch("benchmark")


if __name__ == "__main__":
    main()
