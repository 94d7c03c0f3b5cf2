"""`python -m tyr_jax.finetune`: see `tyr_jax.cli.finetune`."""

from tyr_jax import process


def main() -> None:
    """Run the command."""
    process.launch("finetune")


if __name__ == "__main__":
    main()
