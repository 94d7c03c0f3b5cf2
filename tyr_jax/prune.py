"""`python -m tyr_jax.prune`: see `tyr_jax.cli.prune`."""

from tyr_jax import process


def main() -> None:
    """Run the command."""
    process.launch("prune")


if __name__ == "__main__":
    main()
