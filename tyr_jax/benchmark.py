"""`python -m tyr_jax.benchmark`: see `tyr_jax.cli.benchmark`."""

from tyr_jax.process import entry_point

main = entry_point("benchmark")

if __name__ == "__main__":
    main()
