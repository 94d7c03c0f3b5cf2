"""`python -m tyr_jax.benchmark`: see `tyr_jax.cli.benchmark`."""

from tyr_jax.cli.benchmark import main

if __name__ == "__main__":
    main()
