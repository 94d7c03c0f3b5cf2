"""`python -m tyr_jax.report`: see `tyr_jax.cli.report`."""

from tyr_jax.cli.report import main

if __name__ == "__main__":
    main()
