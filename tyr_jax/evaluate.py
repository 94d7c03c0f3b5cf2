"""`python -m tyr_jax.evaluate`: see `tyr_jax.cli.evaluate`."""

from tyr_jax.process import entry_point

main = entry_point("evaluate")

if __name__ == "__main__":
    main()
