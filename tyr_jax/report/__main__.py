"""`python -m tyr_jax.report`: see `tyr_jax.cli.report`."""

from tyr_jax.process import entry_point

main = entry_point("report")

if __name__ == "__main__":
    main()
