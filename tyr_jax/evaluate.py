"""`python -m tyr_jax.evaluate`: see `tyr_jax.cli.evaluate`."""

from tyr_jax.cli.evaluate import main

if __name__ == "__main__":
    main()
