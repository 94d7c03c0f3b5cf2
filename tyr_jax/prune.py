"""`python -m tyr_jax.prune`: see `tyr_jax.cli.prune`."""

from tyr_jax.process import entry_point

main = entry_point("prune")

if __name__ == "__main__":
    main()
