"""`python -m tyr_jax.finetune`: see `tyr_jax.cli.finetune`."""

from tyr_jax.process import entry_point

main = entry_point("finetune")

if __name__ == "__main__":
    main()
