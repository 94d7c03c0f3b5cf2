"""`python -m tyr_jax.generate`: see `tyr_jax.cli.generate`."""

from tyr_jax.cli.generate import main

if __name__ == "__main__":
    main()
