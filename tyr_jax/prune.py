"""`python -m tyr_jax.prune`: see `tyr_jax.cli.prune`."""

from tyr_jax.cli.prune import main

if __name__ == "__main__":
    main()
