"""`python -m tyr_jax.export`: see `tyr_jax.cli.export`."""

from tyr_jax.process import entry_point

main = entry_point("export")

if __name__ == "__main__":
    main()
