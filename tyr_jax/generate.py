"""`python -m tyr_jax.generate`: see `tyr_jax.cli.generate`."""

from tyr_jax.process import entry_point

main = entry_point("generate")

if __name__ == "__main__":
    main()
