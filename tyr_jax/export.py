"""`python -m tyr_jax.export`: see `tyr_jax.cli.export`."""

from tyr_jax.cli.export import main

if __name__ == "__main__":
    main()
